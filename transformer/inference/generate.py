"""Generation of tokens by a decoder or an encoder-decoder, whole outputs or token by token."""

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
from transformer.modules.config import ModelConfig
from transformer.modules.model import Decoder, EncoderDecoder

Prompts = Int[Array, '*B S'] | Int[np.ndarray, '*B S'] | Sequence[Sequence[int]]
Inputs = Prompts | Float[Array, 'B S X'] | Float[np.ndarray, 'B S X'] | Sequence[np.ndarray]


class Outputs(NamedTuple):
  """The n outputs of each prompt, best first.

  Attributes:
    tokens: with `pad` after the end token.
    scores: log P in nats; in a beam search divided by the length penalties.
  """

  tokens: Int[Array, 'B n T']
  scores: Float[Array, 'B n']


def generate(model: Decoder | EncoderDecoder, tokens: Inputs, **kwargs: Any) -> Int[Array, 'R T']:
  """Return a continuation of each prompt (Decoder), or an output for each input (EncoderDecoder).

  Arguments as in `generate_outputs`. With num_return_sequences=n the n outputs of a prompt are
  neighboring rows, best first.

  >>> from flax import nnx
  >>> from transformer import ModelConfig
  >>> config = ModelConfig(vocab=10, width=8, depth=1, heads=2, feedforward=16, max_length=16)
  >>> model = Decoder(config, nnx.Rngs(0))
  >>> generate(model, [[5, 6, 7], [8]], max_new_tokens=4).shape
  (2, 4)
  """
  outputs = generate_outputs(model, tokens, **kwargs).tokens
  return outputs.reshape(-1, outputs.shape[-1])


def generate_outputs(
  model: Decoder | EncoderDecoder,
  tokens: Inputs,
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

  The output of a row does not depend on the other rows or on its padding. Calls with arguments of
  the same shapes and settings are compiled once. eos, pad, start and settings that are not given
  are those of the folder from which a published model was loaded, if any; of its settings, those of
  sampling are used only with a key, and its beams only without one.

  Args:
    model: a Decoder or an EncoderDecoder.
    tokens: prompts or inputs: a list of lists, without padding, or an array padded with `pad` on
      either side. For an encoder of sounds or images: frames or patches, floats [B, S, X] or a list
      of [S, X].
    eos: the end token, or several; it is part of an output. -1 for none.
    pad: fills an output after its end; also the padding in `tokens`. None: `tokens` has no padding,
      and outputs are filled with 0. `pad` and `start` are never generated, except as end tokens.
    start: the token that the decoder of an EncoderDecoder starts from.
    key: PRNG key, needed if temperature > 0. The random numbers of a row depend on the key, its
      tokens, and the number of earlier rows with the same tokens.
    stop: stopping strings: an output ends with the token that completes one of them.
    tokenizer: the tokenizer of the model, needed with stopping strings.
    draft: a small model with the same vocabulary that proposes `lookahead` tokens at once, which
      `model` then checks. Greedy outputs stay the same, samples have the same distribution.
    settings: fields of `Decoding`, such as max_new_tokens (T, 128 by default), beams (1) and
      temperature (0: greedy), or of `Constrained`: constraint, a function of one row.

  Raises:
    ValueError: a prompt is empty or too long, an id is outside the vocabulary, or settings
      contradict each other.
    FloatingPointError: the score of an output is NaN.
  """
  special = {'eos': eos, 'pad': pad, 'start': start}
  decoding, end, pad, start = _settings_of(model, special, settings, samples=key is not None)
  rows, n = _rows(tokens, pad, model.config), decoding.num_return_sequences
  if decoding.temperature:
    rows = [row for row in rows for _ in range(n)]  # each of the n has its own key
  else:  # a search returns all its beams: one program for any n
    decoding = dataclasses.replace(decoding, num_return_sequences=1)
  prompts = jax.device_put(_padded(model, rows, decoding.max_new_tokens, start))
  if draft is not None:
    _check_draft(model, draft, decoding, lookahead)
    _padded(draft, rows, decoding.max_new_tokens, start)
  kwargs: dict[str, Any] = dict(draft=draft, lookahead=0 if draft is None else lookahead)
  kwargs['stops'] = _stops(stop, tokenizer, model)
  found, scores = _search(model, prompts, key, decoding, start, end, kwargs)
  return _outputs(found, scores, end, pad or 0, n)


def _search(model, prompts, key, decoding: Decoding, start, end, kwargs: dict[str, Any]):
  """Return the checked outputs of a Decoder or an EncoderDecoder, and their scores."""
  key = decoding.key if key is None else key
  if isinstance(model, Decoder):
    tokens, scores = continue_prompts(model, prompts, key, decoding, end, **kwargs)
  else:
    encoded = split_padding(prompts)
    tokens, scores = decode_inputs(model, prompts, encoded, key, decoding, start, end, **kwargs)
  best = jax.device_get(scores)[:, 0]
  check_finite(best)
  check_possible(best)
  return tokens, scores


def _settings_of(
  model: Decoder | EncoderDecoder,
  special: dict[str, Any],
  settings: dict[str, Any],
  *,
  samples: bool,
) -> tuple[Decoding, search.Ends, int | None, int | None]:
  """Return the settings, the end tokens, pad and start, published ones where None is given."""
  if (eos := special['eos']) is not None:
    special['eos'] = eos if np.ndim(eos) == 0 else tuple(np.ravel(eos).tolist())
    check_ids({'eos': search.as_tuple(special['eos'])}, model.config.vocab)
  settings = _published_settings(model, samples) | settings
  settings |= {name: value for name, value in special.items() if value is not None}
  end, pad, start = settings.pop('eos', -1), settings.pop('pad', None), settings.pop('start', None)
  kind = Constrained if 'constraint' in settings else Decoding
  decoding = kind(batch_size=1, seed=0, **settings).for_model(model, (pad, start), eos=end)
  if decoding.temperature and not samples:
    raise ValueError(f'temperature={decoding.temperature} samples: pass key=jax.random.key(seed)')
  return decoding, end, pad, start


def _stops(stop: Sequence[str], tokenizer: Any, model: Any) -> StopTable | None:
  """Return the table of the stopping strings, or None without any."""
  if not stop:
    return None
  if tokenizer is None:
    raise ValueError(f'stop={stop} is text: pass the tokenizer= of the model')
  texts = [stop] if isinstance(stop, str) else stop
  return stop_table(texts, tokenizer.token_bytes, model.config.vocab)


def _check_draft(model, draft, decoding: Decoding, lookahead: int):
  """Raise ValueError if a draft model cannot propose tokens for the model."""
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
  """Return the arguments of `generate` from the folder of a published model."""
  published = getattr(model, 'published', None)
  if published is None:
    return {}
  settings, unused = published.decoding(is_decoder=isinstance(model, Decoder))
  if unused:
    _log_unused(tuple(unused))
  sampling = {'temperature', 'top_k', 'top_p', 'min_p'}
  others = {'beams'} if samples and 'temperature' in settings else sampling
  return {name: value for name, value in settings.items() if name not in others}


@functools.cache
def _log_unused(names: tuple[str, ...]):
  logging.getLogger(__name__).warning(
    'settings of generation that came with the model and have no meaning here: %s', ', '.join(names)
  )


def _padded(
  model: Decoder | EncoderDecoder, rows: list[np.ndarray], new: int, start: int | None
) -> Shaped[np.ndarray, 'B S ...']:
  """Check prompts, or inputs of an EncoderDecoder, and pad them to one of a few lengths."""
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
  if model.config.modality == 'patches':  # all of one number, which a stem needs as it is
    return pad_rows(rows, longest)
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
    model: the model.
    prompts: padded on the left with PAD.
    key: PRNG key for sampling.
    decoding: settings of the search.
    eos: the end token or tokens, -1 for none.
    stops: table of the stopping strings, if any.
    draft, lookahead: the draft model and how many tokens it proposes at once; see
      functional.speculative.
  """
  keys, steps = row_keys(key, prompts), decoding.max_new_tokens
  if draft is not None:
    slots = _draft_slots(len(prompts), steps, lookahead)
    caches = (_prefill(model, prompts, slots), _prefill(draft, prompts, slots))
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
    model: the model.
    rows: padded inputs, from which the key of each row is derived.
    encoded: (inputs of the encoder, their segments: 1, and 0 for padding).
    key: PRNG key for sampling.
    decoding: settings of the search.
    start: the token that the decoder starts from.
    eos: the end token or tokens, -1 for none.
    stops, draft, lookahead: as in `continue_prompts`.
  """
  check_rows(model.config, [[start]], new=decoding.max_new_tokens)
  keys, steps = row_keys(key, rows), decoding.max_new_tokens
  first = jnp.full((len(rows), 1), start, jnp.int32)
  if draft is not None:
    slots = _draft_slots(len(rows), steps, lookahead)
    reads = tuple(_reader(m, encoded) for m in (model, draft))
    caches = tuple(m.init_cache(len(rows), slots) for m in (model, draft))
    return _speculate(reads, caches, first, keys, decoding, eos, stops, lookahead)
  read = _reader(model, encoded)
  cache = model.init_cache(len(rows) * decoding.beams, steps, beams=decoding.beams)

  def step(tokens, cache):
    logits, cache = read(tokens[:, None], jnp.ones((len(tokens), 1), jnp.int32), cache)
    return logits[:, 0], cache

  stop = stops and stop_when(stops, first)
  return search_tokens(step, cache, first, keys, decoding, eos=eos, reorder=Cache.take, stop=stop)


def _reader(model: EncoderDecoder, encoded):
  """Return a function like `_read` of output tokens, for these inputs."""
  inputs, segments = encoded
  memory = model.decoder.prepare(model.encode(inputs, segments=segments))

  def read(tokens, real, cache):
    return model.decode(tokens, memory, segments=real.astype(jnp.int32), cache=cache)

  return read


def _read(model: Decoder, tokens, real, cache):
  """Return the logits after each token, and the cache with the real tokens added."""
  return model(tokens, segments=real.astype(jnp.int32), cache=cache)


def _draft_slots(rows: int, steps: int, lookahead: int) -> int:
  """Return how many slots a cache needs in speculative decoding.

  A slot is at one place in all rows. It stays empty in rows that reject a token another one keeps.
  """
  return min(rows, lookahead + 1) * steps + lookahead + 1


def _speculate(reads, caches, prompts, keys, decoding: Decoding, eos, stops, lookahead: int):
  """Search with a draft model; return tokens and scores as `search_tokens` does."""

  def at_every_place(of_rows):
    """Return of_rows(prompts, arrays of rows..., position) for arrays with an axis of places."""

    def at_place(prompt, *arrays):
      return of_rows(prompt[None], *(x[None] for x in arrays[:-1]), arrays[-1])[0]

    def in_row(prompt, *arrays):
      return jax.vmap(functools.partial(at_place, prompt))(*arrays)

    return lambda *arrays: jax.vmap(in_row)(prompts, *arrays)

  constraint_of: Any = decoding.constrain
  constrain = stop = None
  if constraint_of(prompts, eos):
    constrain = at_every_place(lambda prompt, *x: constraint_of(prompt, eos)(*x))
  if stops is not None:
    stop = at_every_place(lambda prompt, *x: stop_when(stops, prompt)(*x))
  read, draft = reads
  tokens, scores = speculate(
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
  return tokens[:, None], scores[:, None]


def stream_tokens(
  model: Decoder,
  prompt: Int[np.ndarray, '1 S'],
  key: Key[Array, ''],
  decoding: Decoding,
  eos: search.Ends,
) -> Iterator[int]:
  """Yield `decoding.max_new_tokens` tokens that continue a prompt, each as soon as it is chosen.

  They are those of `continue_prompts` without beams. After `eos` PAD is yielded: the caller should
  stop there.

  Raises:
    ValueError: the constraints forbid every token.
    FloatingPointError: the model computes NaN.
  """
  prompt_array = jax.device_put(prompt)
  rows = _start_stream(model, prompt_array, decoding.max_new_tokens)
  for position in range(decoding.max_new_tokens):
    rows = _extend_stream(model, prompt_array, key, rows, decoding, eos)
    tokens, scores = jax.device_get((rows.tokens, rows.scores))
    check_finite(scores)
    check_possible(scores)
    yield int(tokens[0, position])


def cut_at_end(tokens: Int[np.ndarray, ' T'], eos: search.Ends) -> Int[np.ndarray, ' n']:
  """Return the tokens of an output up to and including its first end token."""
  ends = np.flatnonzero(np.isin(tokens, search.as_tuple(eos)))
  return tokens[: ends[0] + 1] if len(ends) else tokens


def _rows(tokens: Any, pad: int | None, config: ModelConfig) -> list[np.ndarray]:
  """Return the prompts or inputs as arrays, without the padding of an array [B, S]."""
  if config.modality != 'tokens':
    return _float_rows(tokens, config)
  if isinstance(tokens, (jax.Array, np.ndarray)) and tokens.ndim != 2:
    raise ValueError(f'tokens are {list(tokens.shape)}: pass [B, S], or a list of lists')
  rows = [np.asarray(row) for row in tokens]
  if any(row.ndim != 1 or (row.size and row.dtype.kind not in 'iu') for row in rows):
    raise ValueError(f'tokens={tokens!r:.80} are no ids: pass integers [B, S], or a list of lists')
  if pad is not None and isinstance(tokens, (jax.Array, np.ndarray)):
    rows = [_without_padding(row, pad) for row in rows]
  return rows


def _float_rows(inputs: Any, config: ModelConfig) -> list[np.ndarray]:
  """Return frames or patches as arrays [S, X]."""
  rows = [np.asarray(row, np.float32) for row in inputs]
  shapes = sorted({row.shape for row in rows})
  if any(row.ndim != 2 or row.shape[1] != config.features for row in rows):
    raise ValueError(
      f'inputs are {shapes}: pass {config.modality} [B, S, {config.features}], or a list of [S, '
      f'{config.features}]'
    )
  if config.modality == 'patches' and len(shapes) > 1:
    raise ValueError(f'patches are {shapes}: pass images of one size')
  if not all(np.isfinite(row).all() for row in rows):
    raise ValueError(f'{config.modality} have NaN or Inf: pass finite numbers, without padding')
  return rows


def _without_padding(row: np.ndarray, pad: int) -> np.ndarray:
  real = np.flatnonzero(row != pad)
  return row[real[0] : real[-1] + 1] if len(real) else row[:0]


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _outputs(
  tokens: Int[Array, 'R W T'], scores: Float[Array, 'R W'], eos: search.Ends, pad: int, n: int
) -> Outputs:
  """Return n outputs for each prompt, with `pad` after their ends.

  These are the first n beams of a row, or with W = 1 n neighboring rows.
  """
  B = len(tokens) // (n if tokens.shape[1] == 1 else 1)
  tokens, scores = (x.reshape(B, -1, *x.shape[2:])[:, :n] for x in (tokens, scores))
  ends = search.is_end(tokens, eos)
  after = jnp.cumsum(ends, axis=-1) > ends.astype(int)
  return Outputs(jnp.where(after | (tokens < 0), pad, tokens), scores)


def _prefill(model: Decoder, prompts: Int[Array, 'B S'], steps: int, beams: int = 1) -> Cache:
  """Return the cache of all tokens except the last of each prompt, with each row `beams` times."""
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
