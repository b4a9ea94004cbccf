"""How a process finds the others, with a recorder in place of JAX's call.

No second process is started here; test_several does that.
"""
import importlib.util
import io
import os
import socket
import urllib.error

import jax
import pytest

from mixer.core import cluster
from mixer.core import errors
from mixer.core import processes

ENVIRONMENT = ('SLURM_', 'OMPI_', 'KUBERNETES_', 'JOB_', 'TPU_', 'MEGASCALE_',
               'CUDA_', 'JAX_PLATFORMS', 'JAX_COORDINATOR')
ENDPOINTS = 'worker-network-endpoints'


@pytest.fixture(autouse=True)
def calls(monkeypatch):
  """The arguments of each call of `jax.distributed.initialize`.

  The environment is that of a process started alone, without a GPU.
  """
  for name in list(os.environ):
    if name.startswith(ENVIRONMENT):
      monkeypatch.delenv(name)
  made = []
  monkeypatch.setattr(jax.distributed, 'initialize',
                      lambda **given: made.append(given))
  monkeypatch.setattr(cluster.glob, 'glob', lambda pattern: [])
  before = jax.config.jax_cpu_collectives_implementation
  yield made
  jax.config.update('jax_cpu_collectives_implementation', before)


def set_environment(monkeypatch, **variables):
  for name, value in variables.items():
    monkeypatch.setenv(name, str(value))


def join(calls):
  """The arguments that a process joins with, or None if it runs alone.

  Those that are the same everywhere are checked and left out.
  """
  calls.clear()
  processes.join(heartbeat_timeout_seconds=7)
  if not calls:
    return None
  given, = calls
  assert given.pop('heartbeat_timeout_seconds') == 7
  assert given.pop('shutdown_timeout_seconds') > 0
  assert given.pop('initialization_timeout') > 0
  return given


def slurm(monkeypatch, tasks, per_node, local_id=0, **more):
  """Sets what srun sets; the first two variables describe the allocation."""
  set_environment(
      monkeypatch, SLURM_JOB_ID=7, SLURM_JOB_NODELIST='gpu[03-04]',
      SLURM_STEP_NODELIST='gpu[03-04]', SLURM_STEP_NUM_TASKS=tasks,
      SLURM_NTASKS=tasks, SLURM_PROCID=local_id, SLURM_LOCALID=local_id,
      SLURM_STEP_TASKS_PER_NODE=per_node, **more)


def test_a_process_started_alone_joins_nobody(calls):
  assert join(calls) is None


def test_slurm_tasks_share_the_gpus_of_their_node(calls, monkeypatch):
  slurm(monkeypatch, 1, '1', SLURM_GPUS_ON_NODE=8)
  assert join(calls) is None
  slurm(monkeypatch, 16, '8(x2)', local_id=5, SLURM_GPUS_ON_NODE=8)
  assert join(calls) == dict(local_device_ids=[5])
  slurm(monkeypatch, 2, '1(x2)', SLURM_GPUS_ON_NODE=8)
  assert join(calls) == dict(local_device_ids=list(range(8)))
  slurm(monkeypatch, 8, '4,4', local_id=1, SLURM_GPUS_ON_NODE=8)
  assert join(calls) == dict(local_device_ids=[2, 3])


def test_slurm_nodes_may_have_different_numbers_of_tasks(calls, monkeypatch):
  slurm(monkeypatch, 18, '4(x2),8,2', local_id=5, SLURM_GPUS_ON_NODE=8,
        SLURM_NODEID=2)
  assert join(calls) == dict(local_device_ids=[5])


def test_gpus_that_tasks_cannot_share_equally_are_an_error(calls, monkeypatch):
  slurm(monkeypatch, 6, '3(x2)', local_id=1, SLURM_GPUS_ON_NODE=8,
        SLURM_NODEID=1)
  with pytest.raises(errors.UserError,
                     match='8 GPUs cannot be shared equally by the 3'):
    join(calls)


def test_a_slurm_task_uses_all_gpus_that_only_it_can_see(calls, monkeypatch):
  """As with srun --gpus-per-task=1, where each task's GPU has number 0."""
  slurm(monkeypatch, 16, '8(x2)', local_id=5, SLURM_GPUS_ON_NODE=8,
        CUDA_VISIBLE_DEVICES=5)
  assert join(calls) == dict(local_device_ids=[0])
  slurm(monkeypatch, 2, '2', local_id=1, SLURM_GPUS_ON_NODE=4,
        CUDA_VISIBLE_DEVICES='0,1')
  assert join(calls) == dict(local_device_ids=[0, 1])


def test_a_slurm_batch_script_runs_alone(calls, monkeypatch):
  """It is in an allocation of 16 tasks, but not in a step that srun starts."""
  set_environment(monkeypatch, SLURM_JOB_ID=7, SLURM_NTASKS=16, SLURM_PROCID=0,
                  SLURM_LOCALID=0, SLURM_JOB_NODELIST='gpu[03-04]')
  assert join(calls) is None


def test_without_gpus_slurm_leaves_devices_to_jax(calls, monkeypatch):
  slurm(monkeypatch, 2, '1(x2)')
  assert join(calls) == {}


def test_open_mpi_processes_share_the_gpus_of_their_node(calls, monkeypatch):
  set_environment(monkeypatch, OMPI_COMM_WORLD_SIZE=1)
  assert join(calls) is None
  set_environment(
      monkeypatch, OMPI_COMM_WORLD_SIZE=4, OMPI_COMM_WORLD_LOCAL_RANK=1,
      OMPI_COMM_WORLD_LOCAL_SIZE=2, CUDA_VISIBLE_DEVICES='0,1,2,3',
      OMPI_MCA_orte_hnp_uri='1531576320.0;tcp://10.96.0.1:34911')
  assert join(calls) == dict(local_device_ids=[2, 3])


def test_open_mpi_is_found_before_the_slurm_job_around_it(calls, monkeypatch):
  """mpirun's daemons are a Slurm step of one task per node. The processes that
  the daemons start inherit its variables."""
  slurm(monkeypatch, 3, '1(x3)', SLURM_GPUS_ON_NODE=4)
  set_environment(
      monkeypatch, OMPI_COMM_WORLD_SIZE=12, OMPI_COMM_WORLD_LOCAL_RANK=1,
      OMPI_COMM_WORLD_LOCAL_SIZE=4, OMPI_MCA_orte_hnp_uri='x')
  assert join(calls) == dict(local_device_ids=[1])


def test_open_mpi_5_needs_mpi4py(calls, monkeypatch):
  set_environment(monkeypatch, OMPI_COMM_WORLD_SIZE=4,
                  OMPI_COMM_WORLD_LOCAL_RANK=1, OMPI_COMM_WORLD_LOCAL_SIZE=2)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.UserError, match='pip install mpi4py'):
    join(calls)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
  assert join(calls) == dict(cluster_detection_method='mpi4py')


def test_a_single_process_on_a_node_has_all_its_gpus(calls, monkeypatch):
  """Also if no variable says how many; JAX would use the first GPU alone."""
  monkeypatch.setattr(cluster.glob, 'glob', lambda pattern: [
      f'/dev/nvidia{i}' for i in range(4)])
  slurm(monkeypatch, 2, '1(x2)')
  assert join(calls) == dict(local_device_ids=[0, 1, 2, 3])
  for name in ('SLURM_STEP_NODELIST', 'SLURM_STEP_NUM_TASKS'):
    monkeypatch.delenv(name)
  set_environment(
      monkeypatch, OMPI_COMM_WORLD_SIZE=2, OMPI_COMM_WORLD_LOCAL_RANK=0,
      OMPI_COMM_WORLD_LOCAL_SIZE=1, OMPI_MCA_orte_hnp_uri='x')
  assert join(calls) == dict(local_device_ids=[0, 1, 2, 3])


@pytest.mark.parametrize('variables, several', [
    (dict(TPU_WORKER_HOSTNAMES='job-0.svc,job-1.svc', TPU_WORKER_ID=1), True),
    (dict(TPU_PROCESS_ADDRESSES='10.0.0.1:8471,10.0.0.2:8471'), True),
    (dict(TPU_WORKER_HOSTNAMES='job-0.svc', TPU_WORKER_ID=0), False),
    (dict(TPU_WORKER_HOSTNAMES='job-0.svc', MEGASCALE_NUM_SLICES=2), True),
    # An indexed Kubernetes job too, but JAX needs no package to find its TPUs.
    (dict(TPU_WORKER_HOSTNAMES='job-0.svc,job-1.svc', JOB_COMPLETION_INDEX=1,
          KUBERNETES_SERVICE_HOST='10.0.0.1'), True),
])
def test_gke_names_the_hosts_of_a_tpu_slice(
    calls, monkeypatch, variables, several):
  set_environment(monkeypatch, **variables)
  assert join(calls) == ({} if several else None)


def on_tpu_vm(monkeypatch, device='/dev/vfio/0', **attributes):
  """Fakes a machine with a TPU, and the metadata server's attributes."""
  exists = cluster.os.path.exists
  monkeypatch.setattr(cluster.os.path, 'exists',
                      lambda path: path == device or exists(path))
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)

  def urlopen(request, timeout):
    assert request.get_header('Metadata-flavor') == 'Google' and timeout <= 10
    name = request.full_url.rpartition('/')[2]
    if name not in attributes:
      raise urllib.error.HTTPError(request.full_url, 404, 'Not Found', {}, None)
    if isinstance(attributes[name], Exception):
      raise attributes[name]
    return io.BytesIO(attributes[name].encode())

  monkeypatch.setattr(cluster.urllib.request, 'urlopen', urlopen)


@pytest.mark.parametrize('attributes, several', [
    ({ENDPOINTS: 'unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2'}, True),
    ({ENDPOINTS: 'unknown:unknown:10.0.0.1'}, False),
    ({ENDPOINTS: 'unknown:unknown:10.0.0.1',
      'tpu-env': "ZONE: 'x'\nMEGASCALE_NUM_SLICES: '2'\n"}, True),
    ({ENDPOINTS: 'unknown:unknown:10.0.0.1', 'tpu-env': "ZONE: 'x'"}, False),
    ({}, False),
    ({ENDPOINTS: urllib.error.URLError(socket.gaierror('no host'))}, False),
])
def test_the_metadata_server_names_the_hosts_of_a_tpu_slice(
    calls, monkeypatch, attributes, several):
  on_tpu_vm(monkeypatch, **attributes)
  assert join(calls) == ({} if several else None)
  monkeypatch.setenv('JAX_PLATFORMS', '')   # means the same as no variable
  assert join(calls) == ({} if several else None)
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')   # runs alone, without the TPU
  assert join(calls) is None


def test_the_older_driver_of_a_tpu_is_known_too(calls, monkeypatch):
  on_tpu_vm(monkeypatch, '/dev/accel0', **{ENDPOINTS: 'a,b'})
  assert join(calls) == {}


@pytest.mark.parametrize('error', [
    TimeoutError('timed out'), urllib.error.URLError(TimeoutError('timed out')),
    urllib.error.HTTPError('', 503, 'Service Unavailable', {}, None)])
def test_a_metadata_server_without_an_answer_is_asked_again_then_an_error(
    calls, monkeypatch, error):
  """The host of a slice must not take itself for the only one."""
  monkeypatch.setattr(cluster.time, 'sleep', lambda seconds: None)
  on_tpu_vm(monkeypatch, **{ENDPOINTS: error})
  with pytest.raises(errors.PeerLost, match='network-endpoints.*start again'):
    join(calls)
  assert not calls
  tries = []
  def later(request, timeout):
    tries.append(request)
    if len(tries) < 3:
      raise error
    return io.BytesIO(b'unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2')
  monkeypatch.setattr(cluster.urllib.request, 'urlopen', later)
  assert join(calls) == {} and len(tries) > 2


def test_without_a_tpu_the_metadata_server_is_not_asked(calls, monkeypatch):
  monkeypatch.setattr(cluster.urllib.request, 'urlopen', None)
  assert join(calls) is None


def test_an_indexed_kubernetes_job_needs_its_package(calls, monkeypatch):
  set_environment(monkeypatch, KUBERNETES_SERVICE_HOST='10.0.0.1',
                  JOB_COMPLETION_INDEX=1)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.UserError, match='pip install kubernetes'):
    join(calls)
  processes.join(num_processes=1)   # as the error suggests
  assert not calls
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
  assert join(calls) == {}
  monkeypatch.delenv('JOB_COMPLETION_INDEX')   # any other pod
  assert join(calls) is None


def test_the_three_flags_override_the_environment(calls, monkeypatch):
  slurm(monkeypatch, 16, '8(x2)', SLURM_GPUS_ON_NODE=8)
  processes.join(coordinator='10.0.0.1:1234', num_processes=2, process_id=1)
  given, = calls
  assert given['coordinator_address'] == '10.0.0.1:1234'
  assert (given['num_processes'], given['process_id']) == (2, 1)
  assert given['cluster_detection_method'] == 'deactivate'
  assert jax.config.jax_cpu_collectives_implementation == 'gloo'
  calls.clear()
  processes.join(coordinator='[fd00::1]:1234', num_processes=2, process_id=0)
  assert calls[0]['coordinator_address'] == '[fd00::1]:1234'


@pytest.mark.parametrize('given, words', [
    (dict(coordinator='a:1'), ['--num_processes', '--process_id', 'missing']),
    (dict(process_id=0), ['--coordinator', '--num_processes', 'missing']),
    (dict(coordinator='a', num_processes=2, process_id=0),
     ['--coordinator', 'HOST:PORT', "'a'"]),
    (dict(coordinator='a:b', num_processes=2, process_id=0), ["'a:b'"]),
    (dict(coordinator=':1', num_processes=2, process_id=0), ["':1'"]),
    (dict(coordinator='a:1', num_processes=2, process_id=2),
     ['--process_id', 'less than', '2']),
])
def test_flags_that_do_not_fit_together_are_an_error(calls, given, words):
  with pytest.raises(errors.UserError) as e:
    processes.join(**given)
  for word in words:
    assert word in str(e.value)
  assert not calls
