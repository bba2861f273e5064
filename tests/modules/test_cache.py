"""Laws of the cache: slots fill from the left, positions do not count padding."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer.modules.cache import Cache, LayerCache
from transformer.modules.config import ModelConfig
from transformer.modules.model import Decoder

CONFIG = ModelConfig(vocab=5, width=8, depth=2, heads=4, kv_heads=2)


@jax.jit
def extend(cache, segments):
  return cache.extend(segments, cache.next_positions(segments))


def filled(pieces, capacity=8):
  cache = Cache.empty(CONFIG, len(pieces[0]), capacity)
  for piece in pieces:
    cache = extend(cache, jnp.asarray(piece, 'int32'))
  return cache


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_an_empty_cache_has_room_for_every_layer_and_shows_nothing(dtype):
  config = ModelConfig(vocab=5, width=8, depth=3, heads=4, kv_heads=2, dtype=dtype)
  cache = Cache.empty(config, 2, 7)
  assert [k.shape for k in cache.k] == [(2, 2, 2, 7)] * 3  # transposed
  assert [v.shape for v in cache.v] == [(2, 2, 7, 2)] * 3
  kept = 'float32' if jax.default_backend() == 'cpu' else dtype
  assert {x.dtype.name for x in cache.k + cache.v} == {kept}
  assert cache.capacity == 7 and cache.length == 0 and not cache.overflows
  np.testing.assert_array_equal(cache.segments, 0)


def test_positions_count_tokens_and_not_padding_over_any_pieces(rng):
  rows = rng.integers(0, 2, size=(5, 8))
  rows[0], rows[1] = [0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0, 0]
  for sizes in [[8], [1] * 8, [4, 4], [4, 1, 1, 1, 1]]:
    cache = filled(np.split(rows, np.cumsum(sizes)[:-1], axis=1))
    assert cache.length == 8
    np.testing.assert_array_equal(cache.segments, rows)
    for row, positions in zip(rows, np.asarray(cache.positions), strict=True):
      assert positions[row == 1].tolist() == list(range(row.sum()))
      assert (positions >= 0).all()


def test_more_than_fits_is_an_error_that_says_how_much():
  cache = filled([[[1, 1, 1]]], capacity=4)
  two = jnp.ones((1, 2), int)
  with pytest.raises(ValueError, match='2 more tokens do not fit a cache of 4 of which 3 are used'):
    cache.extend(two, two)
  assert not cache.extend(two[:, :1], two[:, :1]).overflows


def test_overflows_is_set_where_the_length_is_traced():
  @jax.jit
  def overflows(cache, segments):
    return cache.extend(segments, segments).overflows

  assert not overflows(filled([[[1, 1, 1]]], capacity=4), jnp.ones((1, 1), int))
  assert overflows(filled([[[1, 1, 1]]], capacity=4), jnp.ones((1, 2), int))


@pytest.mark.parametrize('beams', [1, 2])
def test_a_layer_writes_its_own_slots_and_no_others(beams, rng):
  k, v = (
    jnp.asarray(rng.normal(size=(4 // beams, 2, *sizes)), 'float32') for sizes in [(5, 9), (9, 5)]
  )
  new_k, new_v = (jnp.asarray(rng.normal(size=(4, 2, 2, 5)), 'float32') for _ in range(2))
  real = jnp.array([[True, True], [False, True], [True, True], [True, False]])
  cache = LayerCache(k, v, jnp.int32(3), real).write(new_k.at[1, 0].set(jnp.nan), new_v)
  for found, old, new in [(cache.k.mT, k.mT, new_k), (cache.v, v, new_v)]:
    want = np.array(old)
    for b, t in np.ndindex(4, 2):
      sentence, beam = divmod(b, beams)
      want[sentence, :, 3 + 2 * beam + t] = new[b, t] if real[b, t] else 0
    np.testing.assert_array_equal(found, want)


def test_a_row_sees_the_slots_of_its_own_past_whatever_beam_filled_them(rng):
  W, rows = 3, 6
  cache = Cache.empty(CONFIG, rows, 8, beams=W)
  assert cache.beams == W and cache.capacity == 8
  pasts = [[] for _ in range(rows)]  # (slot, position) of every token
  for step in range(5):
    segments = rng.integers(0, 2, size=(rows, 1))
    for row, past in enumerate(pasts):
      if segments[row, 0]:
        past.append((step * W + row % W, len(past)))
    cache = extend(cache, jnp.asarray(segments, 'int32'))
    moved = [b * W + w for b in (0, 1) for w in rng.integers(0, W, size=W).tolist()]
    cache = jax.jit(Cache.take)(cache, jnp.asarray(moved))
    pasts = [list(pasts[row]) for row in moved]
    for row, past in enumerate(pasts):
      slots = np.flatnonzero(cache.segments[row])
      assert list(zip(slots, cache.positions[row][slots], strict=True)) == past
  assert cache.length == 5 * W


def test_rows_that_share_nothing_are_reordered_with_all_that_is_theirs(rng):
  cache = filled([rng.integers(0, 2, size=(4, 5))])
  k, v = (tuple(jnp.asarray(rng.normal(size=x.shape)) for x in xs) for xs in (cache.k, cache.v))
  cache, rows = cache._replace(k=k, v=v), np.array([2, 2, 0])
  taken = jax.jit(Cache.take)(cache, jnp.asarray(rows))
  for found, old in zip(jax.tree.leaves(taken), jax.tree.leaves(cache), strict=True):
    np.testing.assert_array_equal(found, old[rows] if old.ndim else old)


def test_rows_are_whole_sentences():
  with pytest.raises(ValueError, match='4 rows are not a multiple of 3 beams'):
    Cache.empty(CONFIG, 4, 8, beams=3)


def test_a_model_runs_with_64_bits_and_with_parameters_cast_to_16(close):
  config = dataclasses.replace(CONFIG, position='rotary', feedforward=8, prenorm=True, depth=1)
  tokens = jnp.array([[1, 2, 3]])

  @partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
  def run(model, tokens):
    logits, cache = model(tokens[:, :2], cache=model.init_cache(1, 3))
    return logits, model(tokens[:, 2:], cache=cache)[0]

  model = Decoder(config, nnx.Rngs(0))
  want = jnp.concatenate(run(model, tokens), axis=1)
  cast = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model)
  close(jnp.concatenate(run(cast, tokens), axis=1), want, 'bfloat16')
  # before JAX 0.8 it was experimental
  with (jax if hasattr(jax, 'enable_x64') else jax.experimental).enable_x64(True):
    wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), model)
    found = run(wide, jnp.asarray(np.array([[1, 2, 3]])))
    close(np.concatenate(found, axis=1), want, 'float32')


def test_a_cache_is_a_pytree_of_arrays():
  cache = filled([[[1, 1]]])
  assert len(jax.tree.leaves(cache)) == 2 * 2 + 3
  assert jax.tree.map(lambda x: x, cache).capacity == 8
