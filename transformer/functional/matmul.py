"""Matrix products of bfloat16 or float16 operands, summed in float32.

Matrix units multiply 16-bit numbers and add in 32 bits. A 16-bit result would lose these bits and,
on a CPU, use a slow path. Plain differentiation would multiply a 32-bit cotangent by a 16-bit
operand; the derivatives here round the cotangent to 16 bits first, so that all products of a
training step have 16-bit operands.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from transformer.functional import platforms
from transformer.functional.meshes import vary_alike


def matmul(
  a: Float[Array, '*B I'],
  b: Float[Array, 'I O'],
  dtype: DTypeLike | None = None,
  *,
  platform: str | None = None,
) -> Float[Array, '*B O']:
  """Return a @ b, with both operands rounded to dtype.

  Args:
    a: left operand.
    b: right operand.
    dtype: the dtype of the operands; a's own if None.
    platform: the one that the program is compiled for; see `platforms`. For a CPU the leading axes
      of a float32 `a` are merged, for a faster gradient of b.

  Returns:
    The product in float32 if dtype has 16 bits, else in dtype. Gradients have the dtype of their
    operand.

  >>> matmul(jnp.ones((2, 3)), jnp.ones((3, 4)), 'bfloat16').dtype
  dtype('float32')
  """
  return _product(a, b, dtype, platform, transposed=False)


def matmul_nt(
  a: Float[Array, '*B I'],
  b: Float[Array, 'O I'],
  dtype: DTypeLike | None = None,
  *,
  platform: str | None = None,
) -> Float[Array, '*B O']:
  """Return a @ b.T; otherwise as `matmul`.

  >>> matmul_nt(jnp.array([[1., 2.]]), jnp.array([[3., 4.], [5., 6.]]))
  Array([[11., 17.]], dtype=float32)
  """
  return _product(a, b, dtype, platform, transposed=True)


def _product(a, b, dtype, platform, transposed):
  """Return a @ b, or a @ b.T if transposed."""
  dtype = jnp.dtype(dtype or a.dtype)
  rows = _rows(a, dtype, platform)
  if dtype.itemsize > 2:
    b = b.astype(dtype)
    y = rows.astype(dtype) @ (b.T if transposed else b)
  else:
    y = _rounded_product(*vary_alike(rows, b), (dtype, a.dtype, b.dtype, transposed))
  return y.reshape(*a.shape[:-1], y.shape[-1])


def _rows(a, dtype, platform):
  """Return `a` with its leading axes merged, if the product has 16 bits or is for a CPU.

  The derivative of 16-bit products is written for two axes. On a CPU the gradient of a weight takes
  twice the time if it sums over two axes; on other platforms it does not, and unmerged axes can be
  sharded separately. The form is chosen in Python, because the derivative of
  `lax.platform_dependent` would store the operands of both forms.
  """
  if a.ndim == 2 or (dtype.itemsize > 2 and platforms.resolve(platform) != 'cpu'):
    return a
  return a.reshape(math.prod(a.shape[:-1]), a.shape[-1])


def matmul_tn(a: Float[Array, 'B I'], b: Float[Array, 'B O']) -> Float[Array, 'I O']:
  """Return a.T @ b in float32, as for the gradient of a weight; a and b have the same dtype.

  On a CPU the transpose is computed first, and the product has a batch axis of size 1: otherwise
  XLA would fold the transpose into the product and convert the operands to float32.

  >>> matmul_tn(jnp.array([[1.], [2.]]), jnp.array([[3.], [4.]]))
  Array([[11.]], dtype=float32)
  """

  def on_cpu(a, b):
    return _dot(lax.optimization_barrier(a.T)[None], b[None], ((2,), (1,)), ((0,), (0,)))[0]

  def elsewhere(a, b):
    return _dot(a, b, ((0,), (0,)))

  return lax.platform_dependent(a, b, cpu=on_cpu, default=elsewhere)


def _dot(a, b, contract, batch=((), ())):
  if a.dtype == jnp.bfloat16 and _converts():
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  # not jnp.matmul of a transpose: XLA's CPU backend would convert it to float32
  return lax.dot_general(a, b, (contract, batch), preferred_element_type=jnp.float32)


@functools.cache
def _converts() -> bool:
  """Return whether rounded operands are multiplied in float32, which gives the same numbers."""
  return not platforms.cpu_multiplies_bfloat16() and platforms.resolve(None) == 'cpu'


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rounded_product(a, b, settings):
  return _forward(a, b, settings)[0]


def _forward(a, b, settings):
  dtype, _, _, transposed = settings
  a, b = a.astype(dtype), b.astype(dtype)
  return _dot(a, b, ((1,), (1 if transposed else 0,))), (a, b)


def _backward(settings, operands, g):
  (a, b), (dtype, a_dtype, b_dtype, transposed) = operands, settings
  g = g.astype(dtype)
  a_gradient = _dot(g, b, ((1,), (0 if transposed else 1,)))
  b_gradient = matmul_tn(g, a) if transposed else matmul_tn(a, g)
  return a_gradient.astype(a_dtype), b_gradient.astype(b_dtype)


_rounded_product.defvjp(_forward, _backward)
