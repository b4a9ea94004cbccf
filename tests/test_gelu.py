"""Forms of GELU: one function, chosen by the program's platform."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer.models import products

X = np.linspace(-6, 6, 4001, dtype=np.float32)


def slopes(gelu, x):
  return jax.vmap(jax.grad(lambda one: gelu(one).astype(jnp.float32)))(x)


@pytest.mark.parametrize('approximate', [True, False])
def test_the_form_for_tpus_is_the_same_function(approximate):
  gelu = products.gelu('tpu', approximate, train=True)
  usual = lambda x: nn.gelu(x, approximate=approximate)
  np.testing.assert_allclose(gelu(X), usual(X), atol=1e-6)
  # Either slope of the tanh form is up to 3.5e-6 from that in float64.
  np.testing.assert_allclose(slopes(gelu, X), slopes(usual, X),
                             atol=7e-6 if approximate else 2e-6)


@pytest.mark.parametrize('separate', [True, False])
@pytest.mark.parametrize('approximate', [True, False])
def test_without_a_backward_pass_bfloat16_is_rounded_once(
    approximate, separate):
  gelu = products.gelu('tpu', approximate, train=False, separate=separate)
  x = jnp.asarray(X, jnp.bfloat16)
  exact = nn.gelu(x.astype(jnp.float32), approximate=approximate)
  assert gelu(x).dtype == jnp.bfloat16
  np.testing.assert_allclose(gelu(x).astype(jnp.float32), exact, rtol=2**-8,
                             atol=1e-6)


@pytest.mark.parametrize('approximate', [True, False])
def test_in_bfloat16_its_slope_is_rounded_once(approximate):
  gelu = products.gelu('tpu', approximate, train=True)
  x = jnp.asarray(X, jnp.bfloat16)
  exact = slopes(lambda x: nn.gelu(x, approximate=approximate),
                 x.astype(jnp.float32))
  error = jnp.abs(slopes(gelu, x).astype(jnp.float32) - exact)
  assert gelu(x).dtype == jnp.bfloat16
  assert jnp.max(error / jnp.maximum(1, jnp.abs(exact))) <= 2**-8


@pytest.mark.parametrize('platform,lowering,train,separate,barriers', [
    ('tpu', 'cpu', False, True, 1), ('cpu', 'tpu', False, True, 0),
    (None, 'tpu', False, True, 1), (None, 'cpu', False, True, 0),
    ('tpu', 'tpu', False, False, 0), ('tpu', 'tpu', True, True, 0)])
def test_a_tpu_finishes_a_separate_activation_first(
    platform, lowering, train, separate, barriers):
  gelu = products.gelu(platform, True, train=train, separate=separate)
  text = jax.jit(gelu).trace(X).lower(lowering_platforms=(lowering,)).as_text()
  assert text.count('optimization_barrier') == barriers
