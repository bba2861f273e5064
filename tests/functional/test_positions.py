"""Laws of positions: each scheme is its paper's formula, written again in plain Python."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from transformer.functional.positions import (
  SCALINGS,
  alibi_bias,
  from_segments,
  relative_buckets,
  rotary,
  sinusoidal,
)


def test_positions_start_at_0_in_every_segment_whatever_the_padding(rng):
  rows = [
    [1, 1, 1, 2, 2, 3],
    [0, 0, 1, 1, 1, 1],
    [1, 1, 0, 0, 0, 0],
    [0, 1, 2, 2, 2, 0],
    *np.sort(rng.integers(1, 4, size=(3, 6))),
  ]
  found = from_segments(jnp.asarray(rows))
  assert found.dtype == jnp.int32
  for row, positions in zip(rows, np.asarray(found), strict=True):
    seen = {}
    for segment, position in zip(row, positions, strict=True):
      if segment:
        assert position == seen.get(int(segment), 0)
        seen[int(segment)] = position + 1


def test_positions_of_padded_rows_are_those_of_the_bare_row():
  bare = np.arange(4)
  for left, right in [(0, 3), (3, 0), (1, 2)]:
    row = jnp.asarray([[0] * left + [1] * 4 + [0] * right])
    np.testing.assert_array_equal(from_segments(row)[0, left : left + 4], bare)


def test_sinusoidal_is_the_formula(rng, close):
  positions, D = rng.integers(0, 500, size=(2, 5)), 8
  want = np.zeros((2, 5, D))
  for b, t in np.ndindex(2, 5):
    for i in range(D // 2):
      angle = positions[b, t] / 10_000 ** (2 * i / D)
      want[b, t, 2 * i], want[b, t, 2 * i + 1] = math.sin(angle), math.cos(angle)
  found = sinusoidal(jnp.asarray(positions), D)
  assert found.dtype == jnp.float32
  close(found, want)


def test_odd_widths_are_errors():
  with pytest.raises(ValueError, match='width 7 must be even'):
    sinusoidal(jnp.arange(3), 7)
  with pytest.raises(ValueError, match='size 3 must be even'):
    rotary(jnp.ones((1, 2, 1, 3)), jnp.zeros((1, 2), int))


@pytest.mark.parametrize('base', [10_000.0, 100.0])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_rotary_multiplies_complex_numbers(dtype, base, rng, close):
  B, T, H, K = 2, 5, 3, 8
  x = jnp.asarray(rng.normal(size=(B, T, H, K)), dtype)
  positions = rng.integers(0, 200, size=(B, T))
  real = np.asarray(x, np.float64)
  z = real[..., : K // 2] + 1j * real[..., K // 2 :]
  for b, t, i in np.ndindex(B, T, K // 2):
    z[b, t, :, i] *= np.exp(1j * positions[b, t] / base ** (2 * i / K))
  found = rotary(x, jnp.asarray(positions), base)
  assert found.dtype == x.dtype
  close(found, np.concatenate([z.real, z.imag], axis=-1))


def test_positions_count_the_tokens_of_a_segment_that_are_there(rng):
  rows = rng.integers(0, 2, size=(20, 9))
  rows[10:] *= np.sort(rng.integers(1, 4, size=(10, 9)), axis=1)  # packed, with holes
  rows[0] = 0
  found = np.asarray(from_segments(jnp.asarray(rows)))
  for b, t in np.argwhere(rows != 0):
    assert found[b, t] == np.sum(rows[b, :t] == rows[b, t])


def test_rotary_may_rotate_the_first_numbers_of_a_head_only(rng, close):
  x = jnp.asarray(rng.normal(size=(1, 3, 2, 10)), 'float32')
  at = jnp.array([[4, 5, 7]])
  found = rotary(x, at, size=4)
  close(found[..., :4], rotary(x[..., :4], at))
  np.testing.assert_array_equal(found[..., 4:], x[..., 4:])
  with pytest.raises(ValueError, match='at most 10'):
    rotary(x, at, size=12)


def scaled_frequency(f, base, index, size, kind, length, factor=4.0, original=32):
  """A scaling of one frequency f = base^(-2i/K), in the words of its paper."""
  turns = original * f / (2 * math.pi)
  if kind in ('none', 'linear'):
    return f / (factor if kind == 'linear' else 1)
  if kind == 'dynamic':
    n = max(length, original)
    return (base * (factor * n / original - (factor - 1)) ** (size / (size - 2))) ** (
      -2 * index / size
    )
  if kind == 'llama3':
    share = min(max((turns - 1) / (4 - 1), 0), 1)
  else:
    low, high = (
      size * math.log(original / (n * 2 * math.pi)) / (2 * math.log(base)) for n in (32, 1)
    )
    low, high = max(math.floor(low), 0), min(math.ceil(high), size - 1)
    share = 1 - min(max((index - low) / (high - low), 0), 1)
  return (1 - share) * f / factor + share * f


@pytest.mark.parametrize('length', [5, 90])
@pytest.mark.parametrize('kind', SCALINGS)
def test_a_scaling_changes_each_frequency_as_its_paper_says(kind, length, rng, close):
  K, base = 16, 1000.0
  x = jnp.asarray(rng.normal(size=(1, 2, 1, K)), 'float32')
  settings = dict(kind=kind)
  settings |= {} if kind == 'none' else dict(factor=4.0)
  settings |= {} if kind in ('none', 'linear') else dict(original_length=32)
  found = rotary(x, jnp.array([[2, length - 1]]), base, scaling=settings)
  z = np.asarray(x[..., : K // 2]) + 1j * np.asarray(x[..., K // 2 :])
  for t, p in enumerate((2, length - 1)):
    for i in range(K // 2):
      f = scaled_frequency(base ** (-2 * i / K), base, i, K, kind, length)
      z[0, t, 0, i] *= np.exp(1j * p * f)
  stretch = 0.1 * math.log(4) + 1 if kind == 'yarn' else 1.0
  close(found, stretch * np.concatenate([z.real, z.imag], axis=-1))


def test_rotary_scores_depend_on_the_distance_alone_and_norms_stay(rng, close):
  q, k = (jnp.asarray(rng.normal(size=(1, 6, 2, 8)), 'float32') for _ in range(2))
  positions = jnp.asarray(rng.integers(0, 50, size=(1, 6)))

  def scores(shift):
    turned = rotary(q, positions + shift), rotary(k, positions + shift)
    return np.einsum('bthk,bshk->bhts', *(np.asarray(x, np.float64) for x in turned))

  for shift in (1, 37):
    close(jnp.asarray(scores(shift), 'float32'), scores(0))
  assert np.abs(scores(0) - np.einsum('bthk,bshk->bhts', q, k)).max() > 0.1
  close(jnp.linalg.norm(rotary(q, positions), axis=-1), jnp.linalg.norm(q, axis=-1))


def t5_bucket(distance, causal, buckets, max_distance):
  """Raffel et al. 2020, 2.1, in whole numbers: the logarithm becomes a comparison of powers.

  floor(m log(d/e) / log(D/e)) is the number of j in 1, 2, ... with d^m e^j >= D^j e^m.
  """
  first = 0
  if causal:
    distance = max(-distance, 0)
  else:
    buckets //= 2
    if distance > 0:
      first = buckets
    distance = abs(distance)
  exact = buckets // 2
  if distance < exact:
    return first + distance
  m, bucket = buckets - exact, exact
  for j in range(1, m):
    bucket += distance**m * exact**j >= max_distance**j * exact**m
  return first + bucket


@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize('buckets, max_distance', [(32, 128), (8, 20), (4, 8), (64, 1000)])
def test_relative_buckets_are_those_of_t5(buckets, max_distance, causal):
  targets, sources = jnp.asarray([[0, 5, 300, 1100]]), jnp.arange(1200)[None]
  found = relative_buckets(
    targets, sources, causal=causal, buckets=buckets, max_distance=max_distance
  )
  want = [
    [t5_bucket(s - t, causal, buckets, max_distance) for s in range(1200)]
    for t in targets[0].tolist()
  ]
  np.testing.assert_array_equal(found[0], want)
  used = range(buckets) if not causal else range(buckets)
  expected = set(used) - ({buckets // 2} if not causal else set())  # no source lies 0 ahead
  assert set(np.unique(found)) == expected


def test_alibi_slopes_are_the_published_ones():
  at = jnp.arange(2)[None]

  def slopes(heads):
    return -np.asarray(alibi_bias(at, at, heads)[0, :, 1, 0], np.float64)

  np.testing.assert_allclose(slopes(8), [2.0**-h for h in range(1, 9)], rtol=1e-6)
  np.testing.assert_allclose(slopes(16), [2.0 ** (-h / 2) for h in range(1, 17)], rtol=1e-6)
  # those of 8 heads, then every other of 16, as in the authors' code
  twelve = [2.0**-h for h in range(1, 9)] + [2.0 ** (-h / 2) for h in (1, 3, 5, 7)]
  np.testing.assert_allclose(slopes(12), twelve, rtol=1e-6)
  np.testing.assert_allclose(slopes(3), [2**-4, 2**-8, 2**-2], rtol=1e-6)
  np.testing.assert_allclose(slopes(1), [2**-8], rtol=1e-6)


def test_alibi_is_minus_the_slope_times_the_distance(rng, close):
  targets, sources = rng.integers(0, 30, size=(2, 3)), rng.integers(0, 30, size=(2, 4))
  want = np.zeros((2, 4, 3, 4))
  for b, h, t, s in np.ndindex(2, 4, 3, 4):
    want[b, h, t, s] = -(2.0 ** (-2 * (h + 1))) * abs(targets[b, t] - sources[b, s])
  close(alibi_bias(jnp.asarray(targets), jnp.asarray(sources), 4), want)
