"""Laws of what is hidden: how much, where, and that nothing is lost."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.functional.corruption import (
  choose_masked,
  choose_masked_by_content,
  compact,
  hash_by_content,
  noise_counts,
  noise_spans,
  replace_chosen,
  uniform_by_content,
  with_sentinels,
)

KEYS = jax.random.split(jax.random.key(0), 400)


def test_the_share_chosen_is_exact_and_fair(rng):
  eligible = jnp.asarray(rng.random((3, 40)) < [[0.9], [0.5], [0.05]])
  found = np.asarray(jax.vmap(lambda key: choose_masked(key, eligible, 0.15))(KEYS))
  count = np.asarray(eligible.sum(axis=1))
  wanted = np.maximum(np.round(count * 0.15), 1)
  assert (found.sum(axis=2) == wanted).all()
  assert not found[:, ~np.asarray(eligible)].any()
  often = found.mean(axis=0)[0][np.asarray(eligible[0])]
  p = wanted[0] / count[0]
  assert abs(often - p).max() < 5 * np.sqrt(p * (1 - p) / len(KEYS))


def test_words_are_chosen_whole(rng):
  words = jnp.asarray(np.sort(rng.integers(0, 9, (2, 30)), axis=1))
  found = np.asarray(
    jax.vmap(lambda key: choose_masked(key, jnp.ones((2, 30), bool), 0.3, words))(KEYS[:50])
  )
  for row in range(2):
    for word in range(9):
      of_word = found[:, row, np.asarray(words[row]) == word]
      assert (of_word.all(axis=1) == of_word.any(axis=1)).all()
  assert (found.sum(axis=2) <= 9).all() and found.any()


def test_what_is_chosen_by_content_has_its_share_in_every_segment(rng):
  segments = jnp.asarray(np.sort(rng.integers(1, 4, (20, 40)), axis=1))
  tokens, eligible = (
    jnp.asarray(rng.integers(5, 99, (20, 40))),
    jnp.asarray(rng.random((20, 40)) < 0.8),
  )
  words = jnp.cumsum(jnp.asarray(rng.random((20, 40)) < 0.5), axis=1)

  @jax.jit
  def both():
    chosen = choose_masked_by_content(tokens, segments, eligible, 0.2)
    random = uniform_by_content(tokens, segments, 1), hash_by_content(tokens, segments, 2)
    shown = replace_chosen(random, tokens, chosen, mask=999, vocab=500)
    ones = jnp.ones((20, 40), int)
    return chosen, shown, choose_masked_by_content(tokens, ones, eligible | True, 0.2, words)

  chosen, shown, whole = map(np.asarray, both())
  assert not chosen[~np.asarray(eligible)].any()
  for row, segment in itertools.product(range(20), (1, 2, 3)):
    own = np.asarray(segments[row]) == segment
    count = np.asarray(eligible[row])[own].sum()
    assert chosen[row][own].sum() == max(np.round(count * 0.2), 1) or not count
  assert (shown == tokens)[~chosen].all() and 0.6 < (shown == 999)[chosen].mean() < 0.95
  assert (whole.sum(axis=1) <= 8).all() and whole.any()
  for row, word in itertools.product(range(20), range(40)):
    assert len({*whole[row][np.asarray(words[row]) == word].tolist()}) <= 1


def test_the_fate_of_the_chosen_is_80_10_10():
  tokens = jnp.full((100, 100), 7)
  chosen = jnp.arange(100) < jnp.full((100, 1), 50)
  found = np.asarray(replace_chosen(KEYS[0], tokens, chosen, mask=999, vocab=500))
  assert (found[:, 50:] == 7).all()
  hidden = found[:, :50]
  assert abs((hidden == 999).mean() - 0.8) < 0.03
  assert abs((hidden == 7).mean() - 0.1) < 0.03
  assert hidden[(hidden != 999)].max() < 500


@pytest.mark.parametrize('rate, mean_span', [(0.15, 3.0), (0.5, 2.0), (0.3, 1.0)])
def test_spans_are_as_many_and_as_long_as_asked(rate, mean_span):
  lengths = jnp.array([40, 13, 2, 1, 0])
  draw = jax.vmap(lambda key: noise_spans(key, lengths, 40, rate=rate, mean_span=mean_span))
  found = np.asarray(draw(KEYS[:100]))
  for row, n in enumerate([40, 13, 2]):
    hidden = int(np.clip(np.round(n * rate), 1, n - 1))
    spans = max(int(np.round(hidden / mean_span)), 1)
    spans = min(spans, hidden, n - hidden)
    of_row = found[:, row]
    assert (of_row.sum(axis=1) == hidden).all()
    starts = (np.diff(of_row.astype(int), axis=1, prepend=0) == 1).sum(axis=1)
    assert (starts == spans).all()
    assert not of_row[:, 0].any() and not of_row[:, n:].any()
  assert not found[:, 3:].any()
  assert len({tuple(row) for row in found[:, 0]}) > 20


@pytest.mark.parametrize('rate, mean_span', [(0.15, 3.0), (0.3, 1.0), (0.5, 2.5)])
def test_counts_are_the_same_on_the_host(rate, mean_span):
  lengths, kwargs = np.arange(1, 1025, dtype=np.int32), dict(rate=rate, mean_span=mean_span)
  host = noise_counts(lengths, **kwargs, xp=np)
  device = jax.jit(lambda lengths: noise_counts(lengths, **kwargs))(lengths)
  for one, other in zip(host, device, strict=True):
    np.testing.assert_array_equal(one, other)


def test_inputs_and_targets_together_are_the_text(rng):
  """Putting the targets' spans where the sentinels of the inputs are gives the text back."""
  sentinels = [99, 98, 97, 96, 95, 94]
  tokens = jnp.asarray(rng.integers(10, 50, (4, 20)))
  lengths = jnp.array([20, 15, 7, 2])
  real = jnp.arange(20) < lengths[:, None]
  hidden = noise_spans(KEYS[1], lengths, 20, rate=0.3, mean_span=1.5)
  marked, kept = with_sentinels(tokens, hidden, jnp.array(sentinels))
  inputs, _ = compact(marked, kept & real, 21, eos=2)
  marked, kept = with_sentinels(tokens, ~hidden, jnp.array(sentinels))
  targets, _ = compact(marked, kept & real, 21, eos=2)
  for row, n in enumerate(lengths.tolist()):
    spans, text = {}, []
    for token in targets[row].tolist():
      if token == 2:
        break
      if token in sentinels:
        spans[token] = current = []
      else:
        current.append(token)
    for token in inputs[row].tolist():
      if token == 2:
        break
      text += spans[token] if token in sentinels else [token]
    assert text == tokens[row, :n].tolist()
    assert list(spans) == sentinels[: len(spans)]


def test_compact_cuts_what_does_not_fit():
  tokens, segments = compact(jnp.array([[5, 6, 7]]), jnp.ones((1, 3), bool), 2, eos=2)
  assert tokens.tolist() == [[5, 6]] and segments.tolist() == [[1, 1]]
