"""experiments/sweep: a run for each value, a choice, and a final run."""
import json
import os
import pathlib
import subprocess
import sys

import jax
from jax.experimental.compilation_cache import compilation_cache
import numpy as np
import pytest
from sklearn import datasets

from configs import finetune
from mixer import models
from mixer.core import errors
from mixer.experiments import sweep
from mixer.experiments import sweep_grid
from mixer.pretrained import formats
from mixer.training import metrics_file
from mixer.training import run

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIZES = dict(patch_size=4, hidden_dim=16, num_blocks=1, channels_mlp_dim=32)
RATE = 'schedule.learning_rate'
DEV = 'eval/dev/accuracy'


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Caches what a run compiles for the other runs of this file."""
  keys = {'jax_compilation_cache_dir': str(tmp_path_factory.mktemp('compiled')),
          'jax_persistent_cache_min_compile_time_secs': 0.1}
  before = {key: getattr(jax.config, key) for key in keys}
  for settings in (keys, before):
    for key, value in settings.items():
      jax.config.update(key, value)
    compilation_cache.reset_cache()
    if settings is keys:
      yield


def digits(path, count=600):
  """Writes the digits in colour, 8x8: `count` to train, 120 to test."""
  images, labels = datasets.load_digits(return_X_y=True)
  images = (images * 15).astype(np.uint8).reshape(-1, 8, 8, 1)
  images = np.repeat(images, 3, -1)
  np.savez(path, train_images=images[:count], train_labels=labels[:count],
           test_images=images[-120:], test_labels=labels[-120:])
  return f'arrays:{path}'


def weights(path, size=8):
  """Writes random weights of the small network."""
  model = models.create('Mixer-S/4', num_classes=3, tokens_mlp_dim=6, **SIZES)
  params = model.init(jax.random.key(0), np.zeros((1, size, size, 3)))['params']
  formats.save(str(path), jax.tree.map(np.asarray, params))
  return str(path)


def small(tmp_path, **changes):
  """The config configs/finetune.py on the digits, a few steps long."""
  c = finetune.get_config('s32,cifar10')
  c.model.update(**SIZES)
  c.data.name = digits(tmp_path / 'digits.npz')
  c.start.weights = weights(tmp_path / 'weights.npz')
  c.augment.flip = False
  c.schedule.warmup_steps = 2
  c.run.update(batch_size=64, total_steps=12, image_size=8, log_every=1,
               eval_every=0)
  c.sweep.learning_rates = (0.003, 0.3)
  c.update_from_flattened_dict(changes)
  return c.lock()


def go(config, workdir, **grid):
  section = dict(config.sweep)
  return sweep.sweep(config, str(workdir), grid=grid, **section)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  path = tmp_path_factory.mktemp('sweep')
  config = small(path)
  return config, path / 'w', go(config, path / 'w')


def record_runs(monkeypatch, spoil=lambda config, workdir: None):
  """Returns a list that gets the name of each run when it begins."""
  begun, real = [], run.train

  def train(config, workdir):
    begun.append(os.path.basename(workdir))
    spoil(config, workdir)
    return real(config, workdir)

  monkeypatch.setattr(run, 'train', train)
  return begun


@pytest.mark.slow   # whole runs
def test_the_best_on_held_out_images_is_trained_on_all(finished):
  config, workdir, found = finished
  scores = {name: r['scores'][DEV] for name, r in found['runs'].items()}
  assert list(scores) == [f'{RATE}=0.003', f'{RATE}=0.3']
  assert found['choice'] == max(scores, key=scores.get) == f'{RATE}=0.3'
  assert scores[f'{RATE}=0.3'] > scores[f'{RATE}=0.003']
  assert list(found['final']) == ['eval/test/accuracy', *[
      k for k in found['final'] if k != 'eval/test/accuracy']]
  assert found == json.loads((workdir / 'sweep.json').read_text())

  read = lambda name: json.loads((workdir / name / 'config.json').read_text())
  for name, rate in zip(scores, (0.003, 0.3)):
    tried = read(name)
    assert tried['schedule']['learning_rate'] == rate
    assert tried['data']['split'] == 'train[:98%]'
    assert {k: e['split'] for k, e in tried['evals'].items()} == {
        'dev': 'train[98%:]'}
    rows = metrics_file.read(workdir / name)
    assert rows[-1]['step'] == 12 and rows[-1][DEV] == scores[name]
  final = read('final')
  assert final['schedule']['learning_rate'] == 0.3
  assert final['data']['split'] == 'train' and list(final['evals']) == ['test']
  assert 'sweep' not in final
  assert config.schedule.learning_rate == 0.03   # the caller's is untouched


@pytest.mark.slow   # whole runs
@pytest.mark.parametrize('dev,retrain', (('test', False), ('test[:50%]', True)))
def test_the_best_run_trains_once_if_all_images_were_trained_on(
    tmp_path, monkeypatch, dev, retrain):
  """A sweep on a user's own images holds out no training image."""
  config = small(tmp_path, **{'run.total_steps': 2, 'sweep.train': 'train',
                              'sweep.dev': dev})
  config.start.weights = None
  config.sweep.learning_rates = (0.3,)
  begun = record_runs(monkeypatch)
  found = go(config, tmp_path / 'w')
  assert begun == [f'{RATE}=0.3'] + ['final'] * retrain
  assert found['retrain'] == retrain
  if not retrain:
    assert found['metric'] == 'eval/test/accuracy'
    assert found['final'] == found['runs'][f'{RATE}=0.3']['scores']
    kept = json.loads((tmp_path / 'w' / begun[0] / 'config.json').read_text())
    assert kept['checkpoint']['keep'] == config.checkpoint.keep
    assert list(kept['evals']) == ['test']
  assert go(config, tmp_path / 'w') == found and len(begun) == 1 + retrain
  sweep.show(found)
  sweep.draw(found)


@pytest.mark.slow   # whole runs
def test_a_finished_sweep_gives_its_result_without_another_run(
    finished, monkeypatch):
  config, workdir, found = finished
  begun = record_runs(monkeypatch)
  assert go(config, workdir) == found and begun == []


@pytest.mark.slow   # whole runs
def test_another_config_or_grid_in_the_same_workdir_is_refused(
    finished, monkeypatch):
  config, workdir, _ = finished
  begun = record_runs(monkeypatch)
  with pytest.raises(errors.UserError, match='grid.schedule.learning_rate was'):
    go(config, workdir, **{RATE: [0.003, 0.01]})
  other = config.copy_and_resolve_references()
  other.run.total_steps = 13
  with pytest.raises(errors.UserError, match='run.total_steps was 12, is 13'):
    go(other, workdir)
  assert begun == []


@pytest.mark.slow   # whole runs
def test_a_stopped_sweep_continues_with_the_run_that_was_stopped(
    tmp_path, monkeypatch, finished):
  """Stopped in the second run, then in the final one; the result is equal."""
  *_, found = finished
  config, workdir = small(tmp_path), tmp_path / 'w'
  config.start.weights = finished[0].start.weights
  stop = []

  def spoil(config, workdir):
    if any(name in workdir for name in stop):
      raise errors.Stopped('told to')

  begun = record_runs(monkeypatch, spoil)
  for stopped in ('0.3', 'final'):
    stop[:] = [stopped]
    with pytest.raises(errors.Stopped):
      go(config, workdir)
  stop.clear()
  again = go(config, workdir)
  assert begun == [f'{RATE}=0.003', f'{RATE}=0.3', f'{RATE}=0.3', 'final',
                   'final']
  assert again == found


@pytest.mark.slow   # whole runs
def test_a_run_that_diverges_is_not_chosen(tmp_path, monkeypatch):
  """It is recorded and not started again; the sweep continues."""
  config = small(tmp_path, **{'optimizer.clip_norm': 0.0,
                              'run.total_steps': 6})
  config.sweep.learning_rates = (2e9, 0.01)
  found = go(config, tmp_path / 'w')
  bad, good = found['runs'].values()
  assert 'diverged' in bad['failed'] and 'scores' not in bad
  assert found['choice'] == f'{RATE}=0.01' and good['scores']
  begun = record_runs(monkeypatch)
  assert go(config, tmp_path / 'w') == found and not begun
  config.sweep.learning_rates = (2e9,)
  with pytest.raises(errors.RunError, match='all 1 runs.*lower'):
    go(config, tmp_path / 'v')


def test_other_failures_stop_the_sweep(tmp_path, monkeypatch):
  def spoil(config, workdir):
    raise errors.RunError('the disk is full')
  record_runs(monkeypatch, spoil)
  with pytest.raises(errors.RunError, match='disk'):
    go(small(tmp_path), tmp_path / 'w')
  assert not (tmp_path / 'w' / 'sweep.json').exists()


def test_among_equal_scores_the_smaller_rate_wins_then_the_earlier_run():
  runs = {name: dict(learning_rate=rate, values={}, scores={DEV: score})
          for name, rate, score in (
              ('a', .3, .5), ('b', .1, .9), ('c', .03, .9), ('d', .03, .9))}
  assert sweep.choose(runs, DEV) == dict(choice='c', tied=['d', 'b'])


def test_the_table_says_what_became_of_each_run(capsys):
  row = lambda rate, **more: dict(values={RATE: rate}, learning_rate=rate,
                                  **more)
  runs = {'a': row(.03, scores={DEV: .5}), 'b': row(.01, scores={DEV: .5}),
          'c': row(9., failed='it has diverged'), 'd': row(.1, scores={DEV: 0})}
  found = dict(metric=DEV, train='train[:98%]', dev='train[98%:]', runs=runs,
               tested=['test'],
               final={'eval/test/accuracy': .875, 'eval/test/loss': 1.},
               **sweep.choose(runs, DEV))
  sweep.show(found)
  lines = capsys.readouterr().out.splitlines()
  line = lambda word: next(line for line in lines if word in line)
  assert 'train[:98%]' in lines[0] and 'train[98%:]' in lines[0]
  assert '0.01 ' in line('chosen: smaller learning rate of equals')
  assert '0.03 ' in line('as good') and '50.00%' in line('as good')
  assert '9.0 ' in line('diverged')
  assert 'with b: test/accuracy 87.50%' in line('final run')
  assert 'too good' not in ' '.join(lines)
  sweep.show(dict(found, tested=['train[98%:]']))
  text = ' '.join(capsys.readouterr().out.split())
  assert ('with b: test/accuracy 87.50%, on the images that chose it, so '
          'slightly too good') in text


def test_the_figure_has_a_line_for_each_value_of_the_other_keys():
  runs = {}
  for rate, flip, score in ((.1, True, .6), (.01, True, .5), (.01, False, .4),
                            (.1, False, None)):
    runs[f'{rate},{flip}'] = dict(
        values={RATE: rate, 'augment.flip': flip}, learning_rate=rate, **(
            dict(failed='it has diverged') if score is None else
            dict(scores={DEV: score})))
  found = dict(metric=DEV, dev='test', runs=runs, **sweep.choose(runs, DEV))
  axis, = sweep.draw(found).axes
  assert axis.get_xscale() == 'log' and axis.get_xlabel() == RATE
  assert [(line.get_label(), list(zip(*line.get_data())))
          for line in axis.lines[:2]] == [
              ('flip True', [(.01, .5), (.1, .6)]), ('flip False', [(.01, .4)])]
  assert [text.get_text() for text in axis.texts] == ['diverged']
  found['runs'] = {'a': dict(values={'model.name': 'ViT-S/2'}, learning_rate=.1,
                             scores={DEV: .5})}
  axis, = sweep.draw(dict(found, choice='a')).axes
  assert [x.get_text() for x in axis.get_xticklabels()] == ['ViT-S/2']


def test_several_keys_give_all_combinations(tmp_path):
  config = small(tmp_path)
  grid = sweep_grid.parse(
      [f'{RATE}=1,0.5', 'augment.flip=true,False', 'model.patch_size=4'],
      config)
  assert grid == {RATE: [1.0, 0.5], 'augment.flip': [True, False],
                  'model.patch_size': [4]}
  trials = sweep._trials(config, grid)
  assert len(trials) == 4
  assert trials[f'{RATE}=0.5,augment.flip=True,model.patch_size=4'] == {
      RATE: 0.5, 'augment.flip': True, 'model.patch_size': 4}


@pytest.mark.parametrize('text,words', (
    ('schedule.learning_rat=1',
     "--grid: schedule: 'learning_rat' is unknown; .*'learning_rate'"),
    ('shedule.rate=1', "--grid: 'shedule' is unknown; .*'schedule'"),
    ('schedule.learning_rate.x.y=1', 'schedule.learning_rate is a setting'),
    ('schedule.learning_rate=', 'such as schedule.learning_rate'),
    ('0.01,0.1', "such as.*'0.01,0.1'"),
    ('learning_rate=1', 'such as.*learning_rate=1'),
    (f'{RATE}=fast', "learning_rate: expected float, got 'fast'"),
    (f'{RATE}=0.1,', "learning_rate: expected float, got ''"),
    ('run.total_steps=1.5', "total_steps: expected int, got '1.5'"),
    ('augment.flip=maybe', "flip: expected bool, got 'maybe'"),
    ('evals.test.crop=resize', 'evals.test.crop'),
    ('data.split=train', 'data.split'),
))
def test_a_bad_grid_is_refused(text, words, tmp_path):
  with pytest.raises(errors.UserError, match=words):
    sweep_grid.parse([text], finetune.get_config('b16,cifar10'))


def test_a_value_out_of_range_is_refused_before_the_first_run(
    tmp_path, monkeypatch):
  begun = record_runs(monkeypatch)
  with pytest.raises(errors.UserError, match='learning_rate.*-1'):
    go(small(tmp_path), tmp_path / 'w', **{RATE: [0.1, -1.0]})
  with pytest.raises(errors.UserError, match="sweep.metric.*'eval/dev/loss'"):
    go(small(tmp_path, **{'sweep.metric': 'eval/dev/loss'}), tmp_path / 'w')
  assert begun == [] and not (tmp_path / 'w').exists()


def study(*flags):
  env = dict(os.environ, JAX_PLATFORMS='cpu', COLUMNS='120', XLA_FLAGS='')
  return subprocess.run(
      [sys.executable, '-m', 'mixer.study', *flags], cwd=ROOT, env=env,
      capture_output=True, text=True, timeout=120)


@pytest.mark.slow   # whole runs
def test_the_command_prints_the_scores_and_the_run_to_use(tmp_path):
  c = small(tmp_path)
  flags = [f'--config.model.{k}={v}' for k, v in SIZES.items()]
  out = study(
      'sweep', '--config=configs/finetune.py:s32,cifar10', *flags,
      f'--config.data.name={c.data.name}', '--config.run.image_size=8',
      f'--config.start.weights={c.start.weights}', '--config.run.batch_size=64',
      '--config.run.total_epochs=1', f'--grid={RATE}=0.03,0.3',
      f'--workdir={tmp_path}/w')
  assert out.returncode == 0, out.stderr
  found = json.loads((tmp_path / 'w' / 'sweep.json').read_text())
  assert list(found['runs']) == [f'{RATE}=0.03', f'{RATE}=0.3']
  assert found == json.loads((tmp_path / 'w' / 'result.json').read_text())
  assert f'the run to use is {tmp_path}/w/final\n' in out.stdout
  told = out.stdout[out.stdout.index('trained on train[:98%]'):]
  assert 'chosen' in told
  for row in found['runs'].values():
    assert f'{row["scores"][DEV]:.2%}' in told
  assert f'{found["final"]["eval/test/accuracy"]:.2%}' in told


@pytest.mark.slow   # whole runs
def test_the_runs_start_from_the_same_weights(finished):
  """So the sweep compares the values, and not random draws."""
  _, workdir, found = finished
  first = [metrics_file.read(workdir / name)[0]['train/loss']
           for name in found['runs']]
  assert first[0] == first[1]
