"""Finds the other processes of a run: by flags, Slurm, Open MPI, GKE or TPUs.

`jax.distributed.initialize` reads the coordinator's address, the number of
processes and this one's index from the environment by itself. This module adds
what JAX 0.10.2 does not do: it tells a process that runs alone from one of
several, gives a process every GPU it may use (JAX gives it one), and explains
what is missing before JAX waits for processes that cannot come.
"""
import glob
import importlib.util
import os
import re
import socket
import time
from typing import Any
import urllib.request

from mixer.core import errors

_METADATA = ('http://metadata.google.internal/computeMetadata/v1/instance/'
             'attributes/')
_METADATA_TRIES = 3


def find(coordinator: str | None = None, num_processes: int | None = None,
         process_id: int | None = None) -> dict[str, Any] | None:
  """Returns how this process joins the others, or None if it runs alone.

  No device is touched. Without any of the three arguments, the environment
  decides: Open MPI, Slurm, an indexed Kubernetes job, or a TPU slice.

  Args:
    coordinator: HOST:PORT of process 0.
    num_processes: the number of processes; 1 needs no other argument and means
      that this process runs alone, whatever the environment says.
    process_id: the index of this process, from 0.

  Returns:
    Arguments of `jax.distributed.initialize`; it finds the rest by itself.

  Raises:
    UserError: if the arguments do not fit together, or the environment does not
      say all that JAX needs.
    PeerLost: if the cloud's metadata server does not answer.
  """
  given = (coordinator, num_processes, process_id)
  if given == (None, 1, None):
    return None
  if given == (None, None, None):
    return _by_environment()
  return _by_flags(coordinator, num_processes, process_id)


def _by_flags(coordinator: str | None, num_processes: int | None,
              process_id: int | None) -> dict[str, Any]:
  if coordinator is None or num_processes is None or process_id is None:
    missing = [name for name, value in (
        ('--coordinator', coordinator), ('--num_processes', num_processes),
        ('--process_id', process_id)) if value is None]
    raise errors.UserError(
        f'{", ".join(missing)}: missing; start each of several processes with '
        '--coordinator=HOST:PORT --num_processes=N --process_id=I')
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdigit():
    raise errors.UserError(
        f'--coordinator: expected HOST:PORT, got {coordinator!r}')
  if process_id >= num_processes:
    raise errors.UserError(
        f'--process_id: expected less than --num_processes={num_processes}, '
        f'got {process_id}')
  return dict(coordinator_address=coordinator, num_processes=num_processes,
              process_id=process_id, cluster_detection_method='deactivate')


def _by_environment() -> dict[str, Any] | None:
  # Open MPI comes before Slurm: inside a Slurm job, mpirun may have started its
  # daemons as a job step, whose variables all its processes inherit.
  if _number('OMPI_COMM_WORLD_SIZE', 1) > 1:
    found = _gpus(_number('OMPI_COMM_WORLD_LOCAL_RANK', 0),
                  _number('OMPI_COMM_WORLD_LOCAL_SIZE', 1))
    if 'OMPI_MCA_orte_hnp_uri' in os.environ:   # set by Open MPI 4 and older
      return found
    if importlib.util.find_spec('mpi4py') is None:
      raise errors.UserError(
          '--coordinator: missing, and Open MPI 5 does not say where process 0 '
          'is; give the three flags, with --process_id=$OMPI_COMM_WORLD_RANK, '
          'or pip install mpi4py')
    return dict(found, cluster_detection_method='mpi4py')
  # sbatch's own script has SLURM_NTASKS, but is not a job step: it runs alone.
  if 'SLURM_STEP_NODELIST' in os.environ and _number(
      'SLURM_STEP_NUM_TASKS', _number('SLURM_NTASKS', 1)) > 1:
    return _gpus(_number('SLURM_LOCALID', 0), _slurm_tasks_on_node())
  # On TPUs JAX finds the pods of a job by the variables that GKE sets for TPUs.
  if 'KUBERNETES_SERVICE_HOST' in os.environ and (
      'JOB_COMPLETION_INDEX' in os.environ) and _tpu_hosts() < 1:
    if importlib.util.find_spec('kubernetes') is None:
      raise errors.UserError(
          '--coordinator: missing, and finding process 0 of an indexed '
          'Kubernetes job needs a package: pip install kubernetes, or give the '
          'three flags, or --num_processes=1 for a process that runs alone')
    return {}
  return {} if _tpu_hosts() > 1 else None


def _slurm_tasks_on_node() -> int:
  """Returns the number of this job step's tasks on this node.

  Slurm lists them by node: '8(x2),4' means 8, 8 and 4.
  """
  text = os.environ.get('SLURM_STEP_TASKS_PER_NODE',
                        os.environ.get('SLURM_TASKS_PER_NODE', ''))
  tasks = [int(n) for n, times in re.findall(r'(\d+)(?:\(x(\d+)\))?', text)
           for _ in range(int(times or 1))]
  node = _number('SLURM_NODEID', 0)
  return tasks[node] if node < len(tasks) else 1


def _gpus(local_id: int, tasks: int) -> dict[str, list[int]]:
  """Returns the argument with this process's share of its node's GPUs.

  Args:
    local_id: the index of this process among those of the node.
    tasks: the number of processes on the node.
  """
  visible = os.environ.get('CUDA_VISIBLE_DEVICES')
  seen = (len(visible.split(',')) if visible
          else _number('SLURM_GPUS_ON_NODE', 0)
          or len(glob.glob('/dev/nvidia[0-9]*')))
  if not seen or os.environ.get('JAX_PLATFORMS') == 'cpu':
    return {}
  # The launcher may have shown each process its own GPUs already, as srun
  # --gpus-per-task does. Then all that are visible are this process's.
  if tasks == 1 or seen < max(tasks, _number('SLURM_GPUS_ON_NODE', 0)):
    return dict(local_device_ids=list(range(seen)))
  each, left = divmod(seen, tasks)
  if left:
    raise errors.UserError(
        f'{seen} GPUs cannot be shared equally by the {tasks} processes of '
        'this node; start a number of processes that divides them, or give '
        'each its own by CUDA_VISIBLE_DEVICES')
  return dict(local_device_ids=list(range(local_id * each,
                                          (local_id + 1) * each)))


def _tpu_hosts() -> int:
  """Returns how many hosts this job's TPU slices have; 0 without a TPU."""
  slices = _number('MEGASCALE_NUM_SLICES', 0)
  hosts = os.environ.get('TPU_PROCESS_ADDRESSES') or os.environ.get(
      'TPU_WORKER_HOSTNAMES')   # set by GKE
  if hosts:
    return (slices or 1) * len(hosts.split(','))
  wanted = os.environ.get('JAX_PLATFORMS') or 'tpu'
  there = os.path.exists('/dev/accel0') or os.path.exists('/dev/vfio/0')
  if 'tpu' not in wanted or not there or (
      importlib.util.find_spec('libtpu') is None):
    return 0
  hosts = _metadata('worker-network-endpoints')
  if not slices:
    found = re.search(r"MEGASCALE_NUM_SLICES:\s*'?(\d+)", _metadata('tpu-env'))
    slices = int(found[1]) if found else 1
  return slices * len(hosts.split(','))


def _metadata(attribute: str) -> str:
  """Returns an attribute of this cloud machine.

  Returns:
    '' if the machine has no such attribute, or is not in the cloud.

  Raises:
    PeerLost: if the metadata server does not answer. If that counted as ''
      instead, this host would train alone while the others wait for it.
  """
  request = urllib.request.Request(_METADATA + attribute,
                                   headers={'Metadata-Flavor': 'Google'})
  for tries in range(_METADATA_TRIES):
    time.sleep(tries)
    try:
      with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.read().decode()
    except OSError as e:   # URLError is one
      reason = getattr(e, 'reason', e)
      # Outside the cloud, the server's name does not resolve.
      if getattr(e, 'code', 0) == 404 or isinstance(reason, socket.gaierror):
        return ''
  raise errors.PeerLost(
      f'{request.full_url}: {reason}; it is unknown whether this TPU has other '
      'hosts: start again, with --num_processes=1 if it has none')


def _number(name: str, default: int) -> int:
  """Returns a number from the environment."""
  text = os.environ.get(name, '')
  return int(text) if text.isdigit() else default
