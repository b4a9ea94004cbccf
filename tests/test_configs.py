"""Every shipped config fits the code that reads it.

Each section of a config is the keyword arguments of one function. SECTIONS lists
these functions.
"""
import dataclasses
import functools
import importlib
import inspect
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import recipe
from mixer import models
from mixer.core import checkpoint
from mixer.core import trees
from mixer.data import pipeline
from mixer.data import splits
from mixer.data.sources import Source
from mixer.evaluation import suite
from mixer.experiments import sweep
from mixer.images import augment
from mixer.models.bit import ResNet
from mixer.models.mixer import MlpMixer
from mixer.models.vit import VisionTransformer
from mixer.training import assembly
from mixer.training import losses
from mixer.training import optimizers
from mixer.training import sharding
from mixer.training import start
from mixer.training import step as steps
from mixer.training.settings import Settings

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAMES = sorted(p.stem for p in (ROOT / 'configs').glob('*.py')
               if p.stem != 'recipe')
SCALES = {'mixer_s32': 'Mixer-S/32', 'mixer_s16': 'Mixer-S/16',
          'mixer_b32': 'Mixer-B/32', 'mixer_b16': 'Mixer-B/16',
          'mixer_l32': 'Mixer-L/32', 'mixer_l16': 'Mixer-L/16',
          'mixer_h14': 'Mixer-H/14'}
QUICK = ('digits', 'cifar10', 'finetune', 'mixer_s32', 'mixer_b16')   # to trace
DATASETS = ('imagenet2012', 'imagenet21k', 'jft')
RECIPES = ('sgd', 'adam')
ARGUMENTS = ('', *DATASETS, *(f'{d},{r}' for d in DATASETS for r in RECIPES))
FINETUNE = ('', 'b16,imagenet2012', 's16,oxford_iiit_pet', 'h14,vtab-dtd',
            'b32,vtab-clevr_count', 'l16,folder=PATH')
OF_OTHERS = dict(finetune=FINETUNE, cifar10=('', 'hour'))
SHIPPED = [(n, a) for n in NAMES for a in (
    ARGUMENTS if n in SCALES else OF_OTHERS.get(n, ('',)))]
# The number of classes of each data set, because the tests have no data.
CLASSES = {'imagenet2012': 1000, 'imagenet21k': 21_841, 'jft': 18_291,
           'digits': 10, 'cifar10': 10, 'oxford_iiit_pet': 37, 'vtab:dtd': 47,
           'vtab:clevr_count': 8, 'folder:PATH': 3}

# The function that reads each section, and the arguments that do not come from
# the config.
SECTIONS = {
    'model': (models.create, {'dtype'}),
    'data': (pipeline.open_data,
             {'image_size', 'wanted', 'most', 'report', 'key', 'labels'}),
    'augment': (augment.make, set()),
    'loss': (losses.make, {'weights'}),
    'schedule': (optimizers.schedule, {'total_steps'}),
    'optimizer': (optimizers.make, {'schedule'}),
    'sharding': (sharding.plan, {'devices'}),
    'checkpoint': (checkpoint.Checkpoints, {'directory'}),
    'start': (start.start, {
        'model', 'image_size', 'own', 'class_names', 'data'}),
    'run': (Settings, set()),
}
# An evaluation has no random crop, hence no min_area, and no balance; it counts
# bad images and has no limit for them; and it is read in the same way as `data`.
EVALUATION = (pipeline.open_data, SECTIONS['data'][1] - {'labels'} | {
    'min_area', 'max_bad_fraction', 'access', 'window', 'max_pixels', 'balance',
    'held_out'})

# Exact parameter counts at 224x224: without a head, with 1,000 classes, and
# with 21,843. Table 1 of https://arxiv.org/abs/2105.01601 gives them rounded.
# The tests of the official code have those of B/32, B/16 and L/16 with 1,000.
PARAMETERS = {
    'Mixer-S/32': (18_591_624, 19_104_624, 29_797_083),
    'Mixer-S/16': (18_015_264, 18_528_264, 29_220_723),
    'Mixer-B/32': (59_524_428, 60_293_428, 76_321_695),
    'Mixer-B/16': (59_111_472, 59_880_472, 75_908_739),
    'Mixer-L/32': (205_914_264, 206_939_264, 228_303_339),
    'Mixer-L/16': (207_171_168, 208_196_168, 229_560_243),
    'Mixer-H/14': (431_069_952, 432_350_952, 459_050_835),
}

# Table 4 of the paper: epochs, learning rate, weight decay, RandAugment
# magnitude, mixup, stochastic depth. The last four rows are for scales that the
# table leaves out; they repeat the row of the nearest scale.
TABLE_4 = """
  B imagenet2012 300    0.001 0.1   15  0.5  0.1
  L imagenet2012 300    0.001 0.1   15  0.5  0.1
  B imagenet21k  300    0.001 0.1   10  0.2  0.1
  L imagenet21k  300    0.001 0.1   20  0.5  0.1
  S jft          5      0.003 0.03  0   0.0  0.0
  B jft          7      0.003 0.03  0   0.0  0.0
  L jft          7|14   0.001 0.03  0   0.0  0.0
  H jft          14     0.001 0.03  0   0.0  0.0
  S imagenet2012 300    0.001 0.1   15  0.5  0.1
  S imagenet21k  300    0.001 0.1   10  0.2  0.1
  H imagenet2012 300    0.001 0.1   15  0.5  0.1
  H imagenet21k  300    0.001 0.1   20  0.5  0.1
"""
# Table 3 gives the training cost, from which these follow.
L_ON_JFT = {'mixer_l16': 14, 'mixer_l32': 7}


def load(name, argument=''):
  """Returns a config of configs/."""
  module = importlib.import_module(f'configs.{name}')
  return module.get_config(*([argument] if argument else []))


def settings_of(config, **changes):
  return Settings(**dict(config.run, **changes))


def source_of(config, classes=None):
  """Returns a source that describes the data of a config without any data."""
  channels = 1 if config.data.name == 'digits' else 3
  return Source(
      name=config.data.name, stored={}, class_names=None, read=None,
      name_of=None,
      num_classes=classes or CLASSES[config.data.name], decoded=False,
      channels=channels, fingerprint='')


def mismatch(section, function, supplied):
  """Returns (keys that `function` does not take, parameters without a value).

  Args:
    section: keys of the config.
    function: the reader of the section.
    supplied: parameters whose value does not come from the config.
  """
  parameters = inspect.signature(function).parameters
  known = {name for name, p in parameters.items()
           if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
  keys = set(section)
  missing = known - supplied - keys
  if any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
    known |= {f.name for network in (MlpMixer, VisionTransformer, ResNet)
              for f in dataclasses.fields(network)}
  return keys - (known - supplied), missing


def test_every_scale_of_the_paper_has_a_config():
  assert set(SCALES) <= set(NAMES)
  assert set(SCALES.values()) == set(MlpMixer.NAMES) == set(PARAMETERS)
  for name, scale in SCALES.items():
    assert load(name).model.name == scale


@pytest.mark.parametrize('name,argument', SHIPPED)
def test_every_section_has_the_keys_that_its_function_takes(name, argument):
  """Every argument is a key too, so that the code has no hidden default."""
  config = load(name, argument)
  assert set(config) - {'sweep'} == {*SECTIONS, 'evals', 'fewshot'}
  assert config.evals
  assert ('sweep' in config) == (name == 'finetune')
  if 'sweep' in config:
    assert mismatch(config.sweep, sweep.sweep, {'config', 'path', 'grid'}
                    ) == (set(), set())
  for key, (function, supplied) in SECTIONS.items():
    assert mismatch(config[key], function, supplied) == (set(), set()), key
  for key in config.evals:
    assert mismatch(config.evals[key], *EVALUATION) == (set(), set()), key


def test_a_wrong_section_is_found():
  """`mismatch` finds an extra key, a missing one, and one that is supplied."""
  section = dict(load('digits').schedule)
  function, supplied = SECTIONS['schedule']
  assert mismatch(section, function, supplied) == (set(), set())
  assert mismatch(dict(section, warmup=1), function, supplied)[0] == {'warmup'}
  assert mismatch(dict(section, total_steps=1), function, supplied)[0] == {
      'total_steps'}
  del section['decay']
  assert mismatch(section, function, supplied)[1] == {'decay'}
  assert mismatch(dict(name='', token_dim=1), models.create, {'dtype'}) == (
      {'token_dim'}, {'num_classes'})


@pytest.mark.parametrize('name,argument', SHIPPED)
def test_functions_accept_the_values_of_their_sections(
    name, argument, tmp_path):
  config = load(name, argument)
  settings = settings_of(config)
  settings.check_devices(sharding.plan(**config.sharding).parts)
  model = assembly.make_model(config, settings, source_of(config))
  total = settings.steps(1_281_167)
  assembly.make_step(config, settings, model, total)
  if argument == '':
    checkpoint.Checkpoints(tmp_path / 'c', **config.checkpoint).close()
  height, width, channels = assembly.image_shape(model, settings)
  assert height % model.patch_size == width % model.patch_size == 0
  assert channels == (1 if name == 'digits' else 3)


@pytest.mark.parametrize('classes', (0, 1000, 21_843))
@pytest.mark.parametrize('name', SCALES)
def test_parameter_counts_are_the_golden_ones(name, classes):
  """This holds for the model that is built and for the formula of its cost."""
  config = load(name)
  settings = settings_of(config)
  model = assembly.make_model(config, settings, source_of(config, classes or 1))
  if not classes:
    model = model.clone(num_classes=None)
  images = jnp.zeros((1, *assembly.image_shape(model, settings)))
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  golden = PARAMETERS[SCALES[name]][(0, 1000, 21_843).index(classes)]
  assert trees.count(shapes) == golden
  assert model.parameters(settings.image_size) == golden


def traced(config, batch_size=8):
  """Returns the shapes of (state before, state after, metrics) of a step."""
  settings = settings_of(config, batch_size=batch_size)
  source = source_of(config)
  model = assembly.make_model(config, settings, source)
  make, step = assembly.make_step(config, settings, model, total_steps=20_000)
  shape = assembly.image_shape(model, settings)
  init = functools.partial(steps.init_state, model, make, seed=settings.seed,
                           image_shape=shape)
  ints = lambda *sides: jax.ShapeDtypeStruct(sides, jnp.int32)
  batch = dict(epoch=ints(batch_size), record=ints(batch_size),
               image=jax.ShapeDtypeStruct((batch_size, *shape), jnp.uint8),
               labels=ints(batch_size, 1),
               bad=jax.ShapeDtypeStruct((batch_size,), jnp.bool_))
  before = jax.eval_shape(init)
  return before, *jax.eval_shape(step, before, batch)


@pytest.mark.parametrize('name,argument', [
    *((n, '') for n in QUICK),
    *(pytest.param(n, '', marks=pytest.mark.slow) for n in NAMES
      if n not in QUICK),
    *(pytest.param('mixer_s32', a, marks=pytest.mark.slow) for a in ARGUMENTS
      if a not in ('', 'imagenet2012')),
    ('mixer_b16', 'imagenet2012,adam'), ('finetune', 'b32,vtab-clevr_count')])
def test_the_whole_training_step_traces(name, argument):
  """Augmentation, loss, gradient and update fit together at every scale, and
  a step does not change the shapes and dtypes of the state."""
  before, after, metrics = traced(load(name, argument))
  spec = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert jax.tree.structure(before) == jax.tree.structure(after)
  assert spec(before) == spec(after)
  assert set(metrics) == {'loss', 'accuracy', 'gradient_norm',
                          'learning_rate', 'bad', 'skipped'}
  assert all(m.shape == () and m.dtype == (
      jnp.int32 if k in ('bad', 'skipped') else jnp.float32) for k, m in metrics.items())


def test_recipe_adam_has_the_values_of_table_4():
  """`pytest -s` prints the values."""
  printed, compared = [], 0
  for row in TABLE_4.strip().splitlines():
    scale, dataset, epochs, *values = row.split()
    for name, model in SCALES.items():
      if not model.startswith(f'Mixer-{scale}/'):
        continue
      c = load(name, f'{dataset},adam')
      made = [c.schedule.learning_rate, c.optimizer.weight_decay,
              c.augment.randaugment_magnitude, c.augment.mixup,
              c.model.stochastic_depth]
      printed.append(f'{model:10} {dataset:12} {c.run.total_epochs:5g} '
                     + ' '.join(f'{v:6g}' for v in made))
      assert made == [float(v) for v in values], printed[-1]
      assert c.run.total_epochs == (
          L_ON_JFT[name] if epochs == '7|14' else float(epochs)), printed[-1]
      compared += 1
  print('', 'model      data        epochs     lr     wd      m  mixup  depth',
        *printed, sep='\n')
  assert compared == len(SCALES) * len(DATASETS)


@pytest.mark.parametrize('dataset', DATASETS)
@pytest.mark.parametrize('name', SCALES)
def test_recipe_adam_has_the_settings_of_section_3(name, dataset):
  """Loss, crop and evaluation, which the paper leaves out, are those of the
  official config."""
  c = load(name, f'{dataset},adam')
  o, s = c.optimizer, c.schedule
  assert (o.name, o.b1, o.b2, o.clip_norm) == ('adam', .9, .999, 1.)
  assert o.decay_pattern == '.*/kernel'
  assert (s.warmup_steps, s.decay, s.end_fraction) == (10_000, 'linear', 1e-5)
  assert (c.run.batch_size, c.run.image_size) == (4096, 224)
  assert c.run.total_steps is None and c.model.dropout_rate == 0
  assert c.augment.randaugment_layers == (0 if dataset == 'jft' else 2)
  assert c.augment.flip and not any(
      c.augment[k] for k in ('pad_crop', 'rotate', 'zoom', 'shift'))
  assert (c.data.crop, c.data.min_area) == ('inception', .05)
  assert (c.loss.name, c.loss.label_smoothing) == ('sigmoid', 0)
  assert c.model.head_bias == (-6.9 if dataset == 'imagenet2012' else -10)
  assert {e.crop for e in c.evals.values()} == {'resmall'}
  assert set(c.evals) == ({'minival', 'validation'}
                          if dataset == 'imagenet2012' else {'minival'})
  assert c.start.weights is None


@pytest.mark.parametrize('dataset', DATASETS)
@pytest.mark.parametrize('name', SCALES)
def test_recipe_sgd_differs_in_optimizer_and_schedule_only(name, dataset):
  """The default recipe is sgd, and the default data set is ImageNet."""
  flat = lambda c: dict(trees.flatten(c.to_dict()))
  sgd, adam = (flat(load(name, f'{dataset},{r}')) for r in RECIPES)
  differ = {k for k in sgd if sgd[k] != adam[k]}
  assert differ == {
      'optimizer/name', 'optimizer/weight_decay', 'schedule/decay',
      'schedule/learning_rate', 'schedule/end_fraction'}
  assert {k: sgd[k] for k in differ} == {
      'optimizer/name': 'sgd', 'optimizer/weight_decay': 0,
      'schedule/decay': 'cosine', 'schedule/end_fraction': 0,
      'schedule/learning_rate': recipe.SGD_LEARNING_RATE}
  assert (sgd['optimizer/momentum'], sgd['optimizer/clip_norm']) == (.9, 1.)
  assert sgd['schedule/warmup_steps'] == 10_000
  assert flat(load(name, dataset)) == sgd
  if dataset == 'imagenet2012':
    assert flat(load(name)) == flat(load(name, ',sgd')) == sgd
    assert flat(load(name, ',adam')) == adam


def test_training_and_evaluation_splits_share_no_example():
  """Together they cover every stored split that they are parts of."""
  for dataset in DATASETS:
    c = load('mixer_b16', dataset)
    stored = splits.whole({'train': 1_281_167, 'validation': 50_000})
    pick = functools.partial(splits.select, stored, key='x')
    parts = [pick(c.data.split), *(pick(e.split) for e in c.evals.values())]
    records = np.concatenate([p.records(np.arange(len(p))) for p in parts])
    assert np.unique(records).size == records.size
    assert records.size == 1_281_167 + 50_000 * (dataset == 'imagenet2012')
  imagenet = load('mixer_b16')
  assert len(pick(imagenet.data.split)) == 1_268_355


def test_placeholders_take_values_and_floats_take_ints():
  """The command line sets values by type, even where there is no value yet."""
  config = load('digits').lock()
  config.run.total_epochs = 1
  config.model.num_classes = 7
  config.evals.test.dir = 'here'
  config.schedule.learning_rate = 1
  assert isinstance(config.schedule.learning_rate, float)
  with pytest.raises(TypeError):
    config.model.num_classes = 'seven'
  with pytest.raises((AttributeError, KeyError)):
    config.run.batchsize = 8


def test_evaluations_inherit_name_dir_and_placement_from_data():
  config = load('digits')
  config.evals.again = dict(config.evals.test, split='train[:100]')
  data, evals, _ = suite.open_splits(config, config.run.image_size)
  assert len(data) == 1437
  assert {name: len(e) for name, e in evals.items()} == {
      'test': 360, 'again': 100}
  assert {e.source.name for e in evals.values()} == {'digits'}
  config.evals.test.name = 'nothing:of the kind'
  with pytest.raises(ValueError, match='nothing:of the kind'):
    suite.open_splits(config, config.run.image_size)


@pytest.mark.parametrize('argument', (
    'imagenet', 'imagenet2012,adan', 'adam', 'imagenet2012,sgd,adam', 'jft,'
    'sgd '))
def test_a_bad_argument_raises_a_value_error_with_the_choices(argument):
  with pytest.raises(ValueError) as error:
    load('mixer_b16', argument)
  for part in (repr(argument), *DATASETS, *RECIPES):
    assert part in str(error.value)


@pytest.mark.parametrize('config,argument,remedy', (
    ('mixer_b16', 'imagenet2012,adan', 'sgd, adam'),
    ('finetune', 'b16,cifar', 'cifar100'),
    ('digits', 'adam', 'no argument')))
def test_a_bad_argument_gives_an_error_of_one_line(config, argument, remedy):
  """The exit code is 2, and there is no traceback."""
  out = subprocess.run(
      [sys.executable, '-m', 'mixer.main',
       f'--config=configs/{config}.py:{argument}'], cwd=ROOT, text=True,
      capture_output=True, timeout=300,
      env=dict(os.environ, JAX_PLATFORMS='cpu'))
  assert out.returncode == 2
  assert len(out.stderr.splitlines()) == 1
  assert out.stderr.startswith('error: ') and 'Traceback' not in out.stderr
  assert argument in out.stderr and remedy in out.stderr
