"""How processes find each other, and where their arrays lie: by recorders and
shapes, with no second process. Real ones are in test_several."""
import importlib.util
import io
import socket
import sys
import urllib.error

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import pytest

from mixer import models
from mixer.core import checkpoint
from mixer.core import errors
from mixer.core import processes
from mixer.core import trees
from mixer.models.mixer import MlpMixer
from mixer.training import sharding

SURROUNDINGS = ('SLURM_', 'OMPI_', 'KUBERNETES_', 'JOB_', 'TPU_', 'MEGASCALE_',
                'CUDA_', 'JAX_PLATFORMS', 'JAX_COORDINATOR')


@pytest.fixture
def met(monkeypatch):
  """What `jax.distributed.initialize` is told; the surroundings are bare."""
  import os
  for name in list(os.environ):
    if name.startswith(SURROUNDINGS):
      monkeypatch.delenv(name)
  calls = []
  monkeypatch.setattr(jax.distributed, 'initialize',
                      lambda **given: calls.append(given))
  monkeypatch.setattr(processes.glob, 'glob', lambda pattern: [])
  before = jax.config.jax_cpu_collectives_implementation
  yield calls
  jax.config.update('jax_cpu_collectives_implementation', before)


def surround(monkeypatch, **variables):
  for name, value in variables.items():
    monkeypatch.setenv(name, str(value))


def join(met):
  """What of the call is not the same for all."""
  met.clear()
  processes.join(heartbeat_timeout_seconds=7)
  if not met:
    return None
  given, = met
  assert given.pop('heartbeat_timeout_seconds') == 7
  assert given.pop('shutdown_timeout_seconds') > 0
  assert given.pop('initialization_timeout') > 0
  return given


def slurm(monkeypatch, tasks, per_node, local_id=0, **more):
  """As srun sets them; of the allocation, not the step, are the first two."""
  surround(monkeypatch, SLURM_JOB_ID=7, SLURM_JOB_NODELIST='gpu[03-04]',
           SLURM_STEP_NODELIST='gpu[03-04]', SLURM_STEP_NUM_TASKS=tasks,
           SLURM_NTASKS=tasks, SLURM_PROCID=local_id, SLURM_LOCALID=local_id,
           SLURM_STEP_TASKS_PER_NODE=per_node, **more)


def test_alone_it_meets_nobody(met):
  assert join(met) is None
  assert not processes.several() and processes.first()
  assert processes.all_agree(True) and not processes.all_agree(False)
  processes.meet('no one')
  processes.leave()


def test_slurm(met, monkeypatch):
  slurm(monkeypatch, 1, '1', SLURM_GPUS_ON_NODE=8)
  assert join(met) is None
  slurm(monkeypatch, 16, '8(x2)', local_id=5, SLURM_GPUS_ON_NODE=8)
  assert join(met) == dict(local_device_ids=[5])
  slurm(monkeypatch, 2, '1(x2)', SLURM_GPUS_ON_NODE=8)
  assert join(met) == dict(local_device_ids=list(range(8)))
  slurm(monkeypatch, 8, '4,4', local_id=1, SLURM_GPUS_ON_NODE=8)
  assert join(met) == dict(local_device_ids=[2, 3])
  # A node of its own number of tasks.
  slurm(monkeypatch, 18, '4(x2),8,2', local_id=5, SLURM_GPUS_ON_NODE=8,
        SLURM_NODEID=2)
  assert join(met) == dict(local_device_ids=[5])
  slurm(monkeypatch, 6, '3(x2)', local_id=1, SLURM_GPUS_ON_NODE=8,
        SLURM_NODEID=1)
  with pytest.raises(errors.UserError, match='8 GPUs cannot be shared by'):
    join(met)
  monkeypatch.delenv('SLURM_NODEID')
  # srun --gpus-per-task=1 shows each its own, which is number 0 to it.
  slurm(monkeypatch, 16, '8(x2)', local_id=5, SLURM_GPUS_ON_NODE=8,
        CUDA_VISIBLE_DEVICES=5)
  assert join(met) == dict(local_device_ids=[0])
  slurm(monkeypatch, 2, '2', local_id=1, SLURM_GPUS_ON_NODE=4,
        CUDA_VISIBLE_DEVICES='0,1')
  assert join(met) == dict(local_device_ids=[0, 1])


def test_in_an_allocation_but_not_in_a_step_it_is_alone(met, monkeypatch):
  """sbatch's own script, before srun."""
  surround(monkeypatch, SLURM_JOB_ID=7, SLURM_NTASKS=16, SLURM_PROCID=0,
           SLURM_LOCALID=0, SLURM_JOB_NODELIST='gpu[03-04]')
  assert join(met) is None


def test_slurm_without_gpus_leaves_the_devices_to_jax(met, monkeypatch):
  slurm(monkeypatch, 2, '1(x2)')
  assert join(met) == {}


def test_open_mpi(met, monkeypatch):
  surround(monkeypatch, OMPI_COMM_WORLD_SIZE=1)
  assert join(met) is None
  surround(monkeypatch, OMPI_COMM_WORLD_SIZE=4, OMPI_COMM_WORLD_LOCAL_RANK=1,
           OMPI_COMM_WORLD_LOCAL_SIZE=2, CUDA_VISIBLE_DEVICES='0,1,2,3',
           OMPI_MCA_orte_hnp_uri='1531576320.0;tcp://10.96.0.1:34911')
  assert join(met) == dict(local_device_ids=[2, 3])


def test_open_mpi_in_a_slurm_job(met, monkeypatch):
  """Its daemons are a step of one task a node, whose children these are."""
  slurm(monkeypatch, 3, '1(x3)', SLURM_GPUS_ON_NODE=4)
  surround(monkeypatch, OMPI_COMM_WORLD_SIZE=12, OMPI_COMM_WORLD_LOCAL_RANK=1,
           OMPI_COMM_WORLD_LOCAL_SIZE=4, OMPI_MCA_orte_hnp_uri='x')
  assert join(met) == dict(local_device_ids=[1])


def test_open_mpi_5_needs_mpi4py(met, monkeypatch):
  surround(monkeypatch, OMPI_COMM_WORLD_SIZE=4, OMPI_COMM_WORLD_LOCAL_RANK=1,
           OMPI_COMM_WORLD_LOCAL_SIZE=2)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.UserError, match='pip install mpi4py'):
    join(met)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
  assert join(met) == dict(cluster_detection_method='mpi4py')


def test_a_process_for_each_node_has_all_its_gpus(met, monkeypatch):
  """Also where nobody says how many: JAX would take the first alone."""
  monkeypatch.setattr(processes.glob, 'glob', lambda pattern: [
      f'/dev/nvidia{i}' for i in range(4)])
  slurm(monkeypatch, 2, '1(x2)')
  assert join(met) == dict(local_device_ids=[0, 1, 2, 3])
  for name in ('SLURM_STEP_NODELIST', 'SLURM_STEP_NUM_TASKS'):
    monkeypatch.delenv(name)
  surround(monkeypatch, OMPI_COMM_WORLD_SIZE=2, OMPI_COMM_WORLD_LOCAL_RANK=0,
           OMPI_COMM_WORLD_LOCAL_SIZE=1, OMPI_MCA_orte_hnp_uri='x')
  assert join(met) == dict(local_device_ids=[0, 1, 2, 3])


@pytest.mark.parametrize('variables, several', [
    (dict(TPU_WORKER_HOSTNAMES='job-0.svc,job-1.svc', TPU_WORKER_ID=1), True),
    (dict(TPU_PROCESS_ADDRESSES='10.0.0.1:8471,10.0.0.2:8471'), True),
    (dict(TPU_WORKER_HOSTNAMES='job-0.svc', TPU_WORKER_ID=0), False),
    (dict(TPU_WORKER_HOSTNAMES='job-0.svc', MEGASCALE_NUM_SLICES=2), True),
    # An indexed job as well, which on TPUs JAX finds by its own names.
    (dict(TPU_WORKER_HOSTNAMES='job-0.svc,job-1.svc', JOB_COMPLETION_INDEX=1,
          KUBERNETES_SERVICE_HOST='10.0.0.1'), True),
])
def test_tpus_in_gke(met, monkeypatch, variables, several):
  surround(monkeypatch, **variables)
  assert join(met) == ({} if several else None)


def on_tpu_vm(monkeypatch, **attributes):
  """A machine with a TPU, and the metadata server's attributes."""
  exists = processes.os.path.exists
  monkeypatch.setattr(processes.os.path, 'exists',
                      lambda path: path == '/dev/vfio/0' or exists(path))
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)

  def urlopen(ask, timeout):
    assert ask.get_header('Metadata-flavor') == 'Google' and timeout <= 10
    name = ask.full_url.rpartition('/')[2]
    if name not in attributes:
      raise urllib.error.HTTPError(ask.full_url, 404, 'Not Found', {}, None)
    if isinstance(attributes[name], Exception):
      raise attributes[name]
    return io.BytesIO(attributes[name].encode())

  monkeypatch.setattr(processes.urllib.request, 'urlopen', urlopen)


ENDPOINTS = 'worker-network-endpoints'


@pytest.mark.parametrize('attributes, several', [
    ({ENDPOINTS: 'unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2'}, True),
    ({ENDPOINTS: 'unknown:unknown:10.0.0.1'}, False),
    ({ENDPOINTS: 'unknown:unknown:10.0.0.1',
      'tpu-env': "ZONE: 'x'\nMEGASCALE_NUM_SLICES: '2'\n"}, True),
    ({ENDPOINTS: 'unknown:unknown:10.0.0.1', 'tpu-env': "ZONE: 'x'"}, False),
    ({}, False),
    ({ENDPOINTS: urllib.error.URLError(socket.gaierror('no host'))}, False),
])
def test_tpu_slices_by_the_metadata_server(
    met, monkeypatch, attributes, several):
  on_tpu_vm(monkeypatch, **attributes)
  assert join(met) == ({} if several else None)
  monkeypatch.setenv('JAX_PLATFORMS', '')   # as if it were not set
  assert join(met) == ({} if several else None)
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')   # a host of it, on its own
  assert join(met) is None


@pytest.mark.parametrize('error', [
    TimeoutError('timed out'), urllib.error.URLError(TimeoutError('timed out')),
    urllib.error.HTTPError('', 503, 'Service Unavailable', {}, None)])
def test_a_silent_metadata_server_is_asked_again(met, monkeypatch, error):
  """One that stays silent does not make the host of a slice train alone."""
  on_tpu_vm(monkeypatch, **{ENDPOINTS: error})
  with pytest.raises(errors.PeerLost, match='network-endpoints.*start again'):
    join(met)
  assert not met
  tries = []
  def later(ask, timeout):
    tries.append(ask)
    if len(tries) < 3:
      raise error
    return io.BytesIO(b'unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2')
  monkeypatch.setattr(processes.urllib.request, 'urlopen', later)
  assert join(met) == {} and len(tries) > 2


def test_nobody_is_asked_without_a_tpu(met, monkeypatch):
  monkeypatch.setattr(processes.urllib.request, 'urlopen', None)
  assert join(met) is None


def test_an_indexed_kubernetes_job(met, monkeypatch):
  surround(monkeypatch, KUBERNETES_SERVICE_HOST='10.0.0.1',
           JOB_COMPLETION_INDEX=1)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.UserError, match='pip install kubernetes'):
    join(met)
  processes.join(num_processes=1)   # as it says
  assert not met
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
  assert join(met) == {}
  monkeypatch.delenv('JOB_COMPLETION_INDEX')   # any other pod
  assert join(met) is None


def test_the_three_flags_are_taken_over_the_surroundings(met, monkeypatch):
  slurm(monkeypatch, 16, '8(x2)', SLURM_GPUS_ON_NODE=8)
  processes.join(coordinator='10.0.0.1:1234', num_processes=2, process_id=1)
  given, = met
  assert given['coordinator_address'] == '10.0.0.1:1234'
  assert (given['num_processes'], given['process_id']) == (2, 1)
  assert given['cluster_detection_method'] == 'deactivate'
  assert jax.config.jax_cpu_collectives_implementation == 'gloo'
  met.clear()
  processes.join(coordinator='[fd00::1]:1234', num_processes=2, process_id=0)
  assert met[0]['coordinator_address'] == '[fd00::1]:1234'


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
def test_flags_that_do_not_go_together(met, given, words):
  with pytest.raises(errors.UserError) as e:
    processes.join(**given)
  for word in words:
    assert word in str(e.value)
  assert not met


@pytest.mark.parametrize('error', [
    RuntimeError('DEADLINE_EXCEEDED: Barrier timed out'),
    ValueError('coordinator_address should be defined.'),
    jax.errors.JaxRuntimeError('UNAVAILABLE: failed to connect'),
    OSError('no route to host'),
])
def test_who_meets_nobody_says_what_to_look_at(met, monkeypatch, error):
  def initialize(**given):
    raise error
  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  with pytest.raises(errors.PeerLost) as e:
    processes.join(coordinator='a:1', num_processes=2, process_id=0)
  assert str(error) in str(e.value) and 'did not meet' in str(e.value)
  assert '--coordinator' in str(e.value)


_GONE = ('UNKNOWN: Gloo all-reduce failed: Connection closed by peer',
         'UNAVAILABLE: failed to connect to all addresses')


@pytest.mark.parametrize('message', _GONE)
@pytest.mark.parametrize('kind', [jax.errors.JaxRuntimeError, ValueError])
def test_an_error_that_tells_of_a_peer(monkeypatch, kind, message):
  assert not processes.lost(kind(message))   # alone, nobody can be lost
  monkeypatch.setattr(processes, 'several', lambda: True)
  assert processes.lost(kind(message))


@pytest.mark.parametrize('error', [
    jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory'),
    jax.errors.JaxRuntimeError('INTERNAL: NCCL operation ncclCommInitRank('
                               '...) failed: out of memory'),
    ValueError('Connection'), OSError('UNAVAILABLE: Connection reset'),
    ValueError('a heartbeat: no'), KeyError('gloo')], ids=repr)
def test_an_error_of_its_own(monkeypatch, error):
  monkeypatch.setattr(processes, 'several', lambda: True)
  assert not processes.lost(error)


def test_a_peer_lost_while_saving_is_not_taken_for_a_full_disk(
    monkeypatch, tmp_path):
  """Which would not be started again."""
  checkpoints = checkpoint.Checkpoints(tmp_path / 'checkpoints')
  state = dict(a=jnp.ones(2))
  def fail(error):
    def raising(*args, **kwargs):
      raise error
    return raising
  for name, call in (
      ('save', lambda: checkpoints.save(1, state, state, {})),
      ('wait_until_finished', checkpoints.wait)):
    with monkeypatch.context() as patch:
      patch.setattr(checkpoints._manager, name, fail(ValueError(_GONE[0])))
      with pytest.raises(errors.RunError, match='disk full'):
        call()
      patch.setattr(processes, 'several', lambda: True)
      with pytest.raises(ValueError, match='Gloo'):
        call()
  checkpoints.close()


def test_python_alone_is_not_several():
  """Also for a command that has not loaded JAX."""
  held = sys.modules.pop('jax')
  try:
    assert not processes.several() and 'jax' not in sys.modules
  finally:
    sys.modules['jax'] = held


# Where the arrays lie.

WHOLE = P()
# B/16 on a mesh of 2 x 2 x 2: all that is not named here lies whole everywhere,
# for being small.
B16 = {
    'stem/kernel': P(None, None, None, 'fsdp'),
    'token_mixing/Dense_0/kernel': P(None, ('model', 'fsdp')),
    'token_mixing/Dense_1/kernel': P(('model', 'fsdp'), None),
    'channel_mixing/Dense_0/kernel': P('fsdp', 'model'),
    'channel_mixing/Dense_1/kernel': P('model', 'fsdp'),
    'head/kernel': P('fsdp', None),
}


def specs(plan, tree):
  return {name: s.spec for name, s in trees.flatten(
      plan.state(tree, MlpMixer.SHARDING_RULES)).items()}


def shapes_of(name):
  size = 14 * int(name.partition('/')[2])
  return jax.eval_shape(models.create(name).init, jax.random.key(0),
                        jnp.zeros((1, size, size, 3)))['params']


def same(spec):
  """Spellings of one layout: ('fsdp',) is 'fsdp', trailing None go."""
  axes = [a[0] if isinstance(a, tuple) and len(a) == 1 else a for a in spec]
  while axes and axes[-1] is None:
    axes.pop()
  return tuple(axes)


def expected(name, table):
  if name in table:
    return same(table[name])
  return same(next((spec for end, spec in table.items()
                    if name.endswith(f'/{end}')), WHOLE))


def test_every_parameter_of_b16_by_name():
  plan = sharding.plan(strategy='fsdp', fsdp=2, model=2)
  assert dict(plan.mesh.shape) == dict(data=2, fsdp=2, model=2)
  found = specs(plan, shapes_of('Mixer-B/16'))
  assert len(found) == 12 * 12 + 6
  for name, spec in found.items():
    assert same(spec) == expected(name, B16), name
  # All rules but those of large biases, and of everything else, are used.
  assert sum(same(s) != () for s in found.values()) == 12 * 4 + 2


def test_what_the_optimizer_keeps_lies_as_its_parameter():
  plan = sharding.plan(strategy='fsdp', model=2)
  params = shapes_of('Mixer-S/16')
  one = specs(plan, params)
  state = plan.state((dict(mu=params), [params],
                      jax.ShapeDtypeStruct((), int)), MlpMixer.SHARDING_RULES)
  for tree in (state[0]['mu'], state[1][0]):
    assert {n: s.spec for n, s in trees.flatten(tree).items()} == one
  assert state[2] == plan.replicated


@pytest.mark.parametrize('settings, axes', [
    (dict(), set()),
    (dict(strategy='fsdp'), {'fsdp'}),
    (dict(model=4), {'model'}),
    (dict(strategy='fsdp', fsdp=2), {'fsdp'}),
])
def test_a_strategy_cuts_along_its_axes_only(settings, axes):
  found = specs(sharding.plan(**settings), shapes_of('Mixer-B/16'))
  used = {a for spec in found.values() for axis in spec if axis
          for a in ((axis,) if isinstance(axis, str) else axis)}
  assert used == axes


def test_what_does_not_divide_stays_whole():
  plan = sharding.plan(strategy='fsdp', fsdp=4, model=2)
  leaf = lambda name, *shape: same(plan.state(
      {name: jax.ShapeDtypeStruct(shape, jnp.float32)},
      MlpMixer.SHARDING_RULES)[name].spec)
  # Both axes; of a side that both together do not divide, the first alone; of
  # one that is not even, none.
  kernel = 'token_mixing/Dense_0/kernel'
  assert leaf(kernel, 196, 384) == (None, ('model', 'fsdp'))
  assert leaf(kernel, 196, 386) == leaf(kernel, 196, 388) == (None, 'model')
  assert leaf(kernel, 196, 385) == ()
  assert leaf('head/kernel', 770, 1000) == ()
  assert leaf('channel_mixing/Dense_0/kernel', 770, 3072) == (None, 'model')
  # Any other name along its first side, and nothing that is small.
  assert leaf('embedding', 4096) == leaf('x/embedding', 512, 8) == ('fsdp',)
  assert leaf('embedding', 4095) == leaf('embedding', 4092) == ()
  assert leaf('channel_mixing/Dense_0/bias', 5120) == (('model', 'fsdp'),)
  assert leaf('channel_mixing/Dense_1/bias', 5120) == ('fsdp',)
  # A name that only ends like a rule's is another's.
  assert leaf('my_stem/kernel', 8, 16, 3, 768) == ('fsdp',)


@pytest.mark.parametrize('settings, words', [
    (dict(strategy='zero'), ["'zero'", 'fsdp']),
    (dict(model=3), ['sharding.model', '3', '8 devices']),
    (dict(model=0), ['sharding.model', '0']),
    (dict(model=16), ['sharding.model', '16']),
    (dict(fsdp=2), ['sharding.fsdp', '2', "strategy='fsdp'"]),
    (dict(strategy='fsdp', fsdp=3), ['sharding.fsdp', '3', '8 devices']),
    (dict(strategy='fsdp', fsdp=0), ['sharding.fsdp', '0']),
    (dict(strategy='fsdp', fsdp=-1), ['sharding.fsdp', '-1']),
    (dict(strategy='fsdp', fsdp=8, model=2), ['sharding.fsdp', '4 devices']),
])
def test_devices_that_cannot_be_arranged_so(settings, words):
  with pytest.raises(errors.UserError) as e:
    sharding.plan(**settings)
  for word in words:
    assert word in str(e.value)


def test_a_model_axis_stays_within_a_process():
  """4 devices of 2 processes: 4 may not share one network, 2 may."""
  class Device:
    def __init__(self, number, process):
      self.id, self.process_index = number, process
  devices = [Device(i, i // 2) for i in range(4)]
  with pytest.raises(errors.UserError, match='2 devices of a process'):
    sharding.plan(model=4, devices=devices)
