"""Sequence to sequence: teacher forcing to learn p(targets | inputs), search to use it."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from transformer.data.corpora import Source
from transformer.data.pipeline import Batch, Ragged
from transformer.data.tokenizers import Tokenizer
from transformer.functional import search
from transformer.functional.losses import Mean, accuracy, cross_entropy
from transformer.modules.cache import Cache
from transformer.modules.config import ModelConfig
from transformer.modules.model import EncoderDecoder

SIDES = ('inputs', 'targets')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
  """How outputs are searched for.

  Attributes:
    beams: W; 1 is greedy.
    alpha: exponent of the length penalty ((5 + L) / 6)^alpha; greedy search needs none.
    length: most tokens of an output, end token included.
    rows: lines decoded at once. Always so many: the same shape for every batch keeps a line's
      output independent of its neighbours to the last bit.
  """

  beams: int
  alpha: float
  length: int
  rows: int

  def __post_init__(self):
    for name in ('beams', 'length', 'rows'):
      if getattr(self, name) < 1:
        raise ValueError(f'decode.{name}={getattr(self, name)} must be at least 1')
    if not self.alpha >= 0:
      raise ValueError(f'decode.alpha={self.alpha} must be at least 0: more prefers longer outputs')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceToSequence:
  """The objective, with a tokenizer shared by both sides.

  Attributes:
    tokenizer: text to tokens and back.
    decoding: for `predict`.
    length: longest input in tokens, end token included.
    label_smoothing, z_loss: of the training loss; see losses.cross_entropy.
  """

  tokenizer: Tokenizer
  decoding: Decoding
  length: int
  label_smoothing: float
  z_loss: float

  def with_decoding(self, decoding: Decoding) -> 'SequenceToSequence':
    """The same task, decoding otherwise."""
    return dataclasses.replace(self, decoding=decoding)

  def init(self, config: ModelConfig, key: Key[Array, '']) -> EncoderDecoder:
    """A fresh model."""
    return EncoderDecoder(config, nnx.Rngs(key))

  def encode(self, lines: Sequence[str]) -> list[list[int]]:
    """Tokens of each line, end token included."""
    return [[*tokens, self.tokenizer.eos] for tokens in self.tokenizer.encode_batch(lines)]

  def features(self, source: Source) -> dict[str, Ragged]:
    """The examples as tokens, for the pipeline; a few thousand texts are held at a time."""
    chunks = []
    for start in range(0, len(source), 8192):
      examples = [source[i] for i in range(start, min(start + 8192, len(source)))]
      chunks.append([Ragged.of(self.encode([e[side] for e in examples])) for side in SIDES])
    return {
      side: Ragged.join(parts) for side, parts in zip(SIDES, zip(*chunks, strict=True), strict=True)
    }

  def loss(
    self, model: EncoderDecoder, batch: dict[str, Int[Array, 'B _']], key: Key[Array, ''] | None
  ) -> tuple[Mean, dict[str, Mean]]:
    """The smoothed objective, and apart from it the plain negative log-likelihood, in nats."""
    states, targets, weights = self._teach(model, batch, key)
    smoothing = dict(label_smoothing=self.label_smoothing, z_loss=self.z_loss)
    loss, nll = model.readout.cross_entropy(states, targets, weights, **smoothing)
    return loss, {'nll_per_token': nll}

  def measure(self, model: EncoderDecoder, batch: dict[str, Int[Array, 'B _']]) -> dict[str, Mean]:
    """What teacher forcing says of a batch that is not learnt from."""
    states, targets, weights = self._teach(model, batch, None)
    logits = model.readout.attend(states)
    return {
      'nll_per_token': cross_entropy(logits, targets, weights),
      'token_accuracy': accuracy(logits, targets, weights),
    }

  def _teach(self, model, batch, key):
    targets, segments = batch['targets'], batch['targets_segments']
    states = model.states(
      batch['inputs'],
      shift_right(targets, segments, self.tokenizer.bos),
      input_segments=batch['inputs_segments'],
      target_segments=segments,
      key=key,
    )
    return states, targets, (segments != 0).astype(jnp.float32)

  def predict(self, model: EncoderDecoder, lines: Iterable[str], *, cut: bool = False) -> list[str]:
    """The output for each line, in order; the same for a line whatever lines come with it.

    Args:
      model: what decodes.
      lines: the inputs.
      cut: shorten lines that are too long and take empty ones as they are instead of raising, so
        that a whole split can be scored.

    Raises:
      ValueError: a line is empty or longer than `length` tokens.
      FloatingPointError: the model is not finite.
    """
    if isinstance(lines, str):
      raise ValueError('predict takes many lines: pass a list, [line] for a single one')
    if cut:
      tokens = [
        t[: self.length - 1] + t[-1:] if len(t) > self.length else t
        for t in self.encode(list(lines))
      ]
    else:
      tokens = []
      for number, line in enumerate(lines, start=1):
        try:
          tokens.append(self.input(line))
        except ValueError as error:
          raise ValueError(f'line {number}: {error}') from error
    return [self.tokenizer.decode(output) for output in self._best(model, tokens)]

  def _best(self, model: EncoderDecoder, inputs: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """The best output of each input, up to its end token."""
    outputs = [np.zeros(0, np.int32)] * len(inputs)
    shapes = np.array([_bucket(len(t), self.length) for t in inputs])
    for shape in np.unique(shapes).tolist():
      of_shape = np.flatnonzero(shapes == shape)
      for start in range(0, len(of_shape), self.decoding.rows):
        members = of_shape[start : start + self.decoding.rows]
        # the rows left over repeat a line: an empty one would never end
        rows = np.pad(members, (0, self.decoding.rows - len(members)), mode='edge')
        found, scores = self.search(model, jnp.asarray(_padded([inputs[i] for i in rows], shape)))
        if np.isnan(scores).any():
          raise FloatingPointError('the model computes NaN for these lines: its training diverged')
        for i, best in zip(members, np.asarray(found)[:, 0], strict=False):
          ends = np.flatnonzero(best == self.tokenizer.eos)
          outputs[i] = best[: ends[0] + 1] if len(ends) else best
    return outputs

  def search(
    self, model: EncoderDecoder, inputs: Int[Array, 'B S']
  ) -> tuple[Int[Array, 'B W T'], Float[Array, 'B W']]:
    """The best outputs of each input and their scores, best first."""
    return _search(model, inputs, self.decoding, self.tokenizer.bos, self.tokenizer.eos)

  def first_not_finite(self, model: EncoderDecoder, batch: Batch) -> str:
    """Where a NaN or Inf comes first, in the order of computation: parameter, layer, gradient."""

    def first(tree):
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        bad = ~np.isfinite(np.asarray(leaf))
        if bad.any():
          name = jax.tree_util.keystr(path, simple=True, separator='/').removesuffix('/value')
          stacked = 'blocks/' in name
          return f'{name}, layer {np.argwhere(bad)[0][0]}' if stacked else name

    if place := first(model):
      return f'parameter {place}'
    arrays = {name: jnp.asarray(rows) for name, rows in batch.items()}
    inputs, input_segments = arrays['inputs'], arrays['inputs_segments']
    targets, target_segments = arrays['targets'], arrays['targets_segments']
    shifted = shift_right(targets, target_segments, self.tokenizer.bos)
    segments = dict(input_segments=input_segments, target_segments=target_segments)
    inside = _capture(model, inputs, shifted, **segments)
    for side in ('encoder', 'decoder'):
      bad = ~np.isfinite(np.asarray(inside[side]['states'])).all(axis=(1, 2, 3))
      if bad.any():
        return f'the states of {side} layer {np.argmax(bad)}'
    gradient = jax.jit(jax.grad(lambda model: self.loss(model, arrays, None)[0].sum))(model)
    if place := first(gradient):
      return f'the gradient of {place}'
    return 'a place that only dropout reaches'

  def attend(self, model: EncoderDecoder, line: str) -> tuple[np.ndarray, list[str], list[str]]:
    """How the output of a line attends to it: (weights [L, H, T, S], output and input pieces)."""
    inputs = self.input(line)
    (outputs,) = self._best(model, [inputs])
    read = [self.tokenizer.bos, *outputs[:-1].tolist()]
    # padded, or each line would be compiled for anew
    maps = _capture(
      model,
      jnp.asarray(_padded([inputs], _bucket(len(inputs), self.length))),
      jnp.asarray(_padded([read], self.decoding.length)),
      target_segments=jnp.asarray(_padded([[1] * len(read)], self.decoding.length)),
    )
    pieces = self.tokenizer.pieces
    weights = np.asarray(maps['decoder']['cross'])[:, 0, :, : len(outputs), : len(inputs)]
    return weights, pieces(outputs), pieces(inputs)

  def input(self, line: str) -> list[int]:
    """The tokens of one input line.

    Raises:
      ValueError: it is empty or too long.
    """
    (tokens,) = self.encode([line])
    if len(tokens) == 1 or not line.strip():
      raise ValueError('the line is empty: give it some text')
    if len(tokens) > self.length:
      raise ValueError(
        f'the line has {len(tokens)} tokens, more than the {self.length} the model was trained '
        'for: split it'
      )
    return tokens


def shift_right(
  targets: Int[Array, 'B T'], segments: Int[Array, 'B T'], bos: int
) -> Int[Array, 'B T']:
  """What the decoder reads: each target one place later, and bos where a segment starts.

  >>> shift_right(jnp.array([[7, 8, 9, 5, 0]]), jnp.array([[1, 1, 1, 2, 0]]), 1)
  Array([[1, 7, 8, 1, 1]], dtype=int32)
  """
  first = segments != jnp.pad(segments[:, :-1], ((0, 0), (1, 0)))
  previous = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
  return jnp.where(first, bos, previous)


_capture = jax.jit(EncoderDecoder.capture)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _search(model: EncoderDecoder, inputs, decoding: Decoding, bos: int, eos: int):
  memory = model.decoder.prepare(model.encode(inputs))
  cache = model.init_cache(len(inputs) * decoding.beams, decoding.length)

  def step(tokens, cache):
    ones = jnp.ones((len(tokens), 1), jnp.int32)
    logits, cache = model.decode(tokens[:, None], memory, segments=ones, cache=cache)
    return logits[:, 0], cache

  first = jnp.full(len(inputs), bos, jnp.int32)
  if decoding.beams == 1:
    tokens, scores = search.greedy(step, cache, first, steps=decoding.length, eos=eos)
    return tokens[:, None], scores[:, None]
  return search.beam_search(
    step,
    cache,
    first,
    beams=decoding.beams,
    steps=decoding.length,
    eos=eos,
    alpha=decoding.alpha,
    reorder=Cache.take,
  )


def _padded(rows: Sequence[Sequence[int]], length: int) -> Int[np.ndarray, 'B length']:
  padded = np.zeros((len(rows), length), np.int32)
  for row, tokens in enumerate(rows):
    padded[row, : len(tokens)] = tokens
  return padded


def _bucket(length: int, longest: int) -> int:
  """The padded length of an input, from its own length alone: 8, 16, 32, ... up to the longest."""
  return min(max(8, 1 << (length - 1).bit_length()), max(longest, length))
