"""The formulas of what a network costs agree with XLA's own count."""
import jax
import jax.numpy as jnp
import pytest

from mixer import models
from mixer.core import trees


@pytest.mark.parametrize('name,size', [
    ('Mixer-S/32', 224), ('Mixer-S/16', 224), ('Mixer-S/32', 448)])
def test_flops_agree_with_xla(name, size):
  """XLA also counts what is not a matrix product: a few percent."""
  model = models.create(name, num_blocks=2)
  images = jax.ShapeDtypeStruct((4, size, size, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  lowered = jax.jit(lambda v, x: model.apply(v, x)[0]).lower(shapes, images)
  ours = 4 * model.forward_flops(size)
  assert 1 <= lowered.cost_analysis()['flops'] / ours < 1.06
  assert trees.count(shapes['params']) == model.parameters(size)

  def loss(v, x):
    return model.apply(v, x, train=True)[0].sum()

  lowered = jax.jit(jax.grad(loss)).lower(shapes, images)
  # The images get no gradient, so the stem has two products instead of three.
  patch = model.patch_size
  stem = 2 * (size // patch)**2 * 3 * patch**2 * model.hidden_dim
  ours = 4 * (model.training_flops(size) - stem)
  assert 1 <= lowered.cost_analysis()['flops'] / ours < 1.06


# Multiply-adds of each product of the network below, with S = 4 tokens.
STEM, TOKENS, CHANNELS, HEAD = 4 * 48 * 16, 16 * 4 * 6, 4 * 16 * 32, 16 * 5


@pytest.mark.parametrize('frozen,backward', (
    # The gradient of the head's kernel, and that of its input for LayerNorm.
    ('(stem|MixerBlock_.*)/.*', 2 * HEAD),
    # Only the head is trained, so no input needs a gradient.
    ('(?!head).*', HEAD),
    # The last block: its first product needs the gradient of its input,
    # because a LayerNorm stands before it.
    ('(stem|MixerBlock_0)/.*', 2 * HEAD + 4 * (TOKENS + CHANNELS)),
    # As above, but without that LayerNorm.
    ('((stem|MixerBlock_0)|MixerBlock_1/LayerNorm_0)/.*',
     2 * HEAD + 4 * CHANNELS + 3 * TOKENS),
    # The input gradients of every block, but the weights' of none.
    ('MixerBlock_.*', STEM + 2 * HEAD + 4 * (TOKENS + CHANNELS)),
    # All but biases of the stem: still no input gradient below.
    ('stem/kernel', 2 * HEAD + 8 * (TOKENS + CHANNELS)),
))
def test_frozen_layers_have_no_backward_products(frozen, backward):
  """Counted by hand."""
  model = models.create('Mixer-S/4', num_classes=5, hidden_dim=16, num_blocks=2,
                        tokens_mlp_dim=6, channels_mlp_dim=32)
  images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  assert model.multiply_adds(8) == STEM + 4 * (TOKENS + CHANNELS) + HEAD
  assert model.training_flops(8, frozen, params) == (
      model.forward_flops(8) + 2 * backward)
  assert model.training_flops(8, None, params) == (
      3 * model.forward_flops(8))


def test_a_trained_embedding_needs_the_gradients_of_all_layers_above_the_stem():
  model = models.create('ViT-S/4', num_blocks=2, hidden_dim=12, num_heads=3)
  params = jax.eval_shape(model.init, jax.random.key(0),
                          jnp.zeros((1, 8, 8, 3)))['params']
  (_, stem), *above = model.layers(8)
  assert stem and 'pos_embedding' in params
  assert model.training_flops(8, '(?!pos_embedding).*', params) == (
      model.forward_flops(8) + 2 * sum(count for _, count in above))
