"""Measures the accuracy that a quantised ONNX file loses, on evaluation splits.

The file is evaluated like the network, in the network's place.
"""
from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer.analysis import scoring
from mixer.core import workdir
from mixer.pretrained import network as networks
from mixer.pretrained import program

_BATCH = 32
# By evaluation: the accuracy, and the likeliest class of each image.
Scores = dict[str, tuple[float, list[str]]]


@dataclasses.dataclass(frozen=True)
class _File:
  """An exported file in place of a model; called outside of jit only."""
  num_classes: int
  run: program.Run
  options: program.Options

  def apply(self, variables, images):
    """Returns (logits, or logarithms of probabilities; no intermediates)."""
    del variables
    x = np.asarray(images)
    if self.options.preprocess:   # undo what evaluation does to uint8 images
      x = np.rint(x * 127.5 + 127.5).astype(np.uint8)
    if self.options.layout == 'nchw':
      x = x.transpose(0, 3, 1, 2)
    out = self.run(x)
    if self.options.preprocess:
      out = np.log(np.maximum(out, np.finfo(np.float32).tiny))
    return jnp.asarray(out), {}


def config_of(network: networks.Network,
              data: str | None) -> dict[str, Any] | None:
  """Returns the evaluations to measure on, or None if none are known.

  Args:
    network: the network that is exported.
    data: a data set in place of those of the network's run, all of it.

  Raises:
    UserError: as `scoring.requested`.
  """
  run = workdir.run_of(network.name)
  if not data and not (run and workdir.config_of(run)):
    return None
  config = scoring.requested(scoring.config_of(network, data), network,
                             data=data)
  return scoring.alone(config, *config['evals']) if config['evals'] else None


def measure(network: networks.Network, config: Mapping[str, Any],
            most: int) -> Scores:
  """Returns how accurate a network is, and what it takes each image for.

  Args:
    network: the network.
    config: as `config_of` returns it.
    most: images of each split; of a longer one, the first.

  Raises:
    UserError: if a split cannot be opened, or has other classes.
  """
  results, predictions = scoring.evaluate(network, config, batch_size=_BATCH,
                                          worst=0, most=most)
  best: dict[str, list[str]] = {name: [] for name in results['evals']}
  for row in predictions:
    if 'classes' in row:
      best[row['eval']].append(row['classes'][0])
  return {name: (scores['accuracy'], best[name])
          for name, scores in results['evals'].items()}


def measure_file(network: networks.Network, path: str,
                 options: program.Options,
                 config: Mapping[str, Any], most: int) -> Scores:
  """Returns `measure` of the ONNX file that a network was exported to.

  Args:
    network: the network.
    path: of the file.
    options: what it was exported with; no `input_size`, because evaluation
      gives images of the network's own size.
    config, most: as `measure` takes them.
  """
  file: Any = _File(network.model.num_classes, program.open_onnx(path), options)
  with jax.disable_jit():   # ONNX Runtime computes, which jit cannot trace
    return measure(dataclasses.replace(network, model=file), config, most)


def rows(before: Scores, after: Scores) -> list[tuple[str, ...]]:
  """Returns a row of text for each evaluation: its name, the images, both
  accuracies, their difference in points, and how often predictions agree."""
  out: list[tuple[str, ...]] = []
  for name, (plain, ours) in before.items():
    small, theirs = after[name]
    same = sum(a == b for a, b in zip(ours, theirs))
    out.append((name, f'{len(ours):,}', f'{plain:.2%}', f'{small:.2%}',
                f'{100 * (small - plain):+.2f}', f'{same / len(ours):.2%}'))
  return out
