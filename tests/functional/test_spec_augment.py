"""Laws of transformer/functional/spec_augment.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.functional.spec_augment import change_tempo, mask_frames, masks


def stretches(hidden):
  """Starts and ends of the runs of True."""
  edges = np.diff(np.concatenate([[0], hidden.astype(int), [0]]))
  return list(zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True))


def test_one_mask_is_one_stretch_of_uniform_size_and_place(key):
  B, size, width = 4000, 30, 7
  lengths = jnp.full(B, 20)
  kept = np.asarray(masks(key, lengths, size, count=1, width=jnp.full(B, width)))
  assert kept[:, 20:].all()  # nothing after the end
  sizes = (~kept).sum(axis=1)
  np.testing.assert_allclose(np.bincount(sizes) / B, 1 / (width + 1), atol=0.02)
  starts = []
  for row, n in zip(kept, sizes, strict=True):
    assert len(stretches(~row)) == (n > 0)
    if n == 3:
      starts.append(stretches(~row)[0][0])
  assert set(starts) == set(range(20 - 3 + 1))


def test_each_row_has_its_own_length_and_width(key):
  lengths, width = jnp.array([0, 1, 5, 40]), jnp.array([0, 1, 2, 10])
  for seed in range(20):
    kept = np.asarray(masks(jax.random.key(seed), lengths, 40, count=3, width=width))
    assert kept[0].all()
    for row, n, w in zip(~kept, lengths, 3 * width, strict=True):
      assert row.sum() <= w and not row[n:].any()


def test_mask_frames_hides_bands_and_stretches_of_time(key, rng):
  B, S, X = 50, 40, 12
  frames = jnp.asarray(rng.normal(size=(B, S, X)), jnp.float32)
  segments = (jnp.arange(S) < 30).astype(jnp.int32) * jnp.ones((B, 1), jnp.int32)
  kwargs = dict(time_masks=2, time_width=8, time_share=0.1, frequency_masks=1, frequency_width=4)
  found = np.asarray(mask_frames(key, frames, segments, **kwargs))
  kept = found != 0
  np.testing.assert_array_equal(found[kept], np.asarray(frames)[kept])
  times, bands = kept.any(axis=2), kept.any(axis=1)
  np.testing.assert_array_equal(kept, times[:, :, None] & bands[:, None])
  assert times[:, 30:].all()
  assert 0 < (~times).sum(axis=1).max() <= 2 * 3  # a tenth of 30 frames, twice
  assert 0 < (~bands).sum(axis=1).max() <= 4
  nothing = dict(kwargs, time_width=0, frequency_width=0)
  np.testing.assert_array_equal(mask_frames(key, frames, segments, **nothing), frames)


def test_tempo_is_interpolation(key, rng):
  B, S, most = 64, 60, 0.2
  frames = np.zeros((B, S, 2), np.float32)
  lengths = rng.integers(1, S + 1, B)
  for b, n in enumerate(lengths):
    frames[b, :n] = rng.normal(size=(n, 2))
  segments = (np.arange(S) < lengths[:, None]).astype(np.int32)
  found, new = map(
    np.asarray, change_tempo(key, jnp.asarray(frames), jnp.asarray(segments), most=most)
  )
  factors = []
  for b, n in enumerate(lengths):
    m = new[b].sum()
    assert (new[b][:m] == 1).all() and not found[b, m:].any()
    assert n * (1 - most) - 1 <= m <= min(S, n * (1 + most) + 1)
    places = np.linspace(0, n - 1, m) if m > 1 else np.zeros(1)
    for x in range(2):
      expected = np.interp(places, np.arange(n), frames[b, :n, x])
      np.testing.assert_allclose(found[b, :m, x], expected, atol=1e-4)
    factors.append(m / n)
  assert min(factors) < 0.9 and max(factors) > 1.1


def test_a_tempo_of_0_changes_nothing(key, rng):
  frames = jnp.asarray(rng.normal(size=(3, 9, 2)), jnp.float32)
  segments = (jnp.arange(9) < jnp.array([[9], [4], [1]])).astype(jnp.int32)
  frames *= segments[..., None]
  found, new = change_tempo(key, frames, segments, most=0.0)
  np.testing.assert_allclose(found, frames, atol=1e-6)
  np.testing.assert_array_equal(new, segments)


@pytest.mark.parametrize('seed', [0, 1])
def test_what_is_drawn_is_a_function_of_the_key(seed, rng):
  frames, segments = jnp.ones((4, 20, 8)), jnp.ones((4, 20), jnp.int32)
  kwargs = dict(time_masks=1, time_width=9, time_share=1.0, frequency_masks=1, frequency_width=4)
  draw = jax.jit(lambda key: mask_frames(key, frames, segments, **kwargs))
  one, again = draw(jax.random.key(seed)), draw(jax.random.key(seed))
  np.testing.assert_array_equal(one, again)
  assert (one != draw(jax.random.key(seed + 2))).any()
