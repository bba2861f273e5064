"""Laws of the layers: each is its equation in float64."""

import math
import pathlib
import re
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import transformer
from transformer.functional import masks
from transformer.functional.activations import ACTIVATIONS
from transformer.functional.masks import AttentionMask
from transformer.functional.positions import rotary
from transformer.modules.attention import Attention, View
from transformer.modules.block import Block
from transformer.modules.config import Layer, ModelConfig
from transformer.modules.embeddings import Tokens
from transformer.modules.layers import (
  FeedForward,
  Linear,
  Norm,
  activate,
  fused_linear,
  split_key,
)
from transformer.modules.positions import SCHEMES
from transformer.modules.sites import observe

TINY = dict(vocab=7, width=8, heads=4, kv_heads=2, feedforward=12, head_size=4)


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


def attention(p, x, memory, mask, scale=0.5, qk_norm='none', cap=0.0):
  """Four query heads, two heads of keys and values, size 4, in float64."""
  q, k, v = (linear(p[n], y) for n, y in (('query', x), ('key', memory), ('value', memory)))
  if qk_norm == 'all':
    q, k = norm(p['query_norm'], q, 'rms'), norm(p['key_norm'], k, 'rms')
  q, k, v = (y.reshape(*y.shape[:2], -1, 4) for y in (q, k, v))
  if qk_norm == 'head':
    q, k = norm(p['query_norm'], q, 'rms'), norm(p['key_norm'], k, 'rms')
  score = scale * np.einsum('bthk,bshk->bhts', q, k.repeat(2, axis=2))
  score = np.where(mask, cap * np.tanh(score / cap) if cap else score, -np.inf)
  sinks = np.broadcast_to(p.get('sinks', -np.inf), 4)[:, None, None]
  p_ = np.exp(score) / (np.exp(score).sum(-1, keepdims=True) + np.exp(sinks))
  return linear(
    p['out'], np.einsum('bhts,bshk->bthk', p_, v.repeat(2, axis=2)).reshape(*x.shape[:2], -1)
  ), p_


def relu_feedforward(p, x):
  return linear(p['out'], np.maximum(linear(p['hidden'], x), 0))


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_linear_multiplies_in_its_dtype_and_adds_the_bias(dtype, bias, rng, close):
  module = build(Linear, 8, 5, settings=dict(dtype=dtype, bias=bias))
  assert (module.bias is not None) == bias
  x = rng.normal(size=(2, 3, 8))
  y = module(jnp.asarray(x, 'float32'))
  assert y.dtype == jnp.float32
  close(y, linear(wide(module), x), dtype)


def test_a_new_linear_is_glorot_uniform_without_bias():
  config = ModelConfig(**TINY)
  module = jax.jit(lambda: Linear(config, 40, 60, nnx.Rngs(0)))()
  bound = math.sqrt(6 / 100)
  kernel = np.asarray(module.kernel[...])
  assert 0.95 * bound < np.abs(kernel).max() <= bound
  np.testing.assert_allclose(kernel.std(), bound / math.sqrt(3), rtol=0.05)
  np.testing.assert_array_equal(module.bias[...], 0)


@pytest.mark.parametrize('kind', ['layer', 'rms'])
@pytest.mark.parametrize('epsilon', [1e-6, 0.3])
def test_norm_is_the_formula_with_scale_and_bias(kind, epsilon, rng, close):
  module = build(Norm, settings=dict(norm=kind, norm_epsilon=epsilon))
  x = 3 + rng.normal(size=(2, 3, 8))
  close(jax.jit(module)(jnp.asarray(x, 'float32')), norm(wide(module), x, kind, epsilon))
  assert ('bias' in wide(module)) == (kind == 'layer')


EQUATIONS = dict(
  relu=lambda x: max(x, 0.0),
  relu_squared=lambda x: max(x, 0.0) ** 2,
  gelu_erf=lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
  gelu_tanh=lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
  gelu_10=lambda x: min(x * (1 + math.erf(x / math.sqrt(2))) / 2, 10.0),
  quick_gelu=lambda x: x / (1 + math.exp(-1.702 * x)),
  silu=lambda x: x / (1 + math.exp(-x)),
  tanh=math.tanh,
)


def test_an_activation_is_its_equation(close):
  assert (
    set(EQUATIONS) == set(ACTIVATIONS) == set(get_args(get_type_hints(ModelConfig)['activation']))
  )
  x = np.linspace(-12, 12, 49)
  for name, equation in EQUATIONS.items():
    close(ACTIVATIONS[name](jnp.asarray(x, 'float32')), [equation(y) for y in x])


def test_the_derivatives_of_gelu_are_those_of_its_equation(close):
  x = jnp.linspace(-5, 5, 41)
  gelu, other = (jax.vmap(jax.grad(f)) for f in (ACTIVATIONS['gelu_erf'], jax.nn.gelu))
  exact = jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=False)))
  close(gelu(x), exact(x))
  assert np.abs(gelu(x) - other(x)).max() > 1e-4  # which is the approximate one
  second = jax.vmap(jax.grad(jax.grad(ACTIVATIONS['gelu_erf'])))
  close(second(x), jax.vmap(jax.grad(jax.grad(lambda x: jax.nn.gelu(x, approximate=False))))(x))


@pytest.mark.parametrize('activation', ['relu', 'gelu_tanh'])
def test_feedforward_plain_and_gated(activation, rng, close):
  x = 2 * rng.normal(size=(1, 4, 8))
  for gated in (False, True):
    module = build(FeedForward, settings=dict(activation=activation, gated=gated))
    p = wide(module)
    hidden = np.vectorize(EQUATIONS[activation])(linear(p['hidden'], x))
    if gated:
      hidden = hidden * linear(p['gate'], x)
    close(jax.jit(module)(jnp.asarray(x, 'float32')), linear(p['out'], hidden))


@pytest.mark.parametrize('gated', [False, True])
def test_the_gradient_stores_no_intermediate_values_of_an_activation(gated, close):
  """Except on a CPU; the gradient is the same."""
  x, gate = jnp.linspace(-3, 3, 24).reshape(1, 4, 6), jnp.ones((1, 4, 6)) if gated else None

  def gradient(platform):
    config = ModelConfig(**TINY | dict(activation='gelu_tanh', platform=platform))
    y, pullback = jax.vjp(lambda x, gate: activate(config, x, gate), x, gate)
    return pullback(y)[0], sum(leaf.shape == x.shape for leaf in jax.tree.leaves(pullback))

  (on_cpu, many), (on_tpu, few) = gradient('cpu'), gradient('tpu')
  close(on_tpu, on_cpu)
  assert few == 1 + gated < many


@pytest.mark.parametrize('scaled', [True, False])
def test_attention_projects_attends_and_projects(scaled, rng, close):
  module = build(Attention, settings=dict(scale_attention=scaled))
  x, memory = rng.normal(size=(2, 3, 8)), rng.normal(size=(2, 5, 8))
  mask = rng.random((2, 1, 3, 5)) < 0.6
  mask[..., 0] = True
  view = View(jnp.zeros((2, 3), int), AttentionMask(explicit=jnp.asarray(mask)))

  observed = jax.jit(observe(lambda *x: module(x[0], view, memory=x[1])[0], read=['*.weights']))
  y, values = observed(jnp.asarray(x, 'float32'), jnp.asarray(memory, 'float32'))
  want, want_weights = attention(wide(module), x, memory, mask, 0.5 if scaled else 1.0)
  close(y, want)
  close(values['attention.weights'], want_weights)


@pytest.mark.parametrize('qk_norm', ['head', 'all'])
def test_attention_may_normalize_scale_and_cap_and_have_sinks(qk_norm, rng, close):
  settings = dict(attention_scale=0.3, soft_cap_attention=0.7, attention_sinks=True)
  module = build(Attention, settings=dict(qk_norm=qk_norm, norm='rms', **settings))
  x, memory = rng.normal(size=(2, 3, 8)), rng.normal(size=(2, 5, 8))
  view = View(jnp.zeros((2, 3), int))
  run = jax.jit(lambda x, memory: module(x, view, memory=memory)[0])
  want, _ = attention(wide(module), x, memory, True, 0.3, qk_norm, 0.7)
  close(run(jnp.asarray(x, 'float32'), jnp.asarray(memory, 'float32')), want)


def test_rotary_attention_does_not_change_when_all_positions_shift(rng, close):
  module = build(Attention)
  x = jnp.asarray(rng.normal(size=(1, 4, 8)), 'float32')

  @jax.jit
  def run(positions):
    return module(x, View(positions, rotate=rotary))[0]

  at = jnp.arange(4)[None]
  close(run(at + 9), run(at))
  assert np.abs(run(2 * at) - run(at)).max() > 1e-3


def test_biases_may_be_in_some_parts_only():
  parts = dict(
    bias_qkv=['attention/query', 'attention/key', 'attention/value'],
    bias_attention=['attention/out'],
    bias_feedforward=['feedforward/hidden', 'feedforward/out'],
    bias_norm=['attention_norm', 'feedforward_norm'],
  )

  def biased(**settings):
    block = build(Block, cross=False, settings=dict(bias=False) | settings)
    paths = ('/'.join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(block)))
    return {path.removesuffix('/bias') for path in paths if path.endswith('/bias')}

  assert biased() == set()
  for name, paths in parts.items():
    assert biased(**{name: True}) == set(paths)
  assert biased(bias=True) == {path for paths in parts.values() for path in paths}
  assert biased(bias_norm=True, norm='rms') == set()


@pytest.mark.parametrize('bias', [True, False])
def test_fused_layers_are_the_layers(bias, rng, close):
  module = build(Attention, settings=dict(bias=bias, kv_heads=1))
  x = jnp.asarray(rng.normal(size=(2, 3, 8)), 'float32')
  layers = module.query, module.key, module.value
  for y, layer in zip(jax.jit(lambda x: fused_linear(x, *layers))(x), layers, strict=True):
    close(y, np.asarray(layer(x), np.float64))


BLOCKS = [
  dict(prenorm=False),
  dict(prenorm=True),
  dict(prenorm=True, sublayer_norm='output'),
  dict(prenorm=True, sublayer_norm='both', parallel='two_norms'),
  dict(prenorm=True, parallel='one_norm'),
]


@pytest.mark.parametrize('settings', BLOCKS, ids=str)
def test_a_block_is_residual_sublayers_normed_as_configured(settings, rng, close):
  block = build(Block, cross=True, settings=settings)
  parallel = settings.get('parallel', 'none')
  x, memory = rng.normal(size=(2, 3, 8)), rng.normal(size=(2, 5, 8))
  causal, all_ = np.tri(3, dtype=bool)[None, None], np.ones((1, 1, 3, 5), bool)
  at = jnp.zeros((2, 3), int)
  run = jax.jit(lambda x, memory: block(x, View(at, masks.causal()), memory))
  y, cache, aux = run(jnp.asarray(x, 'float32'), (jnp.asarray(memory, 'float32'), View(at)))
  p, start = wide(block), x
  for name, sublayer in [
    ('attention', lambda h: attention(p['attention'], h, h, causal)[0]),
    ('cross', lambda h: attention(p['cross'], h, memory, all_)[0]),
    ('feedforward', lambda h: relu_feedforward(p['feedforward'], h)),
  ]:
    scale, output_scale = p.get(f'{name}_norm'), p.get(f'{name}_output_norm')
    if not settings['prenorm']:
      x = norm(scale, x + sublayer(x))
      continue
    source = x
    if name == 'feedforward' and parallel != 'none':
      source, scale = start, p['attention_norm'] if parallel == 'one_norm' else scale
    added = sublayer(source if scale is None else norm(scale, source))
    x = x + (added if output_scale is None else norm(output_scale, added))
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
  for base, scaling in ((100.0, ()), (0.0, ()), (50.0, dict(kind='linear', factor=3.0))):
    turned = module.rotate(x, at, Layer(rotary_base=base, rotary_scaling=scaling))
    turns = position == 'rotary' and base
    close(turned, rotary(x, at, base, scaling=dict(scaling)) if turns else x)
  bias = module.bias(at, at)
  assert (bias is not None) == (position in ('relative', 'learned_relative', 'alibi'))
  if bias is not None:
    assert bias.shape == (1, 4, 3, 3)
    np.testing.assert_array_equal(bias[:, :, 2, 2], bias[:, :, 1, 1])  # by distance


def test_every_name_of_nnx_that_the_package_uses_exists():
  """In the oldest flax as in the newest: adapters once needed a function that came later."""
  files = pathlib.Path(transformer.__file__).parent.rglob('*.py')
  names = {name for file in files for name in re.findall(r'\bnnx\.(\w+)', file.read_text('utf-8'))}
  assert len(names) > 5 and not [name for name in names if not hasattr(nnx, name)]
