"""A run: what it checks before it starts, and how it goes on."""
import json
import os
import shutil
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from configs import digits
from mixer import models
from mixer.core import checkpoint_reader
from mixer.core import errors
from mixer.core import trees
from mixer.core import workdir
from mixer.data import pipeline
from mixer.training import assembly
from mixer.training import resume
from mixer.training import run
from mixer.training import step


def tiny(**model):
  """A config of four steps that takes no time."""
  c = digits.get_config()
  c.model.update(hidden_dim=16, num_blocks=2, dropout_rate=0.1, **model)
  c.checkpoint.every = 2
  c.run.update(batch_size=16, total_steps=4, log_every=1)
  return c


def test_the_softmax_loss_refuses_images_without_a_label(tmp_path):
  images, labels = np.full((40, 8, 8), 99, np.uint8), np.eye(40, 3, dtype=int)
  np.savez(tmp_path / 'a.npz', train_images=images, train_labels=labels,
           test_images=images, test_labels=labels)
  config = tiny()
  config.run.batch_size = 8 * jax.device_count()
  config.data.name = f'arrays:{tmp_path}/a.npz'
  with pytest.raises(errors.UserError, match='37 of 40 .* no label'):
    run.train(config, str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow   # two runs that compile
def test_a_plain_run_can_be_resumed_with_scan_and_remat(tmp_path):
  """Its checkpoint fits, and the run ends with the same parameters."""
  path = tmp_path / 'run'
  run.train(tiny(), str(path))
  last = path / 'checkpoints' / '4'
  whole = trees.flatten(checkpoint_reader.load_params(str(last)))
  shutil.rmtree(last)   # as if the run was killed before it saved
  run.train(tiny(scan=True, remat='block'), str(path))
  for name, value in trees.flatten(checkpoint_reader.load_params(str(last))).items():
    np.testing.assert_allclose(value, whole[name], rtol=1e-4, atol=1e-6,
                               err_msg=name)


def test_a_run_on_other_data_or_in_another_order_is_not_resumed(
    tmp_path, monkeypatch):
  """Each of the two fingerprints may have a key that the other lacks."""
  number = jax.ShapeDtypeStruct((), jnp.int32)
  shapes = step.State(step=number, params={}, opt_state={}, bad=number)
  saved = types.SimpleNamespace(steps=lambda: [3])
  monkeypatch.setattr(checkpoint_reader, 'restore', lambda *a: (
      {}, dict(step=jnp.array(3)), dict(data=dict(source='a', readers=4))))
  for now, message in ((dict(source='a'), 'readers was 4, is None'),
                       (dict(source='b', readers=4), 'source was a, is b')):
    with pytest.raises(errors.UserError, match=message):
      resume.restored(str(tmp_path), saved, shapes, {}, now)


REFUSED = {
    'metric': (lambda c: c.checkpoint.update(best='eval/tset/accuracy'),
               'checkpoint.best'),
    'classes': (lambda c: c.model.update(num_classes=9), 'model.num_classes'),
    'channels': (lambda c: c.model.update(in_channels=3), 'model.in_channels'),
    'pattern': (lambda c: c.optimizer.update(frozen='stem'),
                'optimizer.frozen'),
    'image size': (lambda c: c.run.update(image_size=9), '9x9'),
    'crop': (lambda c: c.evals.test.update(crop='middle'), 'evals.test.crop'),
    'optimizer': (lambda c: c.optimizer.update(name='lion'), 'optimizer.name'),
    'weights': (lambda c: c.start.update(weights='no/weights'),
                'start.weights'),
}


@pytest.mark.parametrize('mistake', REFUSED)
def test_a_refused_config_does_not_claim_the_workdir(mistake, tmp_path):
  """No config.json, so that the corrected config can have the directory."""
  change, words = REFUSED[mistake]
  config = tiny()
  config.run.batch_size = 8 * jax.device_count()
  change(config)
  (tmp_path / 'run').mkdir()
  with pytest.raises(errors.UserError, match=words):
    run.train(config, str(tmp_path / 'run'))
  assert not {workdir.CONFIG, workdir.CARD, workdir.METRICS} & set(
      os.listdir(tmp_path / 'run'))
  assert not list((tmp_path / 'run').glob('checkpoints/*'))


def test_the_resumed_model_has_the_settings_that_it_took_from_weights(tmp_path):
  """The card tells them, when the weights are gone."""
  model = models.create('Mixer-S/16')
  assert resume.as_trained(model, str(tmp_path)) == model
  (tmp_path / 'model.json').write_text(json.dumps(dict(model=dict(
      name='Mixer-S/4', hidden_dim=48, num_blocks=3, channels_mlp_dim=96,
      patch_size=[4, 8], tokens_mlp_dim=24, approximate_gelu=False,
      num_classes=7))))
  assert resume.as_trained(model, str(tmp_path)) == models.create(
      'Mixer-S/16', hidden_dim=48, num_blocks=3, channels_mlp_dim=96,
      patch_size=(4, 8), tokens_mlp_dim=24, approximate_gelu=False)


def photos(path, classes):
  """Makes a folder of photos of one colour for each class."""
  for i, name in enumerate(classes):
    for split, count in (('train', 16), ('test', 8)):
      (path / split / name).mkdir(parents=True)
      for j in range(count):
        Image.new('RGB', (8, 8), (60 * i, 10 * j, 0)).save(
            path / split / name / f'{j}.png')
  return path


def contents(path):
  """Returns {name: bytes} of the files of a run that a refusal must not change.
  """
  return {name: (path / name).read_bytes() for name in (
      workdir.CONFIG, workdir.CARD, workdir.METRICS, workdir.PARAMETERS)}


def test_a_finished_run_on_changed_classes_is_refused_and_stays_as_it_was(
    tmp_path):
  """The error names the class that is renamed, new or gone."""
  data = photos(tmp_path / 'data', ('cat', 'dog'))
  path, config = tmp_path / 'run', tiny()
  config.data.update(name=f'folder:{data}', on_device=True, crop='resize')
  config.run.update(total_steps=1, batch_size=8)
  config.augment.update(rotate=0., zoom=0., shift=0.)   # compiles sooner
  run.train(config, str(path))
  before = contents(path)

  def rename(old, new):
    for split in ('train', 'test'):
      (data / split / old).rename(data / split / new)
    pipeline._open.cache_clear()   # as in another process

  rename('cat', 'zebra')   # sorts behind 'dog', which takes its place
  with pytest.raises(errors.UserError, match="'cat' is gone and 'zebra' is new"):
    run.train(config, str(path))
  assert contents(path) == before
  rename('zebra', 'cat')
  for split in ('train', 'test'):
    shutil.copytree(data / split / 'dog', data / split / 'bird')
  pipeline._open.cache_clear()
  with pytest.raises(errors.UserError, match="new classes: 'bird'"):
    run.train(config, str(path))
  assert contents(path) == before
  for split in ('train', 'test'):
    shutil.rmtree(data / split / 'bird')
  pipeline._open.cache_clear()
  run.train(config, str(path))
  assert contents(path) == before


@pytest.mark.slow   # a whole run
def test_a_run_that_saved_nothing_gives_its_workdir_to_a_corrected_config(
    tmp_path):
  """It failed late, such as by a lack of memory, and there is no state to lose.
  """
  resume.agree(str(tmp_path), assembly.stored(tiny()))
  config = tiny()
  config.run.update(total_steps=1, seed=3)
  run.train(config, str(tmp_path))
  assert workdir.config_of(tmp_path)['run']['seed'] == 3
  config.run.seed = 4
  with pytest.raises(errors.UserError, match='run.seed was 3, is 4'):
    run.train(config, str(tmp_path))


def test_a_run_is_not_resumed_beyond_its_length(tmp_path, monkeypatch):
  """That would call the run finished at another step than it is."""
  number = jax.ShapeDtypeStruct((), jnp.int32)
  shapes = step.State(step=number, params={}, opt_state={}, bad=number)
  aside = []
  saved = types.SimpleNamespace(
      steps=lambda: [3], set_aside_after=aside.append)
  monkeypatch.setattr(checkpoint_reader, 'restore', lambda *a: (
      {}, dict(step=jnp.array(3), opt_state={}, bad=0), dict(data={})))
  with pytest.raises(errors.UserError, match='run.total_steps: 2 .* 3 steps'):
    resume.restored(str(tmp_path), saved, shapes, {}, {}, 2)
  assert not aside
  for total in (3, 4):
    resume.restored(str(tmp_path), saved, shapes, {}, {}, total)
  assert aside == [3, 3]


@pytest.mark.slow   # three runs
def test_a_finished_run_of_constant_rate_trains_on_as_if_never_stopped(
    tmp_path):
  """Then it has more steps than a shorter config has."""
  config = tiny()
  config.schedule.update(decay='constant', warmup_steps=0)
  params = {}
  for name, lengths in (('one', (1, 2)), ('two', (2,))):
    for config.run.total_steps in lengths:
      run.train(config, str(tmp_path / name))
    params[name] = trees.flatten(checkpoint_reader.load_params(
        str(tmp_path / name / 'checkpoints' / '2')))
  for key, value in params['one'].items():
    np.testing.assert_array_equal(value, params['two'][key], err_msg=key)
  assert workdir.config_of(tmp_path / 'one')['run']['total_steps'] == 2
  before = contents(tmp_path / 'one')
  config.run.total_steps = 1
  with pytest.raises(errors.UserError, match='run.total_steps: 1 .* 2 steps'):
    run.train(config, str(tmp_path / 'one'))
  assert contents(tmp_path / 'one') == before


@pytest.mark.slow   # a whole run
def test_another_evaluation_changes_how_the_network_is_used(tmp_path):
  """Prediction shows the network the pixels of the first evaluation."""
  config = tiny()
  config.run.total_steps = 1
  run.train(config, str(tmp_path))
  before = workdir.card_of(tmp_path)
  config.evals.test.interpolation = 'bicubic'
  run.train(config, str(tmp_path))
  assert workdir.card_of(tmp_path) == dict(
      before, preprocessing=dict(crop='resize', interpolation='bicubic'))
  assert before['preprocessing']['interpolation'] == 'bilinear'


@pytest.mark.parametrize('name, words', (
    ('a[1]', r'\[ and \]'), ('a\\b', 'in its path'), ('http://x/y', 'gs://')))
def test_a_workdir_that_cannot_hold_checkpoints_is_refused(
    name, words, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(errors.UserError, match=words):
    run.train(tiny(), name)
  assert not os.listdir(tmp_path)


def test_the_step_is_traced_by_the_check_and_compiled_beside_the_first_state(
    tmp_path, monkeypatch):
  """The first step uses both, so that large networks start no later."""
  traces, compiled, meanwhile = [], [], []
  make, init = step.make_train_step, run._initial

  def counted(*args, **kwargs):
    traced = make(*args, **kwargs)
    def function(*batch):
      traces.append(1)
      return traced(*batch)
    return function

  def initial(made):
    end = time.monotonic() + 100
    while 'jit(function)' not in compiled and time.monotonic() < end:
      time.sleep(0.01)
    meanwhile.extend(compiled)
    return init(made)

  def seen(name, seconds, fun_name='', **more):
    if name == '/jax/core/compile/backend_compile_duration':
      compiled.append(fun_name)

  monkeypatch.setattr(step, 'make_train_step', counted)
  monkeypatch.setattr(run, '_initial', initial)
  jax.monitoring.register_event_duration_secs_listener(seen)
  config = tiny()
  config.run.batch_size = 8 * jax.device_count()
  config.augment.update(rotate=0., zoom=0., shift=0.)   # compiles sooner
  try:
    run.train(config, str(tmp_path / 'run'))
    assert len(traces) == 1
    assert 'jit(function)' in meanwhile
    assert compiled.count('jit(function)') == 1
    run.train(config, str(tmp_path / 'run'))   # finished: it steps no more
  finally:
    jax.monitoring.unregister_event_duration_listener(seen)
  assert compiled.count('jit(function)') == 1
