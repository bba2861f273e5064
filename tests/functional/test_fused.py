"""The fused path is the same equation, is taken where it can be, and says once why it is not."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.functional import fused, masks
from transformer.functional.attention import multi_head_attention


def draw(rng, B=2, T=6, S=6, H=4, G=2, K=8, V=8, dtype='bfloat16'):
  shapes = [(B, T, H, K), (B, S, G, K), (B, S, G, V), (B, T, H, V)]
  return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


# where no GPU has the kernel, jax.nn's own equation stands in
@pytest.mark.parametrize('implementation', ['xla', 'cudnn'])
@pytest.mark.parametrize(('causal', 'T', 'scale'), [(True, 6, None), (False, 4, 1.0)])
def test_it_is_attention_forward_and_backward(causal, T, scale, implementation, rng, close):
  if implementation == 'cudnn' and fused.capability() < 8:
    pytest.skip('needs an NVIDIA GPU: JAX_PLATFORMS=cuda')
  q, k, v, g = draw(rng, T=T)
  mask = masks.causal(T, 6)[None, None] if causal else None

  @jax.jit
  def run(q, k, v):
    how = dict(causal=causal, scale=scale, implementation=implementation)
    y, pullback = jax.vjp(lambda *x: fused.fused_attention(*x, **how), q, k, v)
    want, want_pullback = jax.vjp(
      lambda *x: multi_head_attention(*x, mask=mask, scale=scale), q, k, v
    )
    return (y, *pullback(g)), (want, *want_pullback(g))

  for found, want in zip(*run(q, k, v), strict=True):
    assert found.dtype == jnp.bfloat16
    close(found, want)


def test_causal_with_fewer_targets_than_sources_is_an_error_that_says_what_to_do(rng):
  q, k, v, _ = draw(rng, T=4)
  with pytest.raises(ValueError, match='4 causal targets of 6 sources.*multi_head_attention'):
    fused.fused_attention(q, k, v, causal=True, implementation='xla')


BIAS = jnp.zeros((1, 4, 6, 6))


@pytest.mark.parametrize(
  ('change', 'bias', 'known', 'capability', 'reason'),
  [
    ({}, None, 'causal', 9.0, ''),
    ({}, None, 'all', 8.0, ''),
    (dict(T=4), None, 'all', 9.0, ''),
    (dict(dtype='float16', K=128, V=128), None, 'causal', 9.0, ''),
    ({}, None, 'causal', 0.0, 'no NVIDIA GPU'),
    ({}, None, 'causal', 7.5, 'no NVIDIA GPU'),
    (dict(dtype='float32'), None, 'causal', 9.0, 'not float32: set model.dtype'),
    (dict(K=12, V=12), None, 'causal', 9.0, 'multiple of 8 up to 128, not 12'),
    (dict(K=136, V=136), None, 'causal', 9.0, 'multiple of 8 up to 128, not 136'),
    (dict(V=16), None, 'causal', 9.0, 'not 8 and 16'),
    ({}, BIAS, 'causal', 9.0, 'have a bias'),
    ({}, None, None, 9.0, 'pass segments=1'),
    (dict(T=4), None, 'causal', 9.0, 'as many targets as sources'),
  ],
  ids=str,
)
def test_what_stands_against_it(change, bias, known, capability, reason, rng):
  q, k, v, _ = draw(rng, **change)
  found = fused.why_not_fused(q, k, v, bias, known, capability)
  assert reason in found and bool(found) == bool(reason)


def test_the_path_is_chosen_and_said_once(rng, monkeypatch, caplog):
  q, k, v, _ = draw(rng)
  mask = masks.causal(6)[None, None]
  took = []
  monkeypatch.setattr(fused, 'fused_attention', lambda q, *_, **how: took.append(how) or q)
  fused._say_once.cache_clear()
  with caplog.at_level(logging.INFO, fused.__name__):
    for capability, known in [(0.0, 'causal'), (9.0, None), (9.0, 'causal')] * 2:
      monkeypatch.setattr(fused, 'capability', lambda found=capability: found)
      y = fused.fastest_attention(q, k, v, known=known, mask=mask)
      if known is None or not capability:
        np.testing.assert_array_equal(y, multi_head_attention(q, k, v, mask=mask))
  fused._say_once.cache_clear()
  assert took == [dict(causal=True, scale=None)] * 2
  assert [r.message.split(':')[0] for r in caplog.records] == [
    *['attention takes the plain path'] * 2,
    'attention takes the fused path, cuDNN',
  ]


def test_the_device_has_a_capability_if_it_is_a_gpu():
  assert (fused.capability() > 0) == (jax.default_backend() == 'gpu')
