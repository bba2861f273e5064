"""Laws of normalization: the formula in float64, and its derivative in every mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from transformer.functional.normalization import normalize


def oracle(x, epsilon, centered):
  x = np.asarray(x, np.float64)
  x = x - x.mean(-1, keepdims=True) if centered else x
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('centered', [True, False])
def test_normalize_is_the_formula_in_float32(centered, dtype, rng, close):
  x = jnp.asarray(5 + 3 * rng.normal(size=(2, 3, 8)), dtype)
  y = normalize(x, 1e-3, centered=centered)
  assert y.dtype == jnp.float32
  close(y, oracle(x, 1e-3, centered))


@pytest.mark.parametrize('centered', [True, False])
def test_the_derivative_of_normalize_is_right_forwards_backwards_and_twice(centered, rng):
  x = jnp.asarray(rng.normal(size=(2, 6)), 'float32')
  f = jax.jit(lambda x: normalize(x, 1e-2, centered=centered))
  check_grads(f, (x,), order=2, modes=['fwd', 'rev'], atol=2e-2, rtol=2e-2, eps=1e-2)


def test_a_constant_row_gives_0_and_a_finite_gradient():
  x = jnp.full((1, 4), 3.0)
  y, backward = jax.vjp(lambda x: normalize(x, 1e-6), x)
  np.testing.assert_array_equal(y, 0)
  assert np.isfinite(backward(jnp.ones((1, 4)))[0]).all()
