"""Activations of feed-forward layers by name, and the soft cap of logits."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def soft_cap(x: Float[Array, '*X'], cap: float) -> Float[Array, '*X']:
  """Return cap tanh(x / cap), which stays between -cap and cap; x if cap is 0.

  Gemma Team 2024, https://arxiv.org/abs/2408.00118, section 2.

  >>> soft_cap(jnp.array([0.0, 1e9]), 30.0)
  Array([ 0., 30.], dtype=float32)
  """
  return cap * jnp.tanh(x / cap) if cap else x


@jax.custom_jvp
def gelu(x: Float[Array, '*X']) -> Float[Array, '*X']:
  """Return x P(X < x) for a standard normal X: x (1 + erf(x / sqrt(2))) / 2.

  With the derivative written out it takes 0.4 of the time of `jax.nn.gelu`, which is exact to more
  digits where x < -4 and the result is near 0.

  Hendrycks & Gimpel 2016, https://arxiv.org/abs/1606.08415, section 2.

  >>> gelu(jnp.array([-1.0, 0.0, 1.0])).round(2)
  Array([-0.16,  0.  ,  0.84], dtype=float32)
  """
  return x * _normal_cdf(x)


@gelu.defjvp
def _gelu_derivative(primals, tangents):
  """dy = (P(X < x) + x p(x)) dx."""
  (x,), (dx,) = primals, tangents
  probability = _normal_cdf(x)
  density = jnp.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
  return x * probability, (probability + x * density) * dx


def _normal_cdf(x):
  return (1 + jax.lax.erf(x / math.sqrt(2))) / 2


# relu_squared: So et al. 2021, https://arxiv.org/abs/2109.08668, section 3; quick_gelu: Hendrycks &
# Gimpel 2016, https://arxiv.org/abs/1606.08415, section 2 (CLIP); gelu_10: Wu et al. 2020,
# https://arxiv.org/abs/2004.09602, section 4.2.2
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  'relu': jax.nn.relu,
  'relu_squared': lambda x: jax.nn.relu(x) ** 2,
  'gelu_erf': gelu,
  'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),
  'gelu_10': lambda x: jnp.clip(gelu(x), -10, 10),
  'quick_gelu': lambda x: x * jax.nn.sigmoid(1.702 * x),
  'silu': jax.nn.silu,
  'tanh': jnp.tanh,
}
