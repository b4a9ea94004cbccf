"""Learning-rate schedules follow their formulas."""
import numpy as np
import pytest

from mixer.core import errors
from mixer.training import optimizers


def test_cosine_schedule_follows_its_formula():
  schedule = optimizers.schedule(learning_rate=0.5, total_steps=110, warmup_steps=10,
                            end_fraction=0.1)
  for step in (0, 3, 10, 47, 110, 200):
    done = min(max(step - 10, 0) / 100, 1)
    wave = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * done))
    expected = 0.5 * step / 10 if step < 10 else 0.5 * wave
    np.testing.assert_allclose(schedule(step), expected, rtol=1e-6, atol=1e-7)


def test_linear_schedule_follows_its_formula():
  schedule = optimizers.schedule(learning_rate=1e-3, total_steps=110,
                            warmup_steps=10, decay='linear', end_fraction=1e-5)
  np.testing.assert_allclose(schedule(5), 5e-4, rtol=1e-6)
  np.testing.assert_allclose(schedule(60), 1e-3 * (0.5 + 0.5e-5), rtol=1e-5)
  np.testing.assert_allclose(schedule(110), 1e-8, rtol=1e-3)


def test_constant_schedule_does_not_change():
  schedule = optimizers.schedule(learning_rate=0.2, total_steps=9, decay='constant')
  assert float(schedule(0)) == float(schedule(8)) == np.float32(0.2)


def test_a_warmup_longer_than_the_run_becomes_a_tenth_of_the_run(caplog):
  caplog.set_level('INFO', 'mixer')
  schedule = optimizers.schedule(learning_rate=1.0, total_steps=20,
                            warmup_steps=10_000)
  assert float(schedule(1)) == 0.5 and float(schedule(2)) == 1.0
  assert caplog.messages == ['schedule.warmup_steps: 10,000 is too long for a '
                             'run of 20 steps; using 2']
  schedule = optimizers.schedule(learning_rate=1.0, total_steps=3,
                            warmup_steps=10_000)
  assert float(schedule(0)) == 1.0


@pytest.mark.parametrize('settings, words', [
    (dict(learning_rate=-1.0), ['schedule.learning_rate', '-1.0']),
    (dict(learning_rate=float('nan')), ['schedule.learning_rate', 'nan']),
    (dict(warmup_steps=-1), ['warmup_steps=-1']),
    (dict(end_fraction=1.5), ['end_fraction=1.5']),
    (dict(decay='steps'), ['schedule.decay', 'steps', 'cosine']),
])
def test_an_error_names_the_setting_and_its_value(settings, words):
  with pytest.raises(errors.UserError) as e:
    optimizers.schedule(**dict(dict(learning_rate=1.0, total_steps=9), **settings))
  for word in words:
    assert word in str(e.value)
