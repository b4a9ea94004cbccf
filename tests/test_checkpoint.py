"""Checkpoints come back bit for bit, and damage to them is noticed."""
import glob
import os
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer.core import checkpoint
from mixer.core import checkpoint_reader
from mixer.core import errors
from mixer.core import trees
from mixer.models.mixer import MlpMixer
from mixer.training import resume
from mixer.training import sharding


def state(step):
  rng = np.random.default_rng(step)
  params = {'layer': {'kernel': jnp.asarray(
      rng.normal(size=(128, 64)).astype(np.float32))}}
  rest = {'step': jnp.asarray(step, jnp.int32),
          'momentum': jnp.full((128, 64), step, jnp.bfloat16)}
  return params, rest


def abstract(tree, sharding_=None):
  place = sharding_ or jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def save(directory, steps, scores=None, **settings):
  checkpoints = checkpoint.Checkpoints(directory, **settings)
  for step in steps:
    checkpoints.save(step, *state(step), {'data': {'n': 1}},
                     scores and {'acc': scores[step]})
  checkpoints.wait()
  checkpoints.close()


def restore(directory):
  checkpoints = checkpoint.Checkpoints(directory)
  try:
    return checkpoint_reader.restore(checkpoints, *map(abstract, state(0)))
  finally:
    checkpoints.close()


def same(a, b):
  return all(np.array_equal(x, y) for x, y in zip(
      jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def largest_file(directory, step):
  files = [f for f in glob.glob(f'{directory}/{step}/params/**', recursive=True)
           if os.path.isfile(f)]
  return max(files, key=os.path.getsize)


def test_a_saved_state_is_restored_bit_for_bit(tmp_path):
  save(tmp_path, [3, 7])
  params, rest, meta = restore(tmp_path)
  assert same(params, state(7)[0]) and same(rest, state(7)[1])
  assert meta['data'] == {'n': 1} and meta['step'] == 7


@pytest.mark.parametrize('again', (False, True))
def test_a_full_disk_costs_no_earlier_checkpoint(tmp_path, again):
  """A limit on the size of files stands for it. The error names the step that
  could not be saved, also if it comes with the next one."""
  checkpoints = checkpoint.Checkpoints(tmp_path)
  # Larger than what the tests print, which may go into a file too.
  params, rest = {'kernel': jnp.asarray(np.random.default_rng(0).normal(
      size=(512, 512)).astype(np.float32))}, state(0)[1]
  save_step = lambda step: checkpoints.save(step, params, rest, {})
  save_step(1)
  checkpoints.wait()
  most, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, hard))
  try:
    with pytest.raises(errors.RunError, match='step 2 .*disk full'):
      save_step(2)
      save_step(3) if again else checkpoints.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
  found, _, meta = checkpoint_reader.restore(
      checkpoints, *map(abstract, (params, rest)))
  assert meta['step'] == 1 and same(found, params)
  checkpoints.close()


def test_the_latest_and_the_best_checkpoint_are_kept(tmp_path):
  save(tmp_path, [1, 2, 3, 4], {1: 0.2, 2: 0.9, 3: 0.5, 4: 0.4}, keep=1,
       best='acc')
  assert sorted(n for n in os.listdir(tmp_path) if n.isdigit()) == ['2', '4']


def test_a_new_best_is_higher_than_all_before_also_after_a_restart(tmp_path):
  save(tmp_path, [1, 2], {1: 0.9, 2: 0.2}, best='acc')
  checkpoints = checkpoint.Checkpoints(tmp_path, best='acc', keep=1)
  assert not checkpoints.improves({'acc': 0.9}) and not checkpoints.improves({})
  assert checkpoints.improves({'acc': 0.91})
  checkpoints.save(3, *state(3), {'data': {}}, {'acc': 0.95})
  assert not checkpoints.improves({'acc': 0.91})
  checkpoints.wait()
  checkpoints.close()
  assert [n for n in os.listdir(tmp_path) if n.isdigit()] == ['3']
  assert not checkpoint.Checkpoints(tmp_path / 'other').improves({'acc': 1.0})


def test_after_a_flipped_bit_the_checkpoint_before_is_restored(
    tmp_path, caplog):
  save(tmp_path, [3, 7])
  file = largest_file(tmp_path, 7)
  data = bytearray(open(file, 'rb').read())
  data[len(data) // 2] ^= 1
  open(file, 'wb').write(data)
  with caplog.at_level('WARNING', logger='mixer'):
    params, _, meta = restore(tmp_path)
  assert meta['step'] == 3 and same(params, state(3)[0])
  assert '7 cannot be used' in caplog.text
  with pytest.raises(errors.UserError, match='damaged|cannot be read'):
    checkpoint_reader.load_params(str(tmp_path / '7'))


def test_a_damaged_checkpoint_is_renamed_and_its_step_saved_again(tmp_path):
  save(tmp_path, [3, 7])
  os.remove(largest_file(tmp_path, 7))
  checkpoints = checkpoint.Checkpoints(tmp_path)
  _, _, meta = checkpoint_reader.restore(
      checkpoints, *map(abstract, state(0)))
  assert meta['step'] == 3
  checkpoints.set_aside_after(3)
  assert checkpoints.steps() == [3] and (tmp_path / '7.damaged').is_dir()
  checkpoints.save(7, *state(7), {'data': {}})
  checkpoints.wait()
  checkpoints.close()
  assert same(restore(tmp_path)[0], state(7)[0])


def test_a_checkpoint_that_is_set_aside_is_no_longer_the_best(tmp_path):
  """The next best is saved, though the lost one was better; a run that is
  started again finds the same."""
  save(tmp_path, [1, 2], {1: .5, 2: .9}, keep=2, best='acc')
  checkpoints = checkpoint.Checkpoints(tmp_path, keep=1, best='acc')
  assert not checkpoints.improves({'acc': .6})
  checkpoints.set_aside_after(1, 'skipped')
  assert checkpoints.improves({'acc': .6})
  assert not checkpoints.improves({'acc': .5})
  for step, score in ((2, .4), (3, .3)):
    checkpoints.save(step, *state(step), {}, {'acc': score})
  checkpoints.close()
  assert sorted(os.listdir(tmp_path)) == ['1', '2.skipped', '3']
  assert checkpoint.Checkpoints(tmp_path, best='acc').improves({'acc': .6})


def test_if_all_checkpoints_are_truncated_the_run_does_not_start_from_scratch(
    tmp_path):
  save(tmp_path, [3, 7])
  for step in (7, 3):
    file = largest_file(tmp_path, step)
    data = open(file, 'rb').read()
    open(file, 'wb').write(data[:len(data) // 2])
    if step == 7:
      assert restore(tmp_path)[2]['step'] == 3
  with pytest.raises(errors.RunError, match=r'none of the checkpoints \[3, 7\]'):
    restore(tmp_path)


def test_without_a_checkpoint_nothing_is_restored(tmp_path):
  assert restore(tmp_path) is None


@pytest.mark.parametrize('settings', [dict(every=0), dict(keep=0)])
def test_settings_out_of_range_are_an_error(tmp_path, settings):
  with pytest.raises(errors.UserError, match='every and keep of at least 1'):
    checkpoint.Checkpoints(tmp_path, **settings)


def test_the_checksum_is_the_same_on_any_mesh():
  params, _ = state(5)
  plan = sharding.plan(strategy='fsdp')
  spread = jax.device_put(params, plan.state(params, MlpMixer.SHARDING_RULES))
  assert spread['layer']['kernel'].addressable_shards[0].data.shape != (128, 64)
  digest = np.asarray(trees.digest(params))
  np.testing.assert_array_equal(digest, trees.digest(spread))
  swapped = {'layer': {'kernel': params['layer']['kernel'][::-1]}}
  assert (digest != np.asarray(trees.digest(swapped))).any()


def test_a_sharded_state_is_restored_on_fewer_devices(tmp_path):
  save(tmp_path, [3])
  four = sharding.plan(strategy='fsdp', devices=jax.devices()[:4])
  checkpoints = checkpoint.Checkpoints(tmp_path)
  wanted = [jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), t,
      four.state(t, MlpMixer.SHARDING_RULES)) for t in state(0)]
  params, _, _ = checkpoint_reader.restore(checkpoints, *wanted)
  checkpoints.close()
  kernel = params['layer']['kernel']
  assert kernel.addressable_shards[0].data.shape == (32, 64)
  assert same(params, state(3)[0])


def load(path, best=False):
  return checkpoint_reader.load_params(checkpoint_reader.find(path, best))


def test_a_checkpoint_is_found_by_its_workdir_or_its_own_path(tmp_path):
  save(tmp_path / 'checkpoints', [2, 10], {2: 0.9, 10: 0.1}, best='acc')
  resume.agree(str(tmp_path), {'checkpoint': {'best': 'acc'}})
  assert same(load(tmp_path), state(10)[0])
  assert same(load(tmp_path, best=True), state(2)[0])
  assert same(load(tmp_path / 'checkpoints' / '2'), state(2)[0])


def test_the_error_names_the_path_if_there_is_no_checkpoint(tmp_path):
  with pytest.raises(errors.UserError, match='nowhere'):
    load(tmp_path / 'nowhere')
  save(tmp_path / 'run' / 'checkpoints', [1])
  with pytest.raises(errors.UserError, match='kept no best'):
    load(tmp_path / 'run', best=True)
  os.makedirs(tmp_path / 'checkpoints')
  with pytest.raises(errors.UserError, match='no checkpoint yet'):
    load(tmp_path)


@pytest.mark.parametrize('devices', (1, 2))
def test_parameters_saved_on_eight_devices_load_on_fewer(tmp_path, devices):
  params, rest = state(3)
  assert len(jax.devices()) == 8
  everywhere = jax.sharding.NamedSharding(
      jax.sharding.Mesh(np.array(jax.devices()), ('data',)),
      jax.sharding.PartitionSpec())
  checkpoints = checkpoint.Checkpoints(tmp_path / 'checkpoints')
  checkpoints.save(3, *jax.device_put((params, rest), everywhere), {})
  checkpoints.wait()
  checkpoints.close()
  code = ('import sys; from mixer.core import checkpoint_reader, trees; '
          'p = checkpoint_reader.load_params(sys.argv[1]); '
          'print(trees.digest(p).tolist())')
  out = subprocess.run(
      [sys.executable, '-c', code, str(tmp_path / 'checkpoints' / '3')],
      cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
      text=True, capture_output=True, timeout=600, env=dict(
          os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS=(
              f'--xla_force_host_platform_device_count={devices}')))
  assert out.returncode == 0, out.stderr
  assert out.stdout.strip() == str(trees.digest(params).tolist())
