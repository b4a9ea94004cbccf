"""Batches of a split, as tests make and compare them."""
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from mixer.data import pipeline


def reopened(settings: Mapping[str, Any], **more: Any) -> pipeline.Data:
  """Opens a split as a new process would: no source is remembered."""
  pipeline._open.cache_clear()
  return pipeline.open_data(**{**settings, **more})


def train(data: pipeline.Data, size: int, first: int, last: int, seed: int = 0,
          slots: tuple[int, int] | None = None) -> list[dict[str, np.ndarray]]:
  """Returns the training batches [first, last) of `size` rows.

  Batches of positions get the images and labels that the device would look up.
  """
  return list(_looked_up(data, data.train_batches(
      seed=seed, batch_size=size, first=first, last=last,
      slots=slots or (0, size))))


def evaluate(data: pipeline.Data, size: int, processes: int = 1,
             process: int = 0) -> list[dict[str, np.ndarray]]:
  """Returns the evaluation batches of a process, `size` rows each."""
  return list(_looked_up(data, data.eval_batches(
      batch_size=size * processes,
      slots=(process * size, (process + 1) * size))))


def assert_equal(one: Sequence[Mapping[str, np.ndarray]],
                 other: Sequence[Mapping[str, np.ndarray]]) -> None:
  """Checks that batches are equal in names, dtypes and values."""
  assert len(one) == len(other)
  for a, b in zip(one, other):
    assert a.keys() == b.keys()
    for key in a:
      assert a[key].dtype == b[key].dtype
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def _looked_up(data, batches: Iterable[dict[str, np.ndarray]]
               ) -> Iterator[dict[str, np.ndarray]]:
  for batch in batches:
    yield batch if data.resident is None else {
        **batch, **{k: v[batch['position']] for k, v in data.resident.items()}}
