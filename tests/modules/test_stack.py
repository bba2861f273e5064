"""Laws of a stack: its layers, however they are run, their pattern, their masks and dropout."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equations import equations
from flax import nnx
from tiny import SCHEMES, SEGMENTS, TOKENS, build, cached, name, slow

from transformer.functional import masks
from transformer.functional.kernels import dot_product_attention
from transformer.functional.positions import from_segments, rotary
from transformer.modules import attention, sites
from transformer.modules.attention import View
from transformer.modules.model import Decoder, Encoder, EncoderDecoder


def test_the_scan_is_a_loop_over_its_layers_however_far_unrolled(close):
  model = build(Decoder, prenorm=True, position='rotary')
  tokens, segments = jnp.asarray(TOKENS), jnp.asarray(SEGMENTS)

  @jax.jit
  def loop(model):
    x, positions = model.embed(tokens), from_segments(segments)
    mask = masks.segments(segments, segments) & masks.causal()
    view = View(positions, mask, rotate=rotary)
    for i in range(2):
      x = jax.tree.map(lambda p, i=i: p[i], model.stack.blocks)(x, view).x
    return model.embed.attend(model.stack.norm(x))

  want = loop(model)
  for unroll in (0, 1):
    other = build(Decoder, prenorm=True, position='rotary', unroll=unroll)
    jaxpr = jax.make_jaxpr(other)(tokens, segments=segments)
    (scan,) = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == 'scan']
    assert scan.params['unroll'] == (unroll or 2)
    close(jax.jit(lambda m: m(tokens, segments=segments))(other), want)


def test_remat_recomputes_and_changes_neither_value_nor_gradient(close):
  tokens = jnp.asarray(TOKENS)
  f = jax.value_and_grad(lambda model: jnp.sum(jnp.tanh(model(tokens))))
  found = {}
  products = {}
  for remat in ('none', 'products', 'block'):
    model = build(Decoder, remat=remat, prenorm=True, dtype='bfloat16')
    program = jax.jit(f).trace(model)
    found[remat] = program.lower().compile()(model)
    names = [e.primitive.name for e in equations(program.jaxpr.jaxpr)]
    products[remat] = names.count('dot_general')
    assert bool(set(names) & {'checkpoint', 'remat', 'remat2'}) == (remat != 'none')
  # again: the two of attention, which have a batch axis; or all but the last, which none needs
  assert products['products'] - products['none'] == 2
  assert products['block'] - products['none'] == 5
  assert isinstance(found['block'][1], Decoder)
  for remat in ('products', 'block'):
    for a, b in zip(*(jax.tree.leaves(found[r]) for r in (remat, 'none')), strict=True):
      close(a, b)
  assert np.median([np.abs(x).max() for x in jax.tree.leaves(found['block'])]) > 1e-3


def test_dropout_is_on_with_a_key_and_differs_from_layer_to_layer(close):
  model = build(Encoder, depth=3, prenorm=True, dropout=0.5, position='none')
  blocks = model.stack.blocks
  # every layer adds dropout(1) and nothing else, so that its states show its mask
  blocks.attention.out = jax.tree.map(jnp.zeros_like, blocks.attention.out)
  blocks.feedforward.out.kernel = nnx.Param(0 * blocks.feedforward.out.kernel[...])
  blocks.feedforward.out.bias = nnx.Param(jnp.ones((3, 16)))
  tokens = jnp.asarray(TOKENS)

  @jax.jit
  def states(model, key):
    x = model.embed(tokens)
    layers = sites.capture(model.stack)(x, jnp.sign(tokens), key=key)[1]['']
    return x, jnp.diff(layers['states'], axis=0)

  same, other = (np.asarray(states(model, jax.random.key(i))[1]) for i in (0, 1))
  np.testing.assert_allclose(same, np.where(same > 1, 2, 0), atol=1e-5)
  assert 0.45 < (same > 1).mean() < 0.55
  assert ((same[0] > 1) != (same[1] > 1)).mean() > 0.4  # two layers, two masks
  assert ((same > 1) != (other > 1)).mean() > 0.4  # two keys, two masks
  np.testing.assert_array_equal(same, states(model, jax.random.key(0))[1])
  np.testing.assert_allclose(states(model, None)[1], 1, atol=1e-5)


def test_without_a_key_there_is_no_dropout_and_attention_has_its_own_rate():
  tokens = jnp.asarray(TOKENS)
  # the rate may not matter without a key, nor attention's rate without attention_dropout
  run = jax.jit(lambda model, key: model(tokens, key=key))
  plain, wet, attention = (
    build(Decoder, dropout=rate, attention_dropout=other)
    for rate, other in [(0.0, 0.0), (0.5, 0.5), (0.0, 0.5)]
  )
  k = jax.random.key(3)
  want = run(plain, None)
  np.testing.assert_array_equal(run(wet, None), want)
  assert np.abs(run(attention, k) - want).max() > 1e-3
  np.testing.assert_array_equal(run(attention, k), run(attention, k))


@pytest.mark.parametrize(
  ('kind', 'changes', 'causal', 'window'),
  [
    (Decoder, {}, True, None),
    (Encoder, {}, False, None),
    (Decoder, dict(window=3), True, (2, 2)),
  ],
)
def test_rows_without_segments_are_rows_of_ones_and_the_mask_keeps_its_structure(
  kind, changes, causal, window, monkeypatch, close
):
  model, tokens, seen = build(kind, **changes), jnp.asarray(TOKENS), []

  def spy(q, k, v, mask, **kwargs):
    seen.append(mask)
    return dot_product_attention(q, k, v, mask, **kwargs)

  monkeypatch.setattr(attention, 'dot_product_attention', spy)
  want = jax.jit(lambda model: model.stack(model.embed(tokens), jnp.ones_like(tokens)).x)(model)
  assert not any(mask.is_static for mask in seen)
  close(jax.jit(lambda model: model.stack(model.embed(tokens)).x)(model), want)
  assert seen[-1].is_static and not seen[0].is_static
  for mask in seen:
    assert mask.causal == causal and mask.reach == window


PATTERN = (dict(window=0, rotary_base=100.0), {})


def test_a_pattern_of_layers_repeats_over_the_depth(close):
  settings = dict(position='rotary', depth=4, window=3, prenorm=True)
  tokens, segments = jnp.asarray(TOKENS), jnp.asarray(SEGMENTS)

  @jax.jit
  def loop(model):
    x, positions = model.embed(tokens), from_segments(segments)
    for i in range(4):
      window, base = [(0, 100.0), (3, 1e4)][i % 2]
      mask = masks.segments(segments, segments) & masks.causal()
      mask = mask & masks.sliding_window(window) if window else mask
      view = View(positions, mask, rotate=partial(rotary, base=base))
      x = jax.tree.map(lambda p, i=i: p[i], model.stack.blocks)(x, view).x
    return model.embed.attend(model.stack.norm(x))

  run = jax.jit(lambda m: m(tokens, segments=segments))
  models = [build(Decoder, **settings, layers=PATTERN, unroll=unroll) for unroll in (0, 1)]
  want = loop(models[0])
  for model in models:
    close(run(model), want)
  uniform = build(Decoder, **settings)
  assert np.abs(want - run(uniform)).max() > 1e-3
  # the same parameters by the same names, whatever the pattern
  names = [nnx.to_pure_dict(nnx.state(m)).keys() for m in (*models, uniform)]
  assert all(found == names[0] for found in names)
  # and through a cache, one token after the other
  row = np.array(TOKENS[:1])
  cache, found = models[1].init_cache(1, 8), []
  for t in range(5):
    y, cache = cached(models[1], row[:, t : t + 1], np.ones((1, 1), int), cache)
    found.append(np.asarray(y)[0, 0])
  close(np.stack(found), want[0, :5])


WITH_DROPOUT = dict(dtype='bfloat16', dropout=0.1)


@pytest.mark.parametrize(
  'cls, settings',
  [
    (EncoderDecoder, WITH_DROPOUT),
    *(slow(EncoderDecoder, settings) for settings in SCHEMES),
    *((cls, settings) for cls in (Encoder, Decoder) for settings in (SCHEMES[1], WITH_DROPOUT)),
  ],
  ids=lambda x: name(x) if isinstance(x, dict) else x.__name__,
)
def test_no_operation_broadcasts_axes_silently(cls, settings):
  """jax_numpy_rank_promotion='raise', which careful users set, is no error in our code."""
  model, tokens = build(cls, **settings, bias_output=True), jnp.asarray(TOKENS)
  many = cls is EncoderDecoder

  def loss(model, segments):
    names = ('input_segments', 'target_segments') if many else ('segments',)
    kwargs = dict.fromkeys(names, segments) | dict(key=jax.random.key(0))
    return jnp.sum(model(*[tokens] * (1 + many), **kwargs))

  def decode(model):
    if many:
      memory = model.decoder.prepare(model.encode(tokens))
      return model.decode(tokens[:, :2], memory, cache=model.init_cache(8, 8))
    return model(tokens[:, :2], cache=model.init_cache(8, 8))

  with jax.numpy_rank_promotion('raise'):
    jax.eval_shape(loss, model, None)
    jax.eval_shape(jax.grad(loss), model, jnp.asarray(SEGMENTS))
    if cls is not Encoder:
      jax.eval_shape(decode, model)
