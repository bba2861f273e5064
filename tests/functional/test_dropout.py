"""Laws of dropout: the right rate, independent places and keys, one mask on any mesh."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from transformer.functional.dropout import dropout, keep_mask

jit = jax.jit


@pytest.mark.parametrize('rate', [0.1, 0.5, 0.9])
def test_dropout_keeps_the_expectation(rate, key):
  n = 200_000
  y = np.asarray(jit(lambda x: dropout(x, rate, key))(np.full(n, 3, 'float32')))
  kept = y != 0
  np.testing.assert_allclose(y[kept], 3 / (1 - rate), rtol=1e-6)
  deviation = math.sqrt(rate * (1 - rate) / n)
  assert abs(kept.mean() - (1 - rate)) < 5 * deviation
  # neighbors fall independently
  both = (kept[1:] & kept[:-1]).mean()
  assert abs(both - (1 - rate) ** 2) < 10 * deviation


def test_dropout_is_off_without_a_key_or_a_rate_and_the_same_for_the_same_key(key):
  x = jnp.arange(1.0, 50.0)
  np.testing.assert_array_equal(dropout(x, 0.5, None), x)
  np.testing.assert_array_equal(dropout(x, 0.0, key), x)
  half = jit(lambda x, key: dropout(x, 0.5, key))
  np.testing.assert_array_equal(half(x, key), half(x, key))
  assert (np.asarray(half(x, key)) != np.asarray(half(x, jax.random.key(1)))).any()
  # what was dropped has no gradient, NaN included
  y = np.asarray(half(x, key))
  gradient = jit(jax.grad(lambda x: dropout(x, 0.5, key).sum()))(x)
  np.testing.assert_array_equal(gradient, np.where(y == 0, 0, 2))
  spoilt = np.where(y == 0, np.nan, x).astype('float32')
  assert np.isfinite(half(spoilt, key)).all()


def test_places_keys_and_bits_are_independent(rng):
  """No correlation beyond chance between places any stride apart, nor between two keys' masks."""
  n, rate = 2**16, 0.3
  seeds = [jnp.asarray(rng.integers(0, 2**32, 2, np.uint32)) for _ in range(5)]
  seeds += [seeds[0] ^ jnp.array([0, bit], jnp.uint32) for bit in (1, 2**16, 2**31)]
  masks = [np.asarray(keep_mask((n,), rate, seed)) - (1 - rate) for seed in seeds]
  scale = math.sqrt(n) * rate * (1 - rate)
  for a, b in itertools.combinations(masks, 2):
    for shift in (0, 1, -1):
      assert abs(np.dot(a, np.roll(b, shift))) < 5 * scale
  for mask in masks:
    for stride in (1, 2, 3, 7, 8, 64, 128, 1000, 4096):
      assert abs(np.dot(mask[stride:], mask[:-stride])) < 5 * scale
    # rows and columns of a matrix are as even as chance allows
    table = mask.reshape(256, 256)
    chi = (table.sum(0) ** 2 / (256 * rate * (1 - rate))).sum()
    assert abs(chi - 256) < 5 * math.sqrt(2 * 256)


def test_the_mask_is_the_same_on_every_mesh(key):
  x = jnp.ones((8, 16, 4))
  mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  want = jit(lambda x: dropout(x, 0.5, key))(x)
  for spec in [('a', 'b'), ('b', None, 'a'), (None, ('a', 'b'))]:
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    np.testing.assert_array_equal(jit(lambda x: dropout(x, 0.5, key))(placed), want)


def test_the_backward_pass_stores_no_mask(key):
  _, backward = jax.vjp(lambda x: dropout(x, 0.5, key), jnp.ones((64, 64)))
  assert sum(x.size for x in jax.tree.leaves(backward)) <= 2
