"""What the processes of one run do together: join, agree, wait, leave.

Each process has some of the devices and reads its own rows of every batch. Only
process 0 logs, and writes the files that all share. When one process dies, the
others end too: JAX ends them when heartbeats are missing, and a collective
operation that fails earlier raises an error, which `lost` recognises.

A process that runs alone starts none of this.
"""
import os
import re
import socket
import sys

from mixer.core import errors
from mixer.core.log import log

# How long a process waits for the others to join. It is less than QUICK_SECONDS
# of launch/restart.sh, which gives up a process that ends so soon every time.
_JOIN_SECONDS = 200
_SHUTDOWN_SECONDS = 60   # how long a finished process waits for the others
# Words of JAX's errors that mean that another process is gone.
_GONE = ('UNAVAILABLE', 'DEADLINE_EXCEEDED', 'ABORTED', 'CANCELLED', 'gloo',
         'Gloo', 'NCCL', 'heartbeat', 'coordination service', 'Connection')
# One of these is there wherever `cluster.find` finds other processes by itself.
_LAUNCHED = ('OMPI_COMM_WORLD_SIZE', 'SLURM_STEP_NODELIST',
             'JOB_COMPLETION_INDEX', 'TPU_PROCESS_ADDRESSES',
             'TPU_WORKER_HOSTNAMES')
_TPUS = ('/dev/accel0', '/dev/vfio/0')


def join(*, coordinator: str | None = None, num_processes: int | None = None,
         process_id: int | None = None, heartbeat_timeout_seconds: int = 30,
         stoppable: bool = False) -> None:
  """Joins the other processes, if there are any, before any device is used.

  Args:
    coordinator, num_processes, process_id: as `cluster.find` takes them.
    heartbeat_timeout_seconds: a process that is silent for so long counts as
      dead, and the others end.
    stoppable: whether the command asks a `watchdog.Guard` after each step. If
      so, JAX handles SIGTERM and tells all processes to stop after the same
      step; if not, SIGTERM ends the process.

  Raises:
    UserError: if the arguments do not fit together, or the environment does not
      say all that JAX needs.
    PeerLost: if the processes cannot connect. If the others never come, JAX
      itself ends the process, with exit code 134.
  """
  if (coordinator, num_processes, process_id) == (None, None, None) and not (
      any(name in os.environ for name in _LAUNCHED)
      or any(map(os.path.exists, _TPUS))):
    return
  from mixer.core import cluster  # few machines start several processes
  found = cluster.find(coordinator, num_processes, process_id)
  if found is None:
    return
  import jax
  jax.config.update('jax_enable_preemption_service', stoppable)
  # JAX warns about proxy variables, and takes even no_proxy for one.
  if not any('_proxy' in name and not name.startswith('no_')
             for name in map(str.lower, os.environ)):
    jax.config.update('jax_check_proxy_envs', False)
  # Only CPUs use this setting; GPUs and TPUs have collectives of their own.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  # Said before waiting, because JAX may end the process without an exception.
  where = found.get('coordinator_address')
  log.info('waiting  for the other processes%s, up to %d s',
           f' at {where}' if where else '', _JOIN_SECONDS)
  try:
    jax.distributed.initialize(
        initialization_timeout=_JOIN_SECONDS,
        heartbeat_timeout_seconds=heartbeat_timeout_seconds,
        shutdown_timeout_seconds=_SHUTDOWN_SECONDS, **found)
  except (RuntimeError, ValueError, OSError) as e:
    raise errors.PeerLost(
        f'the processes of this run could not connect: {e}; check that all of '
        'them were started with the same --coordinator, and that its port is '
        'free and can be reached') from e
  if jax.process_index():
    log.setLevel('WARNING')   # process 0 logs for all


def several() -> bool:
  """Returns whether this is one of several processes; touches no device."""
  # A command that has not imported JAX has not joined anything either.
  jax = sys.modules.get('jax')
  return jax is not None and jax.distributed.is_initialized()


def first() -> bool:
  """Returns whether this is process 0, which logs and writes for all."""
  import jax
  return jax.process_index() == 0


def table() -> list[tuple[int, str, str]]:
  """Returns (process, host, devices) of all processes; all must call it."""
  import jax
  from jax.experimental import multihost_utils
  import numpy as np
  name = np.zeros(64, np.uint8)
  host = socket.gethostname().encode()[:64]
  name[:len(host)] = np.frombuffer(host, np.uint8)
  rows = []
  for process, host in enumerate(multihost_utils.process_allgather(name)):
    own = [d for d in jax.devices() if d.process_index == process]
    rows.append((process, bytes(host).rstrip(b'\0').decode(),
                 f'{len(own)} x {own[0].device_kind}'))
  return rows


def all_agree(here: bool) -> bool:
  """Returns whether `here` is true on all processes; all must call it."""
  import jax
  if jax.process_count() == 1:
    return here
  from jax.experimental import multihost_utils
  import numpy as np
  return bool(multihost_utils.process_allgather(np.array(here)).all())


def of_first(number: int) -> int:
  """Returns process 0's value of an int32; all processes must call it."""
  import jax
  if jax.process_count() == 1:
    return number
  from jax.experimental import multihost_utils
  import numpy as np
  return int(multihost_utils.broadcast_one_to_all(np.array(number, np.int32)))


def meet(name: str) -> None:
  """Returns when all processes have called it with the same name."""
  import jax
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils
    multihost_utils.sync_global_devices(name)


def leave() -> None:
  """Waits until the others leave too, so that none takes another for dead."""
  if not several():
    return
  import jax
  try:
    jax.distributed.shutdown()
  except RuntimeError as e:
    log.warning('the other processes did not end in good order: %s',
                str(e).splitlines()[0])


def lost(error: Exception) -> bool:
  """Returns whether an error means that another process is gone."""
  if not several():
    return False
  import jax
  # A failed collective raises either class, with a status in front.
  text = str(error)
  return isinstance(error, (jax.errors.JaxRuntimeError, ValueError)) and bool(
      re.match('[A-Z_]+: ', text)) and 'out of memory' not in text.lower() and (
          any(word in text for word in _GONE))
