"""A run ends early after too many evaluations without a new best."""
import json
import os
import shutil

import numpy as np
import pytest

from configs import digits
from mixer.core import errors
from mixer.core import workdir
from mixer.training import metrics_file
from mixer.training import resume
from mixer.training import run
from mixer.training import watchdog

BEST = 'eval/test/accuracy'


@pytest.mark.parametrize('values, last, count', [
    ([], 9, 0), ([.5], 9, 0), ([.5, .6, .6, .1], 9, 2),
    ([.5, .6, .6, .1], 3, 1),
    (['nan', .1, 'nan'], 9, 1), (['nan', 'nan'], 9, 1)])
def test_evaluations_since_the_best_are_counted_up_to_a_step(
    values, last, count, tmp_path):
  """An equal value is no new best; a last line may be cut short."""
  rows = [{'step': step, BEST: value} for step, value in enumerate(values, 1)]
  lines = [json.dumps({'step': 0, 'train/loss': 1.0}), *map(json.dumps, rows)]
  (tmp_path / workdir.METRICS).write_text('\n'.join([*lines, '{"step": 9, "e']))
  assert resume.since_best(str(tmp_path), BEST, last) == count
  assert resume.since_best(str(tmp_path), None, last) == 0


def config(path, patience=2, best=BEST):
  """A run whose accuracy is 50% for ever: all its images are the same."""
  if path and not os.path.exists(f'{path}/a.npz'):
    images, labels = np.full((32, 8, 8), 99, np.uint8), np.arange(32) % 2
    np.savez(f'{path}/a.npz', train_images=images, train_labels=labels,
             test_images=images, test_labels=labels)
  c = digits.get_config()
  c.model.update(hidden_dim=8, num_blocks=1)
  c.data.name = f'arrays:{path}/a.npz'
  c.augment = dict.fromkeys(c.augment, 0)
  c.checkpoint.update(every=2, best=best)
  c.run.update(batch_size=16, total_steps=5, eval_every=1, log_every=1,
               patience=patience)
  return c


def steps(path):
  return sorted(int(name) for name in os.listdir(path / 'checkpoints'))


@pytest.mark.slow   # four starts that compile
def test_a_run_ends_early_stays_finished_and_resumes_exactly(
    tmp_path, capsys, caplog):
  path = tmp_path / 'run'
  caplog.set_level('INFO', 'mixer')
  shown = lambda: ' '.join((capsys.readouterr().out + caplog.text).split())
  scores = run.train(config(tmp_path), str(path))
  assert scores[BEST] == 0.5 and steps(path) == [2, 3]
  assert 'stopped early at step 3: the last 2 evaluations' in shown()
  before = (path / workdir.METRICS).read_text()
  stored = json.loads((path / workdir.CONFIG).read_text())
  made = dict(stored['provenance'], commit='of older code')
  workdir.write_config(path, workdir.config_of(path), made)
  assert run.train(config(tmp_path), str(path)) == scores
  assert 'already finished at step 3' in shown()
  assert steps(path) == [2, 3]
  assert (path / workdir.METRICS).read_text() == before
  assert workdir.provenance(path)['commit'] == 'of older code'
  shutil.rmtree(path / 'checkpoints' / '3')   # as if it was killed at step 2
  run.train(config(tmp_path), str(path))
  assert steps(path) == [2, 3]
  run.train(config(tmp_path, patience=0), str(path))
  assert steps(path)[-1] == 5


@pytest.mark.slow   # three starts that compile
def test_an_evaluation_that_a_stop_prevented_is_made_up(tmp_path, monkeypatch):
  """The stopped run has the same metrics, the same best checkpoint and the same
  early end, though its best evaluation was due when it was asked to stop."""
  run.train(config(tmp_path), str(tmp_path / 'whole'))
  with monkeypatch.context() as patch:
    patch.setattr(watchdog.Guard, 'asked',
                  lambda self, step: 'SIGTERM' if step == 1 else None)
    with pytest.raises(errors.Stopped):
      run.train(config(tmp_path), str(tmp_path / 'cut'))
  cut, = metrics_file.read(tmp_path / 'cut')
  assert 'train/loss' in cut and BEST not in cut
  run.train(config(tmp_path), str(tmp_path / 'cut'))
  timed = ('second', 'utilisation')
  whole, cut = ([{key: value for key, value in row.items()
                  if not any(word in key for word in timed)}
                 for row in metrics_file.read(tmp_path / name)]
                for name in ('whole', 'cut'))
  assert whole == cut and cut[0][BEST] == 0.5 and len(cut) == 3
  assert steps(tmp_path / 'whole') == steps(tmp_path / 'cut')


def test_patience_needs_a_metric(tmp_path):
  with pytest.raises(errors.UserError, match='run.patience: 2 .*checkpoint.b'):
    run.train(config(tmp_path, best=None), str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()
