"""What processes do together, as far as one process can tell.

Runs of several processes are in test_several, how they find each other is in
test_cluster.
"""
import sys

import jax
import jax.numpy as jnp
import pytest

from mixer.core import checkpoint
from mixer.core import errors
from mixer.core import processes

# What JAX raises when another process is gone.
PEER_IS_GONE = ('UNKNOWN: Gloo all-reduce failed: Connection closed by peer',
                'UNAVAILABLE: failed to connect to all addresses')


def test_a_process_that_runs_alone_waits_for_nobody():
  assert not processes.several() and processes.first()
  assert processes.all_agree(True) and not processes.all_agree(False)
  assert processes.of_first(7) == 7
  processes.meet('no one')
  processes.leave()


def test_asking_for_other_processes_does_not_import_jax():
  held = sys.modules.pop('jax')
  try:
    assert not processes.several() and 'jax' not in sys.modules
  finally:
    sys.modules['jax'] = held


@pytest.mark.parametrize('error', [
    RuntimeError('DEADLINE_EXCEEDED: Barrier timed out'),
    ValueError('coordinator_address should be defined.'),
    jax.errors.JaxRuntimeError('UNAVAILABLE: failed to connect'),
    OSError('no route to host'),
])
def test_a_failed_connection_says_what_to_check(monkeypatch, error):
  def initialize(**given):
    raise error
  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  with pytest.raises(errors.PeerLost) as e:
    processes.join(coordinator='a:1', num_processes=2, process_id=0)
  assert str(error) in str(e.value) and 'could not connect' in str(e.value)
  assert '--coordinator' in str(e.value)


@pytest.mark.parametrize('message', PEER_IS_GONE)
@pytest.mark.parametrize('kind', [jax.errors.JaxRuntimeError, ValueError])
def test_an_error_of_a_collective_means_that_a_peer_is_lost(
    monkeypatch, kind, message):
  assert not processes.lost(kind(message))   # a single process has no peers
  monkeypatch.setattr(processes, 'several', lambda: True)
  assert processes.lost(kind(message))


@pytest.mark.parametrize('error', [
    jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory'),
    jax.errors.JaxRuntimeError('INTERNAL: NCCL operation ncclCommInitRank('
                               '...) failed: out of memory'),
    ValueError('Connection'), OSError('UNAVAILABLE: Connection reset'),
    ValueError('a heartbeat: no'), KeyError('gloo')], ids=repr)
def test_other_errors_do_not_mean_that_a_peer_is_lost(monkeypatch, error):
  monkeypatch.setattr(processes, 'several', lambda: True)
  assert not processes.lost(error)


def test_a_peer_lost_while_saving_is_not_reported_as_a_full_disk(
    monkeypatch, tmp_path):
  """After a full disk, the launchers do not start the run again."""
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
      patch.setattr(checkpoints._manager, name, fail(ValueError(PEER_IS_GONE[0])))
      with pytest.raises(errors.RunError, match='disk full'):
        call()
      patch.setattr(processes, 'several', lambda: True)
      with pytest.raises(ValueError, match='Gloo'):
        call()
  checkpoints.close()
