"""A run that waits too long for something says what it is, again and again."""
import itertools
import re
import time
import types

import numpy as np
import pytest

from mixer.analysis import scoring
from mixer.training import loop
from mixer.training import sharding
from mixer.training import watchdog


def watched(seconds, monkeypatch, until, phases):
  """Watches a made clock up to a time; returns the seconds of all reports.

  Args:
    phases: (time) -> what begins then, or None.
  """
  now, reports = [0.0], []
  watch = watchdog.Watch(seconds)

  def wait(pause):
    now[0] += pause
    if phases(now[0]):
      watch.phase(phases(now[0]))
    return now[0] > until

  monkeypatch.setattr(watchdog.time, 'monotonic', lambda: now[0])
  watch._end = types.SimpleNamespace(wait=wait)
  watch._report = lambda what, step, took: reports.append((what, now[0]))
  watch._watch()
  return reports


def test_a_stall_is_reported_at_growing_intervals(monkeypatch):
  """After 300 seconds, and after 2, 4 and 8 times as long."""
  begins = lambda now: 'saving' if now == 1000 else None
  reports = watched(300, monkeypatch, 4000, begins)
  assert [(what, round(at, -1)) for what, at in reports] == [
      ('starting', 300), ('starting', 600), ('saving', 1300), ('saving', 1600),
      ('saving', 2200), ('saving', 3400)]


def test_many_short_phases_are_no_stall(monkeypatch):
  """Also if two that follow one another have the same name."""
  assert watched(300, monkeypatch, 4000, lambda now: (
      'computing a step' if now % 100 == 0 else None)) == []


def train(watch, stall, at):
  """Runs the loop for three steps; `stall` is called in the second step's part
  that is named, and in the evaluation after the last one."""
  def batches():
    for i in range(3):
      if (i, at) == (1, 'reading a batch'):
        stall()
      yield dict(record=i)

  def compute(state, batch, resident):
    if (batch['record'], at) in ((1, 'computing a step'),
                                 (0, 'compiling the first step')):
      stall()
    return state, dict(loss=np.float32(1))

  def score(state):
    if at == 'evaluating':
      stall()
    return {}

  def save(*args):
    if at == 'saving':
      stall()

  deaf = types.SimpleNamespace(
      write=lambda *a: None, flush=lambda: None, say=lambda text: None,
      advance=lambda step: None, metrics=lambda *a: None,
      asked=lambda step: None, wary=False, look=lambda *a: False,
      check=lambda *a: None, compare=lambda *a: None)
  loop.train(types.SimpleNamespace(step=0), loop.Job(
      step_fn=compute, batches=batches(), resident=None, evaluate=score,
      save=save, writer=deaf, progress=deaf, guard=deaf, skips=deaf,
      total_steps=3, log_every=100, eval_every=0, save_every=100,
      save_scored=False, batch_size=1, flops=1.0, peak_flops=1.0, phase=watch.phase))


@pytest.mark.parametrize('what, step', [
    ('reading a batch', 1), ('computing a step', 1), ('evaluating', 3),
    ('saving', 3), ('compiling the first step', 0)])
def test_what_the_loop_waits_for_is_said_with_the_stacks(
    what, step, caplog, capfd, monkeypatch):
  """Each report takes twice as long as the one before it."""
  monkeypatch.setattr(watchdog.sys, '__stderr__', watchdog.sys.stderr)

  def stall():
    end = time.monotonic() + 60
    while len(caplog.messages) < 2 and time.monotonic() < end:
      time.sleep(0.01)

  with watchdog.Watch(0.3) as watch:
    train(watch, stall, what)
  found = [re.fullmatch(
      rf'stalled  {what} has taken ([\d.]+) s so far, after step {step} '
      r'\(run.stall_seconds=0.3\); standard error has the stacks of all threads',
      message) for message in caplog.messages[:2]]
  assert float(found[0][1]) >= 0.3 and float(found[1][1]) >= 0.6
  stacks = capfd.readouterr().err
  assert 'in stall\n' in stacks and 'test_watchdog.py' in stacks


def test_a_run_without_a_stall_says_nothing(caplog):
  """A limit of 0 is none."""
  for seconds in (0, 60):
    with watchdog.Watch(seconds) as watch:
      train(watch, lambda: time.sleep(0.05), 'reading a batch')
  assert caplog.messages == []


def test_of_several_processes_it_is_said_which_one_waits(caplog, monkeypatch):
  monkeypatch.setattr(watchdog.processes, 'several', lambda: True)
  monkeypatch.setattr('jax.process_index', lambda: 3)
  monkeypatch.setattr('jax.process_count', lambda: 8)
  watchdog.Watch(300)._report('saving', 1200, 600.0)
  assert re.fullmatch(
      r'stalled  saving has taken 600 s so far in process 3 of 8 on \S+, after '
      r'step 1,200 \(run.stall_seconds=300\); .*', caplog.messages[0])


def test_an_evaluation_tells_the_watchdog_of_every_batch():
  """So only a batch that takes too long is a stall, not a long evaluation."""
  plan, phases = sharding.plan(), []
  watch = types.SimpleNamespace(phase=lambda *phase: phases.append(phase))
  watched = scoring._Watched(plan.mesh, plan.strategy, watch, itertools.count())
  for _ in range(2):
    batch = watched.put_batch(dict(mask=np.ones(plan.parts, bool)))
    assert batch['mask'].all()
  assert phases == [('evaluating', 0), ('evaluating', 1)]


def test_commands_without_the_setting_do_not_name_it(caplog):
  watchdog.Watch(300, 'image', key='')._report('predicting', 64, 600.0)
  assert caplog.messages == [
      'stalled  predicting has taken 600 s so far, after image 64; standard '
      'error has the stacks of all threads']
