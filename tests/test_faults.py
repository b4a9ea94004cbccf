"""Commands end in one line if a device fails, and outlive a closed pipe."""
import os
import subprocess
import sys

from absl import flags
import jax
import jax.numpy as jnp
import ml_collections
import pytest

from mixer.core import errors
from mixer.core import faults
from tests.test_errors import ROOT


def command(code, **kwargs):
  """Starts a process that runs `code` as a command."""
  return subprocess.Popen(
      [sys.executable, '-c', 'import os, sys\nfrom mixer.core import command\n'
       f'from mixer.core import errors\ndef main(argv):\n{code}\n'
       'command.run(main)'], cwd=ROOT, text=True, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, **kwargs)


@pytest.mark.parametrize('name', ['stdout', 'stderr'])
def test_a_reader_that_leaves_changes_neither_work_nor_exit_code(
    name, tmp_path):
  process = command(
      f'  for _ in range(20_000): print("text", file=sys.{name})\n'
      f'  open({str(tmp_path / "done")!r}, "w").close()\n'
      '  raise errors.RunError("why")')
  pipe = getattr(process, name)
  assert pipe.readline() == 'text\n'
  pipe.close()
  assert process.wait(timeout=60) == 1
  assert (tmp_path / 'done').exists()
  if name == 'stdout':
    assert process.stderr.read() == 'error: why\n'


@pytest.mark.parametrize('code', [
    '  import jax; jax.devices()',
    # As when a command wraps whatever reading a checkpoint raises.
    '  import jax\n  try: jax.devices()\n'
    '  except Exception as e: raise errors.UserError("cannot read:") from e'])
def test_a_missing_device_is_one_line(code):
  process = command(code, env=dict(os.environ, JAX_PLATFORMS='cuda'))
  _, said = process.communicate(timeout=100)
  assert process.returncode == 2
  assert said.startswith('error: JAX_PLATFORMS=cuda: ')
  assert said.count('\n') == 1


def test_an_error_that_stands_for_itself_is_shown_as_it_is():
  process = command(
      '  import jax\n  try: jax.devices()\n'
      '  except Exception: raise errors.UserError("no slice v3:3x3") from None',
      env=dict(os.environ, JAX_PLATFORMS='cuda'))
  assert process.communicate(timeout=100)[1] == 'error: no slice v3:3x3\n'
  assert process.returncode == 2


def test_used_up_memory_names_what_to_lower(monkeypatch):
  """The error is a real one, of an array that no machine holds."""
  with pytest.raises(jax.errors.JaxRuntimeError) as caught:
    jnp.zeros((1 << 30, 1 << 18)).block_until_ready()
  values = flags.FlagValues()
  flags.DEFINE_integer('batch_size', 48, 'help', flag_values=values)
  values.mark_as_parsed()
  monkeypatch.setattr(flags, 'FLAGS', values)
  told = faults.explain(caught.value, flags)
  assert type(told) is errors.RunError
  assert 'lower --batch_size (now 48)' in str(told)
  config = ml_collections.ConfigDict(
      dict(run=dict(batch_size=4096, micro_batches=2)))
  flags.DEFINE_string('config', None, 'help', flag_values=values)
  values['config'].value = config
  for part in ('run.batch_size (now 4096)', 'run.micro_batches (now 2)',
               'model.remat', 'mixer.plan'):
    assert part in str(faults.explain(caught.value, flags))


@pytest.mark.parametrize('text, kind', [
    ('INTERNAL: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was '
     'encountered', errors.PeerLost),
    ('INTERNAL: Core halted unexpectedly', errors.PeerLost),
    ('RESOURCE_EXHAUSTED: CUDA_ERROR_OUT_OF_MEMORY', errors.RunError),
    ('INVALID_ARGUMENT: a shape is wrong', jax.errors.JaxRuntimeError)])
def test_a_broken_device_is_a_reason_to_start_again(text, kind):
  told = faults.explain(jax.errors.JaxRuntimeError(text), flags)
  assert type(told) is kind
