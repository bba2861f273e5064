"""Generation of tokens by a decoder or an encoder-decoder: whole outputs, or token by token."""

import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from transformer.functional import search
from transformer.inference.batching import PAD, bucket_length, pad_rows, split_padding
from transformer.inference.checks import check_finite, check_rows, max_positions
from transformer.inference.decoding import Decoding, row_keys, search_tokens
from transformer.modules.cache import Cache
from transformer.modules.model import Decoder, EncoderDecoder

Prompts = Int[Array, '*B S'] | Int[np.ndarray, '*B S'] | Sequence[Sequence[int]]


def generate(
  model: Decoder | EncoderDecoder,
  tokens: Prompts,
  *,
  eos: search.Ends | None = None,
  pad: int | None = None,
  start: int | None = None,
  key: Key[Array, ''] | None = None,
  **settings: Any,
) -> Int[Array, 'B T']:
  """Generate a continuation of each prompt (Decoder), or an output for each input (EncoderDecoder).

  A row's output does not depend on the other rows, nor on its padding. Calls with arguments of the
  same shape and settings are compiled once.

  Args:
    model: a Decoder or an EncoderDecoder.
    tokens: prompts or inputs: a list of lists of different lengths, from which nothing is removed,
      or an array padded with `pad` on either side.
    eos: the token, or one of several, that ends an output and is part of it; -1 if none does.
    pad: fills an output after `eos`, and is padding at the ends of the rows of an array; None for
      an array without padding, whose outputs are filled with 0. Neither `pad` nor `start` is
      generated, unless it is an end token.
    start: the token that the decoder of an EncoderDecoder starts from.
    key: PRNG key, needed if temperature > 0. The random numbers of a row depend on the key, its
      tokens, and how many rows before it have the same ones.
    settings: fields of `Decoding`, such as max_new_tokens (T, 128 by default), beams (1) and
      temperature (0: greedy).

  What is not given, eos, pad and start included, is that of the folder of a published model, where
  one was loaded; its settings of sampling count if there is a key, its beams if not.

  Raises:
    ValueError: a prompt is empty or too long, an id is none of the model's, or settings contradict
      each other.
    FloatingPointError: the score of an output is NaN.

  >>> from flax import nnx
  >>> from transformer import ModelConfig
  >>> config = ModelConfig(vocab=10, width=8, depth=1, heads=2, feedforward=16, max_length=16)
  >>> model = Decoder(config, nnx.Rngs(0))
  >>> generate(model, [[5, 6, 7], [8]], max_new_tokens=4).shape
  (2, 4)
  """
  given = {'eos': eos, 'pad': pad, 'start': start}
  settings = _published_settings(model, key is not None) | settings
  settings |= {name: value for name, value in given.items() if value is not None}
  end, pad, start = settings.pop('eos', -1), settings.pop('pad', None), settings.pop('start', None)
  decoding = Decoding(batch_size=1, seed=0, **settings).for_model(model, (pad, start), eos=end)
  if decoding.temperature and key is None:
    raise ValueError(f'temperature={decoding.temperature} samples: pass key=jax.random.key(seed)')
  prompts = jnp.asarray(_padded(model, _rows(tokens, pad), decoding.max_new_tokens, start))
  key = jax.random.key(0) if key is None else key
  if isinstance(model, Decoder):
    found, scores = continue_prompts(model, prompts, key, decoding, end)
  else:
    found, scores = decode_inputs(model, prompts, split_padding(prompts), key, decoding, start, end)
  check_finite(np.asarray(scores[:, 0]))
  return _best(found, end, pad or 0)


def _published_settings(model: Decoder | EncoderDecoder, samples: bool) -> dict[str, Any]:
  """Return the arguments of `generate` that came with a model."""
  published = getattr(model, 'published', None)
  if published is None:
    return {}
  found, unused = published.decoding(is_decoder=isinstance(model, Decoder))
  if unused:
    _log_unused(tuple(unused))
  sampling = {'temperature', 'top_k', 'top_p', 'min_p'}
  others = {'beams'} if samples and 'temperature' in found else sampling
  return {name: value for name, value in found.items() if name not in others}


@functools.cache
def _log_unused(names: tuple[str, ...]):
  logging.getLogger(__name__).warning(
    'settings of generation that came with the model and have no meaning here: %s', ', '.join(names)
  )


def _padded(
  model: Decoder | EncoderDecoder, rows: list[np.ndarray], new: int, start: int | None
) -> Int[np.ndarray, 'B S']:
  """Return checked prompts, or inputs of an EncoderDecoder, padded to one of few lengths."""
  is_decoder = isinstance(model, Decoder)
  if is_decoder and start is not None:
    raise ValueError(f'start={start}: a Decoder continues its prompt, so pass no start')
  if not is_decoder and start is None:
    raise ValueError('an EncoderDecoder needs start=, the token that its decoder starts from')
  if not rows:
    raise ValueError('there are no prompts: pass at least one')
  for number, row in enumerate(rows):
    if not len(row):
      raise ValueError(f'prompt {number} is empty: give it at least one token')
  check_rows(model.config, rows, new=new if is_decoder else 0, source=not is_decoder)
  longest, limit = max(map(len, rows)), max_positions(model.config, source=not is_decoder)
  length = bucket_length(longest, limit - new * is_decoder if limit else 2 * longest)
  return pad_rows(rows, max(length, longest), left=is_decoder)


@functools.partial(jax.jit, static_argnums=(3, 4))
def continue_prompts(
  model: Decoder,
  prompts: Int[Array, 'B S'],
  key: Key[Array, ''],
  decoding: Decoding,
  eos: search.Ends,
) -> tuple[Int[Array, 'B W T'], Float[Array, 'B W']]:
  """Return the continuations of each prompt and their scores, best first.

  Args:
    model: what decodes.
    prompts: padded on the left with PAD.
    key: PRNG key of the samples.
    decoding: the settings of the search.
    eos: the end token or tokens, -1 for none.
  """
  cache = _prefill(model, prompts, decoding.max_new_tokens, decoding.beams)
  step = functools.partial(_step, model)
  keys = row_keys(key, prompts)
  return search_tokens(step, cache, prompts, keys, decoding, eos=eos, reorder=Cache.take)


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def decode_inputs(
  model: EncoderDecoder,
  rows: Shaped[Array, 'B S ...'],
  encoded: tuple[Shaped[Array, 'B R ...'], Int[Array, 'B R']],
  key: Key[Array, ''],
  decoding: Decoding,
  start: int,
  eos: search.Ends,
) -> tuple[Int[Array, 'B W T'], Float[Array, 'B W']]:
  """Return the outputs for each input and their scores, best first.

  Args:
    model: what decodes.
    rows: padded inputs, from which the random numbers of each row are derived.
    encoded: the encoder's inputs, and their segments: 1, and 0 for padding.
    key: PRNG key of the samples.
    decoding: the settings of the search.
    start: the token that the decoder starts from.
    eos: the end token or tokens, -1 for none.
  """
  check_rows(model.config, [[start]], new=decoding.max_new_tokens)
  inputs, segments = encoded
  memory = model.decoder.prepare(model.encode(inputs, segments=segments))
  cache = model.init_cache(
    len(inputs) * decoding.beams, decoding.max_new_tokens, beams=decoding.beams
  )

  def step(tokens, cache):
    ones = jnp.ones((len(tokens), 1), jnp.int32)
    logits, cache = model.decode(tokens[:, None], memory, segments=ones, cache=cache)
    return logits[:, 0], cache

  first = jnp.full((len(inputs), 1), start, jnp.int32)
  keys = row_keys(key, rows)
  return search_tokens(step, cache, first, keys, decoding, eos=eos, reorder=Cache.take)


def stream_tokens(
  model: Decoder,
  prompt: Int[np.ndarray, '1 S'],
  key: Key[Array, ''],
  decoding: Decoding,
  eos: search.Ends,
) -> Iterator[int]:
  """Yield `decoding.max_new_tokens` tokens that continue a prompt, each as soon as it is chosen.

  They are those of `continue_prompts` without beams. After `eos` comes PAD: stop there.

  Raises:
    FloatingPointError: the model computes NaN.
  """
  tokens = jnp.asarray(prompt)
  rows = _start_stream(model, tokens, decoding.max_new_tokens)
  for position in range(decoding.max_new_tokens):
    rows = _extend_stream(model, tokens, key, rows, decoding, eos)
    check_finite(np.asarray(rows.scores))
    yield int(rows.tokens[0, position])


def cut_at_end(tokens: Int[np.ndarray, ' T'], eos: search.Ends) -> Int[np.ndarray, ' n']:
  """Return the tokens of an output up to its first end token, that included."""
  ends = np.flatnonzero(np.isin(tokens, search.as_tuple(eos)))
  return tokens[: ends[0] + 1] if len(ends) else tokens


def _rows(tokens: Prompts, pad: int | None) -> list[np.ndarray]:
  """Return each prompt without its padding."""
  if isinstance(tokens, (jax.Array, np.ndarray)) and tokens.ndim != 2:
    raise ValueError(f'tokens are {list(tokens.shape)}: pass [B, S], or a list of lists')
  rows = [np.asarray(row, np.int32) for row in tokens]
  if pad is not None and isinstance(tokens, (jax.Array, np.ndarray)):
    real = [np.flatnonzero(row != pad) for row in rows]
    rows = [row[at[0] : at[-1] + 1] if len(at) else row[:0] for row, at in zip(rows, real)]  # noqa: B905
  return rows


@functools.partial(jax.jit, static_argnums=(1, 2))
def _best(found: Int[Array, 'B W T'], eos: search.Ends, pad: int) -> Int[Array, 'B T']:
  """Return the best output of each row, with `pad` after its end token."""
  tokens = found[:, 0]
  ends = search.is_end(tokens, eos)
  return jnp.where(jnp.cumsum(ends, axis=1) - ends > 0, pad, tokens)


def _prefill(model: Decoder, prompts: Int[Array, 'B S'], steps: int, beams: int = 1) -> Cache:
  """Return the cache of all tokens but the last of each prompt, with rows for so many beams."""
  tokens, segments = split_padding(prompts)
  B, S = prompts.shape
  cache = model.init_cache(B, S - 1 + steps)
  if S > 1:
    _, cache = model(tokens[:, :-1], segments=segments[:, :-1], cache=cache)
  return cache.take(jnp.repeat(jnp.arange(B), beams))


def _step(model: Decoder, tokens, cache):
  ones = jnp.ones((len(tokens), 1), jnp.int32)
  logits, cache = model(tokens[:, None], segments=ones, cache=cache)
  return logits[:, 0], cache


@functools.partial(jax.jit, static_argnums=2)
def _start_stream(model: Decoder, prompt: Int[Array, '1 S'], steps: int) -> search.Rows:
  return search.first_rows(prompt[:, -1], steps, PAD, _prefill(model, prompt, steps))


@functools.partial(jax.jit, static_argnums=(4, 5), donate_argnums=3)
def _extend_stream(model, prompt, key, rows, decoding: Decoding, eos: search.Ends) -> search.Rows:
  def choose(logits, position):
    if decoding.temperature:
      return search.draw(row_keys(key, prompt), logits, position, **decoding.filters)
    return search.argmax(logits)

  step, constrain = functools.partial(_step, model), decoding.constrain(prompt, eos)
  return search.extend_rows(rows, step, choose, eos, PAD, constrain)
