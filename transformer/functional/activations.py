"""Activations of feed-forward layers by name, and the soft cap of logits."""

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


# relu_squared: So et al. 2021, https://arxiv.org/abs/2109.08668, section 3; quick_gelu: Hendrycks &
# Gimpel 2016, https://arxiv.org/abs/1606.08415, section 2 (CLIP); gelu_10: Wu et al. 2020,
# https://arxiv.org/abs/2004.09602, section 4.2.2
ACTIVATIONS = {
  'relu': jax.nn.relu,
  'relu_squared': lambda x: jax.nn.relu(x) ** 2,
  'gelu_erf': lambda x: jax.nn.gelu(x, approximate=False),
  'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),
  'gelu_10': lambda x: jnp.clip(jax.nn.gelu(x, approximate=False), -10, 10),
  'quick_gelu': lambda x: x * jax.nn.sigmoid(1.702 * x),
  'silu': jax.nn.silu,
  'tanh': jnp.tanh,
}
