"""Laws of masks: every maker is a loop over pairs of positions."""

import jax.numpy as jnp
import numpy as np
import pytest

from transformer.functional import masks

SHAPES = [(1, 1), (4, 4), (3, 7), (1, 5), (5, 3)]


def loop(targets, sources, may_attend):
  """[T, S] of may_attend(t, s), the last target standing at the last source."""
  late = sources - targets
  return [[may_attend(t + late, s) for s in range(sources)] for t in range(targets)]


@pytest.mark.parametrize('shape', SHAPES)
def test_causal_sees_the_past_and_itself_aligned_at_the_lower_right(shape):
  mask = masks.causal(*shape)
  assert mask.dtype == bool
  np.testing.assert_array_equal(mask, loop(*shape, lambda t, s: s <= t))
  assert mask[-1].all()  # the last target has everything before it


def test_causal_of_one_number_is_square():
  np.testing.assert_array_equal(masks.causal(5), masks.causal(5, 5))


@pytest.mark.parametrize('size', [1, 2, 4, 99])
@pytest.mark.parametrize('shape', SHAPES)
def test_a_window_sees_what_is_nearer_than_its_size(shape, size):
  mask = masks.sliding_window(*shape, size=size)
  np.testing.assert_array_equal(mask, loop(*shape, lambda t, s: abs(t - s) < size))


@pytest.mark.parametrize('prefix_length', range(5))
def test_a_prefix_sees_itself_and_the_rest_sees_the_past(prefix_length):
  want = loop(4, 4, lambda t, s: s <= t or s < prefix_length)
  np.testing.assert_array_equal(masks.prefix(4, prefix_length), want)


@pytest.mark.parametrize('pad', [0, 3])
def test_padding_hides_the_padding_on_either_side(pad, rng):
  tokens = rng.integers(0, 5, size=(3, 6))
  tokens[0, 0] = tokens[1, -1] = pad
  mask = masks.padding(jnp.asarray(tokens), pad)
  assert mask.shape == (3, 1, 1, 6)
  np.testing.assert_array_equal(mask[:, 0, 0], [[token != pad for token in row] for row in tokens])


def test_segments_see_only_their_own_and_padding_nothing(rng):
  targets, sources = rng.integers(0, 3, size=(4, 5)), rng.integers(0, 3, size=(4, 7))
  mask = masks.segments(jnp.asarray(targets), jnp.asarray(sources))
  assert mask.shape == (4, 1, 5, 7)
  for b, t, s in np.ndindex(4, 5, 7):
    assert mask[b, 0, t, s] == (targets[b, t] == sources[b, s] != 0)


def test_before_and_near_go_by_position_not_by_column(rng):
  targets, sources = rng.integers(0, 9, size=(2, 4)), rng.integers(0, 9, size=(2, 6))
  at = jnp.asarray(targets), jnp.asarray(sources)
  before, near = masks.before(*at), masks.near(*at, size=3)
  for b, t, s in np.ndindex(2, 4, 6):
    assert before[b, 0, t, s] == (sources[b, s] <= targets[b, t])
    assert near[b, 0, t, s] == (abs(sources[b, s] - targets[b, t]) < 3)


def test_before_is_causal_where_positions_are_columns():
  late, all_ = jnp.arange(2, 6)[None], jnp.arange(6)[None]
  np.testing.assert_array_equal(masks.before(late, all_)[0, 0], masks.causal(4, 6))
  np.testing.assert_array_equal(
    masks.near(late, all_, size=2)[0, 0], masks.sliding_window(4, 6, size=2)
  )


@pytest.mark.parametrize('size', [0, -1])
def test_a_window_that_sees_nothing_is_an_error(size):
  with pytest.raises(ValueError, match='size must be >= 1'):
    masks.sliding_window(3, size=size)


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
  mask = jnp.stack([masks.causal(3), ~masks.causal(3)])[:, None]
  assert masks.describe(mask) == masks.describe(masks.causal(3))


def test_describe_refuses_what_is_no_mask():
  for wrong in (jnp.ones((2, 2)), jnp.ones(3, bool)):
    with pytest.raises(TypeError, match='boolean'):
      masks.describe.__wrapped__(wrong)
