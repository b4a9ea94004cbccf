"""Writes checkpoints: Orbax's files, with checksums.

Orbax restores a flipped bit without noticing. So a checksum of every leaf is
saved as metadata; `checkpoint_reader` checks it.
"""
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import os
from typing import Any

from etils import epath
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

from mixer.core import errors
from mixer.core import files
from mixer.core import processes
from mixer.core import trees

ITEMS = ('params', 'rest', 'meta')


class Checkpoints:
  """A run's checkpoints, `DIRECTORY/STEP/`, written in the background."""

  def __init__(self, directory: files.Path, *, every: int = 1000, keep: int = 2,
               best: str | None = None):
    """Opens a directory; the other arguments are the `checkpoint` section.

    Args:
      directory: is made if it does not exist.
      every: steps between checkpoints; the last step is always saved.
      keep: how many of the latest checkpoints to keep.
      best: a metric, such as 'eval/test/accuracy', evaluated before each
        checkpoint. Each new highest value is saved at once and kept as well.

    Raises:
      UserError: if a value is out of range.
    """
    if every < 1 or keep < 1:
      raise errors.UserError('checkpoint: expected every and keep of at least '
                             f'1, got {every} and {keep}')
    self.directory, self.every, self.best = str(directory), every, best
    keepers = [managers.LatestN(keep)]
    if best:
      keepers.append(managers.BestN(
          get_metric_fn=_metric(best), n=1, reverse=False))
    root = epath.Path(files.absolute(self.directory))
    # Orbax would remove partial checkpoints in a thread that nothing waits for.
    for partial in ocp.utils.tmp_checkpoints(root) if processes.first() else ():
      partial.get().rmtree()
    processes.meet('partial checkpoints are gone')
    self._manager = ocp.CheckpointManager(
        root, item_names=ITEMS,
        options=ocp.CheckpointManagerOptions(
            save_decision_policy=managers.FixedIntervalPolicy(1),
            preservation_policy=managers.AnyPreservationPolicy(keepers),
            best_fn=_metric(best) if best else None,
            cleanup_tmp_directories=False))
    self._begun: int | None = None   # the step that was saved last
    self._top = self._best_saved()

  def steps(self) -> list[int]:
    """Returns all saved steps, ascending."""
    return sorted(self._manager.all_steps())

  def improves(self, metrics: Mapping[str, float]) -> bool:
    """Returns whether `best` is higher than in every checkpoint so far."""
    return self.best is not None and _metric(self.best)(metrics) > self._top

  def save(self, step: int, params: trees.Tree, rest: trees.Tree,
           meta: Mapping[str, Any],
           metrics: Mapping[str, float] | None = None,
           average: trees.Tree | None = None) -> None:
    """Begins to save a step; does nothing if it is saved already.

    Args:
      step: the number of updates done.
      params: the parameters.
      rest: all other arrays of the training state.
      meta: what else a resumed run needs, fit for JSON.
      metrics: of the evaluation; `best` is one of them.
      average: of the parameters, a subtree of `rest` that is named so.

    Raises:
      RunError: if this or an earlier checkpoint cannot be written.
    """
    self.wait()   # as the manager does, but an error names the earlier step
    with self._writing():
      if step in self._manager.all_steps():
        return
      self._begun = step
      if self.best:
        self._top = max(self._top, _metric(self.best)(metrics))
      meta = dict(meta, step=step, digest=digest(params, rest))
      if average is not None:
        meta['average'], = digest(average)
      self._manager.save(
          step, force=True, metrics=metrics or {}, args=ocp.args.Composite(
              params=ocp.args.StandardSave(params),
              rest=ocp.args.StandardSave(rest), meta=ocp.args.JsonSave(meta)))

  def wait(self) -> None:
    """Waits until all checkpoints are on disk.

    Raises:
      RunError: if one cannot be written.
    """
    with self._writing():
      self._manager.wait_until_finished()
      self._manager.check_for_errors()

  def set_aside_after(self, step: int, why: str = 'damaged') -> None:
    """Renames checkpoints after a step to 'STEP.damaged', or another `why`.

    Renamed, they are not lost, and a run that goes on from the step can save
    those steps again. Their scores no longer count in `improves`.
    """
    root = epath.Path(files.absolute(self.directory))
    for later in self.steps() if processes.first() else ():
      if later > step:
        name = f'{later}.{why}'
        taken = sum(p.name.startswith(name) for p in root.iterdir())
        (root / str(later)).rename(root / f'{name}{taken or ""}')
    processes.meet('later checkpoints are set aside')
    self._manager.reload()
    self._top = self._best_saved()

  def close(self) -> None:
    """Waits for checkpoints being written, and removes an empty directory."""
    self._manager.close()
    with contextlib.suppress(OSError):   # it is not empty, or in a bucket
      os.rmdir(files.absolute(self.directory))

  def _best_saved(self) -> float:
    """Returns the highest `best` of the checkpoints that are there."""
    scores = map(self._manager.metrics, self.steps() if self.best else ())
    return max(map(_metric(self.best or ''), scores), default=-np.inf)

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Turns Orbax's errors into a RunError; those of a lost peer go on."""
    try:
      yield
    except (ValueError, OSError) as e:
      if processes.lost(e):
        raise
      raise errors.RunError(
          f'the checkpoint of step {self._begun} could not be written to '
          f'{self.directory!r} (is the disk full?); earlier ones are intact: '
          f'{str(e)[:300]}') from e


def digest(*parts: trees.Tree) -> list[list[int]]:
  """Returns a checksum of every leaf of each tree, as checkpoints keep them.
  """
  return [trees.digest(part).tolist() for part in parts]


def _metric(name: str) -> Callable[[Mapping[str, float] | None], float]:
  return lambda metrics: (metrics or {}).get(name, -np.inf)
