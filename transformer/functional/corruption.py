"""Corruption of text for denoising objectives: masked tokens and spans.

Pure functions of a key: the same key gives the same noise on every device. Pass a new key at each
step.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32


def choose_masked(
  key: Key[Array, ''],
  eligible: Bool[Array, 'B T'],
  rate: float,
  words: Int[Array, 'B T'] | None = None,
) -> Bool[Array, 'B T']:
  """Return which tokens to mask: in each row a random fraction of those eligible.

  Args:
    key: PRNG key.
    eligible: which tokens may be masked.
    rate: fraction of the eligible tokens of a row that is masked, rounded; at least one token.
    words: index of the word of each token, for whole-word masking: words are taken in random order
      until the next one would exceed the rate. A row may have no masked token, if its first word
      exceeds it.

  >>> choose_masked(jax.random.key(0), jnp.ones((1, 8), bool), 0.25).sum().tolist()
  2
  """
  B, T = eligible.shape
  draw = jax.random.uniform(key, (B, T), minval=1e-9)  # above 0, which marks tokens not eligible
  if words is not None:
    draw = jnp.take_along_axis(draw, words, axis=1)
  draw = jnp.where(eligible, draw, 0)
  count = jnp.sum(eligible, axis=1)
  target_count = jnp.maximum(jnp.round(count.astype(float) * rate), 1).astype(jnp.int32)
  # The threshold is the largest number that is not chosen. All tokens of a word have the same
  # number, so a word that does not fit whole is not chosen.
  ranked = jnp.sort(jnp.pad(draw, ((0, 0), (0, 1))), axis=1, descending=True)
  return draw > jnp.take_along_axis(ranked, target_count[:, None], axis=1)


def hash_by_content(
  tokens: Int[Array, 'B T'], segments: Int[Array, 'B T'], stream: int
) -> UInt32[Array, 'B T']:
  """Return pseudo-random bits that depend only on the tokens of a segment and the position in it.

  An evaluation that uses them corrupts a text in the same way in any row, batch or packing.

  Args:
    tokens: token ids.
    segments: tokens of one text have the same number.
    stream: seed; each value gives other bits.
  """

  def mix(x):  # the finalizer of MurmurHash3
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)

  same = segments[:, :, None] == segments[:, None, :]
  place = mix(jnp.sum(jnp.tril(same), axis=2, dtype=jnp.uint32) + jnp.uint32(stream << 20))
  own = jnp.where(same, mix(tokens.astype(jnp.uint32) ^ place)[:, None, :], jnp.uint32(0))
  text = jnp.sum(own, axis=2, dtype=jnp.uint32)
  return mix(mix(text) + place)


def uniform_by_content(
  tokens: Int[Array, 'B T'], segments: Int[Array, 'B T'], stream: int
) -> Float[Array, 'B T']:
  """Return pseudo-random numbers in (0, 1); arguments as in `hash_by_content`."""
  bits = hash_by_content(tokens, segments, stream) >> 9
  return (bits.astype(jnp.float32) + 0.5) / 2**23


def choose_masked_by_content(
  tokens: Int[Array, 'B T'],
  segments: Int[Array, 'B T'],
  eligible: Bool[Array, 'B T'],
  rate: float,
  words: Int[Array, 'B T'] | None = None,
) -> Bool[Array, 'B T']:
  """Return which tokens to mask, like `choose_masked`, by hashes instead of a key.

  Each segment, not each row, has its fraction `rate` masked. Arguments as in `hash_by_content` and
  `choose_masked`.
  """
  draw = uniform_by_content(tokens, segments, 0)
  if words is not None:  # all tokens of a word get the number of its first token
    first = jnp.argmax(words[:, :, None] == words[:, None, :], axis=2)
    draw = jnp.take_along_axis(draw, first, axis=1)
  draw = jnp.where(eligible, draw, 0)
  same = segments[:, :, None] == segments[:, None, :]
  count = jnp.sum(same & eligible[:, None, :], axis=2)
  target_count = jnp.maximum(jnp.round(count.astype(float) * rate), 1).astype(jnp.int32)
  rank = jnp.sum(same & (draw[:, None, :] > draw[:, :, None]), axis=2)
  # the tokens of a word have the same number: all are chosen only if the last one still fits
  rank += jnp.sum(same & (draw[:, None, :] == draw[:, :, None]), axis=2) - 1
  return (draw > 0) & (rank < target_count)


def replace_chosen(
  key: Key[Array, ''] | tuple[Float[Array, 'B T'], UInt32[Array, 'B T']],
  tokens: Int[Array, 'B T'],
  chosen: Bool[Array, 'B T'],
  *,
  mask: int,
  vocab: int,
) -> Int[Array, 'B T']:
  """Replace 80 % of the chosen tokens by the mask token and 10 % by random ones; 10 % stay.

  Random tokens are uniform in [0, vocab), special tokens included.

  Args:
    key: PRNG key; or (uniform numbers, random bits), as from `uniform_by_content` and
      `hash_by_content`.
    tokens: token ids.
    chosen: which tokens to replace.
    mask: id of the mask token.
    vocab: size of the vocabulary.

  Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 3.1.

  >>> tokens = jnp.arange(4)[None]
  >>> replace_chosen(jax.random.key(0), tokens, tokens < 0, mask=9, vocab=4)
  Array([[0, 1, 2, 3]], dtype=int32)
  """
  if isinstance(key, tuple):
    uniform, random_tokens = key[0], (key[1] % vocab).astype(tokens.dtype)
  else:
    uniform_key, token_key = jax.random.split(key)
    uniform = jax.random.uniform(uniform_key, tokens.shape)
    random_tokens = jax.random.randint(token_key, tokens.shape, 0, vocab)
  replaced = jnp.where(uniform < 0.8, mask, jnp.where(uniform < 0.9, random_tokens, tokens))
  return jnp.where(chosen, replaced, tokens)


def noise_spans(
  key: Key[Array, ''] | tuple[Float[Array, 'B T'], Float[Array, 'B T']],
  lengths: Int[Array, 'B'],
  T: int,
  *,
  rate: float,
  mean_span: float,
) -> Bool[Array, 'B T']:
  """Return which tokens to mask, in spans of random length.

  Kept and masked spans alternate, in equal number: the first token of a row is kept, the last one
  masked. All divisions into spans are equally likely. A row of fewer than two tokens is not masked.

  Args:
    key: PRNG key, or two arrays of uniform numbers, for kept and masked spans.
    lengths: number of tokens in each row; later positions are False.
    T: padded length of the rows.
    rate: fraction of the tokens that is masked, rounded; at least one token.
    mean_span: mean length of masked spans, in tokens.

  Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 3.1.4, and its published code.

  >>> noise_spans(jax.random.key(0), jnp.array([8]), 8, rate=0.25, mean_span=2.0)[0].sum().tolist()
  2
  """
  num_masked, num_spans = noise_counts(lengths, rate=rate, mean_span=mean_span)
  if isinstance(key, tuple):
    kept, masked = key
  else:
    kept, masked = (jax.random.uniform(k, (len(lengths), T)) for k in jax.random.split(key))
  kept_parts = _random_parts(kept, lengths - num_masked, num_spans)
  masked_parts = _random_parts(masked, num_masked, num_spans)
  ends = jnp.cumsum(jnp.stack([kept_parts, masked_parts], axis=-1).reshape(len(lengths), -1), 1)
  positions = jnp.arange(T)
  span = jax.vmap(lambda ends: jnp.searchsorted(ends, positions, side='right'))(ends)
  return (span % 2 == 1) & (positions[None] < lengths[:, None]) & (lengths[:, None] > 1)


def noise_counts(lengths, *, rate: float, mean_span: float, xp=jnp):
  """Return how many tokens and how many spans `noise_spans` masks in rows of these lengths.

  Args:
    lengths: number of tokens in each row, at least 2.
    rate, mean_span: as in `noise_spans`.
    xp: jax.numpy, or numpy for the same numbers on the host (both round half to even).

  >>> [int(n) for n in noise_counts(jnp.int32(190), rate=0.15, mean_span=3.0)]
  [29, 10]
  """
  tokens = xp.round(xp.asarray(lengths, xp.float32) * xp.float32(rate)).astype(xp.int32)
  tokens = xp.clip(tokens, 1, xp.maximum(lengths - 1, 1))
  spans = xp.round(tokens.astype(xp.float32) / xp.float32(mean_span)).astype(xp.int32)
  return tokens, xp.maximum(xp.minimum(xp.minimum(spans, tokens), lengths - tokens), 1)


def _random_parts(uniform, totals, parts):
  """Return [B, T]: in row b parts[b] random positive integers with sum totals[b], then zeros.

  All such sequences are equally likely.
  """
  T = uniform.shape[1]
  positions = jnp.arange(T)[None]
  # a part may end at totals - 1 places: choose parts - 1 of them
  draw = jnp.where(positions < totals[:, None] - 1, uniform, 2.0)
  rank = jnp.argsort(jnp.argsort(draw, axis=1), axis=1)
  ends = (rank < parts[:, None] - 1).astype(jnp.int32)
  part = jnp.cumsum(jnp.pad(ends[:, :-1], ((0, 0), (1, 0))), axis=1)
  inside = (positions < totals[:, None]).astype(jnp.int32)
  return jax.vmap(lambda part, inside: jnp.zeros(T, jnp.int32).at[part].add(inside))(part, inside)


def with_sentinels(
  tokens: Int[Array, 'B T'], spans: Bool[Array, 'B T'], sentinels: Int[Array, 'X']
) -> tuple[Int[Array, 'B T'], Bool[Array, 'B T']]:
  """Replace the first token of each span (a run of True) by the next sentinel.

  If there are more spans than sentinels, the last sentinel is used again.

  Returns:
    (tokens, kept): kept is False for the other tokens of spans, which `compact` removes.

  >>> spans = jnp.array([[False, True, True, False]])
  >>> with_sentinels(jnp.array([[5, 6, 7, 8]]), spans, jnp.array([99, 98]))[0].tolist()
  [[5, 99, 7, 8]]
  """
  first = spans & ~jnp.pad(spans[:, :-1], ((0, 0), (1, 0)))
  which = jnp.clip(jnp.cumsum(first, axis=1) - 1, 0, len(sentinels) - 1)
  return jnp.where(first, sentinels[which], tokens), ~spans | first


def compact(
  tokens: Int[Array, 'B T'], kept: Bool[Array, 'B T'], length: int, eos: int
) -> tuple[Int[Array, 'B {length}'], Int[Array, 'B {length}']]:
  """Remove the tokens that are not kept, and add the end token `eos`.

  Returns:
    (tokens, segments), both [B, length]: segments are 1 for tokens, 0 for padding, whose id is 0. A
    row that keeps `length` tokens or more is truncated and has no end token.

  >>> compact(jnp.array([[5, 6, 7]]), jnp.array([[True, False, True]]), 4, eos=2)[0].tolist()
  [[5, 7, 2, 0]]
  """
  order = jnp.argsort(~kept, axis=1, stable=True)
  count = jnp.sum(kept, axis=1, keepdims=True)
  moved = jnp.take_along_axis(tokens, order, axis=1)
  moved = jnp.pad(moved, ((0, 0), (0, max(length - tokens.shape[1], 0))))[:, :length]
  positions = jnp.arange(length)[None]
  moved = jnp.where(positions < count, moved, jnp.where(positions == count, eos, 0))
  return moved, (positions <= count).astype(jnp.int32)
