"""Several processes of one run: how they find each other, and part.

A process alone starts nothing. Of several, each has some of the devices and
reads its rows of every batch; only process 0 writes. One that dies takes the
others down: JAX ends them itself when its heartbeat is missed, and what they
notice earlier, in a collective operation, ends them here.
"""
import glob
import importlib.util
import os
import re
import socket
import sys
import time
import urllib.request

from mixer.core import errors
from mixer.core.log import log

_METADATA = ('http://metadata.google.internal/computeMetadata/v1/instance/'
             'attributes/')
_METADATA_TRIES = 3
# That a process waits for the others to come: less than launch/restart.sh takes
# for a quick crash, so that it gives up one that never meets anybody.
_MEETING_SECONDS = 200
_SHUTDOWN_SECONDS = 60   # that those who are done wait for the others
# Of JAX's errors, those that tell of a peer that is gone.
_GONE = ('UNAVAILABLE', 'DEADLINE_EXCEEDED', 'ABORTED', 'CANCELLED', 'gloo',
         'Gloo', 'NCCL', 'heartbeat', 'coordination service', 'Connection')


def join(*, coordinator=None, num_processes=None, process_id=None,
         heartbeat_timeout_seconds=30, stoppable=False):
  """Meets the other processes, if there are any; before any use of a device.

  Args:
    coordinator: HOST:PORT of process 0.
    num_processes: how many they are; 1 needs no other flag.
    process_id: which this one is, from 0. Without these three the surroundings
      tell: Open MPI, Slurm, a TPU slice, or an indexed Kubernetes job.
    heartbeat_timeout_seconds: after which a silent process counts as dead, and
      the others end.
    stoppable: whether a `stop.Guard` will be asked, for which JAX takes SIGTERM
      over; else it ends the process.

  Raises:
    UserError: if they do not go together, or the surroundings do not tell all.
    PeerLost: if they cannot meet. Where the others just do not come, JAX ends
      the process itself, with code 134.
  """
  given = dict(coordinator=coordinator, num_processes=num_processes,
               process_id=process_id)
  if given == dict(coordinator=None, num_processes=1, process_id=None):
    return
  found = _given(**given) if any(
      v is not None for v in given.values()) else _by_surroundings()
  if found is None:
    return
  import jax
  jax.config.update('jax_enable_preemption_service', stoppable)
  # JAX warns of proxies, and takes no_proxy for one.
  if not any('_proxy' in name and not name.startswith('no_')
             for name in map(str.lower, os.environ)):
    jax.config.update('jax_check_proxy_envs', False)
  # Of CPUs; what GPUs and TPUs use is not this option's.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  where = found.get('coordinator_address')
  log.info('waiting  for the other processes%s, up to %d s',
           f' at {where}' if where else '', _MEETING_SECONDS)
  try:
    jax.distributed.initialize(
        initialization_timeout=_MEETING_SECONDS,
        heartbeat_timeout_seconds=heartbeat_timeout_seconds,
        shutdown_timeout_seconds=_SHUTDOWN_SECONDS, **found)
  except (RuntimeError, ValueError, OSError) as e:
    raise errors.PeerLost(
        f'the processes of this run did not meet: {e}; see that all were '
        'started, with the same --coordinator, and that its port is free and '
        'can be reached') from e
  if jax.process_index():
    log.setLevel('WARNING')   # process 0 speaks for all


def several():
  """Whether this is one of several processes; touches no device."""
  jax = sys.modules.get('jax')
  return jax is not None and jax.distributed.is_initialized()


def first():
  """Whether this is the process that speaks and writes for all."""
  import jax
  return jax.process_index() == 0


def table():
  """[(process, host, number and kind of devices)] of all, on every process."""
  import jax
  from jax.experimental import multihost_utils
  import numpy as np
  name = np.zeros(64, np.uint8)
  host = socket.gethostname().encode()[:64]
  name[:len(host)] = np.frombuffer(host, np.uint8)
  hosts = multihost_utils.process_allgather(name)
  rows = []
  for process, host in enumerate(hosts):
    own = [d for d in jax.devices() if d.process_index == process]
    rows.append((process, bytes(host).rstrip(b'\0').decode(),
                 f'{len(own)} x {own[0].device_kind}'))
  return rows


def all_agree(here):
  """Whether a bool is true on every process; all must ask."""
  import jax
  if jax.process_count() == 1:
    return here
  from jax.experimental import multihost_utils
  import numpy as np
  return bool(multihost_utils.process_allgather(np.array(here)).all())


def of_first(number):
  """An int32 as process 0 has it; all must ask."""
  import jax
  if jax.process_count() == 1:
    return number
  from jax.experimental import multihost_utils
  import numpy as np
  return int(multihost_utils.broadcast_one_to_all(np.array(number, np.int32)))


def meet(name):
  """Returns when every process has come here."""
  import jax
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils
    multihost_utils.sync_global_devices(name)


def leave():
  """Waits for the others to be done too, so that none thinks one is lost."""
  if not several():
    return
  import jax
  try:
    jax.distributed.shutdown()
  except RuntimeError as e:
    log.warning('the other processes did not end in good order: %s',
                str(e).splitlines()[0])


def lost(error):
  """Whether an error tells that another process is gone."""
  if not several():
    return False
  import jax
  # What a collective operation throws comes as either, its status in front.
  text = str(error)
  return isinstance(error, (jax.errors.JaxRuntimeError, ValueError)) and bool(
      re.match('[A-Z_]+: ', text)) and 'out of memory' not in text.lower() and (
          any(word in text for word in _GONE))


def _given(**given):
  missing = [f'--{key}' for key, value in given.items() if value is None]
  if missing:
    raise errors.UserError(
        f'{", ".join(missing)}: missing; of several processes each is started '
        'with --coordinator=HOST:PORT --num_processes=N --process_id=I')
  host, _, port = given['coordinator'].rpartition(':')
  if not host or not port.isdigit():
    raise errors.UserError('--coordinator: expected HOST:PORT, got '
                           f'{given["coordinator"]!r}')
  if given['process_id'] >= given['num_processes']:
    raise errors.UserError(
        f'--process_id: expected less than --num_processes='
        f'{given["num_processes"]}, got {given["process_id"]}')
  return dict(coordinator_address=given.pop('coordinator'),
              cluster_detection_method='deactivate', **given)


def _by_surroundings():
  """What a launcher has put into the environment, or None: keywords of
  `jax.distributed.initialize`, which finds the rest there by itself."""
  # Before Slurm: mpirun may have started its daemons as tasks of a step.
  if _number('OMPI_COMM_WORLD_SIZE', 1) > 1:
    found = _gpus(_number('OMPI_COMM_WORLD_LOCAL_RANK', 0),
                  _number('OMPI_COMM_WORLD_LOCAL_SIZE', 1))
    if 'OMPI_MCA_orte_hnp_uri' in os.environ:   # until Open MPI 4
      return found
    if importlib.util.find_spec('mpi4py') is None:
      raise errors.UserError(
          '--coordinator: Open MPI 5 does not tell where process 0 is; give '
          'the three flags, with --process_id=$OMPI_COMM_WORLD_RANK, or '
          'pip install mpi4py')
    return dict(found, cluster_detection_method='mpi4py')
  if 'SLURM_STEP_NODELIST' in os.environ and _number(
      'SLURM_STEP_NUM_TASKS', _number('SLURM_NTASKS', 1)) > 1:
    return _gpus(_number('SLURM_LOCALID', 0), _slurm_tasks_here())
  if 'KUBERNETES_SERVICE_HOST' in os.environ and (
      'JOB_COMPLETION_INDEX' in os.environ) and _tpu_workers() < 1:
    if importlib.util.find_spec('kubernetes') is None:
      raise errors.UserError(
          '--coordinator: an indexed Kubernetes job tells where process 0 is '
          'to the package kubernetes only; pip install kubernetes, or give '
          'the three flags; of a process alone --num_processes=1')
    return {}
  return {} if _tpu_workers() > 1 else None


def _slurm_tasks_here():
  """Of '8(x2),4' 4 on the third node."""
  text = os.environ.get('SLURM_STEP_TASKS_PER_NODE',
                        os.environ.get('SLURM_TASKS_PER_NODE', ''))
  tasks = [int(n) for n, times in re.findall(r'(\d+)(?:\(x(\d+)\))?', text)
           for _ in range(int(times or 1))]
  node = _number('SLURM_NODEID', 0)
  return tasks[node] if node < len(tasks) else 1


def _gpus(local_id, tasks):
  """This process's of the GPUs that it can see, where a node runs several."""
  visible = os.environ.get('CUDA_VISIBLE_DEVICES')
  seen = (len(visible.split(',')) if visible
          else _number('SLURM_GPUS_ON_NODE', 0)
          or len(glob.glob('/dev/nvidia[0-9]*')))
  if not seen or os.environ.get('JAX_PLATFORMS') == 'cpu':
    return {}
  # All, or what the launcher gave it alone, as srun --gpus-per-task does.
  if tasks == 1 or seen < max(tasks, _number('SLURM_GPUS_ON_NODE', 0)):
    return dict(local_device_ids=list(range(seen)))
  each, left = divmod(seen, tasks)
  if left:
    raise errors.UserError(
        f'{seen} GPUs cannot be shared by the {tasks} processes of this node; '
        'start as many that each gets as many, or show each its own by '
        'CUDA_VISIBLE_DEVICES')
  return dict(local_device_ids=list(range(local_id * each,
                                          (local_id + 1) * each)))


def _tpu_workers():
  """How many hosts the TPU slices of this job have; 0 without a TPU."""
  slices = _number('MEGASCALE_NUM_SLICES', 0)
  hosts = os.environ.get('TPU_PROCESS_ADDRESSES') or os.environ.get(
      'TPU_WORKER_HOSTNAMES')
  if hosts:
    return (slices or 1) * len(hosts.split(','))
  wanted = os.environ.get('JAX_PLATFORMS') or 'tpu'
  there = os.path.exists('/dev/accel0') or os.path.exists('/dev/vfio/0')
  if 'tpu' not in wanted or not there or (
      importlib.util.find_spec('libtpu') is None):
    return 0
  hosts = _metadata('worker-network-endpoints')
  if not slices:
    slices = re.search(r"MEGASCALE_NUM_SLICES:\s*'?(\d+)",
                       _metadata('tpu-env'))
    slices = int(slices[1]) if slices else 1
  return slices * len(hosts.split(','))


def _metadata(attribute):
  """What the cloud says of this machine, '' if it says nothing or there is no
  cloud. One that does not answer in time must not pass for that: the process
  would train alone while the others wait."""
  ask = urllib.request.Request(_METADATA + attribute,
                               headers={'Metadata-Flavor': 'Google'})
  for tries in range(_METADATA_TRIES):
    time.sleep(tries)
    try:
      with urllib.request.urlopen(ask, timeout=5) as answer:
        return answer.read().decode()
    except OSError as e:   # URLError is one
      reason = getattr(e, 'reason', e)
      if getattr(e, 'code', 0) == 404 or isinstance(reason, socket.gaierror):
        return ''
  raise errors.PeerLost(
      f'{ask.full_url}: {reason}; whether this TPU has other hosts cannot be '
      'told: start again, with --num_processes=1 if it has none')


def _number(name, default):
  text = os.environ.get(name, '')
  return int(text) if text.isdigit() else default
