"""Corruption of text for denoising objectives: masked tokens and spans.

Pure functions of a key: every epoch hides other tokens, every device the same.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key


def choose(
  key: Key[Array, ''],
  eligible: Bool[Array, 'B T'],
  rate: float,
  words: Int[Array, 'B T'] | None = None,
) -> Bool[Array, 'B T']:
  """Return which tokens to hide: in each row a share of those eligible.

  Args:
    key: for the random choice.
    eligible: which tokens may be hidden.
    rate: the share of each row, rounded; at least one token.
    words: the index of the word that each token belongs to. If given, words are hidden whole, and
      no more tokens than the rate allows; none if the first word chosen is longer.

  >>> choose(jax.random.key(0), jnp.ones((1, 8), bool), 0.25).sum().tolist()
  2
  """
  B, T = eligible.shape
  draw = jax.random.uniform(key, (B, T), minval=1e-9)
  if words is not None:
    draw = jnp.take_along_axis(draw, words, axis=1)
  draw = jnp.where(eligible, draw, 0)
  count = jnp.sum(eligible, axis=1)
  wanted = jnp.maximum(jnp.round(count * rate), 1).astype(jnp.int32)
  # the largest number that is not chosen; a word that reaches over it is not chosen
  ranked = jnp.sort(jnp.pad(draw, ((0, 0), (0, 1))), axis=1, descending=True)
  return draw > jnp.take_along_axis(ranked, wanted[:, None], axis=1)


def replace_chosen(
  key: Key[Array, ''],
  tokens: Int[Array, 'B T'],
  chosen: Bool[Array, 'B T'],
  *,
  mask: int,
  vocab: int,
) -> Int[Array, 'B T']:
  """Replace 80 % of the chosen tokens by the mask and 10 % by a random token; 10 % stay.

  Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 3.1.

  >>> tokens = jnp.arange(4)[None]
  >>> replace_chosen(jax.random.key(0), tokens, tokens < 0, mask=9, vocab=4)
  Array([[0, 1, 2, 3]], dtype=int32)
  """
  fate_key, token_key = jax.random.split(key)
  fate = jax.random.uniform(fate_key, tokens.shape)
  drawn = jax.random.randint(token_key, tokens.shape, 0, vocab)
  replaced = jnp.where(fate < 0.8, mask, jnp.where(fate < 0.9, drawn, tokens))
  return jnp.where(chosen, replaced, tokens)


def noise_spans(
  key: Key[Array, ''], lengths: Int[Array, 'B'], T: int, *, rate: float, mean_span: float
) -> Bool[Array, 'B T']:
  """Return which tokens to hide, in spans of random length; never the first of a row.

  Kept and hidden spans alternate, as many of each; the division of tokens into spans is uniform
  among all possible ones.

  Args:
    key: for the random choice.
    lengths: of the rows; later positions are not hidden.
    T: length of the mask.
    rate: share of hidden tokens, rounded, at least one.
    mean_span: mean length of hidden spans.

  Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 3.1.4, and its published code.

  >>> noise_spans(jax.random.key(0), jnp.array([8]), 8, rate=0.25, mean_span=2.0)[0].sum().tolist()
  2
  """
  hidden, spans = noise_counts(lengths, rate=rate, mean_span=mean_span)
  kept_key, hidden_key = jax.random.split(key)
  kept_parts = _random_parts(kept_key, lengths - hidden, spans, T)
  hidden_parts = _random_parts(hidden_key, hidden, spans, T)
  ends = jnp.cumsum(jnp.stack([kept_parts, hidden_parts], axis=-1).reshape(len(lengths), -1), 1)
  at = jnp.arange(T)
  span = jax.vmap(lambda ends: jnp.searchsorted(ends, at, side='right'))(ends)
  return (span % 2 == 1) & (at < lengths[:, None]) & (lengths[:, None] > 1)


def noise_counts(lengths, *, rate: float, mean_span: float, np=jnp):
  """Return the numbers (tokens, spans) that `noise_spans` hides in rows of these lengths.

  np=numpy gives the same numbers on the host, for shapes: both round float32 to even.

  >>> [int(n) for n in noise_counts(jnp.int32(190), rate=0.15, mean_span=3.0)]
  [29, 10]
  """
  share, mean = np.float32(rate), np.float32(mean_span)
  hidden = np.round(np.asarray(lengths, np.float32) * share).astype(np.int32)
  hidden = np.clip(hidden, 1, np.maximum(lengths - 1, 1))
  spans = np.round(hidden.astype(np.float32) / mean).astype(np.int32)
  return hidden, np.maximum(np.minimum(np.minimum(spans, hidden), lengths - hidden), 1)


def _random_parts(key, totals, parts, T):
  """[B, T]: totals divided into positive parts, all divisions equally likely; then zeros."""
  B, at = len(totals), jnp.arange(T)
  # parts - 1 of the totals - 1 places between neighbours are ends
  draw = jnp.where(at < totals[:, None] - 1, jax.random.uniform(key, (B, T)), 2.0)
  rank = jnp.argsort(jnp.argsort(draw, axis=1), axis=1)
  ends = (rank < parts[:, None] - 1).astype(jnp.int32)
  part = jnp.cumsum(jnp.pad(ends[:, :-1], ((0, 0), (1, 0))), axis=1)
  inside = (at < totals[:, None]).astype(jnp.int32)
  return jax.vmap(lambda part, inside: jnp.zeros(T, jnp.int32).at[part].add(inside))(part, inside)


def with_sentinels(
  tokens: Int[Array, 'B T'], hidden: Bool[Array, 'B T'], sentinels: Int[Array, 'X']
) -> tuple[Int[Array, 'B T'], Bool[Array, 'B T']]:
  """Replace the first token of each hidden span by the next sentinel.

  Returns:
    (tokens, kept): kept is False at the other tokens of hidden spans, which `compact` removes.

  >>> hidden = jnp.array([[False, True, True, False]])
  >>> with_sentinels(jnp.array([[5, 6, 7, 8]]), hidden, jnp.array([99, 98]))[0].tolist()
  [[5, 99, 7, 8]]
  """
  first = hidden & ~jnp.pad(hidden[:, :-1], ((0, 0), (1, 0)))
  which = jnp.clip(jnp.cumsum(first, axis=1) - 1, 0, len(sentinels) - 1)
  return jnp.where(first, sentinels[which], tokens), ~hidden | first


def compact(
  tokens: Int[Array, 'B T'], kept: Bool[Array, 'B T'], length: int, eos: int
) -> tuple[Int[Array, 'B U'], Int[Array, 'B U']]:
  """Remove the tokens not kept, and add the end token.

  Returns:
    (tokens, segments) [B, length]: 0 and 0 where there is no token. Rows are truncated to `length`.

  >>> compact(jnp.array([[5, 6, 7]]), jnp.array([[True, False, True]]), 4, eos=2)[0].tolist()
  [[5, 7, 2, 0]]
  """
  order = jnp.argsort(~kept, axis=1, stable=True)
  count = jnp.sum(kept, axis=1, keepdims=True)
  moved = jnp.take_along_axis(tokens, order, axis=1)
  moved = jnp.pad(moved, ((0, 0), (0, max(length - tokens.shape[1], 0))))[:, :length]
  at = jnp.arange(length)
  moved = jnp.where(at < count, moved, jnp.where(at == count, eos, 0))
  return moved, (at <= count).astype(jnp.int32)
