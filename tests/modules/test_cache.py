"""Laws of the cache: slots fill from the left, positions do not count padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.modules.cache import Cache, LayerCache
from transformer.modules.config import ModelConfig

CONFIG = ModelConfig(vocab=5, width=8, heads=4, kv_heads=2)


@jax.jit
def extend(cache, segments):
  return cache.extend(segments, cache.next_positions(segments))


def filled(pieces, capacity=8):
  cache = Cache.empty(CONFIG, 2, len(pieces[0]), capacity)
  for piece in pieces:
    cache = extend(cache, jnp.asarray(piece, 'int32'))
  return cache


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_an_empty_cache_has_room_for_every_layer_and_shows_nothing(dtype):
  config = ModelConfig(vocab=5, width=8, heads=4, kv_heads=2, dtype=dtype)
  cache = Cache.empty(config, 3, 2, 7)
  assert cache.k.shape == cache.v.shape == (3, 2, 2, 7, 2)
  kept = 'float32' if jax.default_backend() == 'cpu' else dtype
  assert cache.k.dtype == cache.v.dtype == kept
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


def test_more_than_fits_is_told_where_the_length_is_traced():
  @jax.jit
  def overflows(cache, segments):
    return cache.extend(segments, segments).overflows

  assert not overflows(filled([[[1, 1, 1]]], capacity=4), jnp.ones((1, 1), int))
  assert overflows(filled([[[1, 1, 1]]], capacity=4), jnp.ones((1, 2), int))


def test_a_layer_writes_its_own_slots_and_no_others(rng):
  k, v = (jnp.asarray(rng.normal(size=(3, 2, 2, 6, 4)), 'float32') for _ in range(2))
  new_k, new_v = (jnp.asarray(rng.normal(size=(2, 2, 2, 4)), 'float32') for _ in range(2))
  real = jnp.array([[True, True], [False, True]])
  layer_cache = LayerCache(k, v, jnp.int32(1), jnp.int32(3), real)
  cache, layer_k, layer_v = layer_cache.write(new_k.at[1, 0].set(jnp.nan), new_v)
  for found, layer, old, new in [(cache.k, layer_k, k, new_k), (cache.v, layer_v, v, new_v)]:
    want = np.array(old)
    want[1, :, :, 3:5] = new.swapaxes(1, 2)
    want[1, 1, :, 3] = 0
    np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(layer, want[1].swapaxes(1, 2))


def test_take_moves_everything_that_belongs_to_a_row(rng):
  cache = filled([rng.integers(0, 2, size=(4, 5))])
  cache = Cache(
    jnp.asarray(rng.normal(size=cache.k.shape), 'float32'),
    jnp.asarray(rng.normal(size=cache.v.shape), 'float32'),
    *(cache.segments, cache.positions, cache.length),
  )
  rows = [2, 2, 0]
  taken = jax.jit(Cache.take)(cache, jnp.asarray(rows))
  for i, row in enumerate(rows):
    np.testing.assert_array_equal(np.asarray(taken.k)[:, i], np.asarray(cache.k)[:, row])
    np.testing.assert_array_equal(np.asarray(taken.v)[:, i], np.asarray(cache.v)[:, row])
    np.testing.assert_array_equal(taken.segments[i], cache.segments[row])
    np.testing.assert_array_equal(taken.positions[i], cache.positions[row])
  assert taken.length == cache.length == 5


def test_a_cache_is_a_pytree_of_arrays():
  cache = filled([[[1, 1]]])
  assert len(jax.tree.leaves(cache)) == 5
  assert jax.tree.map(lambda x: x, cache).capacity == 8
