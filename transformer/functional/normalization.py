"""Normalization over the last axis, in float32."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def normalize(
  x: Float[Array, '*B D'], epsilon: float, *, centered: bool = True
) -> Float[Array, '*B D']:
  """Return (x - mean) / sqrt(var + e), or x / sqrt(mean x^2 + e) if not centered.

  LayerNorm (Ba et al. 2016, https://arxiv.org/abs/1607.06450) and RMSNorm (Zhang & Sennrich 2019,
  https://arxiv.org/abs/1910.07467) without their scale. The derivative is written out with two
  means, where plain differentiation would store every intermediate result.

  Args:
    x: of any dtype; the result is float32.
    epsilon: e, added to the variance.
    centered: whether to subtract the mean.

  >>> normalize(jnp.array([1., 3.]), 0.)
  Array([-1.,  1.], dtype=float32)
  """
  return _normalize(x.astype(jnp.float32), epsilon, centered)


def _mean(x):
  return jnp.mean(x, axis=-1, keepdims=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _normalize(x, epsilon, centered):
  return _forward(x, epsilon, centered)[0]


@_normalize.defjvp
def _derivative(epsilon, centered, primals, tangents):
  """dy = r (dx - mean dx - y mean(y dx)), r = 1 / sqrt(var + e)."""
  (x,), (dx,) = primals, tangents
  y, r = _forward(x, epsilon, centered)
  return y, r * ((dx - _mean(dx) if centered else dx) - y * _mean(y * dx))


def _forward(x, epsilon, centered):
  x = x - _mean(x) if centered else x
  r = jax.lax.rsqrt(_mean(x**2) + epsilon)
  return x * r, r
