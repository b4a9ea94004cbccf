"""Fine-tuning: the paper's table, and that a start is what it says.

The paper inherits the set-up of ViT (https://arxiv.org/abs/2010.11929, table 4)
and prints its own learning rates (appendix C); flips and crops on VTAB are
BiT's (https://arxiv.org/abs/1912.11370, appendix F).
"""
import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from sklearn import datasets

from configs import finetune
from mixer import models
from mixer import pretrained
from mixer.core import checkpoint
from mixer.core import errors
from mixer.core import trees
from mixer.data import splits
from mixer.data import vtab
from mixer.pretrained import formats
from mixer.pretrained import registry
from mixer.training import assembly
from mixer.training import run
from mixer.training import start
from mixer.training import step as steps

ROOT = pathlib.Path(__file__).resolve().parent.parent

# As printed: steps, learning rates, percent held out to choose by, and the
# images that training, choosing and testing have (of TFDS).
TABLE = """
  imagenet2012      20000 0.003,0.01,0.03,0.06  1 1281167 1268355 12812 50000
  cifar10           10000 0.003,0.01,0.03,0.06  2   50000   49000  1000 10000
  cifar100          10000 0.003,0.01,0.03,0.06  2   50000   49000  1000 10000
  oxford_iiit_pet     500 0.003,0.01,0.03,0.06 10    3680    3312   368  3669
  oxford_flowers102   500 0.003,0.01,0.03,0.06 10    2040    1836   204  6149
"""
SIZES = {
    'imagenet2012': dict(train=1_281_167, validation=50_000),
    'cifar10': dict(train=50_000, test=10_000),
    'cifar100': dict(train=50_000, test=10_000),
    'oxford_iiit_pet': dict(train=3680, test=3669),
    'oxford_flowers102': dict(train=1020, validation=1020, test=6149),
}
SMALL = {'cifar100', 'svhn', 'eurosat', 'dsprites_location',
         'dsprites_orientation'}
NO_FLIP = {'dsprites_orientation', 'smallnorb_azimuth', 'dsprites_location'}
NO_CROP = {'clevr_count', 'clevr_distance', 'dmlab', 'kitti',
           'dsprites_location'}

TINY = dict(patch_size=4, hidden_dim=16, num_blocks=1, channels_mlp_dim=32)


@pytest.mark.parametrize('dataset', (
    *finetune.DATASETS, 'folder=/a,b', 'manifest=c.csv', 'vtab-dtd'))
@pytest.mark.parametrize('model', finetune.MODELS)
def test_the_recipe_is_the_papers(model, dataset):
  c = finetune.get_config(f'{model},{dataset}')
  o, s = c.optimizer, c.schedule
  assert c.model.name == finetune.MODELS[model] in models.names()
  assert (o.name, o.momentum, o.momentum_dtype) == ('sgd', .9, 'bfloat16')
  assert (o.clip_norm, o.weight_decay) == (1., 0.)
  assert (o.frozen, o.rates) == (None, None)
  assert (s.decay, s.end_fraction) == ('cosine', 0.)
  assert s.warmup_steps == (100 if c.run.total_steps == 500 else 500)
  assert s.learning_rate in c.sweep.learning_rates
  assert c.run.batch_size == 512 and c.run.total_epochs is None
  assert (c.loss.name, c.loss.label_smoothing) == ('softmax', 0.)
  assert c.model.dropout_rate == c.model.stochastic_depth == 0
  assert c.model.head_bias == 0 and c.start.dont_load == 'head/.*'
  assert c.data.crop == 'bit' and c.augment.flip
  assert {k for k, v in c.augment.items() if v} == {'flip'}
  assert {e.crop for e in c.evals.values()} == {'resize_crop'}
  assert c.run.image_size == (448 if dataset == 'vtab-dtd' else 224)
  assert c.sweep.metric == 'eval/dev/accuracy'


@pytest.mark.parametrize('model', finetune.MODELS)
def test_it_starts_from_what_is_released(model):
  """ImageNet-21k, where there is; else the user is asked."""
  weights = finetune.get_config(f'{model},cifar10').start.weights
  name = f'{finetune.MODELS[model]}-imagenet21k'
  assert weights == (name if name in registry.names() else '')
  assert (model in finetune.RELEASED) == bool(weights)


def test_the_table():
  """The configs' values beside the paper's; `-s` prints them."""
  printed = []
  for row in TABLE.strip().splitlines():
    name, length, rates, percent, *counts = row.split()
    c = finetune.get_config(f'b16,{name}')
    count = lambda spec: len(splits.select(splits.whole(SIZES[name]), spec, ''))
    test, = c.evals.values()
    made = [count(spec) for spec in (
        c.data.split, c.sweep.train, c.sweep.dev, test.split)]
    printed.append(f'{name:18} {c.run.total_steps:6} {c.sweep.learning_rates} '
                   + ' '.join(map(str, made)))
    assert c.data.name == name
    assert c.run.total_steps == int(length), printed[-1]
    assert c.sweep.learning_rates == tuple(map(float, rates.split(',')))
    assert made == list(map(int, counts)), printed[-1]
    assert round(100 * made[2] / made[0]) == int(percent)
    records = [set(splits.select(splits.whole(SIZES[name]), spec, '').records(
        np.arange(n)).tolist()) for spec, n in zip((
            c.data.split, c.sweep.train, c.sweep.dev, test.split), made)]
    assert not records[1] & records[2] and not records[0] & records[3]
    assert records[1] | records[2] == records[0]
  print('', 'data set            steps learning rates  train  tried  dev  test',
        *printed, sep='\n')
  assert len(printed) == len(finetune.DATASETS)


def test_vtab():
  """The 19 tasks, their exceptions and resolutions; `-s` prints them."""
  assert list(finetune.TASKS) == list(vtab.TASKS)
  assert len(finetune.TASKS) == 19
  of = {task: finetune.get_config(f'h14,vtab-{task}') for task in vtab.TASKS}
  for task, c in of.items():
    print(f'{task:22} {c.run.image_size} flip={c.augment.flip!s:5} '
          f'crop={c.data.crop:6} evaluated {c.evals.test.crop}')
    assert c.data.name == f'vtab:{task}' and c.run.total_steps == 2500
    assert c.sweep.learning_rates == (.003, .01, .03)
    assert (c.data.split, c.sweep.train, c.sweep.dev) == (
        'train800val200', 'train800', 'val200')
    assert {n: e.split for n, e in c.evals.items()} == {'test': 'test'}
    assert c.augment.flip == vtab.TASKS[task].flip
    assert (c.data.crop == 'bit') == vtab.TASKS[task].crop
    assert c.evals.test.crop == (
        'resize_crop' if vtab.TASKS[task].crop else 'resize')
    assert c.run.eval_every == 0   # chosen on val200, tested once
  assert {t for t, c in of.items() if not c.augment.flip} == NO_FLIP
  assert {t for t, c in of.items() if c.data.crop == 'resize'} == NO_CROP
  assert {t for t, c in of.items() if c.run.image_size == 224} == SMALL
  assert {c.run.image_size for c in of.values()} == {224, 448}


@pytest.mark.parametrize('kind', finetune.OWN)
def test_own_images(kind):
  """A path may hold what separates elsewhere; a validation split is carved,
  and the best checkpoint by it is kept."""
  c = finetune.get_config(f'b16,{kind}=/my photos,2:b=c')
  assert c.data.name == f'{kind}:/my photos,2:b=c'
  assert c.run.total_steps == 500 and c.checkpoint.best in (
      f'eval/{name}/accuracy' for name in c.evals)
  assert c.evals.validation.split == c.sweep.dev == 'validation'
  assert c.data.split == c.sweep.train == 'train'


@pytest.mark.parametrize('argument', (
    'b16', 'b8,cifar10', 'b16,cifar', 'cifar10', 'b16,folder', 'b16,folder=',
    'b16,vtab-cifar10', 'b16,vtab', 'b16,cifar10,adam', 'b16,vtab-dtd=1'))
def test_a_bad_argument_is_told_with_the_choices(argument):
  with pytest.raises(ValueError) as e:
    finetune.get_config(argument)
  for part in (repr(argument), 'h14', 'cifar100', 'folder=PATH', 'kitti'):
    assert part in str(e.value)


# From here on a small network on small images.


def photos(path):
  """The digits as a folder of 240 PNGs of three classes, 8x8."""
  images, labels = datasets.load_digits(n_class=3, return_X_y=True)
  images = (images * 15).astype(np.uint8).reshape(-1, 8, 8)
  for i in range(240):
    where = path / 'abc'[labels[i]]
    where.mkdir(parents=True, exist_ok=True)
    Image.fromarray(images[i]).convert('RGB').save(where / f'{i}.png')
  return path


def released(path, size=8, classes=5, seed=0):
  """Random weights in a file, as somebody would release them."""
  model = models.create('Mixer-S/4', num_classes=classes, tokens_mlp_dim=6,
                        **TINY)
  params = model.init(jax.random.key(seed), jnp.zeros((1, size, size, 3)))
  params = jax.tree.map(np.asarray, params['params'])
  params['head']['kernel'] = np.full((16, classes), .5, np.float32)
  formats.save(str(path), params)
  return model, params


def main(*flags):
  env = dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS='')
  return subprocess.run(
      [sys.executable, '-m', 'mixer.main', *flags], cwd=ROOT, env=env,
      capture_output=True, text=True, timeout=120)


@pytest.mark.slow   # whole runs
def test_a_folder_is_fine_tuned_at_another_size(tmp_path):
  """The real command, from a file of weights for 8x8 at 16x16; the best is
  kept; another call needs the weights no more."""
  photos(tmp_path / 'photos')
  _, params = released(tmp_path / 'w.npz')
  flags = [
      f'--config=configs/finetune.py:s32,folder={tmp_path}/photos',
      f'--workdir={tmp_path}/run', f'--config.start.weights={tmp_path}/w.npz',
      *(f'--config.model.{k}={v}' for k, v in TINY.items()),
      '--config.run.image_size=16', '--config.run.batch_size=32',
      '--config.run.total_steps=40', '--config.run.eval_every=20',
      '--config.checkpoint.every=20', '--config.schedule.warmup_steps=10',
      '--config.schedule.learning_rate=0.1']
  out = main(*flags)
  assert out.returncode == 0, out.stderr
  card = json.loads((tmp_path / 'run' / 'model.json').read_text())
  assert card['image_size'] == [16, 16] and card['class_names'] == list('abc')
  assert card['model']['tokens_mlp_dim'] == 24   # appendix C: 2 x 2 as wide
  assert card['preprocessing']['crop'] == 'resize_crop'
  rows = [json.loads(line) for line in
          (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
  first = next(r for r in rows if 'train/loss' in r)
  assert first['step'] == 10 and first['train/loss'] < 1.2
  scores = {r['step']: r['eval/validation/accuracy'] for r in rows
            if 'eval/validation/accuracy' in r}
  assert sorted(scores) == [20, 40] and scores[40] > .6
  best = pretrained.load(str(tmp_path / 'run'), best=True)
  assert best['stem']['kernel'].shape == params['stem']['kernel'].shape
  assert best['head']['kernel'].shape == (16, 3)

  (tmp_path / 'w.npz').unlink()
  again = main(*flags)
  assert again.returncode == 0 and 'finished already' in again.stdout


@pytest.mark.parametrize('flags,words', (
    (('--config=configs/finetune.py:b16,cifar',), ('b16,cifar', 'cifar10')),
    (('--config=configs/finetune.py:s32,cifar10',
      '--config.data.name=digits', '--config.evals.test.crop=resize',
      '--config.model.patch_size=4', '--config.run.image_size=8',
      '--config.run.batch_size=8', '--config.augment.flip=false'),
     ('start.weights', 'Mixer-S/4', '--config.start.weights=')),
))
def test_a_mistake_is_one_line(flags, words, tmp_path):
  out = main(*flags, f'--workdir={tmp_path}/run')
  assert out.returncode == 2 and len(out.stderr.splitlines()) == 1, out.stderr
  assert out.stderr.startswith('error: ')
  for word in words:
    assert word in out.stderr


def test_the_remedy_names_the_scale():
  for name in ('Mixer-H/14', 'Mixer-L/32'):
    with pytest.raises(errors.UserError, match=f'start.weights: .*{name}'):
      start.start(models.create(name), image_size=(224, 224), weights='')


class Tuning:
  """One update of a small network that starts from weights in memory."""

  def __init__(self, **optimizer):
    c = finetune.get_config('s32,cifar10')
    c.model.update(tokens_mlp_dim=6, num_classes=5, in_channels=3, **TINY)
    c.optimizer.update(momentum_dtype=None, **optimizer)
    c.schedule.update(learning_rate=0.5, warmup_steps=0, decay='constant')
    c.run.update(image_size=8, batch_size=16)
    settings = assembly.Settings(**c.run)
    model = models.create(**c.model)
    self.optimizer, step = assembly.make_step(c, settings, model, 100)
    init = functools.partial(
        steps.init_state, model, self.optimizer, seed=0, image_shape=(8, 8, 3))
    self.state = init()
    # A head of zeros passes no gradient on to what is below.
    params = jax.tree.map(lambda x: x, self.state.params)
    params['head']['kernel'] = jax.random.normal(jax.random.key(1), (16, 5))
    self.state = self.state.replace(params=params)
    rng = np.random.default_rng(0)
    batch = dict(
        image=rng.integers(0, 256, (16, 8, 8, 3)).astype(np.uint8),
        labels=rng.integers(0, 5, (16, 1)).astype(np.int32),
        epoch=np.zeros(16, np.int32), record=np.arange(16, dtype=np.int32),
        bad=np.zeros(16, bool))
    self.after, self.metrics = jax.jit(step)(self.state, batch)
    before, after = (trees.flatten(s.params) for s in (self.state, self.after))
    self.moved = {k: np.asarray(after[k] - before[k]) for k in before}


BODY = '(stem|MixerBlock_.*|pre_head_layer_norm)/.*'


@pytest.fixture(scope='module')
def plain():
  return Tuning()


def test_frozen_parameters_stay_and_cost_nothing():
  """No update, no state, no share in the norm or in the clipping."""
  frozen = Tuning(frozen=BODY, clip_norm=1e-3)
  free = Tuning(clip_norm=None)
  assert {k for k, v in frozen.moved.items() if v.any()} == {
      'head/kernel', 'head/bias'}
  assert all(v.any() for v in free.moved.values())
  held = [x for x in jax.tree.leaves(frozen.state.opt_state) if x.ndim]
  assert sorted(x.shape for x in held) == [(5,), (16, 5)]
  norm = lambda tuning, *names: np.sqrt(sum(
      (tuning.moved[k] ** 2).sum() for k in names or tuning.moved))
  head = norm(free, 'head/kernel', 'head/bias') / .5
  np.testing.assert_allclose(frozen.metrics['gradient_norm'], head, rtol=1e-5)
  np.testing.assert_allclose(
      free.metrics['gradient_norm'], norm(free) / .5, rtol=1e-5)
  assert norm(free) / .5 > 1.1 * head
  np.testing.assert_allclose(norm(frozen), .5 * 1e-3, rtol=1e-4)


def test_rates_scale_the_update_exactly(plain):
  """By the first pattern that matches: 0 leaves, 2 doubles, others as they
  were. In the step too, where adding to the parameters rounds."""
  tuned = Tuning(rates='stem/.*=0, head/.*=2,head/bias=7')
  update = lambda tuning: trees.flatten(tuning.optimizer.update(
      plain.state.params, tuning.state.opt_state, plain.state.params)[0])
  given, scaled = update(plain), update(tuned)
  for name, moved in plain.moved.items():
    factor = {'stem': 0, 'head': 2}.get(name.split('/')[0], 1)
    np.testing.assert_array_equal(scaled[name], factor * given[name], name)
    np.testing.assert_allclose(
        tuned.moved[name], factor * moved, atol=1e-6, rtol=0, err_msg=name)
    assert moved.any() and tuned.moved[name].any() == bool(factor)


def test_frozen_and_rates_go_together():
  tuned = Tuning(frozen='stem/.*', rates='head/.*=2', clip_norm=None)
  free = Tuning(clip_norm=None)
  assert not tuned.moved['stem/kernel'].any()
  np.testing.assert_allclose(
      tuned.moved['head/kernel'], 2 * free.moved['head/kernel'], atol=1e-6)


@pytest.mark.parametrize('optimizer,words', (
    (dict(frozen='stem'), "optimizer.frozen: 'stem' matches no name"),
    (dict(frozen='.*'), "optimizer.frozen: '.*' matches every parameter"),
    (dict(frozen='('), r"optimizer.frozen: '\(' is no regular"),
    (dict(rates='Head/.*=2'), "optimizer.rates: 'Head/.*' matches no name"),
    (dict(rates='head/.*'), "optimizer.rates: expected 'PATTERN=FACTOR"),
    (dict(rates='head/.*=-1'), "optimizer.rates: expected 'PATTERN=FACTOR"),
))
def test_a_pattern_that_does_nothing_is_told(optimizer, words):
  with pytest.raises(errors.UserError, match=words):
    Tuning(**optimizer)


def test_the_new_head_is_zero_and_the_rest_is_loaded(tmp_path):
  _, params = released(tmp_path / 'w.npz', classes=5)
  model = models.create('Mixer-S/4', num_classes=3, **TINY)
  begin = lambda **more: start.start(
      model, image_size=(8, 8), weights=str(tmp_path / 'w.npz'), **more)
  fresh = lambda model: model.init(
      jax.random.key(3), jnp.zeros((1, 8, 8, 3)))['params']
  tuned, given = begin(dont_load='head/.*')
  merged = trees.flatten(
      start.merge(given, fresh(tuned), 'w.npz', 'head/.*'))
  assert not merged['head/kernel'].any() and not merged['head/bias'].any()
  for name, value in trees.flatten(params).items():
    if not name.startswith('head/'):
      np.testing.assert_array_equal(merged[name], value, name)


def test_without_dont_load_every_difference_is_told(tmp_path):
  released(tmp_path / 'w.npz', classes=5)
  wide = dict(TINY, channels_mlp_dim=40)
  model = models.create('Mixer-S/4', num_classes=3, **wide)
  tuned, given = start.start(
      model, image_size=(8, 8), weights=str(tmp_path / 'w.npz'))
  shapes = tuned.init(jax.random.key(3), jnp.zeros((1, 8, 8, 3)))['params']
  with pytest.raises(errors.UserError) as e:
    start.merge(given, shapes, 'w.npz')
  for name in ('Dense_0/kernel', 'Dense_0/bias', 'Dense_1/kernel'):
    assert f'MixerBlock_0/channel_mixing/{name}' in str(e.value)
  assert 'head/bias: (5,), the model has (3,)' in str(e.value)


@pytest.mark.parametrize('mine,size,flags', (
    (dict(hidden_dim=24, num_blocks=3), 8, 'hidden_dim=16 num_blocks=1'),
    (dict(tokens_mlp_dim=9), 8, 'tokens_mlp_dim=6'),
    (dict(tokens_mlp_dim=9), 16, 'tokens_mlp_dim=24'),
))
def test_the_remedy_names_the_flags_with_which_weights_fit(
    tmp_path, mine, size, flags):
  released(tmp_path / 'w.npz', classes=3)
  def begin(**sizes):
    model = models.create('Mixer-S/4', num_classes=3, **dict(TINY, **sizes))
    tuned, given = start.start(
        model, image_size=(size, size), weights=str(tmp_path / 'w.npz'),
        widen='tokens_mlp_dim' not in sizes)
    start.merge(given, tuned.init(jax.random.key(3), jnp.zeros(
        (1, size, size, 3)))['params'], 'w.npz')

  with pytest.raises(errors.UserError) as e:
    begin(**mine)
  told = str(e.value).partition('; for a model of their widths, ')[2]
  assert told == ' '.join(f'--config.model.{f}' for f in flags.split())
  begin(**dict(mine, **{key: int(value) for key, value in (
      flag.split('=') for flag in flags.split())}))


def test_a_pattern_of_dont_load_that_does_nothing_is_told(tmp_path):
  """A head that was meant to be new would be the old one; weights without a
  head have nothing to leave out, and start one."""
  _, params = released(tmp_path / 'w.npz', classes=3)
  formats.save(str(tmp_path / 'headless.npz'),
               {k: v for k, v in params.items() if k != 'head'})
  model = models.create('Mixer-S/4', num_classes=3, **TINY)
  begin = lambda file, pattern: start.start(
      model, image_size=(8, 8), weights=str(tmp_path / file),
      dont_load=pattern)[1]
  with pytest.raises(errors.UserError, match="dont_load: 'haed/.*' matches no"):
    begin('w.npz', 'haed/.*')
  assert 'head' not in begin('headless.npz', 'head/.*')
  assert 'stem' not in begin('w.npz', 'stem/.*')


def test_what_is_made_of_the_weights_is_said(tmp_path, caplog):
  caplog.set_level('INFO', 'mixer')
  released(tmp_path / 'w.npz', classes=3)
  def said(size, **sizes):
    model = models.create('Mixer-S/4', num_classes=3, **dict(TINY, **sizes))
    start.start(model, image_size=size, weights=str(tmp_path / 'w.npz'))
    return caplog.messages[-1].partition(', at ')[2]

  assert said((8, 8)) == '8x8; afresh: nothing'
  assert said((12, 8)) == '8x8, made for 12x8; afresh: nothing'
  assert said((16, 16)) == (
      '8x8, made for 16x16, tokens_mlp_dim 24; afresh: nothing')
  assert said((16, 16), patch_size=8) == (
      '8x8, made for 16x16, patch_size 8; afresh: nothing')


@pytest.mark.slow   # whole runs
def test_a_run_resumes_when_its_weights_are_gone(tmp_path):
  """From the middle, to the bits of one that was not stopped."""
  released(tmp_path / 'w.npz')
  images, labels = datasets.load_digits(n_class=5, return_X_y=True)
  images = np.repeat((images * 15).astype(np.uint8).reshape(-1, 8, 8, 1), 3, 3)
  np.savez(tmp_path / 'd.npz', train_images=images[:320], test_images=images[
      320:400], train_labels=labels[:320], test_labels=labels[320:400])
  c = finetune.get_config('s32,cifar10')
  c.model.update(**TINY)
  c.data.name = f'arrays:{tmp_path}/d.npz'
  c.start.weights = f'{tmp_path}/w.npz'
  c.optimizer.frozen = 'MixerBlock_0/.*'
  c.run.update(batch_size=32, total_steps=6, image_size=16, eval_every=0)
  c.checkpoint.every = 3
  run.train(c, str(tmp_path / 'whole'))
  last = tmp_path / 'whole' / 'checkpoints' / '6'
  whole = trees.flatten(checkpoint.load_params(str(last)))
  last.rename(tmp_path / 'last')   # as if killed after the third step
  (tmp_path / 'w.npz').unlink()
  run.train(c, str(tmp_path / 'whole'))
  for name, value in trees.flatten(checkpoint.load_params(str(last))).items():
    np.testing.assert_array_equal(value, whole[name], name)
  with pytest.raises(errors.UserError, match='start.weights.*no such file'):
    run.train(c, str(tmp_path / 'new'))
