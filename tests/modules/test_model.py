"""Laws of the models: what a token may depend on, and that every way of running is the same one."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equations import equations
from flax import nnx
from tiny import (
  SCHEMES,
  SEGMENTS,
  SPREAD,
  TINY,
  TOKENS,
  A,
  B,
  at,
  build,
  cached,
  name,
  slow,
  spread,
)

from transformer.functional import masks, platforms
from transformer.modules import sites
from transformer.modules.config import ModelConfig
from transformer.modules.model import Decoder, Encoder, EncoderDecoder, Memory, functionalize
from transformer.zoo import presets

MODELS = [Encoder, Decoder, EncoderDecoder]
WITH_MEMORY = [SCHEMES[i] | dict(decoder_depth=1) for i in (0, 2, 3, 4)]


@jax.jit
def decoder_jacobian(model, tokens, segments):
  """(logits [B, T, N], their derivative in a random change of each embedding [S, B, T, N])."""
  x = model.embed(tokens)
  direction = jax.random.normal(jax.random.key(1), x.shape)
  one_at_a_time = jnp.eye(x.shape[1])[:, None, :, None] * direction
  f = lambda x: (model.output or model.embed).attend(model.stack(x, segments).x)  # noqa: E731
  return jax.vmap(lambda dx: jax.jvp(f, (x,), (dx,)), out_axes=(None, 0))(one_at_a_time)


@jax.jit
def encoder_jacobian(model, tokens, segments):
  x = model.embed(tokens)
  direction = jax.random.normal(jax.random.key(1), x.shape)
  one_at_a_time = jnp.eye(x.shape[1])[:, None, :, None] * direction
  f = lambda x: model.stack(x, segments).x  # noqa: E731
  return jax.vmap(lambda dx: jax.jvp(f, (x,), (dx,)), out_axes=(None, 0))(one_at_a_time)


@jax.jit
def teacher_forced(model, inputs, targets, input_segments, target_segments):
  segments = dict(input_segments=input_segments, target_segments=target_segments)
  return model(inputs, targets, **segments)


@jax.jit
def decode_cached(model, inputs, input_segments, targets, target_segments, cache):
  memory = model.decoder.prepare(model.encode(inputs, segments=input_segments))
  return model.decode(targets, memory, segments=target_segments, cache=cache)


OF_A = [(0, 0), (1, 3), (2, 1), (3, 0), (6, 3)]  # row and column of A in TOKENS
OF_B = [(3, 5), (4, 0), (5, 5), (6, 0)]


def sentences(x):
  """What x [8, 8, ...] says of A and of B, for every row that holds them."""
  x = np.asarray(x)
  return [[x[b, c : c + 5] for b, c in OF_A], [x[b, c : c + 3] for b, c in OF_B]]


def assert_same_everywhere(x, close):
  for rows in sentences(x):
    for row in rows[1:]:
      close(jnp.asarray(row), rows[0])


def assert_spread(found, x, close):
  """What is found in the rows of SPREAD is what x says of A and B without padding."""
  of_a, of_b = (rows[0] for rows in sentences(x))
  for row, (sentence, columns) in zip(found, SPREAD, strict=False):
    close(jnp.asarray(row[list(columns)]), of_a if sentence is A else of_b[: len(columns)])


@pytest.mark.parametrize('settings', SCHEMES, ids=name)
class TestDecoder:
  @pytest.fixture(scope='class')
  def run(self):
    """The model and what decoder_jacobian finds, once for all tests of a scheme."""
    made = {}

    def of(settings):
      if name(settings) not in made:
        model = build(Decoder, **settings)
        made[name(settings)] = (
          model,
          *decoder_jacobian(model, jnp.asarray(TOKENS), jnp.asarray(SEGMENTS)),
        )
      return made[name(settings)]

    return of

  def test_no_logit_depends_on_a_later_token_or_another_segment(self, settings, run):
    _, logits, jacobian = run(settings)
    assert np.isfinite(logits).all()
    for b, s, t in np.ndindex(8, 8, 8):
      one = SEGMENTS[b][s] == SEGMENTS[b][t] != 0
      # a position sees itself through the residual in any case
      sees = s == t or (one and s <= t and t - s < 2 * ((settings.get('window') or 9) - 1) + 1)
      change = np.abs(jacobian[s, b, t]).max()
      assert change > 1e-6 if sees else change == 0, (b, s, t)

  def test_padding_packing_and_neighbors_change_nothing(self, settings, run, close):
    model, logits, _ = run(settings)
    assert_same_everywhere(logits, close)
    # other sentences in the other rows
    mixed = np.array(TOKENS)
    mixed[1:] = np.where(mixed[1:] == 0, 0, mixed[1:, ::-1].max() - mixed[1:] + 1)
    found = decoder_jacobian(model, jnp.asarray(mixed), jnp.asarray(SEGMENTS))[0]
    close(found[0, :5], logits[0, :5])
    assert np.abs(found[3] - logits[3]).max() > 1e-3

  def test_any_way_through_a_cache_is_the_full_pass(self, settings, run, close):
    model, logits, _ = run(settings)
    want_a, want_b = (rows[0] for rows in sentences(logits))
    # a cache holds one sentence a row; the last has its padding in the middle, as when a batch of
    # prompts is padded on the right and then continued
    tokens = np.array([TOKENS[i] for i in (0, 1, 2, 4, 5)] + [[*A[:2], 0, 0, *A[2:], 0]])
    for chunks in [[1] * 8, [4, 4], [4, 1, 1, 1, 1]]:
      cache, found, start = model.init_cache(6, 8), [], 0
      for size in chunks:
        piece = tokens[:, start : start + size]
        y, cache = cached(model, piece, np.sign(piece), cache)
        found.append(np.asarray(y))
        start += size
      found = np.concatenate(found, axis=1)
      for row, want in zip(range(6), [want_a] * 3 + [want_b] * 2 + [want_a], strict=True):
        close(jnp.asarray(found[row][tokens[row] != 0]), want)

  def test_padding_anywhere_is_as_none_with_and_without_a_cache(self, settings, run, close):
    model, logits, _ = run(settings)
    tokens, segments = spread()
    found = decoder_jacobian(model, jnp.asarray(tokens), jnp.asarray(segments))[0]
    assert_spread(np.asarray(found), logits, close)
    for sizes in [4, 4], [4, 1, 1, 1, 1]:
      cache, found = model.init_cache(6, 8), []
      for first, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
        piece = (x[:6, first : first + size] for x in (tokens, segments))
        y, cache = cached(model, *piece, cache)
        found.append(np.asarray(y))
      assert_spread(np.concatenate(found, axis=1), logits, close)


def test_an_encoder_sees_both_sides_and_no_padding(close):
  model = build(Encoder, position='relative', kv_heads=2)
  states, jacobian = encoder_jacobian(model, jnp.asarray(TOKENS), jnp.asarray(SEGMENTS))
  assert_same_everywhere(states, close)
  found, _ = encoder_jacobian(model, *map(jnp.asarray, spread()))
  assert_spread(np.asarray(found), states, close)
  for b, s, t in np.ndindex(8, 8, 8):
    sees = s == t or SEGMENTS[b][s] == SEGMENTS[b][t] != 0
    change = np.abs(jacobian[s, b, t]).max()
    assert change > 1e-6 if sees else change == 0, (b, s, t)


@pytest.mark.parametrize('settings', [*WITH_MEMORY[:2], *map(slow, WITH_MEMORY[2:])], ids=name)
def test_an_encoder_decoder_is_the_same_padded_packed_and_cached(settings, close):
  model = build(EncoderDecoder, **settings)
  tokens, segments = np.array(TOKENS), np.array(SEGMENTS)
  # inputs are padded otherwise than targets: those of row 1 on the right, of row 0 on the left
  order = np.array([1, 0, 2, 3, 5, 4, 6, 7])
  inputs, input_segments = tokens[order], segments[order]
  logits = np.asarray(teacher_forced(model, inputs, tokens, input_segments, segments))
  assert_same_everywhere(logits, close)
  # the inputs matter: B's logits are others with A's inputs
  crossed = teacher_forced(model, inputs[::-1], tokens, input_segments[::-1], segments)
  assert np.abs(crossed[4, :3] - logits[4, :3]).max() > 1e-3

  def by_cache(inputs, input_segments, tokens, segments):
    cache, found = model.init_cache(8, 8), []
    for start in range(0, 8, 2):
      piece = tokens[:, start : start + 2], segments[:, start : start + 2]
      y, cache = decode_cached(model, inputs, input_segments, *piece, cache)
      found.append(np.asarray(y))
    return np.concatenate(found, axis=1)

  holes, mask = spread()  # padding anywhere, on both sides
  assert_spread(np.asarray(teacher_forced(model, holes, holes, mask, mask)), logits, close)
  assert_spread(by_cache(holes, mask, holes, mask), logits, close)
  # a cache holds one sentence a row
  found = by_cache(inputs, input_segments, tokens, np.sign(tokens))
  for b in (0, 1, 2, 4, 5):
    real = np.array(TOKENS[b]) != 0
    close(jnp.asarray(found[b][real]), logits[b][real])


def test_an_encoder_decoder_decodes_causally_step_by_step(close):
  model = build(EncoderDecoder, position='rotary', kv_heads=2)
  inputs = jnp.asarray(TOKENS[:3])

  @jax.jit
  def both(model, inputs):
    memory = model.encode(inputs)
    x = model.embed(inputs)

    def logits(change):  # [T]
      y = model.decoder(x + change[:, None], jnp.sign(inputs), memory=memory).x
      return model.embed.attend(y)

    def step(cache, token):
      one = token[:, None]
      y, cache = model.decode(one, memory, segments=jnp.sign(one), cache=cache)
      return cache, y[:, 0]

    steps = jax.lax.scan(step, model.init_cache(3, 8), inputs.T)[1].swapaxes(0, 1)
    return *jax.vmap(lambda e: jax.jvp(logits, (jnp.zeros(8),), (e,)), out_axes=(None, 0))(
      jnp.eye(8)
    ), steps

  full, jacobian, steps = both(model, inputs)
  for s, t in np.ndindex(8, 8):
    if s > t:
      np.testing.assert_array_equal(jacobian[s, :, t], 0)
  assert np.abs(jacobian[1, 0, 4]).max() > 1e-6
  real = np.asarray(inputs) != 0
  close(jnp.asarray(np.asarray(steps)[real]), np.asarray(full)[real])


def test_beams_share_the_memory_and_the_cache_of_their_sentence(close):
  model = build(EncoderDecoder, position='alibi', kv_heads=2)
  inputs, targets = (
    jnp.asarray([TOKENS[i] for i in rows]) for rows in [(0, 1), (0, 3, 1, 5, 6, 2)]
  )

  @jax.jit
  def both(model):
    memory = model.encode(inputs)
    repeated = Memory(*(jnp.repeat(x, 3, axis=0) for x in memory[:2]))
    decode = partial(model.decode, targets, segments=jnp.sign(targets))
    shared = [decode(memory), decode(model.decoder.prepare(memory))]
    return [*shared, decode(repeated)], one_by_one(model, memory)

  def one_by_one(model, memory):
    def step(cache, token):
      one = token[:, None]
      y, cache = model.decode(one, memory, segments=jnp.sign(one), cache=cache)
      return cache, y[:, 0]

    return jax.lax.scan(step, model.init_cache(6, 8, beams=3), targets.T)[1].swapaxes(0, 1)

  (inline, prepared, repeated), cached = both(model)
  close(inline, repeated)
  close(prepared, repeated)
  real = np.asarray(targets) != 0
  close(cached[real], repeated[real])
  assert np.abs(repeated[0] - repeated[3]).max() > 1e-3


def test_a_cache_that_is_too_small_is_an_error_or_nan_never_a_wrong_token():
  model = build(Decoder, depth=1)
  tokens = jnp.asarray(TOKENS[3:4])
  with pytest.raises(ValueError, match='8 more tokens do not fit a cache of 6.*larger capacity'):
    model(tokens, cache=model.init_cache(1, 6))

  @jax.jit
  def compiled(model, tokens):
    def step(cache, token):
      y, cache = model(token[:, None], cache=cache)
      return cache, y[:, 0]

    return jax.lax.scan(step, model.init_cache(1, 6), tokens.T)[1][:, 0]

  y = compiled(model, tokens)
  assert np.isfinite(y[:6]).all() and np.isnan(y[6:]).all()


def test_learned_positions_beyond_the_table_are_nan_and_reach_no_earlier_token(close):
  settings = dict(position='learned', kv_heads=2, prenorm=True)  # as in SCHEMES: compiled before
  long = build(Decoder, **settings)
  short = build(Decoder, **settings)
  short.stack.positions.table = nnx.Param(long.stack.positions.table[...][:5])
  tokens = jnp.asarray([A + B, at(A, 8, 3)])
  run = jax.jit(lambda *models: [model(tokens, segments=jnp.sign(tokens)) for model in models])
  y, want = map(np.asarray, run(short, long))
  assert np.isnan(y[0, 5:]).all()
  close(y[0, :5], want[0, :5])
  assert np.isfinite(y[1, 3:]).all()  # by position, not by column


@pytest.mark.parametrize('pad', [-1, 0])
def test_more_tokens_than_learned_positions_are_an_error_with_both_numbers(pad):
  model = build(Decoder, position='learned', max_length=5, pad=pad)
  with pytest.raises(ValueError, match='8 tokens are more than the 5 learned positions'):
    jax.eval_shape(lambda: model(jnp.asarray([A + B])))


def tables(model):
  return [x for x in jax.tree.leaves(model) if x.shape == (TINY['vocab'], TINY['width'])]


def test_tied_tables_are_stored_once_and_have_all_the_gradients(close):
  counts = dict(none=3, output=2, all=1)
  for tie, count in counts.items():
    assert len(tables(build(EncoderDecoder, tie=tie))) == count
    assert len(tables(build(Decoder, tie=tie))) == min(count, 2) - (tie == 'output')
    assert len(tables(build(Encoder, tie=tie))) == 1
  tokens = jnp.asarray(TOKENS)
  rng = np.random.default_rng(1)
  table, change = (jnp.asarray(0.3 * rng.normal(size=(11, 16)), 'float32') for _ in range(2))
  _, common = functionalize(build(EncoderDecoder, depth=1, tie='none'))

  def logits_and_derivative(tie):
    apply, params = functionalize(build(EncoderDecoder, depth=1, tie=tie))

    @jax.jit
    def run(common, table, change):
      def f(table):
        same = {k: {'table': table} if 'table' in v else common[k] for k, v in params.items()}
        return apply(same, tokens, tokens[::-1])

      return jax.jvp(f, (table,), (change,))

    return run(common, table, change)

  for tied, untied in zip(*map(logits_and_derivative, ('all', 'none')), strict=True):
    close(tied, untied)


def test_capture_shows_the_weights_and_changes_nothing(close):
  model = build(EncoderDecoder, **WITH_MEMORY[2])
  inputs, targets = jnp.asarray(TOKENS[::-1]), jnp.asarray(TOKENS)
  segments = dict(input_segments=jnp.asarray(SEGMENTS[::-1]), target_segments=jnp.asarray(SEGMENTS))
  layers = jax.jit(lambda m: sites.capture(m.states)(inputs, targets, **segments)[1])(model)
  q, k = segments['target_segments'], segments['input_segments']
  seen = dict(
    encoder=dict(self=masks.segments(k, k).dense(8)),
    decoder=dict(
      self=(masks.segments(q, q) & masks.causal()).dense(8), cross=masks.segments(q, k).dense(8)
    ),
  )
  assert set(layers['encoder']) == {'states', 'self'}
  for part, kinds in seen.items():
    for kind, mask in kinds.items():
      weights = np.asarray(layers[part][kind])
      assert weights.shape == (2 if part == 'encoder' else 1, 8, 4, 8, 8)
      mask = np.broadcast_to(mask, weights.shape)
      assert (weights[~mask] == 0).all()
      np.testing.assert_allclose(weights.sum(-1), mask.any(-1), atol=1e-5)
  last = model.decoder.norm(layers['decoder']['states'][-1])
  logits = teacher_forced(model, inputs, targets, k, q)
  close(model.embed.attend(last), logits)


@pytest.mark.parametrize('cls', MODELS)
def test_modules_hold_parameters_and_nothing_else(cls):
  for settings in [*SCHEMES, dict(tie='none'), dict(tie='output', gated=True), dict(bias=False)]:

    def make(settings=settings):
      model = cls(ModelConfig(**(TINY | settings)), nnx.Rngs(0))
      leaves = jax.tree.leaves(model)
      assert len({id(x) for x in leaves}) == len(leaves)  # nothing is stored twice
      assert not jax.tree.leaves(nnx.state(model, nnx.Not(nnx.Param)))
      assert len(jax.tree.leaves(nnx.state(model, nnx.Param))) == len(leaves)
      return model

    assert {x.dtype for x in jax.tree.leaves(jax.eval_shape(make))} == {jnp.dtype('float32')}


def test_functionalize_is_the_model_over_plain_arrays():
  model = build(Decoder, prenorm=True)
  tokens = jnp.asarray(TOKENS)
  apply, params = functionalize(model)

  def walk(x):
    if type(x) is dict:
      return [leaf for v in x.values() for leaf in walk(v)]
    return [x]

  leaves = walk(params)
  assert all(type(x) is type(jnp.zeros(1)) for x in leaves)
  assert len(leaves) == len(jax.tree.leaves(model))
  want = jax.jit(lambda model: model(tokens))(model)
  np.testing.assert_array_equal(jax.jit(lambda params: apply(params, tokens))(params), want)
  assert str(inspect.signature(apply)).startswith('(params, /, tokens')
  assert apply.__doc__ == Decoder.__call__.__doc__
  states, _ = functionalize(model, 'states')
  np.testing.assert_array_equal(
    jax.jit(lambda params: model.lm_head.attend(states(params, tokens)))(params), want
  )
  # two models at once
  both = jax.tree.map(lambda x: jnp.asarray(np.stack([x, 2 * np.asarray(x)])), model)
  pair = jax.jit(jax.vmap(lambda model: model(tokens)))(both)
  np.testing.assert_allclose(pair[0], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_16_bit_products_have_16_bit_operands_and_32_bit_results(dtype):
  if dtype == 'bfloat16' and not platforms.cpu_multiplies_bfloat16():
    pytest.skip('this jax cannot multiply bfloat16 on this CPU')
  tokens = jnp.asarray(TOKENS)
  model = build(EncoderDecoder, dtype=dtype, position='rotary', gated=True)
  assert {x.dtype for x in jax.tree.leaves(model)} == {jnp.dtype('float32')}
  f = jax.value_and_grad(lambda model: model(tokens, tokens).sum())
  jaxpr = jax.make_jaxpr(f)(model)
  dots = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == 'dot_general']
  assert len(dots) > 30
  for e in dots:
    assert [x.aval.dtype for x in e.invars] == [dtype, dtype], e
    assert e.outvars[0].aval.dtype == jnp.float32, e
  assert {x.aval.dtype for x in jaxpr.jaxpr.outvars} == {jnp.dtype('float32')}


def test_bfloat16_is_close_to_float32(close):
  tokens = jnp.asarray(TOKENS)
  run = jax.jit(lambda model: model(tokens))
  want = run(build(Decoder, prenorm=True))
  found = run(build(Decoder, prenorm=True, dtype='bfloat16'))
  assert found.dtype == jnp.float32
  close(found, want, 'bfloat16')
  assert np.abs(found - want).max() > 1e-4


def test_a_new_model_has_different_layers_and_sane_logits():
  config = ModelConfig(**TINY)
  model = jax.jit(lambda key: Decoder(config, nnx.Rngs(key)))(jax.random.key(0, impl='rbg'))
  for kernel in (x for x in jax.tree.leaves(model.stack.blocks) if x.ndim == 3):
    assert np.abs(kernel[0] - kernel[1]).max() > 0.05
  logits = jax.jit(lambda model: model(jnp.asarray(TOKENS)))(model)
  assert 0.1 < np.std(logits) < 3


@pytest.mark.parametrize(
  'preset, low, high', [('TRANSFORMER_BASE', 63.0e6, 65.5e6), ('TRANSFORMER_BIG', 210e6, 216e6)]
)
def test_the_published_models_have_their_published_size(preset, low, high):
  config = ModelConfig(vocab=37_000, **getattr(presets, preset))
  model = jax.eval_shape(lambda: EncoderDecoder(config, nnx.Rngs(0)))
  assert low < sum(x.size for x in jax.tree.leaves(model)) < high


@pytest.mark.parametrize('cls', [slow(Encoder), Decoder, EncoderDecoder])
def test_a_token_is_padding_only_if_the_model_says_so(cls, close):
  # of an encoder-decoder the inputs; targets are padded on the right
  arguments = [jnp.asarray(TOKENS)] * (2 if cls is EncoderDecoder else 1)
  ones = jnp.ones_like(arguments[0])
  name = 'segments' if len(arguments) == 1 else 'input_segments'

  run_jitted = jax.jit(lambda model, segments: model(*arguments, **{name: segments}))

  def run(segments, pad):
    return run_jitted(build(cls, depth=1, pad=pad), segments)

  close(run(None, pad=-1), run(ones, pad=-1))
  close(run(None, pad=7), run((arguments[0] != 7).astype('int32'), pad=-1))
  assert np.abs(run(None, pad=0) - run(ones, pad=-1)).max() > 1e-3
