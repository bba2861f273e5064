"""Laws of attention: the equation in float64 loops, empty rows, and NaN that stays where it is."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.test_util import check_grads

from transformer.functional import masks
from transformer.functional.attention import (
  attention,
  attention_weights,
  multi_head_attention,
  multi_head_attention_weights,
  weighted_values,
)

DTYPES = ['float32', 'bfloat16', 'float16']


def oracle(q, k, v, mask=None, bias=None, scale=None, g=None, cap=np.inf, sinks=None):
  """(output, weights, (dq, dk, dv, dbias)) of <output, g> in float64, one number at a time.

  What is masked is never read. A row that attends to nothing is left at 0.
  """
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  (B, T, H, K), (_, S, G, V) = q.shape, v.shape
  mask = np.broadcast_to(True if mask is None else np.asarray(mask), (B, H, T, S))
  bias = np.broadcast_to(0.0 if bias is None else np.asarray(bias, np.float64), (B, H, T, S))
  scale = K**-0.5 if scale is None else scale
  sinks = np.full(H, -np.inf) if sinks is None else np.asarray(sinks, np.float64)
  g = np.zeros((B, T, H, V)) if g is None else np.asarray(g, np.float64)
  out, weights = np.zeros((B, T, H, V)), np.zeros((B, H, T, S))
  dq, dk, dv, dbias = (np.zeros(x.shape) for x in (q, k, v, bias))
  for b, t, h in np.ndindex(B, T, H):
    group = h * G // H
    seen = [s for s in range(S) if mask[b, h, t, s]]
    if not seen:
      continue
    product = {s: scale * sum(q[b, t, h] * k[b, s, group]) for s in seen}
    bend = {
      s: 1.0 if cap == np.inf else np.tanh(product[s] / cap) / (product[s] / cap) for s in seen
    }
    score = {s: product[s] * bend[s] + bias[b, h, t, s] for s in seen}
    peak = max(*score.values(), sinks[h])
    e = {s: np.exp(score[s] - peak) for s in seen}
    p = {s: e[s] / (sum(e.values()) + np.exp(sinks[h] - peak)) for s in seen}
    for s in seen:
      weights[b, h, t, s] = p[s]
      out[b, t, h] += p[s] * v[b, s, group]
    dp = {s: sum(g[b, t, h] * v[b, s, group]) for s in seen}
    for s in seen:
      dscore = p[s] * (dp[s] - sum(p[r] * dp[r] for r in seen))
      dproduct = dscore * scale * (1 - (product[s] * bend[s] / cap) ** 2)
      dq[b, t, h] += dproduct * k[b, s, group]
      dk[b, s, group] += dproduct * q[b, t, h]
      dv[b, s, group] += p[s] * g[b, t, h]
      dbias[b, h, t, s] += dscore
  return out, weights, (dq, dk, dv, dbias)


def draw(rng, B=2, T=3, S=5, H=4, G=2, K=4, V=3, dtype='float32', size=1.0):
  shapes = [(B, T, H, K), (B, S, G, K), (B, S, G, V), (B, T, H, V)]
  return [(size * rng.normal(size=shape)).astype(jnp.dtype(dtype)) for shape in shapes]


@partial(jax.jit, static_argnames='scale')
def run(q, k, v, mask, bias, scale, g):
  """(output, weights, gradients of <output, g> in q, k, v and bias)."""
  zero = jnp.zeros((1, 1, 1, 1)) if bias is None else bias

  def out(q, k, v, zero):
    return multi_head_attention(q, k, v, mask=mask, bias=zero, scale=scale)

  y, pullback = jax.vjp(out, q, k, v, zero)
  weights = multi_head_attention_weights(q, k, mask=mask, bias=bias, scale=scale)
  return y, weights, pullback(g)


def unbroadcast(x, shape):
  """The gradient of an array of this shape that was broadcast to x's."""
  axes = tuple(i for i, (a, b) in enumerate(zip(x.shape, shape, strict=True)) if b == 1 != a)
  return x.sum(axes, keepdims=True)


@pytest.fixture
def unchecked():
  """Without the tests' shape checks, as users run: our own errors must do."""
  jaxtyping.config.update('jaxtyping_disable', True)
  yield
  jaxtyping.config.update('jaxtyping_disable', False)


def test_the_oracle_has_the_gradient_of_its_own_finite_differences(rng):
  *x, g = (np.asarray(a, np.float64) for a in draw(rng, B=1, T=2, S=3, H=2, G=1))
  mask = np.array([[True, False, True], [True, True, True]])
  x.append(rng.normal(size=(1, 2, 2, 3)))
  gradients = oracle(*x[:3], mask, x[3], g=g)[2]
  for i, gradient in enumerate(gradients):
    direction, h = rng.normal(size=x[i].shape), 1e-5
    moved = [
      [a + sign * h * direction if j == i else a for j, a in enumerate(x)] for sign in (1, -1)
    ]
    up, down = (np.sum(oracle(*m[:3], mask, m[3])[0] * g) for m in moved)
    np.testing.assert_allclose((up - down) / (2 * h), np.sum(gradient * direction), rtol=1e-6)


# B, T, S, H, G, K, V, the mask's axes and the bias's (1 for those of size 1), scale, dtype
CASES = [
  (2, 3, 5, 4, 4, 4, 4, None, None, None, 'float32'),
  (2, 3, 5, 4, 2, 4, 3, 'BHTS', '1HTS', None, 'float32'),
  (2, 4, 4, 6, 3, 2, 5, 'B11S', None, 1.0, 'float32'),
  (1, 1, 7, 4, 1, 8, 4, '11TS', 'BHTS', 0.3, 'float32'),
  (3, 5, 1, 2, 2, 1, 2, 'B1TS', '1H11', None, 'float32'),
  (2, 3, 5, 4, 2, 4, 3, 'B1TS', '1HTS', None, 'bfloat16'),
  (2, 4, 6, 4, 4, 8, 8, None, None, None, 'bfloat16'),
  (2, 4, 6, 4, 1, 8, 8, None, None, 0.5, 'float16'),
]


@pytest.mark.parametrize('case', CASES, ids=str)
def test_attention_is_the_equation_forward_and_backward(case, rng, close):
  B, T, S, H, G, K, V, mask_axes, bias_axes, scale, dtype = case

  def shape(axes):
    return [1 if a == '1' else n for a, n in zip(axes, (B, H, T, S), strict=True)]

  q, k, v, g = draw(rng, B, T, S, H, G, K, V, dtype)
  mask = None if mask_axes is None else rng.random(shape(mask_axes)) < 0.6
  bias = None if bias_axes is None else jnp.asarray(rng.normal(size=shape(bias_axes)), 'float32')
  y, weights, (*dx, dbias) = run(q, k, v, mask, bias, scale, g)
  want_y, want_weights, (*want_dx, want_dbias) = oracle(q, k, v, mask, bias, scale, g)
  assert y.dtype == v.dtype and weights.dtype == jnp.float32
  assert [d.dtype for d in dx] == [q.dtype] * 3
  close(y, want_y)
  close(weights, want_weights, dtype)
  for d, want in zip(dx, want_dx, strict=True):
    close(d, want)
  if bias is not None:
    close(dbias, unbroadcast(want_dbias, bias.shape), dtype)
  np.testing.assert_allclose(weights.sum(-1), want_weights.any(-1), atol=1e-6)


def test_scores_may_be_capped_and_heads_may_have_a_sink(rng, close):
  q, k, v, g = draw(rng, size=2.0)
  mask, sinks = rng.random((2, 1, 3, 5)) < 0.6, jnp.asarray(rng.normal(size=4), 'float32')
  mask[0, :, 1] = False

  @jax.jit
  def run(q, k, v, sinks):
    kwargs = dict(mask=jnp.asarray(mask), soft_cap=1.5)
    f = partial(multi_head_attention, **kwargs)
    y, pullback = jax.vjp(lambda q, k, v, sinks: f(q, k, v, sinks=sinks), q, k, v, sinks)
    return y, pullback(g), multi_head_attention_weights(q, k, sinks=sinks, **kwargs)

  y, (*dx, dsinks), weights = run(q, k, v, sinks)
  want, want_weights, want_dx = oracle(q, k, v, mask, g=g, cap=1.5, sinks=sinks)
  close(y, want)
  close(weights, want_weights)
  for d, expected in zip(dx, want_dx, strict=False):
    close(d, expected)
  for head in range(4):
    h = np.eye(4)[head] * 1e-5
    up, down = (
      np.sum(oracle(q, k, v, mask, cap=1.5, sinks=np.asarray(sinks, float) + d)[0] * g)
      for d in (h, -h)
    )
    np.testing.assert_allclose(dsinks[head], (up - down) / 2e-5, rtol=1e-4, atol=1e-5)
  # without a mask, too
  close(jax.jit(multi_head_attention)(q, k, v, sinks=sinks), oracle(q, k, v, sinks=sinks)[0])


def test_one_head_is_one_head_of_many(rng, close):
  q, k, v, _ = draw(rng, B=1, H=1, G=1)
  mask, bias = (
    jnp.asarray(rng.random((3, 5)) < 0.7),
    jnp.asarray(rng.normal(size=(3, 5)), 'float32'),
  )
  want, weights, _ = oracle(q, k, v, mask, bias, 0.4)
  one = [jnp.asarray(x[0, :, 0]) for x in (q, k, v)]

  @jax.jit
  def run(q, k, v):
    kwargs = dict(mask=mask, bias=bias, scale=0.4)
    return attention(q, k, v, **kwargs), attention_weights(q, k, **kwargs)

  y, y_weights = run(*one)
  close(y, want[0, :, 0])
  close(y_weights, weights[0, 0])
  values = jax.jit(weighted_values)(jnp.asarray(weights, 'float32'), jnp.asarray(v))
  close(values, want)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_weighted_values_keep_a_nan_from_rows_that_give_it_no_weight(bad, rng):
  weights = jnp.asarray(rng.random((1, 4, 3, 5)), 'float32').at[:, :, 1:, 2].set(0)
  v = jnp.asarray(rng.normal(size=(1, 5, 2, 4)), 'float32')
  want, found = (jax.jit(weighted_values)(weights, x) for x in (v, v.at[:, 2, 1, 0].set(bad)))
  assert np.isnan(found[:, 0, 2:]).all()
  np.testing.assert_array_equal(found[:, 1:], want[:, 1:])
  np.testing.assert_array_equal(found[:, :, :2], want[:, :, :2])


def test_it_can_be_differentiated_forwards_and_twice(rng):
  q, k, v, _ = (jnp.asarray(x[0, :, 0]) for x in draw(rng, B=1, H=1, G=1))
  mask = jnp.asarray(rng.random((3, 5)) < 0.7)
  f = jax.jit(lambda q, k, v: attention(q, k, v, mask=mask))
  check_grads(f, (q, k, v), order=2, modes=['fwd', 'rev'], atol=2e-2, rtol=2e-2, eps=1e-2)


def test_arrays_assumed_finite_are_not_searched(rng):
  q, k, v, _ = (jnp.asarray(x) for x in draw(rng))
  mask = jnp.asarray(rng.random((2, 4, 3, 5)) < 0.5).at[:, :, 1].set(False)
  f = partial(jax.jit, static_argnames='assume_finite')(multi_head_attention)
  np.testing.assert_array_equal(f(q, k, v, mask=mask, assume_finite=True), f(q, k, v, mask=mask))


def test_it_agrees_with_jax(rng, close):
  q, k, v, _ = draw(rng, K=4, V=4)
  mask = rng.random((2, 4, 3, 5)) < 0.5
  mask[..., 1] = True
  bias = jnp.asarray(rng.normal(size=(2, 4, 3, 5)), 'float32')
  ours = run(q, k, v, mask, bias, 0.7, np.zeros_like(q))[0]
  close(ours, jax.jit(jax.nn.dot_product_attention)(q, k, v, bias, mask, scale=0.7))


@pytest.mark.parametrize('dtype', DTYPES)
def test_a_row_that_may_attend_to_nothing_is_exactly_0(dtype, rng):
  q, k, v, g = draw(rng, dtype=dtype, size=50.0)
  mask = rng.random((2, 4, 3, 5)) < 0.5
  mask[:, :, 1] = False
  y, weights, (dq, *_) = run(q, k, v, mask, None, None, g)
  for x in (y[:, 1], weights[:, :, 1], dq[:, 1]):
    np.testing.assert_array_equal(x, 0)
  assert np.abs(y).max() > 0 and np.abs(dq).max() > 0
  # the row's cotangent reaches no key and no value either
  g_without = g.copy()
  g_without[:, 1] = 0
  without = run(q, k, v, mask, None, None, g_without)[2]
  for a, b in zip(run(q, k, v, mask, None, None, g)[2][1:3], without[1:3], strict=True):
    np.testing.assert_array_equal(a, b)
  for x in jax.tree.leaves(run(q, k, v, np.zeros_like(mask), None, None, g)):
    np.testing.assert_array_equal(x, 0)


@pytest.mark.parametrize('dtype', DTYPES)
def test_one_head_and_its_weights_are_0_where_a_row_allows_nothing_under_jit_and_vmap(dtype, rng):
  q, k, v = (x[:, :, 0] for x in draw(rng, dtype=dtype)[:3])
  mask = rng.random((2, 3, 5)) < 0.5
  mask[:, 1] = False

  @jax.jit
  @jax.vmap
  def value_and_gradient(q, k, v, mask):
    y, pullback = jax.vjp(lambda q, k, v: attention(q, k, v, mask=mask), q, k, v)
    w, weights_pullback = jax.vjp(lambda q, k: attention_weights(q, k, mask=mask), q, k)
    one = jnp.zeros(3).at[1].set(1)[:, None]
    # of the empty row only: no gradient may come of it
    return y[1], w[1], pullback((one * y + one).astype(y.dtype)), weights_pullback(one + 0 * w)

  for x in jax.tree.leaves(value_and_gradient(q, k, v, mask)):
    np.testing.assert_array_equal(x, 0)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('where', ['k', 'v'])
def test_nan_reaches_the_rows_that_attend_to_it_and_nothing_else(where, bad, dtype, rng, close):
  q, k, v, g = draw(rng, dtype=dtype)
  # source 2 is seen by no target, source 4 by some
  mask = rng.random((2, 4, 3, 5)) < 0.6
  mask[..., 2], mask[:, :, 0, 4], mask[:, :2, 1, 4] = False, False, True
  spoilt = (k if where == 'k' else v).copy()
  spoilt[:, [2, 4], :, 1] = bad
  dirty = (q, spoilt, v) if where == 'k' else (q, k, spoilt)
  hit = mask[..., 4]  # [B, H, T]
  clean = ~hit.transpose(0, 2, 1)[..., None]
  g = np.where(clean, g, 0).astype(g.dtype)
  y, weights, (dq, dk, dv, _) = run(*dirty, mask, None, None, g)
  # the oracle does not read what is masked; the rows that are hit are left out
  seen = mask & ~hit[..., None]
  want, want_weights, (want_dq, want_dk, want_dv, _) = oracle(q, k, v, seen, g=g)
  assert np.isnan(np.asarray(y, 'float32')[~clean[..., 0]]).all()
  close(jnp.where(clean, y, 0), want)
  close(jnp.where(clean, dq, 0), want_dq)
  if where == 'k':
    assert np.isnan(weights[hit]).any(-1).all()
    close(jnp.where(hit[..., None], 0, weights), want_weights, dtype)
  # a source has a gradient from every row that attends to it, so it is clean where no row is hit
  reached = (mask & hit[..., None]).any(2).reshape(2, 2, -1, 5).any(2)  # [B, G, S]
  safe = ~reached.transpose(0, 2, 1)[..., None]
  assert safe.any() and not safe.all()
  close(jnp.where(safe, dk, 0), np.where(safe, want_dk, 0))
  close(jnp.where(safe, dv, 0), np.where(safe, want_dv, 0))


def test_nan_in_every_masked_source_changes_no_gradient(rng):
  q, k, v, g = draw(rng)
  seen = np.array([True, True, False, True, False])
  mask = np.broadcast_to(seen, (2, 4, 3, 5))
  want = run(q, k, v, mask, None, None, g)
  hole = np.where(seen[:, None, None], 0, np.nan).astype('float32')
  for a, b in zip(
    jax.tree.leaves(run(q, k + hole, v + hole, mask, None, None, g)),
    jax.tree.leaves(want),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


def test_the_order_of_the_sources_does_not_matter(rng, close):
  q, k, v, g = draw(rng)
  mask, bias = (
    jnp.asarray(rng.random((2, 4, 3, 5)) < 0.6),
    jnp.asarray(rng.normal(size=(1, 4, 3, 5))),
  )
  order = rng.permutation(5)
  bias = bias.astype('float32')
  y, weights, (dq, dk, dv, _) = run(q, k, v, mask, bias, None, g)
  mixed = run(q, k[:, order], v[:, order], mask[..., order], bias[..., order], None, g)
  close(mixed[0], y)
  close(mixed[1], weights[..., order])
  for a, b in zip(mixed[2][:3], (dq, dk[:, order], dv[:, order]), strict=True):
    close(a, b)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_large_scores_in_16_bits_do_not_overflow(dtype, rng, close):
  # q k is 7e4: Inf in float16, and bfloat16 knows no two numbers nearer than 512 there
  q, k, v, g = draw(rng, K=64, dtype=dtype)
  q, k = 33 + q, 33 + k  # still in 16 bits
  assert q.dtype == k.dtype == dtype
  y, weights, gradients = run(q, k, v, None, None, 1.0, g)
  close(y, oracle(q, k, v, scale=1.0)[0])
  close(weights, oracle(q, k, v, scale=1.0)[1], dtype)
  for x in gradients:
    assert np.isfinite(np.asarray(x, 'float32')).all()


@pytest.mark.parametrize('mask', [jnp.zeros((3, 5)), jnp.zeros((3, 5), 'int32')])
def test_a_mask_of_numbers_is_an_error_that_says_what_to_do(mask, rng, unchecked):
  q, k, v = map(jnp.asarray, draw(rng)[:3])
  one = [jnp.asarray(x[0, :, 0]) for x in (q, k, v)]
  calls = [
    lambda: attention(*one, mask=mask),
    lambda: attention_weights(*one[:2], mask=mask),
    lambda: multi_head_attention(q, k, v, mask=mask[None, None]),
    lambda: multi_head_attention_weights(q, k, mask=mask[None, None]),
  ]
  for call in calls:
    with pytest.raises(TypeError, match=rf'{mask.dtype}.*boolean.*mask != 0.*bias='):
      jax.eval_shape(call)


def test_a_batch_given_to_one_head_is_an_error_that_names_the_functions_to_use(rng, unchecked):
  q, k, v = map(jnp.asarray, draw(rng)[:3])
  for call in (
    lambda: attention(q, k, v),
    lambda: attention(q[0], k[0], v[0]),
    lambda: attention_weights(q, k),
  ):
    with pytest.raises(ValueError, match='one head.*multi_head_attention or dot_product_attention'):
      call()


def test_an_attention_mask_given_to_the_specification_is_an_error(rng, unchecked):
  q, k, v = (jnp.asarray(x[0, :, 0]) for x in draw(rng)[:3])
  with pytest.raises(TypeError, match=r'AttentionMask.*boolean array.*mask.dense\(T, S\)'):
    attention(q, k, v, mask=masks.causal())


def test_what_does_not_fit_is_an_error_that_says_what_to_do(rng, unchecked):
  q, k, v = map(jnp.asarray, draw(rng, H=4, G=2)[:3])
  with pytest.raises(
    ValueError, match='3 key/value heads do not divide 4 query heads.*divisor of 4'
  ):
    multi_head_attention(q, k[:, :, [0, 0, 0]], v[:, :, [0, 0, 0]])
  for shape in [(2, 1, 3, 4), (3, 1, 3, 5), (2, 2, 3, 5)]:
    with pytest.raises(ValueError, match=r'mask of shape .* does not broadcast to \[B, H, T, S\]'):
      multi_head_attention(q, k, v, mask=jnp.ones(shape, bool))
    with pytest.raises(ValueError, match=r'bias of shape .* does not broadcast to \[B, H, T, S\]'):
      multi_head_attention_weights(q, k, bias=jnp.ones(shape))
