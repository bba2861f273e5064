"""Laws of masks: every mask is a loop over pairs of positions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.functional import masks
from transformer.functional.masks import AttentionMask

SHAPES = [(1, 1), (4, 4), (3, 7), (1, 5), (5, 3)]


def loop(targets, sources, may_attend):
  """[T, S] of may_attend(t, s), the last target standing at the last source."""
  late = sources - targets
  return [[may_attend(t + late, s) for s in range(sources)] for t in range(targets)]


@pytest.mark.parametrize('shape', SHAPES)
def test_causal_allows_the_past_and_itself_aligned_at_the_lower_right(shape):
  mask = masks.causal().dense(*shape)
  assert mask.dtype == bool
  np.testing.assert_array_equal(mask, loop(*shape, lambda t, s: s <= t))
  assert mask[-1].all()  # the last target has everything before it


def test_a_mask_of_one_length_is_square():
  np.testing.assert_array_equal(masks.causal().dense(5), masks.causal().dense(5, 5))


@pytest.mark.parametrize('size', [1, 2, 4, 99, (0, 2), (3, 1)])
@pytest.mark.parametrize('shape', SHAPES)
def test_a_window_allows_what_is_near(shape, size):
  mask = masks.sliding_window(size).dense(*shape)
  left, right = (size - 1, size - 1) if isinstance(size, int) else size
  np.testing.assert_array_equal(mask, loop(*shape, lambda t, s: t - left <= s <= t + right))


@pytest.mark.parametrize('length', range(5))
def test_a_prefix_sees_itself_and_the_rest_sees_the_past(length):
  want = loop(4, 4, lambda t, s: s <= t or s < length)
  np.testing.assert_array_equal(masks.prefix(length).dense(4), want)


@pytest.mark.parametrize('pad', [0, 3])
def test_padding_hides_the_padding_on_either_side(pad, rng):
  tokens = rng.integers(0, 5, size=(3, 6))
  tokens[0, 0] = tokens[1, -1] = pad
  mask = masks.padding(jnp.asarray(tokens), pad).dense(2, 6)
  assert mask.shape == (3, 1, 2, 6)
  for t in range(2):
    want = [[token != pad for token in row] for row in tokens]
    np.testing.assert_array_equal(mask[:, 0, t], want)


def test_segments_see_only_their_own_and_padding_nothing(rng):
  targets, sources = rng.integers(0, 3, size=(4, 5)), rng.integers(0, 3, size=(4, 7))
  mask = masks.segments(jnp.asarray(targets), jnp.asarray(sources)).dense(5, 7)
  assert mask.shape == (4, 1, 5, 7)
  for b, t, s in np.ndindex(4, 5, 7):
    assert mask[b, 0, t, s] == (targets[b, t] == sources[b, s] != 0)


def test_positions_count_instead_of_columns_where_they_are_given(rng):
  targets, sources = rng.integers(0, 9, size=(2, 4)), rng.integers(0, 9, size=(2, 6))
  at = jnp.asarray(targets), jnp.asarray(sources)
  causal = masks.causal(positions=at).dense(4, 6)
  near = masks.sliding_window(3, positions=at).dense(4, 6)
  for b, t, s in np.ndindex(2, 4, 6):
    assert causal[b, 0, t, s] == (sources[b, s] <= targets[b, t])
    assert near[b, 0, t, s] == (abs(sources[b, s] - targets[b, t]) < 3)


def test_positions_that_are_columns_change_nothing():
  at = jnp.arange(2, 6)[None], jnp.arange(6)[None]
  for make in (masks.causal, lambda **kwargs: masks.sliding_window(2, **kwargs)):
    np.testing.assert_array_equal(make(positions=at).dense(4, 6)[0, 0], make().dense(4, 6))


def every_kind(rng):
  """Masks [3, H, 5, 5] of every kind and of several, with the positions that they count by."""
  a, b = (jnp.asarray(rng.integers(0, 3, size=(3, 5))) for _ in range(2))
  explicit = AttentionMask(explicit=jnp.asarray(rng.random((3, 2, 5, 5)) < 0.7))
  one = [
    *(AttentionMask(), masks.causal(), masks.prefix(2), masks.prefix(4), masks.sliding_window(2)),
    *(masks.sliding_window((3, 0)), masks.padding(a), masks.padding(b), masks.segments(a, b)),
    *(masks.segments(b, b), explicit),
  ]
  return [*one, masks.prefix(3) & masks.padding(b), explicit & masks.segments(a, a)]


def test_and_allows_what_both_allow_and_keeps_the_structure(rng):
  kinds = every_kind(rng)
  for a, b in itertools.product(kinds, kinds):
    both, want = (a & b), a.dense(5) & b.dense(5)
    np.testing.assert_array_equal(np.broadcast_to(both.dense(5), want.shape), want)
    assert both.causal == (a.causal or b.causal) and (both.reach is None) == (
      a.reach is b.reach is None
    )


def test_and_keeps_one_set_of_positions_and_refuses_two(rng):
  at = (jnp.asarray(rng.integers(0, 9, size=(2, 4))),) * 2
  mask = masks.segments(*at) & masks.causal(positions=at) & masks.sliding_window(2, positions=at)
  assert mask.positions is at and mask.causal and mask.window
  with pytest.raises(ValueError, match='have different positions'):
    masks.causal(positions=at) & masks.sliding_window(2)


def test_a_mask_is_a_pytree_whose_structure_is_static(rng):
  segments = jnp.asarray(rng.integers(0, 3, size=(2, 4)))
  mask = masks.causal() & masks.sliding_window(2) & masks.segments(segments, segments)
  assert len(jax.tree.leaves(mask)) == 2
  assert not mask.is_static and masks.causal().is_static

  @jax.jit
  def inside(mask):
    assert mask.causal and mask.reach == (1, 1)
    return mask.with_array(4).dense(4)

  np.testing.assert_array_equal(inside(mask), mask.dense(4))


@pytest.mark.parametrize('size', [0, -1, (-1, 2)])
def test_a_window_that_sees_nothing_is_an_error(size):
  with pytest.raises(ValueError, match='size must be >= 1'):
    masks.sliding_window(size)


def test_describe_draws_one_mark_per_pair(rng):
  mask = rng.random((12, 11)) < 0.5
  header, *rows = masks.describe(jnp.asarray(mask)).split('\n')
  assert header == '   01234567890'
  assert len(rows) == 12
  for t, row in enumerate(rows):
    assert row[:3] == f'{t:2} '
    assert [mark == '█' for mark in row[3:]] == mask[t].tolist()
    assert set(row[3:]) <= set('█·')


def test_describe_shows_the_first_example():
  mask = jnp.stack([masks.causal().dense(3), ~masks.causal().dense(3)])[:, None]
  assert masks.describe(mask) == masks.describe(masks.causal().dense(3))


def test_describe_draws_a_mask_of_a_given_size():
  assert masks.describe(masks.causal(), 3) == masks.describe(masks.causal().dense(3))
  assert masks.describe(masks.causal(), 2, 4) == masks.describe(masks.causal().dense(2, 4))
  with pytest.raises(TypeError, match='AttentionMask has no size'):
    masks.describe(masks.causal())


def test_describe_refuses_what_is_no_mask():
  for wrong in (jnp.ones((2, 2)), jnp.ones(3, bool)):
    with pytest.raises(TypeError, match='boolean'):
      masks.describe.__wrapped__(wrong)
