"""Checkpoint files: Orbax, with an own digest and a fall-back.

Orbax restores a flipped bit silently, so a digest of every leaf lies in the
metadata and is verified. A damaged newest checkpoint is said aloud, and the
one before it is taken.
"""
import contextlib
import json
import logging
import os
import re

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

from mixer.core import errors
from mixer.core import files
from mixer.core import processes
from mixer.core import trees
from mixer.core.log import log

_ITEMS = ('params', 'rest', 'meta')


class Checkpoints:
  """The checkpoints of a run, `DIRECTORY/STEP/`; written asynchronously."""

  def __init__(self, directory, *, every=1000, keep=2, best=None):
    """A config's `checkpoint` section.

    Args:
      directory: made if missing.
      every: steps between checkpoints; the last step is always saved.
      keep: how many of the latest stay.
      best: metric, such as 'eval/test/accuracy', whose highest value is kept
        as well; None for none. It is evaluated before each checkpoint.

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
    if processes.first():
      _remove_partial(root)
    processes.meet('partial checkpoints are gone')
    self._manager = ocp.CheckpointManager(
        root, item_names=_ITEMS,
        options=ocp.CheckpointManagerOptions(
            save_decision_policy=managers.FixedIntervalPolicy(1),
            preservation_policy=managers.AnyPreservationPolicy(keepers),
            best_fn=_metric(best) if best else None,
            cleanup_tmp_directories=False))

  def latest(self):
    """The newest step saved, or None."""
    return self._manager.latest_step()

  def steps(self):
    """All steps saved, ascending."""
    return sorted(self._manager.all_steps())

  def save(self, step, params, rest, meta, metrics=None):
    """Begins to save; an earlier save that failed raises here."""
    try:
      self._manager.check_for_errors()
      if step in self._manager.all_steps():
        return
      meta = dict(meta, step=step, digest=_digest(params, rest))
      self._manager.save(
          step, force=True, metrics=metrics or {}, args=ocp.args.Composite(
              params=ocp.args.StandardSave(params),
              rest=ocp.args.StandardSave(rest), meta=ocp.args.JsonSave(meta)))
    except (ValueError, OSError) as e:
      if processes.lost(e):
        raise
      raise self._failed(step, e) from e

  def wait(self):
    """Returns when everything is on disk."""
    try:
      self._manager.wait_until_finished()
      self._manager.check_for_errors()
    except (ValueError, OSError) as e:
      if processes.lost(e):
        raise
      raise self._failed(self.latest(), e) from e

  def restore(self, params, rest):
    """The newest checkpoint that is whole.

    Args:
      params, rest: trees of jax.ShapeDtypeStruct with shardings.

    Returns:
      (params, rest, meta), or None if nothing was ever saved.

    Raises:
      RunError: if there are checkpoints and none can be read; the run never
        starts from scratch over them.
    """
    steps = self.steps()
    for step in reversed(steps):
      found = damaged = None
      try:
        found = self._restore(step, params, rest)
      except Exception as e:
        damaged = e
      # A part of it may be damaged, which only some processes read; its digest
      # they take together.
      if processes.all_agree(found is not None):
        if found[2]['digest'] == _digest(*found[:2]):
          return found
        damaged = 'its digest does not match: a bit has changed on disk'
      damaged = damaged or 'another process cannot read it'
      log.warning('checkpoint %s/%d cannot be used (%s); trying the one before '
                  'it', self.directory, step,
                  ' '.join(str(damaged).split())[:300])
    if steps:
      raise errors.RunError(
          f'none of the checkpoints {steps} in {self.directory!r} can be read; '
          f'the last error: {str(damaged)[:300]}')
    return None

  def set_aside_after(self, step):
    """Renames later ones, which could not be read, to 'STEP.damaged', so that
    those steps can be saved again and nothing is thrown away."""
    root = epath.Path(files.absolute(self.directory))
    for later in self.steps() if processes.first() else ():
      if later > step:
        taken = sum(p.name.startswith(f'{later}.damaged')
                    for p in root.iterdir())
        (root / str(later)).rename(root / f'{later}.damaged{taken or ""}')
    processes.meet('damaged checkpoints are set aside')
    self._manager.reload()

  def close(self):
    self._manager.close()

  def _restore(self, step, params, rest):
    """What this process has of (params, rest, meta). It waits for no other,
    which may have failed: that would be for ever."""
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own},
        barrier_sync_key_prefix=f'process{own}')
    with ocp.CheckpointManager(
        files.absolute(self.directory), item_names=_ITEMS,
        options=ocp.CheckpointManagerOptions(
            read_only=True, multiprocessing_options=alone)) as manager:
      out = manager.restore(step, args=ocp.args.Composite(
          params=ocp.args.StandardRestore(params),
          rest=ocp.args.StandardRestore(rest), meta=ocp.args.JsonRestore()))
    return out['params'], out['rest'], out['meta']

  def _failed(self, step, error):
    return errors.RunError(
        f'the checkpoint of step {step} could not be written to '
        f'{self.directory!r} (is the disk full?); earlier ones are intact: '
        f'{str(error)[:300]}')


def find(path, best=False):
  """The directory of one checkpoint: `path` itself, or the latest of a run.

  Raises:
    UserError: if there is none.
  """
  path = epath.Path(files.absolute(path))
  if (path / 'params').is_dir():
    return str(path)
  root = path / 'checkpoints'
  if not root.is_dir():
    raise errors.UserError(
        f'checkpoint: {str(path)!r} is neither a workdir with checkpoints/ nor '
        'one of its checkpoints')
  steps = [int(p.name) for p in root.iterdir() if re.fullmatch(r'\d+', p.name)]
  if not steps:
    raise errors.UserError(f'checkpoint: {str(root)!r} holds no checkpoint yet')
  if best:
    return str(root / str(_best(path, steps)))
  return str(root / str(max(steps)))


def _best(workdir, steps):
  """Of a run's saved steps the one with the highest `checkpoint.best`."""
  config = json.loads(files.read(workdir / 'config.json') or '{}')
  metric = config.get('checkpoint', {}).get('best')
  with ocp.CheckpointManager(workdir / 'checkpoints',
                             item_names=_ITEMS) as manager:
    metrics = {s: manager.metrics(s) or {} for s in steps}
  scored = [(m[metric], s) for s, m in metrics.items() if metric in m]
  if not scored:
    raise errors.UserError(
        f'checkpoint: {str(workdir)!r} kept no best one: checkpoint.best was '
        f'{metric!r} and no checkpoint has it')
  return max(scored)[1]


def load_params(path):
  """The parameters of one checkpoint directory, as NumPy arrays.

  Raises:
    UserError: if it cannot be read, or its digest does not match.
  """
  step = os.path.basename(path)
  try:
    with _quiet(), ocp.CheckpointManager(
        os.path.dirname(path), item_handlers=dict(
            params=ocp.StandardCheckpointHandler(),
            meta=ocp.JsonCheckpointHandler()),
        options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
      # The shapes, so as to have them on this device, whatever they were on.
      shapes = manager.item_metadata(int(step))['params']
      device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
      abstract = jax.tree.map(
          lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
          shapes.tree if hasattr(shapes, 'tree') else shapes)
      out = manager.restore(int(step), args=ocp.args.Composite(
          params=ocp.args.StandardRestore(abstract),
          meta=ocp.args.JsonRestore()))
    params, expected = out['params'], out['meta']['digest'][0]
  except Exception as e:
    raise errors.UserError(
        f'checkpoint: {path!r} cannot be read: '
        f'{" ".join(str(e).split())[:300]}') from e
  if np.asarray(trees.digest(params)).tolist() != expected:
    raise errors.UserError(f'checkpoint: {path!r} is damaged: its digest does '
                           'not match')
  return jax.tree.map(np.asarray, params)


@contextlib.contextmanager
def _quiet():
  """Orbax warns of every item that is rightly left out."""
  logger = logging.getLogger('absl')
  before = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(before)


def _remove_partial(root):
  """Removes what a killed process left half written. Orbax would do it in a
  thread that nobody waits for."""
  for partial in ocp.utils.tmp_checkpoints(root):
    partial.get().rmtree()


def _digest(params, rest):
  return [np.asarray(trees.digest(t)).tolist() for t in (params, rest)]


def _metric(name):
  return lambda metrics: (metrics or {}).get(name, -np.inf)
