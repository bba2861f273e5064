"""Sequence to sequence: teacher forcing to learn p(targets | inputs), search to use it."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, Shaped

from transformer.data.corpora import Source, chunks
from transformer.data.pipeline import Fields, Ragged, joined
from transformer.data.processors import Line, Processor, Row, TextProcessor, read
from transformer.data.tokenizers import Tokenizer
from transformer.evaluation.metrics import TEACHER_FORCED, of_logits, with_perplexity
from transformer.functional.losses import Mean
from transformer.inference.batching import bucket, padded, separated
from transformer.inference.decoding import Decoding, best, generate
from transformer.modules.cache import Cache
from transformer.modules.config import ModelConfig
from transformer.modules.layers import split_key
from transformer.modules.model import EncoderDecoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seq2Seq:
  """The objective: translation, speech recognition, captioning, by what it reads.

  Attributes:
    tokenizer: text to tokens and back, of both sides.
    decoding: for `predict`.
    length: longest input in tokens, end token included.
    inputs: how images or sounds are read; None for texts.
    label_smoothing, z_loss: of the training loss; see losses.cross_entropy.
    start: which token the decoder starts from; published models also take the end token (BART) or
      that of padding (T5, Marian).
  """

  tokenizer: Tokenizer
  decoding: Decoding
  length: int
  inputs: Processor | None = None
  label_smoothing: float = 0.0
  z_loss: float = 0.0
  start: Literal['bos', 'eos', 'pad'] = 'bos'

  reads = ('inputs', 'targets')  # of an example
  figures = TEACHER_FORCED

  def __post_init__(self):
    if None in (self.first, self.tokenizer.eos):
      raise ValueError(
        f'the tokenizer has no {self.start} or no end token, which sequence to sequence needs: set '
        'loss.start to one that it has'
      )

  @property
  def first(self) -> int:
    """The id of the token that the decoder starts from."""
    return getattr(self.tokenizer, self.start)

  @property
  def packs(self) -> bool:
    """Whether several examples may share a row: not where the model makes fewer states of them."""
    return self.inputs is None

  @property
  def reader(self) -> Processor:
    """How an input is read."""
    return self.inputs or TextProcessor(self.tokenizer, self.length)

  def quick(self) -> 'Seq2Seq':
    """The same task without beams."""
    return dataclasses.replace(self, decoding=dataclasses.replace(self.decoding, beams=1))

  def init(self, config: ModelConfig, key: Key[Array, '']) -> EncoderDecoder:
    """A fresh model."""
    return EncoderDecoder(config, nnx.Rngs(key))

  def encode(self, lines: Sequence[str]) -> list[list[int]]:
    """Tokens of each line, end token included."""
    return [[*tokens, self.tokenizer.eos] for tokens in self.tokenizer.encode_batch(lines)]

  def features(self, source: Source) -> Fields:
    """The examples as numbers, for the pipeline; only so many are held otherwise at a time."""
    return joined(
      [
        {
          'inputs': self.reader.field([example['inputs'] for example in examples]),
          'targets': Ragged.of(self.encode([example['targets'] for example in examples])),
        }
        for examples in chunks(source)
      ]
    )

  def loss(
    self,
    model: EncoderDecoder,
    batch: dict[str, Shaped[Array, 'B ...']],
    key: Key[Array, ''] | None,
  ) -> tuple[Mean, dict[str, Mean]]:
    """The smoothed objective, and apart from it the plain negative log-likelihood, in nats."""
    states, targets, weights = self._teach(model, batch, key)
    smoothing = dict(label_smoothing=self.label_smoothing, z_loss=self.z_loss)
    loss, nll = model.readout.cross_entropy(states, targets, weights, **smoothing)
    return loss, {'nll_per_token': nll}

  def measure(
    self, model: EncoderDecoder, batch: dict[str, Shaped[Array, 'B ...']]
  ) -> dict[str, Mean]:
    """What teacher forcing says of a batch that is not learnt from."""
    states, *true = self._teach(model, batch, None)
    return of_logits(model.readout.attend(states), *true)

  def report(self, totals: dict[str, Mean], source: Source) -> dict[str, float]:
    """The figures of a whole split."""
    return with_perplexity(totals)

  def _teach(self, model, batch, key):
    reader_key, model_key = split_key(key, 2) if self.inputs else (None, key)
    inputs, of_inputs = self.reader.encode(batch['inputs'], batch['inputs_segments'], reader_key)
    targets, segments = batch['targets'], batch['targets_segments']
    states = model.states(
      inputs,
      shift_right(targets, segments, self.first),
      input_segments=of_inputs,
      target_segments=segments,
      key=model_key,
    )
    return states, targets, (segments != 0).astype(jnp.float32)

  def example(self, example: dict[str, Any]) -> tuple[Line, str]:
    """The line to predict from, and what should come of it; tabs stand between several texts."""
    return example['inputs'], '\t'.join(example.get('references', [example['targets']]))

  def predict(
    self, model: EncoderDecoder, lines: Iterable[Line], *, cut: bool = False
  ) -> list[str]:
    """The output for each line, in order; the same for a line whatever lines come with it.

    Args:
      model: what decodes.
      lines: the inputs; of images and sounds, their paths.
      cut: shorten lines that are too long and take empty ones as they are instead of raising, so
        that a whole split can be scored.

    Raises:
      ValueError: a line is empty or longer than `length` tokens.
      FloatingPointError: the model is not finite.
    """
    rows = read(self.reader, lines, cut=cut)
    return [self.tokenizer.decode(output) for output in self.best(model, rows)]

  def best(self, model: EncoderDecoder, inputs: Sequence[Row]) -> list[np.ndarray]:
    """The best output of each input, up to its end token."""
    return best(
      lambda rows: self.search(model, jnp.asarray(rows)),
      inputs,
      eos=self.tokenizer.eos,
      rows=self.decoding.rows,
      longest=self.reader.longest,
    )

  def search(
    self, model: EncoderDecoder, inputs: Shaped[Array, 'B S ...']
  ) -> tuple[Int[Array, 'B W T'], Float[Array, 'B W']]:
    """The best outputs of each input and their scores, best first.

    Args:
      model: what decodes.
      inputs: from batching.padded; of tokens also the tokenizer's pad is padding.
    """
    encoded = self.reader.encode(*separated(inputs), None)
    return _search(model, inputs, encoded, self.decoding, self.first, self.tokenizer.eos)

  def capture(
    self, model: EncoderDecoder, batch: dict[str, Shaped[Array, 'B ...']]
  ) -> dict[str, dict[str, Array]]:
    """What happens inside the model as it learns from a batch: every layer of each stack."""
    inputs, of_inputs = self.reader.encode(batch['inputs'], batch['inputs_segments'], None)
    targets, segments = batch['targets'], batch['targets_segments']
    shifted = shift_right(targets, segments, self.first)
    sides = dict(input_segments=of_inputs, target_segments=segments)
    inside = model.capture(inputs, shifted, **sides)
    return {stack: inside[stack] for stack in ('encoder', 'decoder')}  # in this order

  def attend(self, model: EncoderDecoder, line: Line) -> tuple[np.ndarray, list[str], list[str]]:
    """How the output of a line attends to it: (weights [L, H, T, S], output and input pieces)."""
    return self.attend_tokens(model, self.input(line))

  def attend_tokens(
    self, model: EncoderDecoder, inputs: Row
  ) -> tuple[np.ndarray, list[str], list[str]]:
    """The same of what was read."""
    (outputs,) = self.best(model, [inputs])
    before = [self.first, *outputs[:-1].tolist()]
    # padded, or each line would be compiled for anew
    rows = padded([inputs], bucket(len(inputs), self.reader.longest))
    encoded, segments = self.reader.encode(*separated(jnp.asarray(rows)), None)
    maps = model.capture(
      encoded,
      jnp.asarray(padded([before], self.decoding.length, pad=0)),
      input_segments=segments,
      target_segments=jnp.asarray(padded([[1] * len(before)], self.decoding.length, pad=0)),
    )
    pieces = self.reader.pieces(inputs)
    weights = np.asarray(maps['decoder']['cross'])[:, 0, :, : len(outputs), : len(pieces)]
    return weights, self.tokenizer.pieces(outputs), pieces

  def input(self, line: Line) -> Row:
    """What is read of one input line.

    Raises:
      ValueError: it is empty, too long, or no such file.
    """
    return self.reader.input(line)


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


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _search(model: EncoderDecoder, prompts, encoded, decoding: Decoding, bos: int, eos: int):
  inputs, segments = encoded
  memory = model.decoder.prepare(model.encode(inputs, segments=segments))
  cache = model.init_cache(len(inputs) * decoding.beams, decoding.length, beams=decoding.beams)

  def step(tokens, cache):
    ones = jnp.ones((len(tokens), 1), jnp.int32)
    logits, cache = model.decode(tokens[:, None], memory, segments=ones, cache=cache)
    return logits[:, 0], cache

  first = jnp.full(len(inputs), bos, jnp.int32)
  return generate(step, cache, first, prompts, decoding, eos=eos, reorder=Cache.take)
