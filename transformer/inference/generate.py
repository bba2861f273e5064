"""Generation of tokens by a decoder or an encoder-decoder: whole outputs, or token by token."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from transformer.functional import search
from transformer.inference.batching import bucket_length, pad_rows, split_padding
from transformer.inference.decoding import Decoding, row_keys, search_tokens
from transformer.inference.predict import check_finite
from transformer.modules.cache import Cache
from transformer.modules.config import ModelConfig
from transformer.modules.model import Decoder, EncoderDecoder

Prompts = Int[Array, '*B S'] | Int[np.ndarray, '*B S'] | Sequence[Sequence[int]]


def generate(
  model: Decoder | EncoderDecoder,
  tokens: Prompts,
  *,
  max_new_tokens: int,
  eos: int | None = None,
  pad: int | None = None,
  start: int | None = None,
  temperature: float = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
  beams: int = 1,
  alpha: float = 0.0,
  key: Key[Array, ''] | None = None,
) -> Int[Array, 'B max_new_tokens']:
  """Return the tokens that continue each prompt, or that an encoder-decoder makes of each input.

  A row's output does not depend on the other rows, nor on its padding. Calls with arguments of the
  same shape and settings are compiled once.

  Args:
    model: a Decoder or an EncoderDecoder.
    tokens: prompts or inputs, of different lengths as a list of lists, or as an array padded with
      `pad` on either side.
    max_new_tokens: most tokens of an output.
    eos: the token that ends an output and is part of it; None if none does.
    pad: fills an output after `eos`, and is padding at the ends of the rows of `tokens`; None for
      an array without padding, whose outputs are filled with 0.
    start: the token that the decoder of an EncoderDecoder starts from.
    temperature: 0 takes the most probable token; otherwise tokens are sampled.
    top_k, top_p, min_p: filters of the sampled tokens; see functional.search.filter_logits.
    beams: W of beam search; its best output is returned.
    alpha: exponent of the length penalty of beam search.
    key: of sampling.

  Raises:
    ValueError: a prompt is empty or too long, an id is none of the model's, or settings contradict
      each other.
    FloatingPointError: the model computes NaN.

  >>> from flax import nnx
  >>> config = ModelConfig(vocab=10, width=8, depth=1, heads=2, feedforward=16, length=16)
  >>> model = Decoder(config, nnx.Rngs(0))
  >>> generate(model, [[5, 6, 7], [8]], max_new_tokens=4).shape
  (2, 4)
  """
  filters: dict[str, Any] = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
  decoding = Decoding(beams=beams, alpha=alpha, max_new_tokens=max_new_tokens, **filters)
  if temperature and key is None:
    raise ValueError(f'temperature={temperature} samples: pass key=jax.random.key(seed)')
  key = jax.random.key(0) if key is None else key
  is_decoder = isinstance(model, Decoder)
  if is_decoder == (start is not None):
    raise ValueError(
      f'start={start}: pass the token that the decoder starts from to an EncoderDecoder, and none '
      'to a Decoder, which continues its prompt'
    )
  rows = _rows(tokens, pad)
  _check_rows(rows, model.config, max_new_tokens, is_decoder)
  longest = max(map(len, rows))
  limit = _max_positions(model.config, is_decoder)
  length = bucket_length(longest, limit - max_new_tokens * is_decoder if limit else 2 * longest)
  prompts = jnp.asarray(pad_rows(rows, max(length, longest), left=is_decoder))
  end = -1 if eos is None else eos
  if is_decoder:
    found, scores = continue_prompts(model, prompts, key, decoding, end)
  else:
    encoded = split_padding(prompts)
    found, scores = decode_inputs(model, prompts, encoded, key, decoding, start, end)
  check_finite(np.asarray(scores[:, 0]))
  return _best(found, end, pad or 0)


@functools.partial(jax.jit, static_argnums=(3, 4))
def continue_prompts(
  model: Decoder, prompts: Int[Array, 'B S'], key: Key[Array, ''], decoding: Decoding, eos: int
) -> tuple[Int[Array, 'B W T'], Float[Array, 'B W']]:
  """Return the continuations of each prompt and their scores, best first.

  Args:
    model: what decodes.
    prompts: padded on the left with PAD.
    key: of sampling.
    decoding: which search.
    eos: the end token, -1 for none.
  """
  cache, last = _prefill(model, prompts, decoding.max_new_tokens, decoding.beams)
  step = functools.partial(_step, model)
  keys = row_keys(key, prompts)
  return search_tokens(step, cache, last, keys, decoding, eos=eos, reorder=Cache.take)


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def decode_inputs(
  model: EncoderDecoder,
  rows: Shaped[Array, 'B S ...'],
  encoded: tuple[Shaped[Array, 'B R ...'], Int[Array, 'B R']],
  key: Key[Array, ''],
  decoding: Decoding,
  start: int,
  eos: int,
) -> tuple[Int[Array, 'B W T'], Float[Array, 'B W']]:
  """Return the outputs for each input and their scores, best first.

  Args:
    model: what decodes.
    rows: padded inputs, of which each row's random numbers are a function.
    encoded: what the encoder reads of them, and the segments of that.
    key: of sampling.
    decoding: which search.
    start: the token that the decoder starts from.
    eos: the end token, -1 for none.
  """
  inputs, segments = encoded
  memory = model.decoder.prepare(model.encode(inputs, segments=segments))
  cache = model.init_cache(
    len(inputs) * decoding.beams, decoding.max_new_tokens, beams=decoding.beams
  )

  def step(tokens, cache):
    ones = jnp.ones((len(tokens), 1), jnp.int32)
    logits, cache = model.decode(tokens[:, None], memory, segments=ones, cache=cache)
    return logits[:, 0], cache

  first = jnp.full(len(inputs), start, jnp.int32)
  keys = row_keys(key, rows)
  return search_tokens(step, cache, first, keys, decoding, eos=eos, reorder=Cache.take)


def stream_tokens(
  model: Decoder, prompt: Int[np.ndarray, '1 S'], key: Key[Array, ''], decoding: Decoding
) -> Iterator[int]:
  """Yield the tokens that `continue_prompts` finds for one prompt, each as soon as it is found.

  Raises:
    FloatingPointError: the model computes NaN.
  """
  cache, last, keys = _start_stream(model, jnp.asarray(prompt), key, decoding.max_new_tokens)
  for position in range(decoding.max_new_tokens):
    last, score, cache = _next(model, last, cache, keys, position, decoding)
    check_finite(np.asarray(score))
    yield int(last[0])


def up_to_end(tokens: Int[np.ndarray, ' T'], eos: int) -> Int[np.ndarray, ' n']:
  """Return the tokens of an output up to its first end token, that included."""
  ends = np.flatnonzero(tokens == eos)
  return tokens[: ends[0] + 1] if len(ends) else tokens


def check_positions(config: ModelConfig, length: int):
  """Raise ValueError where a model has fewer learned positions than a text has tokens."""
  if config.position == 'learned' and length > config.max_length:
    raise ValueError(
      f'{length} tokens are more than the {config.max_length} learned positions of the model: use '
      f'{config.max_length} tokens at most'
    )


def _rows(tokens: Prompts, pad: int | None) -> list[np.ndarray]:
  """Return each prompt without its padding."""
  if isinstance(tokens, (jax.Array, np.ndarray)) and tokens.ndim != 2:
    raise ValueError(f'tokens are {list(tokens.shape)}: pass [B, S], or a list of lists')
  rows = [np.asarray(row, np.int32) for row in tokens]
  if pad is not None and isinstance(tokens, (jax.Array, np.ndarray)):
    real = [np.flatnonzero(row != pad) for row in rows]
    rows = [row[at[0] : at[-1] + 1] if len(at) else row[:0] for row, at in zip(rows, real)]  # noqa: B905
  return rows


def _check_rows(rows: list[np.ndarray], config: ModelConfig, new: int, is_decoder: bool):
  if not rows:
    raise ValueError('there are no prompts: pass at least one')
  for number, row in enumerate(rows):
    if not len(row):
      raise ValueError(f'prompt {number} is empty: give it at least one token')
    if row.min() < 0 or row.max() >= config.vocab:
      raise ValueError(
        f'prompt {number} has ids from {row.min()} to {row.max()}, but the model knows 0 to '
        f'{config.vocab - 1}: pass tokens of its own tokenizer'
      )
  longest = max(map(len, rows))
  check_positions(config, longest + new - 1 if is_decoder else new)
  limit = _max_positions(config, is_decoder)
  if not is_decoder and limit and longest > limit:
    raise ValueError(f'an input has {longest} tokens, more than the {limit} learned positions')


def _max_positions(config: ModelConfig, is_decoder: bool) -> int:
  """Return the most tokens of an input, 0 for no limit."""
  if config.position != 'learned':
    return 0
  return config.max_length if is_decoder else config.max_source_length or config.max_length


@functools.partial(jax.jit, static_argnums=(1, 2))
def _best(found: Int[Array, 'B W T'], eos: int, pad: int) -> Int[Array, 'B T']:
  """Return the best output of each row, with `pad` after its end token."""
  tokens = found[:, 0]
  ends = tokens == eos
  return jnp.where(jnp.cumsum(ends, axis=1) - ends > 0, pad, tokens)


def _prefill(model: Decoder, prompts: Int[Array, 'B S'], steps: int, beams: int = 1):
  """Return the cache of all tokens but the last of each prompt, and the last."""
  tokens, segments = split_padding(prompts)
  B, S = prompts.shape
  cache = model.init_cache(B, S - 1 + steps)
  if S > 1:
    _, cache = model(tokens[:, :-1], segments=segments[:, :-1], cache=cache)
  return cache.take(jnp.repeat(jnp.arange(B), beams)), tokens[:, -1]


def _step(model: Decoder, tokens, cache):
  ones = jnp.ones((len(tokens), 1), jnp.int32)
  logits, cache = model(tokens[:, None], segments=ones, cache=cache)
  return logits[:, 0], cache


@functools.partial(jax.jit, static_argnums=3)
def _start_stream(model: Decoder, prompt: Int[Array, '1 S'], key, steps: int):
  return *_prefill(model, prompt, steps), row_keys(key, prompt)


@functools.partial(jax.jit, static_argnums=5, donate_argnums=2)
def _next(model: Decoder, last, cache: Cache, keys, position, decoding: Decoding):
  logits, cache = _step(model, last, cache)
  score = jnp.max(logits, axis=-1)
  if decoding.temperature:
    return search.draw(keys, logits, position, **decoding.filters), score, cache
  return search.argmax(logits), score, cache
