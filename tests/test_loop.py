"""The training loop on fake objects: when it logs, evaluates and saves."""
import types

import numpy as np
import pytest

from mixer.core import errors
from mixer.training import loop
from mixer.training import watchdog


class Recorder:
  """Takes the place of the writer, the progress and the checkpoints."""

  def __init__(self):
    self.saved, self.rows, self.scored, self.lines = [], {}, [], []
    self.stopped, self.flushed = None, []

  def write(self, step, row):
    self.rows.setdefault(step, {}).update(row)

  def flush(self):
    self.flushed.append(max(self.rows, default=0))

  def advance(self, step):
    pass

  def metrics(self, step, row):
    pass

  def say(self, text):
    self.lines.append(text)

  def save(self, step, state, scores):
    assert self.flushed[-1] == max(self.rows)   # before the checkpoint
    self.saved.append((step, scores))


@pytest.mark.parametrize('step, every, total, expected', [
    (1, 1, 9, True), (3, 4, 9, False), (4, 4, 9, True), (9, 4, 9, True),
    (9, 100, 9, True), (5, 0, 9, False), (9, 0, 9, True)])
def test_due_at_every_period_and_at_the_last_step(step, every, total, expected):
  assert loop.due(step, every, total) is expected


def run(*, total=10, first=0, stop_at=None, bad_at=None, seen=None,
        **settings):
  seen = seen or Recorder()
  guard = types.SimpleNamespace(requested=None)
  guard.asked = lambda step: guard.requested

  def step_fn(state, batch, resident):
    number = batch['record'] + 1
    if number == stop_at:
      guard.requested = 'SIGTERM'
    loss = float('nan') if number == bad_at else 1.0
    return state, dict(loss=np.float32(loss), accuracy=np.float32(0))

  def evaluate(state):
    seen.scored.append(len(seen.scored))
    return {'eval/test/accuracy': 0.1 * len(seen.scored)}

  periods = dict(log_every=2, eval_every=4, save_every=3, save_scored=False)
  job = loop.Job(
      step_fn=step_fn, resident=None, evaluate=evaluate, save=seen.save,
      batches=(dict(record=i) for i in range(first, total)), writer=seen,
      progress=seen, guard=guard,
      skips=watchdog.Skips('', norms=None), total_steps=total, batch_size=8,
      flops=1.0, peak_flops=1.0,
      **dict(periods, **settings))
  state = types.SimpleNamespace(step=first)
  try:
    loop.train(state, job)
  except errors.Stopped as e:
    seen.stopped = str(e)
  return seen


def test_it_logs_evaluates_and_saves_at_its_periods_and_at_the_end():
  seen = run()
  assert [step for step, _ in seen.saved] == [3, 6, 9, 10]
  assert sorted(s for s, r in seen.rows.items() if 'train/loss' in r) == [
      2, 4, 6, 8, 10]
  assert sorted(s for s, r in seen.rows.items()
                if 'eval/test/accuracy' in r) == [4, 8, 10]


def test_a_checkpoint_has_the_scores_of_its_own_step_or_none():
  seen = run()
  assert [bool(scores) for _, scores in seen.saved] == [
      False, False, False, True]
  best = run(save_scored=True)
  scores = [s['eval/test/accuracy'] for _, s in best.saved]
  assert len(best.scored) == 6 and len(set(scores)) == len(scores) == 4


def test_every_new_best_is_saved_at_the_step_of_its_evaluation():
  """Evaluations at 2, 4, 6, 8 and 10; only the first two are new bests."""
  values = iter((0.5, 0.7, 0.6, 0.7, 0.1))
  top = [0.0]

  def improves(scores):
    value, better = next(values), False
    better, top[0] = value > top[0], max(value, top[0])
    return better

  seen = run(eval_every=2, save_every=100, improves=improves)
  assert [step for step, _ in seen.saved] == [2, 4, 10]


@pytest.mark.parametrize('patience, stale, last', [
    (0, 9, 10), (1, 0, 2), (2, 0, 8), (2, 1, 2), (3, 0, 10)])
def test_evaluations_without_a_new_best_end_a_run(patience, stale, last):
  """Of those at 2, 4, 6, 8 and 10, the second is a new best. Those before a
  restart count; at the last step the run ends as always."""
  better = iter([False, True, False, False, False])
  seen = run(eval_every=2, save_every=100, patience=patience, stale=stale,
             improves=lambda scores: next(better))
  assert seen.saved[-1][0] == max(seen.rows) == last
  early = [line for line in seen.lines if 'stopped early' in line]
  assert early == ([loop.early(last, patience)] if last < 10 else [])
  assert sum('device-hours' in line for line in seen.lines) == 1


@pytest.mark.parametrize('stop_at', [4, 6, 7])
def test_a_signal_makes_it_save_at_once_without_an_evaluation(stop_at):
  seen = run(stop_at=stop_at, save_scored=True)
  assert seen.stopped == (f'SIGTERM at step {stop_at}, which is saved; run the '
                          'same command again to resume')
  assert seen.saved[-1] == (stop_at, {})
  assert stop_at not in [s for s, r in seen.rows.items()
                         if 'eval/test/accuracy' in r]


def test_a_signal_at_the_last_step_lets_it_finish():
  seen = run(stop_at=10)
  assert seen.stopped is None and seen.saved[-1][0] == 10
  assert seen.lines[-2] == 'evaluated at step 10: accuracy on test 30.00%'


def test_a_loss_that_is_not_finite_is_logged_and_not_saved():
  for bad_at, saved in ((6, [3]), (3, [])):
    seen = Recorder()
    with pytest.raises(errors.RunError, match=f'step {bad_at}: loss = nan'):
      run(bad_at=bad_at, seen=seen)
    assert [step for step, _ in seen.saved] == saved
    assert seen.rows[2]['train/loss'] == 1.0
    assert bad_at == 3 or np.isnan(seen.rows[bad_at]['train/loss'])


def test_accuracies_are_shown_by_split():
  assert loop.accuracies({
      'eval/test/accuracy': 0.98611, 'eval/test/loss': 0.1,
      'eval/minival/accuracy': 1.0, 'eval/minival/accuracy_top5': 1.0,
      'eval/few/accuracy_25shot': .5}) == (
          'accuracy on test 98.61%, accuracy on minival 100.00%, '
          '25-shot accuracy on few 50.00%')
