"""Generation of tokens by a decoder or an encoder-decoder: whole outputs, or token by token."""

import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from transformer.functional import search
from transformer.functional.speculative import speculate
from transformer.inference.batching import PAD, bucket_length, pad_rows, split_padding
from transformer.inference.checks import (
  check_finite,
  check_ids,
  check_possible,
  check_rows,
  max_positions,
)
from transformer.inference.decoding import Constrained, Decoding, row_keys, search_tokens
from transformer.inference.stopping import StopTable, stop_table, stop_when
from transformer.modules.cache import Cache
from transformer.modules.model import Decoder, EncoderDecoder

Prompts = Int[Array, '*B S'] | Int[np.ndarray, '*B S'] | Sequence[Sequence[int]]


class Outputs(NamedTuple):
  """The outputs of each prompt, best first.

  Attributes:
    tokens: n of each prompt, with `pad` after their ends.
    scores: log P of each, in nats; of a beam search divided by its length penalties.
  """

  tokens: Int[Array, 'B n T']
  scores: Float[Array, 'B n']


def generate(model: Decoder | EncoderDecoder, tokens: Prompts, **kwargs: Any) -> Int[Array, 'R T']:
  """Generate a continuation of each prompt (Decoder), or an output for each input (EncoderDecoder).

  Arguments as in `generate_outputs`. With num_return_sequences=n the n outputs of a prompt are
  neighboring rows, best first.

  >>> from flax import nnx
  >>> from transformer import ModelConfig
  >>> config = ModelConfig(vocab=10, width=8, depth=1, heads=2, feedforward=16, max_length=16)
  >>> model = Decoder(config, nnx.Rngs(0))
  >>> generate(model, [[5, 6, 7], [8]], max_new_tokens=4).shape
  (2, 4)
  """
  found = generate_outputs(model, tokens, **kwargs).tokens
  return found.reshape(-1, found.shape[-1])


def generate_outputs(
  model: Decoder | EncoderDecoder,
  tokens: Prompts,
  *,
  eos: search.Ends | Sequence[int] | None = None,
  pad: int | None = None,
  start: int | None = None,
  key: Key[Array, ''] | None = None,
  stop: Sequence[str] = (),
  tokenizer: Any = None,
  draft: Decoder | EncoderDecoder | None = None,
  lookahead: int = 4,
  **settings: Any,
) -> Outputs:
  """Return the outputs for each prompt or input, and their scores.

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
    stop: texts that end an output, as an end token does; the token that completes one is kept.
    tokenizer: which spells the tokens, if there are such texts.
    draft: a small model of the same tokens that proposes `lookahead` tokens at once, which `model`
      checks together. Greedy outputs are the same, samples have the same distribution.
    settings: fields of `Decoding`, such as max_new_tokens (T, 128 by default), beams (1) and
      temperature (0: greedy), or of `Constrained`: constraint, a function of one row.

  What is not given, eos, pad and start included, is that of the folder of a published model, where
  one was loaded; its settings of sampling count if there is a key, its beams if not.

  Raises:
    ValueError: a prompt is empty or too long, an id is none of the model's, or settings contradict
      each other.
    FloatingPointError: the score of an output is NaN.
  """
  given = {'eos': eos, 'pad': pad, 'start': start}
  decoding, end, pad, start = _settings_of(model, given, settings, samples=key is not None)
  rows, n = _rows(tokens, pad), decoding.num_return_sequences
  if not decoding.temperature:  # the n best are there in any case: one program for any n
    decoding = dataclasses.replace(decoding, num_return_sequences=1)
  if decoding.temperature:
    rows = [row for row in rows for _ in range(n)]  # of which each has its own key
  prompts = jax.device_put(_padded(model, rows, decoding.max_new_tokens, start))
  key = decoding.key if key is None else key
  more: dict[str, Any] = dict(stops=_stops(stop, tokenizer, model), draft=draft)
  more['lookahead'] = 0 if draft is None else lookahead
  if draft is not None:
    _check_draft(model, draft, decoding, lookahead)
    _padded(draft, rows, decoding.max_new_tokens, start)
  if isinstance(model, Decoder):
    found, scores = continue_prompts(model, prompts, key, decoding, end, **more)
  else:
    encoded = split_padding(prompts)
    found, scores = decode_inputs(model, prompts, encoded, key, decoding, start, end, **more)
  best = jax.device_get(scores)[:, 0]
  check_finite(best)
  check_possible(best)
  return _outputs(found, scores, end, pad or 0, n)


def _settings_of(
  model: Decoder | EncoderDecoder, given: dict[str, Any], settings: dict[str, Any], *, samples: bool
) -> tuple[Decoding, search.Ends, int | None, int | None]:
  """Return the settings, the end tokens, pad and start: as given, else as published."""
  if (eos := given['eos']) is not None:
    given['eos'] = eos if np.ndim(eos) == 0 else tuple(np.ravel(eos).tolist())
    check_ids({'eos': search.as_tuple(given['eos'])}, model.config.vocab)
  settings = _published_settings(model, samples) | settings
  settings |= {name: value for name, value in given.items() if value is not None}
  end, pad, start = settings.pop('eos', -1), settings.pop('pad', None), settings.pop('start', None)
  kind = Constrained if 'constraint' in settings else Decoding
  decoding = kind(batch_size=1, seed=0, **settings).for_model(model, (pad, start), eos=end)
  if decoding.temperature and not samples:
    raise ValueError(f'temperature={decoding.temperature} samples: pass key=jax.random.key(seed)')
  return decoding, end, pad, start


def _stops(stop: Sequence[str], tokenizer: Any, model: Any) -> StopTable | None:
  """Return the table of the stopping strings, if there are any."""
  if not stop:
    return None
  if tokenizer is None:
    raise ValueError(f'stop={stop} is text: pass the tokenizer=, which spells the tokens')
  texts = [stop] if isinstance(stop, str) else stop
  return stop_table(texts, tokenizer.token_bytes, model.config.vocab)


def _check_draft(model, draft, decoding: Decoding, lookahead: int):
  """Raise where a draft model cannot propose tokens for another."""
  if lookahead < 1:
    raise ValueError(f'lookahead={lookahead} proposes nothing: pass 1 or more')
  if type(draft) is not type(model) or draft.config.vocab != model.config.vocab:
    raise ValueError(
      f'draft is a {type(draft).__name__} of {draft.config.vocab} tokens: pass a '
      f'{type(model).__name__} of the {model.config.vocab} tokens of the model'
    )
  if decoding.beams > 1:
    raise ValueError(f'beams={decoding.beams} with a draft: set beams to 1, or pass no draft')


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


@functools.partial(jax.jit, static_argnums=(3, 4), static_argnames='lookahead')
def continue_prompts(
  model: Decoder,
  prompts: Int[Array, 'B S'],
  key: Key[Array, ''],
  decoding: Decoding,
  eos: search.Ends,
  *,
  stops: StopTable | None = None,
  draft: Decoder | None = None,
  lookahead: int = 0,
) -> tuple[Int[Array, 'B W T'], Float[Array, 'B W']]:
  """Return the continuations of each prompt and their scores, best first.

  Args:
    model: what decodes.
    prompts: padded on the left with PAD.
    key: PRNG key of the samples.
    decoding: the settings of the search.
    eos: the end token or tokens, -1 for none.
    stops: of the stopping strings.
    draft, lookahead: a small model and how many tokens it proposes at once; see
      functional.speculative.
  """
  keys, steps = row_keys(key, prompts), decoding.max_new_tokens
  if draft is not None:
    room = _room(len(prompts), steps, lookahead)
    caches = (_prefill(model, prompts, room), _prefill(draft, prompts, room))
    reads = (functools.partial(_read, model), functools.partial(_read, draft))
    return _speculate(reads, caches, prompts, keys, decoding, eos, stops, lookahead)
  cache = _prefill(model, prompts, steps, decoding.beams)
  step = functools.partial(_step, model)
  stop = stops and stop_when(stops, prompts)
  return search_tokens(step, cache, prompts, keys, decoding, eos=eos, reorder=Cache.take, stop=stop)


@functools.partial(jax.jit, static_argnums=(4, 5, 6), static_argnames='lookahead')
def decode_inputs(
  model: EncoderDecoder,
  rows: Shaped[Array, 'B S ...'],
  encoded: tuple[Shaped[Array, 'B R ...'], Int[Array, 'B R']],
  key: Key[Array, ''],
  decoding: Decoding,
  start: int,
  eos: search.Ends,
  *,
  stops: StopTable | None = None,
  draft: EncoderDecoder | None = None,
  lookahead: int = 0,
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
    stops, draft, lookahead: as in `continue_prompts`.
  """
  check_rows(model.config, [[start]], new=decoding.max_new_tokens)
  keys, steps = row_keys(key, rows), decoding.max_new_tokens
  first = jnp.full((len(rows), 1), start, jnp.int32)
  if draft is not None:
    room = _room(len(rows), steps, lookahead)
    reads = tuple(_reader(m, encoded) for m in (model, draft))
    caches = tuple(m.init_cache(len(rows), room) for m in (model, draft))
    return _speculate(reads, caches, first, keys, decoding, eos, stops, lookahead)
  read = _reader(model, encoded)
  cache = model.init_cache(len(rows) * decoding.beams, steps, beams=decoding.beams)

  def step(tokens, cache):
    logits, cache = read(tokens[:, None], jnp.ones((len(tokens), 1), jnp.int32), cache)
    return logits[:, 0], cache

  stop = stops and stop_when(stops, first)
  return search_tokens(step, cache, first, keys, decoding, eos=eos, reorder=Cache.take, stop=stop)


def _reader(model: EncoderDecoder, encoded):
  """Return what reads output tokens of these inputs, as `_read` does."""
  inputs, segments = encoded
  memory = model.decoder.prepare(model.encode(inputs, segments=segments))

  def read(tokens, real, cache):
    return model.decode(tokens, memory, segments=real.astype(jnp.int32), cache=cache)

  return read


def _read(model: Decoder, tokens, real, cache):
  """Return the logits after each token, and the cache with those that are real."""
  return model(tokens, segments=real.astype(jnp.int32), cache=cache)


def _room(rows: int, steps: int, lookahead: int) -> int:
  """Return how many slots a cache needs: rows share them, but may take different proposals."""
  return min(rows, lookahead + 1) * steps + lookahead + 1


def _speculate(reads, caches, prompts, keys, decoding: Decoding, eos, stops, lookahead: int):
  """Search with a draft model; the tokens and scores as in `search_tokens`."""

  def places(of_rows):
    """A function of the rows of a search as one of several places in each row."""

    def one(prompt, *arrays):
      return of_rows(prompt[None], *(x[None] for x in arrays[:-1]), arrays[-1])[0]

    def each(*arrays):
      return jax.vmap(lambda prompt, *x: jax.vmap(functools.partial(one, prompt))(*x))(
        prompts, *arrays
      )

    return each

  constrained: Any = decoding.constrain
  constrain = stop = None
  if constrained(prompts, eos):
    constrain = places(lambda prompt, *x: constrained(prompt, eos)(*x))
  if stops is not None:
    stop = places(lambda prompt, *x: stop_when(stops, prompt)(*x))
  read, draft = reads
  found, scores = speculate(
    read,
    draft,
    caches,
    prompts[:, -1],
    keys,
    keep=Cache.keep,
    lookahead=lookahead,
    steps=decoding.max_new_tokens,
    eos=eos,
    constrain=constrain,
    stop=stop,
    filters=decoding.filters,
  )
  return found[:, None], scores[:, None]


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
  tokens = jax.device_put(prompt)
  rows = _start_stream(model, tokens, decoding.max_new_tokens)
  for position in range(decoding.max_new_tokens):
    rows = _extend_stream(model, tokens, key, rows, decoding, eos)
    found, scores = jax.device_get((rows.tokens, rows.scores))
    check_finite(scores)
    check_possible(scores)
    yield int(found[0, position])


def cut_at_end(tokens: Int[np.ndarray, ' T'], eos: search.Ends) -> Int[np.ndarray, ' n']:
  """Return the tokens of an output up to its first end token, that included."""
  ends = np.flatnonzero(np.isin(tokens, search.as_tuple(eos)))
  return tokens[: ends[0] + 1] if len(ends) else tokens


def _rows(tokens: Any, pad: int | None) -> list[np.ndarray]:
  """Return each prompt without its padding."""
  if isinstance(tokens, (jax.Array, np.ndarray)) and tokens.ndim != 2:
    raise ValueError(f'tokens are {list(tokens.shape)}: pass [B, S], or a list of lists')
  rows = [np.asarray(row) for row in tokens]
  if any(row.ndim != 1 or (row.size and row.dtype.kind not in 'iu') for row in rows):
    raise ValueError(f'tokens={tokens!r:.80} are no ids: pass integers [B, S], or a list of lists')
  if pad is not None and isinstance(tokens, (jax.Array, np.ndarray)):
    real = [np.flatnonzero(row != pad) for row in rows]
    rows = [row[at[0] : at[-1] + 1] if len(at) else row[:0] for row, at in zip(rows, real)]  # noqa: B905
  return rows


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _outputs(
  tokens: Int[Array, 'R W T'], scores: Float[Array, 'R W'], eos: search.Ends, pad: int, n: int
) -> Outputs:
  """Return n outputs of each prompt, its first or its W = 1 rows, with `pad` after their ends."""
  B = len(tokens) // (n if tokens.shape[1] == 1 else 1)
  tokens, scores = (x.reshape(B, -1, *x.shape[2:])[:, :n] for x in (tokens, scores))
  ends = search.is_end(tokens, eos)
  return Outputs(jnp.where((jnp.cumsum(ends, -1) - ends > 0) | (tokens < 0), pad, tokens), scores)


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
