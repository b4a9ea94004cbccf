"""Fine-tuning: the configs are the paper's recipe, and whole runs work.

The paper inherits the set-up of ViT (https://arxiv.org/abs/2010.11929, table 4)
and prints its own learning rates (appendix C); flips and crops on VTAB are
BiT's (https://arxiv.org/abs/1912.11370, appendix F).
"""
import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
from PIL import Image
import pytest
from sklearn import datasets
from small_weights import release

from configs import finetune
from mixer import models
from mixer import pretrained
from mixer.core import checkpoint_reader
from mixer.core import errors
from mixer.core import trees
from mixer.data import splits
from mixer.data import vtab
from mixer.models import catalog
from mixer.pretrained import registry
from mixer.training import assembly
from mixer.training import resume
from mixer.training import run

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


@pytest.mark.parametrize('dataset', (
    *finetune.DATASETS, 'folder=/a,b', 'manifest=c.csv', 'vtab-dtd'))
@pytest.mark.parametrize('model', finetune.MODELS)
def test_a_config_has_the_settings_of_the_paper(model, dataset):
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
def test_it_starts_from_released_weights_if_there_are_any(model):
  """ImageNet-21k, where there is; else the user is asked."""
  weights = finetune.get_config(f'{model},cifar10').start.weights
  name = f'{finetune.MODELS[model]}-imagenet21k'
  assert weights == (name if name in registry.names() else '')
  assert (model in finetune.RELEASED) == bool(weights)


def test_steps_rates_and_splits_are_those_of_the_papers_table():
  """`pytest -s` prints the values of the configs."""
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


def test_vtab_tasks_have_the_crops_flips_and_sizes_of_the_paper():
  """`pytest -s` prints them."""
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
def test_a_config_for_own_images_validates_and_keeps_the_best(kind):
  """The path may contain the characters that separate arguments."""
  c = finetune.get_config(f'b16,{kind}=/my photos,2:b=c')
  assert c.data.name == f'{kind}:/my photos,2:b=c'
  assert c.run.total_steps == 500 and c.checkpoint.best in (
      f'eval/{name}/accuracy' for name in c.evals)
  assert c.evals.validation.split == c.sweep.dev == 'validation'
  assert c.data.split == c.sweep.train == 'train'


@pytest.mark.parametrize('argument', (
    'b16', 'b8,cifar10', 'b16,cifar', 'cifar10', 'b16,folder', 'b16,folder=',
    'b16,vtab-cifar10', 'b16,vtab', 'b16,cifar10,adam', 'b16,vtab-dtd=1'))
def test_a_bad_argument_is_an_error_with_the_choices(argument):
  with pytest.raises(ValueError) as e:
    finetune.get_config(argument)
  for part in (repr(argument), 'h14', 'cifar100', 'folder=PATH', 'kitti'):
    assert part in str(e.value)


# The tests below train a small network on small images.


def photos(path):
  """Writes 240 digits as a folder of PNGs of three classes, 8x8."""
  images, labels = datasets.load_digits(n_class=3, return_X_y=True)
  images = (images * 15).astype(np.uint8).reshape(-1, 8, 8)
  for i in range(240):
    where = path / 'abc'[labels[i]]
    where.mkdir(parents=True, exist_ok=True)
    Image.fromarray(images[i]).convert('RGB').save(where / f'{i}.png')
  return path


def main(*flags):
  env = dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS='')
  return subprocess.run(
      [sys.executable, '-m', 'mixer.main', '--noreport', *flags], cwd=ROOT, env=env,
      capture_output=True, text=True, timeout=120)


@pytest.mark.slow   # whole runs
def test_the_command_fine_tunes_on_a_folder_at_another_size(tmp_path):
  """From a file of weights for 8x8 to images of 16x16. It keeps the best
  checkpoint, and when started again it does not need the weights."""
  photos(tmp_path / 'photos')
  _, params = release(tmp_path / 'w.npz')
  flags = [
      f'--config=configs/finetune.py:s32,folder={tmp_path}/photos',
      f'--workdir={tmp_path}/run', f'--config.start.weights={tmp_path}/w.npz',
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
  assert again.returncode == 0 and 'already finished' in again.stdout


@pytest.mark.parametrize('flags,words', (
    (('--config=configs/finetune.py:b16,cifar',), ('b16,cifar', 'cifar10')),
    (('--config=configs/finetune.py:s32,cifar10',
      '--config.data.name=digits', '--config.evals.test.crop=resize',
      '--config.model.patch_size=4', '--config.run.image_size=8',
      '--config.run.batch_size=8', '--config.augment.flip=false'),
     ('start.weights', 'Mixer-S/4', '--config.start.weights=')),
))
def test_a_mistake_is_one_line_with_the_choices(flags, words, tmp_path):
  out = main(*flags, f'--workdir={tmp_path}/run')
  assert out.returncode == 2 and len(out.stderr.splitlines()) == 1, out.stderr
  assert out.stderr.startswith('error: ')
  for word in words:
    assert word in out.stderr


def test_a_run_has_the_widths_of_its_weights_and_resumes_with_them(tmp_path):
  """The config names a network of the paper, and sets no width."""
  theirs, _ = release(tmp_path / 'w.npz')
  c = finetune.get_config('s32,cifar10')
  c.start.weights = f'{tmp_path}/w.npz'
  c.run.image_size = 8
  settings = assembly.check(c)
  data = types.SimpleNamespace(num_classes=2, channels=3)
  asked = assembly.make_model(c, settings, data)
  model, *_ = assembly.load_start(c, settings, asked, None, None)
  assert assembly.described(c, asked)['name'] == 'Mixer-S/32'
  card = assembly.described(c, model)
  assert card == dict(catalog.describe(theirs), num_classes=2)
  (tmp_path / 'model.json').write_text(json.dumps(dict(model=card)))
  assert resume.as_trained(asked, str(tmp_path)) == model


@pytest.mark.slow   # whole runs
def test_a_run_can_be_resumed_when_its_weights_are_gone(tmp_path):
  """It ends with the same bits as one that was not stopped."""
  release(tmp_path / 'w.npz')
  images, labels = datasets.load_digits(n_class=5, return_X_y=True)
  images = np.repeat((images * 15).astype(np.uint8).reshape(-1, 8, 8, 1), 3, 3)
  np.savez(tmp_path / 'd.npz', train_images=images[:320], test_images=images[
      320:400], train_labels=labels[:320], test_labels=labels[320:400])
  c = finetune.get_config('s32,cifar10')
  c.data.name = f'arrays:{tmp_path}/d.npz'
  c.start.weights = f'{tmp_path}/w.npz'
  c.optimizer.frozen = 'MixerBlock_0/.*'
  c.run.update(batch_size=32, total_steps=6, image_size=16, eval_every=0)
  c.checkpoint.every = 3
  run.train(c, str(tmp_path / 'whole'))
  last = tmp_path / 'whole' / 'checkpoints' / '6'
  whole = trees.flatten(checkpoint_reader.load_params(str(last)))
  last.rename(tmp_path / 'last')   # as if it was killed after step 3
  (tmp_path / 'w.npz').unlink()
  run.train(c, str(tmp_path / 'whole'))
  for name, value in trees.flatten(checkpoint_reader.load_params(str(last))).items():
    np.testing.assert_array_equal(value, whole[name], name)
  with pytest.raises(errors.UserError, match='start.weights.*no such file'):
    run.train(c, str(tmp_path / 'new'))
