"""Forms of matrix products: one function, chosen by the program's platform."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer import models
from mixer.models import products

BLOCKS = 3
SMALL = dict(num_classes=5, hidden_dim=12, num_blocks=BLOCKS, tokens_mlp_dim=7,
             channels_mlp_dim=20, dropout_rate=0.3)
IMAGES = np.random.default_rng(0).normal(size=(3, 8, 12, 3)).astype(np.float32)
# A forward pass has the stem, two MLPs in each block, and the head.
PRODUCTS = 2 + 4 * BLOCKS
# In StableHLO, the products of `token_dot` are the only ones with a batch.
GPU_FORM = 'batching_dims = [0] x [0], contracting_dims = [2] x [1]'


def network(**overrides):
  """(model, parameters), all parameters random."""
  model = models.create('Mixer-S/4', **dict(SMALL, **overrides))
  shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)['params']
  rng = np.random.default_rng(1)
  return model, jax.tree.map(
      lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), s.dtype), shapes)


def gradient(model, train):
  """A function of parameters: (gradients, logits) of a network."""
  def objective(params):
    logits, _ = model.apply({'params': params}, IMAGES, train=train,
                            rngs={'dropout': jax.random.key(1)})
    return jnp.sum(logits**2), logits
  return jax.jit(jax.grad(objective, has_aux=True))


def forward(model):
  return jax.jit(lambda params: model.apply({'params': params}, IMAGES)[0])


def lowered(program, params, *platforms):
  """A program's StableHLO for other platforms."""
  return program.trace(params).lower(lowering_platforms=platforms).as_text()


@pytest.mark.parametrize('train', [False, True])
def test_the_form_for_gpus_computes_the_same_network(train):
  model, params = network(platform='cpu')
  grads, logits = gradient(model, train)(params)
  on_gpu = gradient(model.clone(platform='gpu'), train)
  gpu_grads, gpu_logits = on_gpu(params)
  assert lowered(on_gpu, params, 'cpu').count(GPU_FORM) >= 2 * BLOCKS
  np.testing.assert_allclose(gpu_logits, logits, rtol=1e-4, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-3, atol=1e-4), gpu_grads, grads)


@pytest.mark.parametrize('train', [False, True])
def test_without_a_platform_results_have_the_same_bits_on_a_cpu(train):
  model, params = network()
  assert model.platform is None
  grads, logits = gradient(model, train)(params)
  cpu_grads, cpu_logits = gradient(model.clone(platform='cpu'), train)(params)
  np.testing.assert_array_equal(logits, cpu_logits)
  jax.tree.map(np.testing.assert_array_equal, grads, cpu_grads)


@pytest.mark.parametrize('platform,lowering,forms', (
    ('gpu', 'cpu', 2 * BLOCKS), ('cpu', 'cuda', 0), ('tpu', 'cuda', 0),
    (None, 'cuda', 2 * BLOCKS), (None, 'rocm', 2 * BLOCKS), (None, 'tpu', 0),
    (None, 'cpu', 0)))
def test_a_program_contains_the_form_for_its_platform(
    platform, lowering, forms):
  """The platform of the model decides, or else that of lowering; never that of
  this host."""
  model, params = network(platform=platform)
  text = lowered(forward(model), params, lowering)
  assert text.count(GPU_FORM) == forms
  assert text.count('dot_general') == PRODUCTS


@pytest.mark.parametrize('platform', [None, 'tpu'])
def test_a_training_program_is_lowered_for_its_platform_too(platform):
  """In training, TPUs use the form for GPUs too."""
  model, params = network(platform=platform)
  text = {name: lowered(gradient(model, True), params, name)
          for name in ('cuda', 'tpu', 'cpu')}
  assert text['tpu'].count(GPU_FORM) >= 2 * BLOCKS
  if platform is None:
    assert text['cuda'].count(GPU_FORM) >= 2 * BLOCKS
    assert GPU_FORM not in text['cpu']


def test_an_export_for_several_platforms_contains_the_form_of_each():
  model, params = network()
  exported = jax.export.export(forward(model), platforms=('cpu', 'cuda', 'tpu'))
  text = exported(params).mlir_module()
  assert GPU_FORM in text
  assert '(tensor<3x12x6xf32>, tensor<6x7xf32>)' in text   # elsewhere's form
  np.testing.assert_array_equal(
      exported(params).call(params), forward(model)(params))


def test_training_dot_is_one_product_of_two_matrices():
  x, kernel = jnp.ones((3, 4, 5)), jnp.ones((5, 2))
  numbers = (((2,), (0,)), ((), ()))
  text = jax.jit(lambda x, kernel: products.training_dot(
      x, kernel, numbers)).lower(x, kernel).as_text()
  assert 'tensor<12x5xf32>, tensor<5x2xf32>) -> tensor<12x2xf32>' in text


def test_patch_dot_is_the_convolution_of_a_stem():
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(4, 2, 3, 7)).astype(np.float32)
  form = dict(window_strides=(4, 2), padding='VALID',
              dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  np.testing.assert_allclose(
      products.patch_dot(jnp.asarray(IMAGES), jnp.asarray(kernel), **form),
      jax.lax.conv_general_dilated(IMAGES, kernel, **form),
      rtol=1e-4, atol=1e-5)
