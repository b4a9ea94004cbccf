"""The loop with ready-made objects: what is saved, scored and said when."""
import os
import signal
import types

import numpy as np
import pytest

from mixer.core import errors
from mixer.training import loop
from mixer.training import stop


class Recorder:
  """Stands where the writer, the progress and the checkpoints would."""

  def __init__(self):
    self.saved, self.rows, self.scored = [], {}, []

  def write(self, step, row):
    self.rows.setdefault(step, {}).update(row)

  def flush(self):
    pass

  def advance(self, step):
    pass

  def metrics(self, step, row):
    pass

  def say(self, text):
    pass

  def save(self, step, state, scores):
    self.saved.append((step, scores))


def run(*, total=10, first=0, stop_at=None, bad_at=None, seen=None,
        **settings):
  seen = seen or Recorder()
  guard = types.SimpleNamespace(requested=None)
  guard.asked = lambda step: guard.requested

  def step_fn(state, batch, resident):
    if batch + 1 == stop_at:
      guard.requested = 'SIGTERM'
    loss = float('nan') if batch + 1 == bad_at else 1.0
    return state, dict(loss=np.float32(loss), accuracy=np.float32(0))

  def evaluate(state):
    seen.scored.append(len(seen.scored))
    return {'eval/test/accuracy': 0.1 * len(seen.scored)}

  periods = dict(log_every=2, eval_every=4, save_every=3, save_scored=False)
  job = loop.Job(
      step_fn=step_fn, batches=iter(range(first, total)), resident=None,
      evaluate=evaluate, save=seen.save, writer=seen, progress=seen,
      guard=guard, total_steps=total, batch_size=8, flops=1.0, peak_flops=1.0,
      **dict(periods, **settings))
  state = types.SimpleNamespace(step=first)
  try:
    loop.train(state, job)
  except errors.Stopped:
    seen.stopped = True
  return seen


def test_everything_is_due_when_its_period_says_and_at_the_end():
  seen = run()
  assert [step for step, _ in seen.saved] == [3, 6, 9, 10]
  assert sorted(s for s, r in seen.rows.items() if 'train/loss' in r) == [
      2, 4, 6, 8, 10]
  assert sorted(s for s, r in seen.rows.items()
                if 'eval/test/accuracy' in r) == [4, 8, 10]


def test_a_checkpoint_carries_the_scores_of_its_own_step_only():
  seen = run()
  assert [bool(scores) for _, scores in seen.saved] == [
      False, False, False, True]
  best = run(save_scored=True)
  scores = [s['eval/test/accuracy'] for _, s in best.saved]
  assert len(best.scored) == 6 and len(set(scores)) == len(scores) == 4


@pytest.mark.parametrize('stop_at', [4, 6, 7])
def test_told_to_stop_it_saves_at_once_without_an_evaluation(stop_at):
  seen = run(stop_at=stop_at, save_scored=True)
  assert seen.stopped and seen.saved[-1] == (stop_at, {})
  assert stop_at not in [s for s, r in seen.rows.items()
                         if 'eval/test/accuracy' in r]


def test_told_to_stop_at_the_last_step_it_is_done():
  seen = run(stop_at=10)
  assert not hasattr(seen, 'stopped') and seen.saved[-1][0] == 10


def test_a_loss_that_is_not_finite_is_written_and_never_saved():
  """The row is there to be looked at; no checkpoint holds what it spoiled."""
  for bad_at, saved in ((6, [3]), (3, [])):
    seen = Recorder()
    with pytest.raises(errors.RunError, match=f'step {bad_at}: loss = nan'):
      run(bad_at=bad_at, seen=seen)
    assert [step for step, _ in seen.saved] == saved
  assert seen.rows[2]['train/loss'] == 1.0


def test_a_second_signal_kills_unless_it_comes_with_the_first(monkeypatch):
  """A system may tell a launcher and its children, and the launcher them too.
  """
  now, killed = [100.0], []
  monkeypatch.setattr(stop.time, 'monotonic', lambda: now[0])
  with stop.Guard() as guard:
    assert guard.asked(1) is None
    signal.raise_signal(signal.SIGTERM)
    now[0] += 0.5
    signal.raise_signal(signal.SIGTERM)
    assert guard.asked(2) == 'SIGTERM'
    now[0] += 1
    monkeypatch.setattr(stop.os, 'kill', lambda *given: killed.append(given))
    signal.raise_signal(signal.SIGINT)
    assert killed == [(os.getpid(), signal.SIGINT)]
