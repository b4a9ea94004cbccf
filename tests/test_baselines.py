"""models/vit and models/bit: the networks that the paper compares with."""
import jax
import jax.numpy as jnp
import pytest

from mixer import models
from mixer.core import trees
from mixer.models import cost

# Parameters with 1,000 classes, and giga multiply-adds, at 224 pixels.
SPECIFIED = {
    'ViT-B/32': (88_224_232, 4.41), 'ViT-B/16': (86_567_656, 17.56),
    'ViT-L/32': (306_535_400, 15.38), 'ViT-L/16': (304_326_632, 61.55),
    'ViT-H/14': (632_045_800, 167.30), 'BiT-R50x1': (25_549_352, 4.09),
    'BiT-R50x2': (97_988_712, 16.12), 'BiT-R152x1': (60_185_128, 11.51),
    'BiT-R152x2': (236_335_208, 45.81), 'BiT-R200x3': (568_633_000, 134.35),
    'BiT-R152x4': (936_533_224, 182.78)}


@pytest.mark.parametrize('name', SPECIFIED)
def test_parameters_and_products_are_those_of_the_papers(name):
  model = models.create(name)
  count, products = SPECIFIED[name]
  assert cost.parameters(model, 224) == count
  assert round(model.multiply_adds(224) / 1e9, 2) == products


@pytest.mark.parametrize('name,settings,size', [
    ('ViT-S/16', dict(num_blocks=2), 64),
    ('ViT-S/16', dict(num_blocks=1, pool='mean', num_classes=7), 48),
    ('ViT-S/8', dict(num_blocks=1, representation_dim=24), (16, 32)),
    ('BiT-R50x1', {}, 64), ('BiT-R50x1', dict(stem='small'), (33, 47)),
    ('BiT-R101x2', dict(num_classes=0), 95)])
def test_the_formulas_agree_with_xla(name, settings, size):
  model = models.create(name, **settings)
  height, width = (size, size) if isinstance(size, int) else size
  images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  assert trees.count(shapes['params']) == cost.parameters(model, size)
  lowered = jax.jit(lambda v, x: model.apply(v, x)[0]).lower(shapes, images)
  ours = 2 * cost.forward_flops(model, size)
  # XLA counts what is no product as well, and standardises kernels.
  assert 0.9 <= lowered.cost_analysis()['flops'] / ours < 1.25
  layers = dict(model.layers(size))
  modules = {n.rpartition('/')[0] for n in trees.flatten(shapes['params'])}
  for module in modules - {''}:
    assert any(module == n or module.startswith(f'{n}/') for n in layers), module
