"""Matrix products whose operands may be 16 bits wide and whose sums never are."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def product(a: Float[Array, '*B I'], b: Float[Array, 'I O']) -> Float[Array, '*B O']:
  """a b, accumulated and returned in float32 even where a and b are bfloat16.

  Matrix units multiply 16-bit numbers and add in 32 bits; asking for a 16-bit *result* throws those
  bits away and, on a CPU, falls off the fast path altogether. Plain differentiation would multiply
  a 32-bit cotangent with a 16-bit operand, so the derivative is written out: it rounds the
  cotangent to the operands' type first, and all three products of a training step are fast.

  Args:
    a: left operand; leading axes are rows.
    b: right operand, of a's dtype.

  Returns:
    float32 for 16-bit operands, else the operands' own type.

  >>> product(jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 4), jnp.bfloat16)).dtype
  dtype('float32')
  """
  if a.dtype.itemsize > 2:
    return a @ b
  rows = a.reshape(-1, a.shape[-1]) if a.ndim != 2 else a
  return _product(rows, b).reshape(*a.shape[:-1], b.shape[-1])


@jax.custom_vjp
def _product(a, b):
  return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _forward(a, b):
  return _product(a, b), (a, b)


def _backward(operands, g):
  a, b = operands
  g = g.astype(a.dtype)
  return _product(g, b.T).astype(a.dtype), _product(a.T, g).astype(b.dtype)


_product.defvjp(_forward, _backward)
