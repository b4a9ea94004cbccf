"""Figures of training and evaluation, each compared with NumPy's by hand."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixer import models
from mixer.evaluation import classification
from mixer.training import losses
from mixer.training import optimizers
from mixer.training import step as steps


def tiny(**overrides):
  """A Mixer of one block: 2x2 patches, C = 16, and its parameters, all zero but
  the scales of LayerNorm."""
  model = models.create(**dict(dict(
      name='Mixer-S/2', num_blocks=1, hidden_dim=16, tokens_mlp_dim=3,
      channels_mlp_dim=16, num_classes=2), **overrides))
  params = model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))['params']
  zero = jax.tree_util.tree_map_with_path(
      lambda path, x: np.asarray(x) if path[-1].key == 'scale' else
      np.zeros_like(x), params)
  return model, zero


# Optimizers.


@pytest.mark.parametrize('clip_norm', (None, 0.5))
def test_adam_clips_first_and_corrects_both_moments(clip_norm):
  """Clipping comes first, both moments are corrected for their start at 0."""
  b1, b2, rate, eps = 0.8, 0.99, 0.1, 1e-8
  optimizer = optimizers.make(schedule=lambda step: rate, name='adam', b1=b1,
                              b2=b2, clip_norm=clip_norm)
  params = {'kernel': jnp.array([1.0, -2.0, 3.0])}
  state = optimizer.init(params)
  x, m, v = np.array([1.0, -2.0, 3.0]), np.zeros(3), np.zeros(3)
  for t, gradient in enumerate(([3.0, -4.0, 0.1], [0.1, 0.2, -0.1]), 1):
    g = np.array(gradient)
    updates, state = optimizer.update({'kernel': jnp.array(g)}, state, params)
    params = optax.apply_updates(params, updates)
    if clip_norm:
      g = g * min(1.0, clip_norm / np.linalg.norm(g))
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    x = x - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    np.testing.assert_allclose(params['kernel'], x, rtol=2e-6)


# The step.


class Linear:
  """Logits are the parameters, whatever the image."""

  def apply(self, variables, images, *, train, rows, rngs):
    del train, rows, rngs
    return images[:, 0, 0] @ variables['params']['w'], {}


def metrics_of_a_step(images, labels, weights=None, loss='softmax'):
  """Metrics of one step of a linear network without augmentation, and the
  targets that its loss was given."""
  seen = {}

  def augment(images, targets, keys, mixup_key):
    del keys, mixup_key
    seen['targets'] = np.asarray(targets)
    return images, targets

  optimizer = optax.sgd(0.0)
  params = {'w': jnp.eye(3)}
  count = len(images)
  batch = dict(image=jnp.array(images, jnp.float32)[:, None, None],
               labels=jnp.array(labels, jnp.int32),
               epoch=jnp.zeros(count, jnp.int32), record=jnp.arange(count),
               bad=jnp.zeros(count, bool))
  if weights is not None:
    batch['weights'] = jnp.array(weights, jnp.float32)
  state = steps.State(step=jnp.int32(0), params=params,
                      opt_state=optimizer.init(params), bad=jnp.int32(0))
  _, metrics = steps.make_train_step(
      Linear(), optimizer, schedule=lambda _: 0.1, loss=losses.make(name=loss),
      augment=augment, seed=0, num_classes=3)(state, batch)
  return {k: float(v) for k, v in metrics.items()}, seen['targets']


def test_training_accuracy_is_the_share_of_right_answers():
  images = [[9, 0, 0], [0, 9, 0], [0, 0, 9], [9, 0, 0]]
  metrics, _ = metrics_of_a_step(images, [[0], [1], [2], [1]])
  assert metrics['accuracy'] == 0.75


def test_label_weights_reach_the_loss():
  images, labels = [[1, 2, 3], [0, 1, 0]], [[0, 2], [1, -1]]
  weights = [[0.25, 0.5], [0.75, 0.0]]
  metrics, targets = metrics_of_a_step(images, labels, weights, 'sigmoid')
  expected = np.array([[0.25, 0, 0.5], [0, 0.75, 0]])
  np.testing.assert_array_equal(targets, expected)
  x = np.array(images, float)
  by_hand = np.sum(np.log1p(np.exp(x)) - expected * x, axis=1).mean()
  assert metrics['loss'] == pytest.approx(by_hand, rel=1e-6)


# Dropout and LayerNorm.


def test_dropout_rescales_what_stays_and_covers_hidden_units_and_output():
  """With the first layer at gelu(1) and the second the identity, a unit of the
  output is g / (1 - rate)^2 where both masks keep it, else 0."""
  rate, count = 0.25, 256
  model, params = tiny(dropout_rate=rate)
  mlp = params['MixerBlock_0']['channel_mixing']
  mlp['Dense_0']['bias'] += 1
  mlp['Dense_1']['kernel'] += np.eye(16, dtype=np.float32)
  keys = {name: jax.random.key(i)
          for i, name in enumerate(('dropout', 'stochastic_depth'))}
  _, out = model.apply({'params': params}, jnp.zeros((count, 4, 4, 3)),
                       train=True, rngs=keys)
  found = np.asarray(out['block_0'])
  kept = float(jax.nn.gelu(1.0)) / (1 - rate)**2
  share = (found != 0).mean()
  np.testing.assert_allclose(found[found != 0], kept, rtol=1e-6)
  assert share == pytest.approx((1 - rate)**2, abs=0.02)


def layer_norm(x, eps=1e-6):
  x = np.asarray(x, np.float64)
  centred = x - x.mean(axis=-1, keepdims=True)
  return centred / np.sqrt(x.var(axis=-1, keepdims=True) + eps)


def small_images():
  """Images whose tokens have a variance near 1e-6, where LayerNorm's epsilon
  matters, with a projection for them."""
  rng = np.random.default_rng(0)
  return (rng.normal(size=(2, 4, 4, 3)).astype(np.float32),
          (1e-3 * rng.normal(size=(2, 2, 3, 16)) / 12**0.5).astype(np.float32))


def test_layer_norm_before_the_head_has_epsilon_1e_6():
  images, kernel = small_images()
  model, params = tiny()
  params['stem']['kernel'] = kernel
  _, out = model.apply({'params': params}, images)
  tokens = np.asarray(out['input_tokens'])
  np.testing.assert_array_equal(out['block_0'], tokens)   # its MLPs are zero
  np.testing.assert_allclose(out['pre_logits'], layer_norm(tokens).mean(axis=1),
                             atol=1e-4)
  wrong = layer_norm(tokens, 1e-5).mean(axis=1)
  assert np.abs(wrong - np.asarray(out['pre_logits'])).max() > 1e-2


@pytest.mark.parametrize('mixing', ('token_mixing', 'channel_mixing'))
def test_layer_norms_of_a_block_have_epsilon_1e_6(mixing):
  images, kernel = small_images()
  model, params = tiny(tokens_mlp_dim=4)
  params['stem']['kernel'] = kernel
  mlp = params['MixerBlock_0'][mixing]
  for dense in mlp.values():
    dense['kernel'] += np.eye(len(dense['kernel']), dtype=np.float32)
  _, out = model.apply({'params': params}, images)
  tokens = np.asarray(out['input_tokens'], np.float64)
  expected = lambda eps: tokens + np.asarray(jax.nn.gelu(
      layer_norm(tokens, eps)))
  np.testing.assert_allclose(out['block_0'], expected(1e-6), atol=1e-4)
  assert np.abs(expected(1e-5) - np.asarray(out['block_0'])).max() > 1e-2


# Evaluation.


@pytest.mark.parametrize('name', ('softmax', 'sigmoid'))
def test_evaluation_loss_is_the_training_loss_of_all_labels(name):
  """With the weights of the labels, and without label smoothing."""
  logits = np.array([[1.0, 2.0, 0.5], [0.1, 0.2, 3.0]])
  labels = jnp.array([[2, 0], [1, -1]], jnp.int32)
  weights = jnp.array([[1.0, 0.5], [1.0, 0.0]])
  targets = np.array([[0.5, 0.0, 1.0], [0.0, 1.0, 0.0]])
  outcome = classification.make_outcome(
      lambda params, batch, resident: jnp.array(logits),
      lambda batch, resident: (labels, weights), losses.of_labels(name),
      name)
  batch = dict(mask=jnp.ones(2, bool), bad=jnp.zeros(2, bool),
               position=jnp.arange(2))
  found = {k: np.asarray(v) for k, v in outcome({}, batch, None).items()}
  if name == 'softmax':
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    by_hand = -(targets * log_p).sum(axis=1)
  else:
    p = 1 / (1 + np.exp(-logits))
    by_hand = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum(axis=1)
  np.testing.assert_allclose(found['loss'], by_hand, rtol=1e-5)
  scores = classification.score('x', found)
  assert scores['eval/x/loss'] == pytest.approx(by_hand.mean(), rel=1e-5)
