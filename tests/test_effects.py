"""Every setting of a config that is easily read and forgotten has its effect.
"""
import os
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from configs import digits
from mixer.core import errors
from mixer.data import pipeline
from mixer.evaluation import suite
from mixer.training import assembly
from mixer.training import resume
from mixer.training import sharding
from mixer.training import step as steps

SOURCE = types.SimpleNamespace(name='made', num_classes=3, channels=1)


def tiny(**run):
  """The config of the digits with a network that compiles at once."""
  config = digits.get_config()
  config.model.update(hidden_dim=8, num_blocks=1, tokens_mlp_dim=4,
                      channels_mlp_dim=8)
  config.run.update(**run)
  return config


def program_of(config, batch_size=8):
  """The training step of a config as a jaxpr, and the network."""
  settings = assembly.check(config)
  plan = sharding.plan()
  model = assembly.make_model(config, settings, SOURCE, plan.platform)
  optimizer, step = assembly.make_step(config, settings, model, 10)
  shape = assembly.image_shape(model, settings)
  state = steps.shard(step, model, optimizer, plan, seed=0,
                      image_shape=shape).state
  row = lambda dtype, *axes: jax.ShapeDtypeStruct((batch_size, *axes), dtype)
  batch = dict(image=row(jnp.uint8, *shape), labels=row(jnp.int32, 1),
               epoch=row(jnp.int32), record=row(jnp.int32), bad=row(jnp.bool_))
  return jax.make_jaxpr(step)(state, batch), model


def dots_of(jaxpr):
  """(batch, dtype) of the operands of every matrix product, also inside loops.
  """
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      operand = equation.invars[0].aval
      yield operand.shape, operand.dtype
    for value in equation.params.values():
      for inner in value if isinstance(value, (tuple, list)) else (value,):
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          yield from dots_of(inner)


def test_micro_batches_cut_what_the_network_sees():
  """Of 24 images, the patch projection sees 24 at a time, or 8."""
  images_at_a_time = lambda parts: max(
      shape[0] for shape, _ in dots_of(program_of(
          tiny(micro_batches=parts), batch_size=24)[0].jaxpr)
      if len(shape) == 4)
  assert images_at_a_time(1) == 24
  assert images_at_a_time(3) == 8


@pytest.mark.parametrize('precision', ('float32', 'bfloat16'))
def test_precision_is_that_of_the_matrix_products(precision):
  program, model = program_of(tiny(precision=precision))
  assert model.dtype == precision
  dtypes = [str(dtype) for shape, dtype in dots_of(program.jaxpr)
            if len(shape) > 2]
  assert set(dtypes) == {precision}


@pytest.mark.parametrize('platform, dtype', (
    ('cpu', 'float32'), ('gpu', 'bfloat16'), ('tpu', 'bfloat16')))
def test_the_default_precision_is_that_of_the_platform(platform, dtype):
  """Of the devices that the program is for, not of the machine that builds it.
  """
  config = tiny()
  model = assembly.make_model(config, assembly.check(config), SOURCE, platform)
  assert model.dtype == dtype


# Data that the host decodes.


def folder(tmp_path, images):
  """A folder data set with one class and its images, PIL's by file name."""
  where = tmp_path / 'photos' / 'train' / 'one'
  where.mkdir(parents=True)
  for name, image in images.items():
    image.save(where / name)
  return f'folder:{tmp_path}/photos'


def images_of(name, **settings):
  """uint8 images of ten epochs of training, and the split."""
  data = pipeline.open_data(name=name, split='train', image_size=16, **settings)
  count = len(data)
  batches = data.train_batches(seed=0, batch_size=count, first=0, last=10,
                               slots=(0, count))
  return np.concatenate([batch['image'] for batch in batches]), data


@pytest.mark.parametrize('suffix', ('png', 'jpg'))
@pytest.mark.parametrize('crop', ('inception', 'bit', 'resize'))
def test_colours_of_training_images_keep_their_channels(tmp_path, suffix, crop):
  colour = (250, 120, 10)
  name = folder(tmp_path, {f'a.{suffix}': Image.new('RGB', (40, 40), colour)})
  images, _ = images_of(name, crop=crop)
  np.testing.assert_allclose(images.mean(axis=(0, 1, 2)), colour, atol=4)


def test_min_area_is_the_smallest_share_that_a_crop_shows(tmp_path):
  """Half of the image is white: crops of all of it are half white, too."""
  half = Image.new('L', (60, 60))
  half.paste(255, (0, 0, 30, 60))
  name = folder(tmp_path, {'a.png': half.convert('RGB')})
  white = lambda **settings: images_of(
      name, crop='inception', **settings)[0].mean(axis=(1, 2, 3)) / 255
  np.testing.assert_allclose(white(min_area=1.0), 0.5, atol=0.02)
  assert np.ptp(white(min_area=0.05)) > 0.3


@pytest.mark.parametrize('on_device', (False, True))
def test_images_above_max_pixels_count_as_bad(tmp_path, on_device):
  name = folder(tmp_path, {'big.png': Image.new('RGB', (50, 50)),
                           'small.png': Image.new('RGB', (20, 20))})
  opened = lambda most, report: pipeline.open_data(
      name=name, split='train', image_size=16, crop='resize', max_pixels=most,
      report=report, on_device=on_device)
  found = []
  data = opened(1000, found.append)
  data.preflight()   # decodes both
  assert [row['image'].rpartition('/')[2] for row in found] == ['big.png']
  assert len(data) == 2
  found.clear()
  opened(2500, found.append).preflight()
  assert found == []


# What may change between a run and its continuation.

CHANGEABLE = {
    'data.dir', 'data.max_bad_fraction', 'run.log_every', 'evals.test.split',
    'fewshot.few.train', 'checkpoint.every', 'checkpoint.best',
    'sharding.strategy', 'sharding.model', 'model.remat', 'model.scan',
    'run.micro_batches', 'run.nonfinite', 'run.patience',
    'run.heartbeat_timeout_seconds', 'run.stall_seconds'}


def flat(tree, prefix=''):
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from flat(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def changed(tree, key):
  """A copy of a nested dict with another value at 'section.key'."""
  name, _, rest = key.partition('.')
  if rest:
    return dict(tree, **{name: changed(tree.get(name, {}), rest)})
  return dict(tree, **{name: 'another'})


def test_settings_that_may_not_change_on_resume_are_refused_by_name(tmp_path):
  """All others are refused, each by its name."""
  config = digits.get_config().to_dict()
  config['fewshot'] = dict(few=dict(train='train'))
  resume.agree(str(tmp_path), config)
  kept = (tmp_path / 'config.json').read_text()
  keys = {key for key, _ in flat(config)}
  free = ('evals.', 'fewshot.', 'checkpoint.', 'sharding.')
  for key in sorted(keys | CHANGEABLE):
    other = changed(config, key)
    if key in CHANGEABLE or key.startswith(free):
      resume.agree(str(tmp_path), other)
      resume.agree(str(tmp_path), config)
    else:
      with pytest.raises(errors.UserError, match=key.replace('.', r'\.')):
        resume.agree(str(tmp_path), other)
      assert (tmp_path / 'config.json').read_text() == kept


def test_a_run_of_the_first_release_is_resumed_by_the_same_config(tmp_path):
  """A key that the release did not have must be unset, or free to change."""
  then = os.path.join(os.path.dirname(__file__), 'golden',
                      'config_of_digits_0.1.0.json')
  shutil.copy(then, tmp_path / 'config.json')
  resume.check_config(str(tmp_path), digits.get_config().to_dict())


# Few-shot evaluations.


@pytest.mark.parametrize('test, warned', (('train[:50]', True),
                                          ('test', False)))
def test_overlap_of_few_shot_training_and_test_examples_is_logged(
    test, warned, caplog):
  config = digits.get_config()
  config.fewshot = dict(few=dict(train='train', test=test, crop='resize'))
  suite.open_evaluations(config, 8)
  assert any('50 of its 50' in record.getMessage()
             for record in caplog.records) == warned
