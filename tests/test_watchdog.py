"""A run that waits too long for something says what it is, again and again."""
import time
import types

import pytest

from mixer.training import loop
from mixer.training import watchdog


def train(watch, *, read=0.0, step=0.0, evaluate=0.0):
  """Runs the loop for three steps; the second one takes as long as given."""
  def batches():
    for i in range(3):
      time.sleep(read if i == 1 else 0)
      yield i

  def compute(state, batch, resident):
    time.sleep(step if batch == 1 else 0)
    return state, {}

  def score(state):
    time.sleep(evaluate)
    return {}

  deaf = types.SimpleNamespace(
      write=lambda *a: None, flush=lambda: None, say=lambda text: None,
      advance=lambda step: None, metrics=lambda *a: None,
      asked=lambda step: None)
  loop.train(types.SimpleNamespace(step=0), loop.Job(
      step_fn=compute, batches=batches(), resident=None, evaluate=score,
      save=lambda *a: None, writer=deaf, progress=deaf, guard=deaf,
      total_steps=3, log_every=100, eval_every=0, save_every=100,
      save_scored=False, batch_size=1, flops=1.0, peak_flops=1.0,
      phase=watch.phase))


@pytest.mark.parametrize('what, step, took', [
    ('reading a batch', 1, dict(read=1.2)),
    ('computing a step', 1, dict(step=1.2)),
    ('evaluating', 3, dict(evaluate=1.2))])
def test_a_stall_is_reported_at_growing_intervals_with_the_stacks(
    what, step, took, caplog, capfd, monkeypatch):
  """At 0.2 and 0.4 and 0.8 seconds of 1.2."""
  monkeypatch.setattr(watchdog.sys, '__stderr__', watchdog.sys.stderr)
  with watchdog.Watch(0.2) as watch:
    train(watch, **took)
  assert [m.partition(' has taken ')[0] for m in caplog.messages] == [
      f'stalled  {what}'] * 3
  first, second, third = (r.created for r in caplog.records)
  assert third - second > second - first
  assert all(f'after step {step} (run.stall_seconds=0.2)' in m
             for m in caplog.messages)
  stacks = capfd.readouterr().err
  assert stacks.count('in train\n') >= 3 and 'test_watchdog.py' in stacks


@pytest.mark.parametrize('seconds, took', [(0, 0.3), (60, 0.3)])
def test_without_a_stall_nothing_is_said(seconds, took, caplog):
  """A limit of 0 reports nothing."""
  with watchdog.Watch(seconds) as watch:
    train(watch, read=took)
  assert caplog.messages == []


def test_many_short_phases_are_no_stall(caplog):
  with watchdog.Watch(0.3) as watch:
    for step in range(40):
      watch.phase(watchdog.READING, step % 2)
      time.sleep(0.02)
  assert caplog.messages == []
