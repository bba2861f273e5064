"""Laws of the layers: each is its equation in float64."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer.functional import masks
from transformer.functional.masks import AttentionMask
from transformer.functional.positions import rotary
from transformer.modules.attention import Attention, View
from transformer.modules.block import Block
from transformer.modules.config import ModelConfig
from transformer.modules.embeddings import Tokens
from transformer.modules.layers import (
  FeedForward,
  Linear,
  Norm,
  fused_linear,
  split_key,
)
from transformer.modules.positions import SCHEMES
from transformer.modules.sites import observe

TINY = dict(vocab=7, width=8, heads=4, kv_heads=2, feedforward=12, head_size=4)


# compiling is all that these tests take time for
jit = partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def build(cls, *args, settings=None, **keywords):
  """A module whose parameters are all random, biases and scales too."""
  config = ModelConfig(**(TINY | (settings or {})))

  def make():
    return cls(config, *args, *(() if cls is Norm else (nnx.Rngs(0),)), **keywords)

  shapes = jax.eval_shape(make)
  rng = np.random.default_rng(5)
  return jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), shapes)


def wide(module):
  """Its parameters in float64."""
  return jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(module)))


def linear(p, x):
  return x @ p['kernel'] + p.get('bias', 0)


def norm(p, x, kind='layer', epsilon=1e-6):
  if kind == 'layer':
    x = x - x.mean(-1, keepdims=True)
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * p['scale'] + p.get('bias', 0)


def attention(p, x, memory, mask, scale=0.5):
  """Four query heads, two heads of keys and values, size 4, in float64."""
  (B, T, _), S = x.shape, memory.shape[1]
  q = linear(p['query'], x).reshape(B, T, 4, 4)
  k, v = (linear(p[n], memory).reshape(B, S, 2, 4).repeat(2, axis=2) for n in ('key', 'value'))
  score = np.where(mask, scale * np.einsum('bthk,bshk->bhts', q, k), -np.inf)
  e = np.exp(score - score.max(-1, keepdims=True))
  p_ = e / e.sum(-1, keepdims=True)
  return linear(p['out'], np.einsum('bhts,bshk->bthk', p_, v).reshape(B, T, -1)), p_


def relu_feedforward(p, x):
  return linear(p['out'], np.maximum(linear(p['hidden'], x), 0))


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_linear(dtype, bias, rng, close):
  module = build(Linear, 8, 5, settings=dict(dtype=dtype, bias=bias))
  assert (module.bias is not None) == bias
  x = rng.normal(size=(2, 3, 8))
  y = module(jnp.asarray(x, 'float32'))
  assert y.dtype == jnp.float32
  close(y, linear(wide(module), x), dtype)


def test_a_new_linear_is_glorot_uniform_without_bias():
  config = ModelConfig(**TINY)
  module = jit(lambda: Linear(config, 40, 60, nnx.Rngs(0)))()
  bound = math.sqrt(6 / 100)
  kernel = np.asarray(module.kernel[...])
  assert 0.95 * bound < np.abs(kernel).max() <= bound
  np.testing.assert_allclose(kernel.std(), bound / math.sqrt(3), rtol=0.05)
  np.testing.assert_array_equal(module.bias[...], 0)


@pytest.mark.parametrize('kind', ['layer', 'rms'])
@pytest.mark.parametrize('epsilon', [1e-6, 0.3])
def test_norm(kind, epsilon, rng, close):
  module = build(Norm, settings=dict(norm=kind, norm_epsilon=epsilon))
  x = 3 + rng.normal(size=(2, 3, 8))
  close(jit(module)(jnp.asarray(x, 'float32')), norm(wide(module), x, kind, epsilon))
  assert ('bias' in wide(module)) == (kind == 'layer')


ACTIVATIONS = dict(
  relu=lambda x: max(x, 0.0),
  gelu_erf=lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
  gelu_tanh=lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
  silu=lambda x: x / (1 + math.exp(-x)),
)


@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_feedforward_plain_and_gated(activation, rng, close):
  x = 2 * rng.normal(size=(1, 4, 8))
  for gated in (False, True):
    module = build(FeedForward, settings=dict(activation=activation, gated=gated))
    p = wide(module)
    hidden = np.vectorize(ACTIVATIONS[activation])(linear(p['hidden'], x))
    if gated:
      hidden = hidden * linear(p['gate'], x)
    close(jit(module)(jnp.asarray(x, 'float32')), linear(p['out'], hidden))


@pytest.mark.parametrize('scaled', [True, False])
def test_attention_projects_attends_and_projects(scaled, rng, close):
  module = build(Attention, settings=dict(scale_attention=scaled))
  x, memory = rng.normal(size=(2, 3, 8)), rng.normal(size=(2, 5, 8))
  mask = rng.random((2, 1, 3, 5)) < 0.6
  mask[..., 0] = True
  view = View(jnp.zeros((2, 3), int), AttentionMask(explicit=jnp.asarray(mask)))

  observed = jit(observe(lambda *x: module(x[0], view, memory=x[1])[0], read=['*.weights']))
  y, values = observed(jnp.asarray(x, 'float32'), jnp.asarray(memory, 'float32'))
  want, want_weights = attention(wide(module), x, memory, mask, 0.5 if scaled else 1.0)
  close(y, want)
  close(values['attention.weights'], want_weights)


def test_rotary_attention_does_not_change_when_all_positions_shift(rng, close):
  module = build(Attention)
  x = jnp.asarray(rng.normal(size=(1, 4, 8)), 'float32')

  @jit
  def run(positions):
    return module(x, View(positions, rotate=rotary))[0]

  at = jnp.arange(4)[None]
  close(run(at + 9), run(at))
  assert np.abs(run(2 * at) - run(at)).max() > 1e-3


@pytest.mark.parametrize('bias', [True, False])
def test_fused_layers_are_the_layers(bias, rng, close):
  module = build(Attention, settings=dict(bias=bias, kv_heads=1))
  x = jnp.asarray(rng.normal(size=(2, 3, 8)), 'float32')
  layers = module.query, module.key, module.value
  for y, layer in zip(jit(lambda x: fused_linear(x, *layers))(x), layers, strict=True):
    close(y, np.asarray(layer(x), np.float64))


@pytest.mark.parametrize('prenorm', [True, False])
def test_a_block_is_residual_sublayers_normed_before_or_after(prenorm, rng, close):
  block = build(Block, cross=True, settings=dict(prenorm=prenorm))
  x, memory = rng.normal(size=(2, 3, 8)), rng.normal(size=(2, 5, 8))
  causal, all_ = np.tri(3, dtype=bool)[None, None], np.ones((1, 1, 3, 5), bool)
  at = jnp.zeros((2, 3), int)
  run = jit(lambda x, memory: block(x, View(at, masks.causal()), memory))
  y, cache, aux = run(jnp.asarray(x, 'float32'), (jnp.asarray(memory, 'float32'), View(at)))
  p = wide(block)
  for name, sublayer in [
    ('attention', lambda h: attention(p['attention'], h, h, causal)[0]),
    ('cross', lambda h: attention(p['cross'], h, memory, all_)[0]),
    ('feedforward', lambda h: relu_feedforward(p['feedforward'], h)),
  ]:
    scale = p[f'{name}_norm']
    x = x + sublayer(norm(scale, x)) if prenorm else norm(scale, x + sublayer(x))
  close(y, x)
  assert cache is None and aux == {}


def test_split_key_passes_no_key_on(key):
  assert split_key(None, 3) == [None] * 3
  keys = split_key(key, 3)
  assert len({tuple(np.asarray(jax.random.key_data(k))) for k in keys}) == 3


@pytest.mark.parametrize('scaled', [True, False])
def test_tokens_embed_and_attend_with_one_table(scaled, rng, close):
  module = build(Tokens, settings=dict(scale_embedding=scaled))
  (table,) = wide(module).values()
  tokens = rng.integers(0, 7, size=(2, 3))
  close(module(jnp.asarray(tokens)), table[tokens] * (math.sqrt(8) if scaled else 1))
  x = rng.normal(size=(2, 3, 8))
  close(module.attend(jnp.asarray(x, 'float32')), x @ table.T)


def scheme(position, causal=False):
  module = SCHEMES[position]
  return build(module, causal=causal, settings=dict(position=position, max_length=4))


def test_learned_positions_are_rows_of_a_table_and_nan_beyond_it(rng, close):
  module = scheme('learned')
  (table,) = wide(module).values()
  x = rng.normal(size=(1, 3, 8))
  close(module.embed(jnp.asarray(x, 'float32'), jnp.array([[3, 0, 2]])), x + table[[3, 0, 2]])
  y = module.embed(jnp.asarray(x, 'float32'), jnp.array([[3, 4, 99]]))
  assert np.isfinite(y[0, 0]).all() and np.isnan(y[0, 1:]).all()
  module.check(4)
  with pytest.raises(ValueError, match='5 tokens are more than the 4 learned positions'):
    module.check(5)


@pytest.mark.parametrize('position', ['rotary', 'relative', 'alibi', 'none'])
def test_other_schemes_add_nothing_to_the_embedding(position, rng):
  module = scheme(position)
  x = jnp.asarray(rng.normal(size=(1, 3, 8)), 'float32')
  assert module.embed(x, jnp.arange(3)[None]) is x
  assert bool(jax.tree.leaves(module)) == (position == 'relative')
  module.check(99)


@pytest.mark.parametrize('position', SCHEMES)
def test_a_scheme_rotates_or_biases_if_it_is_of_that_kind(position, rng, close):
  module, at = scheme(position, causal=True), jnp.arange(3)[None]
  x = jnp.asarray(rng.normal(size=(1, 3, 2, 4)), 'float32')
  turned = module.rotate(x, at, 100.0)
  close(turned, rotary(x, at, 100.0) if position == 'rotary' else x)
  bias = module.bias(at, at)
  assert (bias is not None) == (position in ('relative', 'alibi'))
  if bias is not None:
    assert bias.shape == (1, 4, 3, 3)
    np.testing.assert_array_equal(bias[:, :, 2, 2], bias[:, :, 1, 1])  # by distance
