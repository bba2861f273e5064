"""Laws of products: 16-bit operands, 32-bit sums, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equations import equations

from transformer.functional.matmul import matmul, matmul_nt, matmul_tn

WIDE = dict(bfloat16='float32', float16='float32', float32='float32')


@pytest.mark.parametrize('dtype', WIDE)
def test_a_product_is_the_product(dtype, rng, close):
  for rows in [(), (3,), (2, 3)]:
    a = jnp.asarray(rng.normal(size=(*rows, 4)), dtype)
    b = jnp.asarray(rng.normal(size=(4, 5)), dtype)
    y = matmul(a, b)
    assert y.shape == (*rows, 5) and y.dtype == WIDE[dtype]
    close(y, np.asarray(a, np.float64) @ np.asarray(b, np.float64))


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_sums_are_made_in_32_bits_forward_and_backward(dtype):
  # n ones: a 16-bit sum stops at 256 (bfloat16) or 2048 (float16), or rounds the odd one away
  n = 2**12 + 1
  ones = jnp.ones((1, n), dtype)
  assert float(matmul(ones, ones.T)[0, 0]) == n
  # dW adds n rows of 1 and one of 2^-8: rounded once, to W's type
  a = jnp.ones((n, 1), dtype)
  b_gradient = jax.grad(lambda b: matmul(a, b).sum())(jnp.ones((1, 1), dtype))
  assert b_gradient.dtype == dtype
  assert float(b_gradient[0, 0]) == float(jnp.asarray(n, dtype))


@pytest.mark.parametrize('batched', [False, True])
@pytest.mark.parametrize('dtype', WIDE)
def test_the_gradient_is_that_of_float32_also_under_vmap(dtype, batched, rng, close):
  shape = (3,) if batched else ()
  a, b = (jnp.asarray(rng.normal(size=(*shape, *s)), dtype) for s in [(2, 6), (6, 4)])
  g = jnp.asarray(rng.normal(size=(*shape, 2, 4)), 'float32')
  f = jax.vmap(matmul) if batched else matmul
  da, db = jax.jit(jax.grad(lambda a, b: jnp.sum(f(a, b) * g), argnums=(0, 1)))(a, b)
  a, b, g = (np.asarray(x, np.float64) for x in (a, b, g))
  assert da.dtype == db.dtype == dtype
  close(da, g @ b.swapaxes(-1, -2))
  close(db, a.swapaxes(-1, -2) @ g)


@pytest.mark.parametrize('f', [matmul, matmul_nt])
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_all_products_of_a_training_step_have_16_bit_operands(dtype, f):
  a, b = jnp.ones((2, 3), dtype), jnp.ones((3, 3), dtype)
  jaxpr = jax.make_jaxpr(jax.grad(lambda a, b: f(a, b).sum(), argnums=(0, 1)))(a, b)
  dots = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == 'dot_general']
  assert len(dots) == 4  # the last is there twice, for a CPU and for other devices
  for e in dots:
    assert [x.aval.dtype for x in e.invars] == [dtype, dtype]
    assert e.outvars[0].aval.dtype == jnp.float32


@pytest.mark.parametrize('dtype', WIDE)
@pytest.mark.parametrize('operands', ['float32', None])
def test_nt_is_the_product_with_the_transpose(dtype, operands, rng, close):
  a, b = (jnp.asarray(rng.normal(size=s), operands or dtype) for s in [(2, 5, 6), (4, 6)])
  g = jnp.asarray(rng.normal(size=(2, 5, 4)), 'float32')
  y, backward = jax.vjp(lambda a, b: matmul_nt(a, b, dtype).astype('float32'), a, b)
  da, db = backward(g)
  assert (da.dtype, db.dtype) == (a.dtype, b.dtype)
  a, b, g = (np.asarray(jnp.asarray(x, dtype), np.float64) for x in (a, b, g))
  close(y, a @ b.T)
  close(da, g @ b)
  close(db, np.einsum('abo,abi->oi', g, a))


def test_tn_is_the_product_with_the_transpose_also_under_vmap(rng, close):
  a, b = (jnp.asarray(rng.normal(size=(3, 5, n)), 'float32') for n in (2, 4))
  close(matmul_tn(a[0], b[0]), a[0].T @ b[0])
  close(jax.jit(jax.vmap(matmul_tn))(a, b), a.swapaxes(1, 2) @ b)
