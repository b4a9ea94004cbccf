"""Updates that are not finite: skipped, counted, and too many of them."""
import dataclasses
import functools
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from mixer import models
from mixer.core import checkpoint_reader
from mixer.core import errors
from mixer.core import trees
from mixer.data import pipeline
from mixer.images import augment
from mixer.training import assembly
from mixer.training import losses
from mixer.training import opening
from mixer.training import optimizers
from mixer.training import resume
from mixer.training import run
from mixer.training import settings
from mixer.training import sharding
from mixer.training import step
from mixer.training import watchdog

RATE = 0.05


class Setting:
  """A small step on one device; the example with number 9 has a loss of NaN."""

  def __init__(self, policy, **optimizer):
    model = models.create('Mixer-S/4', num_classes=3, hidden_dim=8,
                          num_blocks=1, tokens_mlp_dim=8, channels_mlp_dim=8)
    schedule = optimizers.schedule(learning_rate=RATE, total_steps=8)
    tx = optimizers.make(schedule=schedule, weight_decay=0.1, **optimizer)
    step_fn = step.make_train_step(
        model, tx, schedule=schedule, loss=losses.make(), seed=3,
        augment=augment.make(mixup=0.5), num_classes=3, nonfinite=policy)
    self.made = step.shard(
        step_fn, model, tx, sharding.plan(devices=jax.devices()[:1]), seed=3,
        image_shape=(8, 8, 3))
    random = np.random.default_rng(0)
    weights = np.ones((10, 1), np.float32)
    weights[9] = np.nan
    self.stored = dict(
        image=random.integers(0, 256, (10, 8, 8, 3)).astype(np.uint8),
        labels=random.integers(0, 3, (10, 1)).astype(np.int32),
        weights=weights)

  def step(self, state, *position):
    position = jnp.array(position, jnp.int32)
    batch = dict(position=position, record=position, epoch=position * 0,
                 bad=position < 0)
    return self.made.step(state, batch, self.stored)


setting = functools.cache(Setting)   # each compiles once


def digest(state):
  return np.asarray(trees.digest((state.params, state.opt_state))).tolist()


@pytest.mark.parametrize('name', (
    'sgd', pytest.param('adam', marks=pytest.mark.slow)))   # each compiles
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(name):
  """The steps after it are those of a run in which its update was left out."""
  one = setting('skip', name=name)
  state, metrics = one.step(one.made.init(), 0, 1, 2, 3)
  assert int(metrics['skipped']) == 0
  before = digest(state)
  left_out = jax.tree.map(jnp.array, state.replace(step=state.step + 1))
  state, metrics = one.step(state, 4, 9, 5, 6)
  assert int(metrics['skipped']) == 1 and np.isnan(metrics['loss'])
  assert digest(state) == before and int(state.step) == 2
  after, metrics = one.step(state, 7, 8, 0, 1)
  expected, _ = one.step(left_out, 7, 8, 0, 1)
  assert digest(after) == digest(expected) != before
  # The optimizer has made one update, so this is the rate that it used.
  assert int(metrics['skipped']) == 0
  rate = optimizers.schedule(learning_rate=RATE, total_steps=8)
  assert float(metrics['learning_rate']) == np.float32(rate(1))


def test_skipping_changes_no_bit_of_a_healthy_run():
  digests = []
  for policy in settings.NONFINITE:
    one = setting(policy, name='sgd')
    state = one.made.init()
    for t in range(3):
      state, metrics = one.step(state, *range(t, t + 4))
    digests.append((digest(state), float(metrics['loss'])))
  assert digests[0] == digests[1]
  state, metrics = one.step(state, 9, 9, 9, 9)
  assert 'skipped' not in metrics and np.isnan(metrics['loss'])
  assert any(np.isnan(x).any() for x in jax.tree.leaves(state.params))


def watched(tmp_path, **settings):
  return watchdog.Skips(str(tmp_path), norms=None, **settings)


def shown(watch, first, *skipped):
  """Shows steps to a watch; returns after which it was wary, and exhausted."""
  found = ''
  for number, one in enumerate(skipped, first):
    metrics = dict(loss=np.float32(one or np.nan), skipped=np.int32(not one),
                   gradient_norm=np.float32(1))
    assert watch.look(number, metrics, np.arange(4)) == (not one)
    found += 'x' if watch.exhausted else 'w' if watch.wary else '.'
  return found


def test_a_run_is_given_up_after_three_skipped_updates_in_a_row(tmp_path):
  assert shown(watched(tmp_path), 1, 1, 0, 0, 1, 0, 0, 0) == '.ww.wwx'
  resumed = watched(tmp_path, step=3, skipped=[2, 3])
  assert resumed.wary and shown(resumed, 4, 0) == 'x'
  resumed = watched(tmp_path, step=4, skipped=[2, 3])
  assert not resumed.wary and shown(resumed, 5, 0, 1, 1) == 'w..'


def test_a_run_is_given_up_after_ten_skipped_updates_in_all(tmp_path):
  assert shown(watched(tmp_path), 1, *(1, 0) * 10) == '.w' * 8 + '.wwx'
  resumed = watched(tmp_path, step=90, skipped=range(2, 20, 2))
  assert resumed.wary and shown(resumed, 91, 1, 0) == 'wx'


def test_a_jump_of_the_loss_is_reported_in_one_line(tmp_path, caplog):
  watch = watched(tmp_path)
  watch.compare(1, 90.0)   # too early to tell
  for number, loss in enumerate((2.0, 1.8, 2.2, 2.0, 19.0, 2.0), 2):
    watch.compare(number, loss)
  assert not caplog.records
  watch.compare(9, 21.0)
  assert [r.getMessage() for r in caplog.records] == [
      'step 9: the loss jumped to 21, from a median of 2 in the last 7 logged '
      'steps']


def test_a_checkpoint_of_an_older_run_has_skipped_nothing(
    tmp_path, monkeypatch):
  number = jnp.array(3)
  shapes = step.State(step=number, params={}, opt_state={}, bad=number)
  saved = types.SimpleNamespace(set_aside_after=lambda step: None)
  monkeypatch.setattr(
      checkpoint_reader, 'restore',
      lambda saved, params, rest: (params, rest, dict(data={})))
  state, skipped = resume.restored(str(tmp_path), saved, shapes, {}, {})
  assert int(state.step) == 3 and skipped == []


def test_an_unknown_policy_is_refused():
  with pytest.raises(errors.UserError, match="run.nonfinite: 'skipp' .*'skip'"):
    settings.Settings(batch_size=8, total_steps=2, nonfinite='skipp')


def config(**settings):
  """A run of ten steps, saved after every second."""
  c = digits.get_config()
  c.model.update(hidden_dim=8, num_blocks=1, tokens_mlp_dim=8,
                 channels_mlp_dim=8)
  c.augment = dict(c.augment, rotate=0.0, zoom=0.0, shift=0.0, mixup=0.0)
  c.evals = {}
  c.checkpoint.update(every=2, keep=9)
  c.run.update(batch_size=16, total_steps=10, log_every=3, eval_every=0,
               **settings)
  return c


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Programs that several runs below share are compiled once."""
  keys = dict(jax_compilation_cache_dir=str(tmp_path_factory.mktemp('programs')),
              jax_persistent_cache_min_compile_time_secs=0)
  before = {key: getattr(jax.config, key) for key in keys}
  for key, value in keys.items():
    jax.config.update(key, value)
  yield
  for key, value in before.items():
    jax.config.update(key, value)


@pytest.fixture
def fault(monkeypatch):
  """A function: from now on, these steps have an example with a loss of NaN.

  With `once`, only until the batches have been opened again, as with a fault of
  the hardware that passes.
  """
  faulty = {}
  opens, batches = opening.open_splits, pipeline.Data.train_batches

  def opened(*args):
    splits = opens(*args)
    held = splits.train.resident
    held = {key: np.concatenate([x, x[:1]]) for key, x in held.items()}
    weights = np.ones(held['labels'].shape, np.float32)
    weights[-1] = np.nan
    return dataclasses.replace(splits, train=dataclasses.replace(
        splits.train, resident=dict(held, weights=weights)))

  def changed(self, *, first, **settings):
    steps, kept = faulty['steps'], len(self)
    faulty['steps'] = () if faulty['once'] else steps
    for number, batch in enumerate(
        batches(self, first=first, **settings), first + 1):
      if number in steps:
        batch = dict(batch, position=batch['position'].copy())
        batch['position'][5] = kept
      yield batch

  # A single device, for which less has to be compiled.
  monkeypatch.setattr(assembly, 'make_plan', lambda config: sharding.plan(
      devices=jax.devices()[:1]))
  monkeypatch.setattr(opening, 'open_splits', opened)
  monkeypatch.setattr(pipeline.Data, 'train_batches', changed)

  def begin(*steps, once=False):
    faulty.update(steps=steps, once=once)
  begin()
  return begin


def rows(path, name='metrics.jsonl'):
  return [json.loads(line) for line in (path / name).read_text().splitlines()]


def params(path, number=10):
  tree = checkpoint_reader.load_params(str(path / 'checkpoints' / str(number)))
  return np.asarray(trees.digest(tree)).tolist()


def kill_after(path, number):
  """Removes the later checkpoints, as if the run had been killed."""
  for one in (path / 'checkpoints').iterdir():
    if int(one.name) > number:
      shutil.rmtree(one)


def test_a_skipped_update_is_counted_and_a_resumed_run_has_the_same_bits(
    tmp_path, fault):
  fault(4, 5)
  path = tmp_path / 'run'
  run.train(config(), str(path))
  whole, metrics = params(path), {
      row['step']: row for row in rows(path) if 'train/loss' in row}
  assert [(s, row['train/skipped']) for s, row in metrics.items()] == [
      (3, 0), (4, 1), (5, 2), (6, 2), (9, 2), (10, 2)]
  assert metrics[4]['train/loss'] == 'nan'
  found = rows(path, 'nonfinite.jsonl')
  assert [row['step'] for row in found] == [4, 5]
  assert found[0]['loss'] == 'nan' and len(found[0]['records']) == 16
  assert params(path, 4) != params(path, 2)   # step 3 was made
  kill_after(path, 4)   # between the two
  run.train(config(), str(path))
  assert params(path) == whole
  again = rows(path)
  assert [row['step'] for row in again] == [3, 4, 5, 6, 9, 10]   # each once
  assert all(row[key] == metrics[row['step']][key] for row in again
             for key in ('train/loss', 'train/skipped'))


def test_a_fault_that_passes_costs_the_steps_since_a_checkpoint(
    tmp_path, fault, caplog):
  """The run goes back to the last checkpoint before the fault, and ends with
  the bits of a run that had none."""
  healthy, path = tmp_path / 'healthy', tmp_path / 'run'
  run.train(config(), str(healthy))
  fault(6, 7, 8, once=True)
  run.train(config(), str(path))
  assert params(path) == params(healthy)
  last = rows(path)[-1]
  assert last['step'] == 10 and last['train/skipped'] == 0
  assert [row.get('went_back_to') for row in rows(path, 'nonfinite.jsonl')] == [
      None] * 4 + [4]
  assert (path / 'checkpoints' / '6.skipped').is_dir()
  assert 'going back to the checkpoint of step 4, once' in caplog.text


def test_a_run_that_diverges_stops_with_a_report_and_keeps_its_state(
    tmp_path, fault):
  fault(6, 7, 8)
  for _ in range(2):   # started again, it does not go back again
    with pytest.raises(errors.Diverged) as error:
      run.train(config(), str(tmp_path))
    for part in ('step 8', 'at the steps 6, 7, 8;', 'and 11 more',
                 'not finite in 18 of 18 layers', 'LayerNorm_0/bias has norm',
                 'nonfinite.jsonl', 'diverged/7', 'schedule.learning_rate'):
      assert part in str(error.value)
  assert [row['step'] for row in rows(tmp_path)] == [3, 6, 7, 8]
  found = rows(tmp_path, 'nonfinite.jsonl')
  assert sum('went_back_to' in row for row in found) == 1
  layers = found[-1]['layers']
  assert layers['stem/kernel']['gradient'] == 'nan'
  assert layers['stem/kernel']['parameters'] > 0
  # Skipped updates change nothing: the parameters are those before the fault.
  kept = checkpoint_reader.find(str(tmp_path / 'diverged' / '7'))
  assert np.asarray(trees.digest(checkpoint_reader.load_params(kept))).tolist() == (
      params(tmp_path, 6))
