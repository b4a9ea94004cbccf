"""analysis/step_speed and peers: everybody is timed in turn, and alike."""
import types

from flax import linen as nn
import jax
import numpy as np
import pytest

from mixer import models
from mixer.analysis import peers
from mixer.analysis import step_speed
from mixer.analysis import tpu_speed
from mixer.core import errors
from mixer.models import products
from mixer.training import sharding


def mixer(**more):
  return models.create(
      'Mixer-S/4', num_classes=3, hidden_dim=8, num_blocks=1,
      tokens_mlp_dim=4, channels_mlp_dim=8, **more)


@pytest.fixture
def clock(monkeypatch):
  """A clock that only moves when a test moves it; the peak is 100 FLOP/s."""
  now = types.SimpleNamespace(seconds=0.0)
  for name in ('perf_counter', 'monotonic'):
    monkeypatch.setattr(step_speed.time, name, lambda: now.seconds)
  monkeypatch.setattr(products, 'flops_per_second', lambda dtype: 100.0)
  return now


def taking(clock, name, *seconds):
  """A candidate whose runs take so many seconds; the last repeats."""
  left = list(seconds)

  def run():
    clock.seconds += left.pop(0) if len(left) > 1 else left[0]

  return step_speed.Candidate(name, run)


def test_each_round_begins_with_another_item():
  assert list(step_speed.in_turn('abc', rounds=4, seconds=60)) == [
      list('abc'), list('bca'), list('cab'), list('abc')]


@pytest.mark.parametrize('rounds,done', [(2, 2), (3, 3), (10, 3)])
def test_three_rounds_are_run_even_if_the_time_is_up(rounds, done):
  assert len(list(step_speed.in_turn('a', rounds=rounds, seconds=0))) == done


def test_a_round_does_not_begin_after_the_time_is_up(clock):
  done = 0
  for _ in step_speed.in_turn('a', rounds=100, seconds=50):
    clock.seconds += 10
    done += 1
  assert done == 5


def test_the_report_has_medians_and_ratios_within_a_round(clock):
  """Ours is slow in the second round, which is one of three ratios."""
  ours = taking(clock, 'mixer', 7, 2, 2, 4, 2)
  peer = taking(clock, 'peer', 1, 1, 4, 4, 4)
  peaks = step_speed.measure([ours, peer], dtype='float32', rounds=3,
                             seconds=60)
  assert ours.seconds == [2, 4, 2] and peer.seconds == [4, 4, 4]
  assert ours.compile_seconds == 7 - 2
  model = mixer()
  found = step_speed.report('train', model, [ours, peer], peaks, batch_size=6,
                            image_size=8, dtype='float32')
  flops = 6 * model.training_flops(8)
  assert found['images_per_second'] == 3 and found['median_seconds'] == 2
  assert found['flops_per_second'] == flops / 2
  assert found['utilisation'] == pytest.approx(flops / 2 / 100)
  assert found['peers'] == {'peer': dict(
      images_per_second=1.5, ratio=2.0, ratio_range=[1.0, 2.0],
      utilisation=pytest.approx(flops / 4 / 100))}


def test_a_training_step_and_a_forward_pass_run():
  plan = sharding.plan(devices=jax.devices()[:1])
  images, labels = step_speed.images_and_labels(4, 8, 3, 3)
  assert images.shape == (4, 8, 8, 3) and labels.shape == (4, 1)
  model = mixer(platform=plan.platform)
  step_speed.training(model, images=images, labels=labels, plan=plan)()
  logits = step_speed.inference(model, images=images, plan=plan)()
  assert logits.shape == (4, 3)


def test_repeated_steps_pass_their_state_on():
  seen = []

  def advance(state):
    seen.append(state)
    return state + 1

  run = step_speed.repeated(advance, 0)
  run()
  run()
  assert seen == [0, 1]


@pytest.mark.parametrize('what', tpu_speed.PASSES)
def test_an_estimate_counts_the_batch_of_all_devices(what, monkeypatch):
  """Compiled for CPU devices, whose programs have no cycles, so they are given
  here."""
  monkeypatch.setattr(tpu_speed.cycles, 'ops', lambda text: [
      tpu_speed.cycles.Op('fusion.1', 'fusion', 'layer', 940_000)])
  plan = sharding.plan(devices=jax.devices()[:4])
  found = tpu_speed.estimate(
      'a name', mixer(platform='cpu'), plan, topology='v3:1x2', batch_size=16,
      image_size=8, what=what, others=dict(big_vision=Peer(True)))
  assert (found['batch_size'], found['devices']) == (16, 4)
  assert found['cycles'] == found['peers']['big_vision']['cycles'] == 940_000
  assert found['milliseconds'] == pytest.approx(1)
  assert found['images_per_second'] == pytest.approx(64e3)
  assert found['layers'] == [('layer', 940_000)]


@pytest.mark.parametrize('channels', [1, 3])
def test_the_others_are_compiled_for_as_many_channels_as_ours(
    channels, monkeypatch):
  seen = []
  monkeypatch.setattr(tpu_speed.cycles, 'ops', lambda text: [
      tpu_speed.cycles.Op('fusion.1', 'fusion', 'layer', 940_000)])

  class Seeing(nn.Module):

    @nn.compact
    def __call__(self, images, *, train):
      seen.append(images.shape[-1])
      return Peer(False)(images, train=train)

  tpu_speed.estimate(
      'a name', mixer(platform='cpu', in_channels=channels),
      sharding.plan(devices=jax.devices()[:1]), topology='v3:1x2',
      batch_size=2, image_size=8, what='forward', others=dict(a=Seeing()))
  assert set(seen) == {channels}


# ---- The peers.


class Peer(nn.Module):
  """A network with the interface of big_vision's, or of vision_transformer's.
  """
  returns_intermediates: bool

  @nn.compact
  def __call__(self, images, *, train):
    del train
    logits = nn.Dense(3)(images.reshape(len(images), -1))
    return (logits, {}) if self.returns_intermediates else logits


@pytest.mark.parametrize('returns_intermediates', [True, False])
def test_a_peers_step_and_forward_pass_run(returns_intermediates):
  images, labels = step_speed.images_and_labels(4, 8, 3, 3)
  network = Peer(returns_intermediates)
  peers._flax(network, 'train', images, labels)()
  assert peers._flax(network, 'infer', images, labels)().shape == (4, 3)


def test_a_peers_network_gets_the_shape_of_ours(tmp_path, monkeypatch):
  """A stand-in for a checkout says which arguments it got."""
  folder = tmp_path / 'big_vision' / 'big_vision' / 'models'
  folder.mkdir(parents=True)
  (folder / 'mlp_mixer.py').write_text('MlpMixer = dict')
  monkeypatch.syspath_prepend(str(tmp_path / 'big_vision'))
  assert peers._big_vision(mixer(), str(tmp_path)) == dict(
      num_classes=3, num_blocks=1, hidden_dim=8, tokens_mlp_dim=4,
      channels_mlp_dim=8, patch_size=(4, 4), stoch_depth=0.0)


@pytest.mark.parametrize('name,model,words', [
    ('tim', mixer(), "--compare: 'tim' is unknown.*'timm'"),
    ('big_vision', mixer(dtype='bfloat16'), '--precision=float32'),
    ('big_vision', Peer(False), 'Mixer.*Peer'),
    ('timm', mixer(stochastic_depth=.1), '--config.model.stochastic_depth=0'),
    ('big_vision', mixer(dropout_rate=.1), '--config.model.dropout_rate=0'),
    ('vision_transformer', mixer(), 'cannot import vit_jax.*--peers=DIR')])
def test_a_peer_that_cannot_be_compared_is_refused(name, model, words,
                                                   tmp_path):
  with pytest.raises(errors.UserError, match=words):
    peers.make(name, 'train', model, str(tmp_path),
               np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 1), np.int32))


def test_a_forward_pass_is_compared_whatever_training_drops(
    tmp_path, monkeypatch):
  """The checkouts may be in the home folder, '~'."""
  folder = tmp_path / 'co' / 'big_vision' / 'big_vision_of_a_test'
  folder.mkdir(parents=True)
  (folder / '__init__.py').write_text('MlpMixer = dict')
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setattr(peers.sys, 'path', list(peers.sys.path))
  module = peers.importable('big_vision', 'big_vision_of_a_test', '~/co')
  monkeypatch.setattr(peers, 'importable', lambda *_: module)
  dropping = mixer(stochastic_depth=.1)
  assert peers.flax_network('big_vision', 'infer', dropping, None)
  with pytest.raises(errors.UserError, match='stochastic_depth is 0.1'):
    peers.flax_network('big_vision', 'train', dropping, None)
