"""Reads checkpoints: a run's whole state, or the parameters without the run."""
from collections.abc import Iterator
import contextlib
import logging
import os
from typing import Any

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from mixer.core import checkpoint
from mixer.core import errors
from mixer.core import files
from mixer.core import processes
from mixer.core import trees
from mixer.core import workdir
from mixer.core.log import log

_State = tuple[trees.Tree, trees.Tree, dict[str, Any]]   # params, rest, meta


def restore(checkpoints: checkpoint.Checkpoints, params: trees.Tree,
            rest: trees.Tree) -> _State | None:
  """Restores the newest checkpoint of a run that is intact.

  If the newest one is damaged, the log says so and the one before it is
  restored.

  Args:
    checkpoints: of the run.
    params, rest: trees of jax.ShapeDtypeStruct with shardings, as `save` got.

  Returns:
    (params, rest, meta), or None if nothing was ever saved.

  Raises:
    RunError: if there are checkpoints and none can be read; the run never
      starts from scratch over them.
  """
  steps, damage = checkpoints.steps(), ''
  for step in reversed(steps):
    found, damage = None, 'another process cannot read it'
    try:
      found = _restored(checkpoints.directory, step, params, rest)
    except Exception as e:
      damage = str(e)
    # Damage may be in a part that only one process reads, so all agree on
    # whether it could be read before they compute the checksum together.
    intact = processes.all_agree(found is not None)
    if found is not None and intact:
      if found[2]['digest'] == checkpoint.digest(*found[:2]):
        return found
      damage = 'its checksum does not match: a bit has changed on disk'
    log.warning('checkpoint %s/%d cannot be used (%s); trying an earlier one',
                checkpoints.directory, step, _one_line(damage))
  if steps:
    raise errors.RunError(
        f'none of the checkpoints {steps} in {checkpoints.directory!r} can be '
        f'read; the last error: {_one_line(damage)}')
  return None


def _restored(directory: str, step: int, params: trees.Tree,
              rest: trees.Tree) -> _State:
  """Restores this process's part of one checkpoint.

  It does not wait for the other processes: if reading fails in one of them,
  the wait would never end.
  """
  own = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
      primary_host=own, active_processes={own},
      barrier_sync_key_prefix=f'process{own}')
  with ocp.CheckpointManager(
      files.absolute(directory), item_names=checkpoint.ITEMS,
      options=ocp.CheckpointManagerOptions(
          read_only=True, multiprocessing_options=alone)) as manager:
    out = manager.restore(step, args=ocp.args.Composite(
        params=ocp.args.StandardRestore(params),
        rest=ocp.args.StandardRestore(rest), meta=ocp.args.JsonRestore()))
  return out['params'], out['rest'], out['meta']


def find(path: files.Path, best: bool = False) -> str:
  """Returns the directory of one checkpoint.

  Args:
    path: that directory itself, or a workdir.
    best: in a workdir, take the best checkpoint instead of the latest.

  Raises:
    UserError: if there is none.
  """
  where = epath.Path(files.absolute(path))
  if (where / 'params').is_dir():
    if best:
      raise errors.UserError(f'{str(where)!r} is one checkpoint; leave out '
                             '--best or start.best, or give its workdir')
    return str(where)
  root = where / workdir.CHECKPOINTS
  if not root.is_dir():
    raise errors.UserError(
        f'{str(where)!r} is neither a workdir with checkpoints/ nor one of its '
        'checkpoints')
  steps = [int(p.name) for p in root.iterdir() if p.name.isdecimal()]
  if not steps:
    raise errors.UserError(f'{str(root)!r} holds no checkpoint yet')
  return str(root / str(_best(where, steps) if best else max(steps)))


def _best(path: epath.Path, steps: list[int]) -> int:
  """Returns the saved step with the highest `checkpoint.best` of its run."""
  config = workdir.config_of(path) or {}
  metric = config.get('checkpoint', {}).get('best')
  with ocp.CheckpointManager(path / workdir.CHECKPOINTS,
                             item_names=checkpoint.ITEMS) as manager:
    metrics = {s: manager.metrics(s) or {} for s in steps}
  scored = [(m[metric], s) for s, m in metrics.items() if metric in m]
  if not scored:
    raise errors.UserError(
        f'{str(path)!r} kept no best checkpoint: checkpoint.best was '
        f'{metric!r} and no checkpoint has it')
  return max(scored)[1]


def load_params(path: str, average: bool = False) -> dict[str, Any]:
  """Returns the parameters in one checkpoint directory, as NumPy arrays.

  Args:
    path: of the directory.
    average: whether to take the averaged parameters, see `run.average`.

  Raises:
    UserError: if they are not there, cannot be read, or their checksum does not
      match.
  """
  step, item = os.path.basename(path), 'rest' if average else 'params'
  try:
    with _quiet(), ocp.CheckpointManager(
        os.path.dirname(path), item_handlers=dict(
            {item: ocp.StandardCheckpointHandler()},
            meta=ocp.JsonCheckpointHandler()),
        options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
      # Restore to this process's first device: by default Orbax looks for the
      # devices that saved, of which there may have been more.
      shapes = manager.item_metadata(int(step))[item]
      device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
      abstract = jax.tree.map(
          lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
          shapes.tree if hasattr(shapes, 'tree') else shapes)
      out = manager.restore(int(step), args=ocp.args.Composite(
          meta=ocp.args.JsonRestore(),
          **{item: ocp.args.StandardRestore(abstract)}))
    params, expected = out[item], out['meta']['digest'][0]
    if average:
      expected = out['meta'].get('average')
      params = params['opt_state']['average'] if expected else None
  except Exception as e:
    raise errors.UserError(f'{path!r} cannot be read: {_one_line(e)}') from e
  if expected is None:
    raise errors.UserError(f'{path!r} has no averaged parameters; '
                           'train with run.average, such as 0.999')
  if trees.digest(params).tolist() != expected:
    raise errors.UserError(f'{path!r} is damaged: its checksum does not match')
  return jax.tree.map(np.asarray, params)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Hides Orbax's warnings about items that are left out on purpose."""
  logger = logging.getLogger('absl')
  before = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(before)


def _one_line(error: object) -> str:
  """Returns the text of an error as one line of at most 300 characters."""
  return ' '.join(str(error).split())[:300]
