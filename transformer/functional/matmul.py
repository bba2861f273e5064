"""Matrix products with operands of 16 bits and sums of 32.

Matrix units multiply 16-bit numbers and add in 32 bits; asking for a 16-bit result throws those
bits away and, on a CPU, leaves the fast path altogether. Plain differentiation would multiply a
32-bit cotangent with a 16-bit operand, so the derivatives are written out: they round the cotangent
as they do the operands, so that all products of a training step are fast: 2 times float32 on a CPU
that can multiply bfloat16.
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
  """Return a b, with operands rounded to dtype, summed and returned in float32.

  Args:
    a: left operand; leading axes are rows.
    b: right operand.
    dtype: of the operands; a's own if None.
    platform: what the program is compiled for; see `platforms`.

  Returns:
    float32 where dtype has 16 bits, else dtype. Gradients have the type of their operand.

  >>> matmul(jnp.ones((2, 3)), jnp.ones((3, 4)), 'bfloat16').dtype
  dtype('float32')
  """
  dtype = jnp.dtype(dtype or a.dtype)
  rows = _rows(a, dtype, platform)
  if dtype.itemsize > 2:
    y = rows.astype(dtype) @ b.astype(dtype)
  else:
    y = _matmul(*vary_alike(rows, b), (dtype, a.dtype, b.dtype))
  return y.reshape(*a.shape[:-1], b.shape[1])


def matmul_nt(
  a: Float[Array, '*B I'],
  b: Float[Array, 'O I'],
  dtype: DTypeLike | None = None,
  *,
  platform: str | None = None,
) -> Float[Array, '*B O']:
  """Return a bT; otherwise as `matmul`.

  >>> matmul_nt(jnp.array([[1., 2.]]), jnp.array([[3., 4.], [5., 6.]]))
  Array([[11., 17.]], dtype=float32)
  """
  dtype = jnp.dtype(dtype or a.dtype)
  rows = _rows(a, dtype, platform)
  if dtype.itemsize > 2:
    y = rows.astype(dtype) @ b.astype(dtype).T
  else:
    y = _matmul_nt(*vary_alike(rows, b), (dtype, a.dtype, b.dtype))
  return y.reshape(*a.shape[:-1], b.shape[0])


def _rows(a, dtype, platform):
  """a with one axis of rows, except where float32 can do without.

  On a CPU a weight's gradient that sums over two axes takes twice the time. Elsewhere it does not,
  and merged axes could no longer be sharded apart. It cannot be `lax.platform_dependent`, whose
  derivative would store the operands of both forms.
  """
  if a.ndim == 2 or (dtype.itemsize > 2 and platforms.resolve(platform) != 'cpu'):
    return a
  return a.reshape(math.prod(a.shape[:-1]), a.shape[-1])


def matmul_tn(a: Float[Array, 'B I'], b: Float[Array, 'B O']) -> Float[Array, 'I O']:
  """Return aT b, summed and returned in float32: the gradient of a weight. Not differentiable.

  On a CPU the transpose is really made and the product given a batch axis of size 1: XLA would fold
  the transpose into the product, and then widen its operands.

  >>> matmul_tn(jnp.array([[1.], [2.]]), jnp.array([[3.], [4.]]))
  Array([[11.]], dtype=float32)
  """

  def on_cpu(a, b):
    return _dot(lax.optimization_barrier(a.T)[None], b[None], ((2,), (1,)), ((0,), (0,)))[0]

  def elsewhere(a, b):
    return _dot(a, b, ((0,), (0,)))

  return lax.platform_dependent(a, b, cpu=on_cpu, default=elsewhere)


def _dot(a, b, contract, batch=((), ())):
  # not jnp.matmul of a transpose: XLA's CPU backend would widen that
  return lax.dot_general(a, b, (contract, batch), preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(a, b, dtypes):
  return _forward(a, b, dtypes)[0]


def _forward(a, b, dtypes):
  a, b = a.astype(dtypes[0]), b.astype(dtypes[0])
  return _dot(a, b, ((1,), (0,))), (a, b)


def _backward(dtypes, operands, g):
  (a, b), (dtype, a_dtype, b_dtype) = operands, dtypes
  g = g.astype(dtype)
  return _dot(g, b, ((1,), (1,))).astype(a_dtype), matmul_tn(a, g).astype(b_dtype)


_matmul.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul_nt(a, b, dtypes):
  return _forward_nt(a, b, dtypes)[0]


def _forward_nt(a, b, dtypes):
  a, b = a.astype(dtypes[0]), b.astype(dtypes[0])
  return _dot(a, b, ((1,), (1,))), (a, b)


def _backward_nt(dtypes, operands, g):
  (a, b), (dtype, a_dtype, b_dtype) = operands, dtypes
  g = g.astype(dtype)
  return _dot(g, b, ((1,), (0,))).astype(a_dtype), matmul_tn(g, a).astype(b_dtype)


_matmul_nt.defvjp(_forward_nt, _backward_nt)
