"""Figures that people are shown, each with the arithmetic that it stands for:
speed, utilisation, device-hours, ETA, plans and benchmarks."""
import types

import numpy as np
import pytest

from configs import digits
from mixer.analysis import input_speed
from mixer.analysis import planning
from mixer.analysis import step_speed
from mixer.core import accelerators
from mixer.training import loop
from mixer.training import progress
from mixer.training import watchdog


class Clock:
  """A clock that moves only when it is told to."""

  def __init__(self):
    self.now = 100.0

  def monotonic(self):
    return self.now


# The loop.


class Recorder:
  """Notes in which order metrics are written, stored and saved."""

  def __init__(self):
    self.rows, self.events, self.scores, self.lines = {}, [], [], []

  def write(self, step, row):
    self.rows.setdefault(step, {}).update(row)
    self.events.append(('write', step))

  def flush(self):
    self.events.append(('flush', None))

  def advance(self, step):
    pass

  def metrics(self, step, row):
    pass

  def say(self, text):
    self.lines.append(text)

  def save(self, step, state, scores):
    self.events.append(('save', step))
    self.scores.append(scores)


@pytest.fixture(scope='module')
def recorded():
  """Four steps of two seconds each, of 8 images on 3 devices."""
  clock, seen = Clock(), Recorder()

  def step_fn(state, batch, resident):
    clock.now += 2.0
    return state, dict(loss=np.float32(1), accuracy=np.float32(0.5))

  def evaluate(state):
    clock.now += 60.0
    return {'eval/test/accuracy': 0.25}

  job = loop.Job(
      step_fn=step_fn, batches=[dict(record=i) for i in range(4)],
      resident=None, skips=watchdog.Skips('', norms=None),
      evaluate=evaluate, save=seen.save,
      writer=seen, progress=seen,
      guard=types.SimpleNamespace(asked=lambda step: None), total_steps=4,
      log_every=2, eval_every=0, save_every=2, save_scored=False, batch_size=8,
      flops=6.0, peak_flops=10.0, devices=3, spent=7.0)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, 'time', clock)
    loop.train(types.SimpleNamespace(step=0), job)
  return seen


def test_speed_counts_images_and_utilisation_is_a_share_of_the_peak(recorded):
  for step in (2, 4):
    row = recorded.rows[step]
    assert row['train/images_per_second'] == pytest.approx(8 / 2)
    assert row['train/flops_per_second'] == pytest.approx(6 / 2)
    assert row['train/utilisation'] == pytest.approx(6 / 2 / 10)


def test_device_seconds_count_every_device_and_earlier_starts(recorded):
  assert recorded.rows[4]['train/device_seconds'] == pytest.approx(
      7 + 3 * 4 * 2)


def test_the_log_names_the_device_hours_of_the_metrics(recorded):
  """The last evaluation, a minute, is in neither."""
  line, = [line for line in recorded.lines if 'device-hours' in line]
  seconds = recorded.rows[4]['train/device_seconds']
  assert line == f'training took {seconds / 3600:,.3g} device-hours'


def test_metrics_are_stored_before_their_checkpoint(recorded):
  """A checkpoint without the lines up to its step would lose them on resume."""
  for step in (2, 4):
    saved = recorded.events.index(('save', step))
    flushed = max(i for i, event in enumerate(recorded.events[:saved])
                  if event[0] == 'flush')
    written = max(i for i, event in enumerate(recorded.events)
                  if event == ('write', step))
    assert written < flushed < saved


def test_the_eta_is_for_the_steps_that_are_left(monkeypatch, caplog):
  """5 steps of 3 seconds each since the first one, 14 left: 42 seconds."""
  clock = Clock()
  monkeypatch.setattr(progress, 'time', clock)
  shown = progress.Progress(0, 20)
  for step in range(1, 7):
    shown.advance(step)
    clock.now += 3.0 if step < 6 else 0.0
  with caplog.at_level('INFO', logger='mixer'):
    shown.metrics(6, {'train/loss': 1.0, 'train/accuracy': 0.5})
  line, = (record.getMessage() for record in caplog.records)
  assert line.endswith('0:00:42 left') and 'step 6/20' in line


# Plans.


def test_hours_are_shared_by_the_devices_and_epochs_counted():
  config = digits.get_config()
  config.run.update(batch_size=64, total_steps=449)
  config.model.num_blocks = 1
  config.augment.update(rotate=0., zoom=0., shift=0.)   # compiles sooner
  found = {n: planning.plan(config, devices=n) for n in (1, 2)}
  for n, plan in found.items():
    assert plan['time']['devices'] == n
    assert plan['time']['hours'] == pytest.approx(
        plan['time']['device_hours'] / n)
    assert plan['time']['images_per_second'] == pytest.approx(
        64 * 449 / (3600 * plan['time']['hours']))
    assert plan['run']['epochs'] == pytest.approx(64 * 449 / 1437)
  assert found[1]['time']['device_hours'] == pytest.approx(
      found[2]['time']['device_hours'])
  flops = 64 * 449 * found[1]['model']['training_flops']
  peak = accelerators.ACCELERATORS['v3'].flops_per_second
  assert found[1]['time']['device_hours'] == pytest.approx(
      flops / (0.4 * peak) / 3600)


# The products' data sheets: TFLOP/s of a device, and its memory in GiB.
SHEETS = {
    'v2': (22.5, 8), 'v3': (61.5, 16), 'v4': (275, 32), 'v5e': (197, 16),
    'v5p': (459, 95), 'v6e': (918, 32), '7x': (1153.5, 96), '8i': (550.5, 144),
    'V100': (15.7, 16), 'V100-32GB': (15.7, 32), 'T4': (8.1, 16),
    'A10': (125, 24), 'A100-40GB': (312, 40), 'A100-80GB': (312, 80),
    'L4': (121, 24), 'L40S': (362, 48), 'H100': (989, 80),
    'H100-PCIe': (756, 80), 'H100-NVL': (835, 94), 'GH200': (989, 96),
    'GH200-144GB': (989, 144), 'H200': (989, 141), 'B200': (2250, 180),
    'GB200': (2500, 186), 'B300': (2250, 268), 'MI300X': (1307, 192),
    'MI355X': (2516, 288)}


def test_accelerators_are_those_of_the_data_sheets():
  assert {name: (a.flops_per_second / 1e12, a.memory_bytes / 2**30)
          for name, a in accelerators.ACCELERATORS.items()} == {
              name: pytest.approx(row) for name, row in SHEETS.items()}


# Benchmarks.


def test_a_step_twice_as_fast_as_the_peers_has_the_ratio_two():
  ours = step_speed.Candidate('mixer', None, seconds=[0.5, 0.5, 0.5])
  peer = step_speed.Candidate('peer', None, seconds=[1.0, 1.0, 2.0])
  model = types.SimpleNamespace(
      training_flops=lambda size: 100.0, forward_flops=None)
  out = step_speed.report('train', model, [ours, peer], [8000.0] * 3,
                          batch_size=16, image_size=224, dtype='float32')
  assert out['images_per_second'] == pytest.approx(32)
  assert out['utilisation'] == pytest.approx(16 * 100 / 0.5 / 8000)
  assert out['peers']['peer']['images_per_second'] == pytest.approx(16)
  assert out['peers']['peer']['ratio'] == pytest.approx(2)
  assert out['peers']['peer']['ratio_range'] == pytest.approx([2, 4])


def test_an_input_twice_as_fast_as_the_peers_has_the_ratio_two():
  rates = dict(train=[200.0, 220.0], decode=[400.0, 440.0], eval=[100.0] * 2,
               eval_decode=[400.0] * 2, peer=[100.0, 110.0])
  out = input_speed._report(rates, [1, 1, 1], 32, ['peer'])
  assert out['train_images_per_second'] == pytest.approx(210)
  assert out['train_of_decode'] == pytest.approx(0.5)
  assert out['eval_of_decode'] == pytest.approx(0.25)
  assert out['peers']['peer']['ratio'] == pytest.approx(2)
