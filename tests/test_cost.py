"""models/cost: the formulas agree with XLA's own count."""
import jax
import jax.numpy as jnp
import pytest

from mixer import models
from mixer.core import trees
from mixer.models import cost


@pytest.mark.parametrize('name,size', [
    ('Mixer-S/32', 224), ('Mixer-S/16', 224), ('Mixer-S/32', 448)])
def test_flops_agree_with_xla(name, size):
  """XLA also counts what is not a matrix product: a few percent."""
  model = models.create(name, num_blocks=2)
  images = jax.ShapeDtypeStruct((4, size, size, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  lowered = jax.jit(lambda v, x: model.apply(v, x)[0]).lower(shapes, images)
  ours = 4 * cost.forward_flops(model, size)
  assert 1 <= lowered.cost_analysis()['flops'] / ours < 1.06
  assert trees.count(shapes['params']) == cost.parameters(model, size)

  def loss(v, x):
    return model.apply(v, x, train=True)[0].sum()

  lowered = jax.jit(jax.grad(loss)).lower(shapes, images)
  # The images get no gradient, so the stem has two products instead of three.
  patch = model.patch_size
  stem = 2 * (size // patch)**2 * 3 * patch**2 * model.hidden_dim
  ours = 4 * (cost.training_flops(model, size) - stem)
  assert 1 <= lowered.cost_analysis()['flops'] / ours < 1.06
