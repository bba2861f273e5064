"""Transcription of sounds by an encoder with the CTC loss, alone or beside an attending decoder.

`JointCTC` is `seq2seq` with CTC as a second loss: with few data attention alone learns little.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Key, Shaped

from transformer.data.corpora import Source, chunks
from transformer.data.pipeline import Fields, Ragged, joined
from transformer.data.processors import Line, Processor, Row, TextProcessor, read
from transformer.data.tokenizers import Tokenizer
from transformer.functional.losses import Mean, ctc
from transformer.inference.batching import Batching, in_batches, self_attention, separated
from transformer.modules.config import ModelConfig
from transformer.modules.heads import AlignedEncoderDecoder, Transcriber
from transformer.modules.layers import split_key
from transformer.tasks.seq2seq import Seq2Seq, shift_right


@dataclasses.dataclass(frozen=True, kw_only=True)
class CTC:
  """The objective. The tokenizer's token of padding is the blank.

  Attributes:
    tokenizer: text to tokens and back.
    decoding: for `predict`, which takes the best token of each position.
    length: longest input.
    inputs: how images or sounds are read; None for texts.
  """

  tokenizer: Tokenizer
  decoding: Batching
  length: int
  inputs: Processor | None = None

  reads = ('inputs', 'targets')  # of an example
  figures = ('nll_per_token',)
  packs = False

  def __post_init__(self):
    if self.tokenizer.pad is None:
      raise ValueError('the tokenizer has no token of padding, which transcription takes as blank')

  @property
  def reader(self) -> Processor:
    """How an input is read."""
    return self.inputs or TextProcessor(self.tokenizer, self.length)

  def quick(self) -> 'CTC':
    """The same task: there is nothing to search."""
    return self

  def init(self, config: ModelConfig, key: Key[Array, '']) -> Transcriber:
    """A fresh model."""
    return Transcriber(config, nnx.Rngs(key))

  def features(self, source: Source) -> Fields:
    """The examples as numbers, for the pipeline."""
    return joined(
      [
        {
          'inputs': self.reader.field([example['inputs'] for example in examples]),
          'targets': Ragged.of(self.tokenizer.encode_batch([e['targets'] for e in examples])),
        }
        for examples in chunks(source)
      ]
    )

  def loss(
    self,
    model: Transcriber,
    batch: dict[str, Shaped[Array, 'B ...']],
    key: Key[Array, ''] | None,
  ) -> tuple[Mean, dict[str, Mean]]:
    """-log P of the targets, in nats; per token. What is too short to say them counts nothing."""
    reader_key, model_key = split_key(key, 2)
    inputs, segments = self.reader.encode(batch['inputs'], batch['inputs_segments'], reader_key)
    logits, segments = model(inputs, segments=segments, key=model_key)
    targets, weights = batch['targets'], (batch['targets_segments'] != 0).astype(jnp.float32)
    mean = ctc(logits, segments != 0, targets, weights, blank=self.tokenizer.pad)
    return mean, {'nll_per_token': mean}

  def measure(
    self, model: Transcriber, batch: dict[str, Shaped[Array, 'B ...']]
  ) -> dict[str, Mean]:
    """The same of a batch that is not learnt from."""
    return self.loss(model, batch, None)[1]

  def report(self, totals: dict[str, Mean], source: Source) -> dict[str, float]:
    """The figures of a whole split."""
    return {name: float(mean.value) for name, mean in totals.items()}

  def capture(
    self, model: Transcriber, batch: dict[str, Shaped[Array, 'B ...']]
  ) -> dict[str, dict[str, Array]]:
    """What happens inside the model as it learns from a batch."""
    encoded = self.reader.encode(batch['inputs'], batch['inputs_segments'], None)
    return {'encoder': model.encoder.capture(*encoded)}

  def example(self, example: dict[str, Any]) -> tuple[Line, str]:
    """The sound, and what it says."""
    return example['inputs'], example['targets']

  def input(self, line: Line) -> Row:
    """What is read of one line.

    Raises:
      ValueError: it is too long, or no such sound.
    """
    return self.reader.input(line)

  def predict(self, model: Transcriber, lines: Iterable[Line], *, cut: bool = False) -> list[str]:
    """What each sound says.

    Raises:
      ValueError: a sound is too long, or none.
      FloatingPointError: the model is not finite.
    """
    rows = read(self.reader, lines, cut=cut)
    find = functools.partial(_best, self.reader, self.tokenizer.pad, model)
    found = in_batches(find, rows, rows=self.decoding.rows, longest=self.reader.longest)
    if not all(finite for _, finite in found):
      raise FloatingPointError('the model computes NaN for these lines: its training diverged')
    return [self.tokenizer.decode(self.said(path.tolist())) for path, _ in found]

  def said(self, path: Iterable[int]) -> list[int]:
    """The tokens of an alignment: neither what is said again at once, nor blanks."""
    return [int(token) for token, _ in itertools.groupby(path) if token != self.tokenizer.pad]

  def attend(self, model: Transcriber, line: Line) -> tuple[np.ndarray, list[str], list[str]]:
    """How the positions of a sound attend to each other: (weights [L, H, T, T], names, names)."""
    row = self.input(line)

    def capture(rows):
      return model.encoder.capture(*self.reader.encode(*separated(jnp.asarray(rows)), None))

    return self_attention(capture, row, self.reader.pieces(row), self.reader.longest)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointCTC(Seq2Seq):
  """Sequence to sequence, with CTC to show the encoder in what order things are said.

  (1 - w) -log P(targets | inputs) - w log P_CTC(targets | inputs): Watanabe et al. 2017,
  https://doi.org/10.1109/JSTSP.2017.2763455, equation 17. Only the decoder is used to predict.

  Attributes:
    ctc: w, between 0 and 1.
  """

  ctc: float = 0.3

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.ctc <= 1:
      raise ValueError(f'loss.ctc={self.ctc} is a share: give 0 <= ctc <= 1, such as 0.3')
    if self.tokenizer.pad is None:
      raise ValueError('the tokenizer has no token of padding, which CTC takes as blank')

  @property
  def packs(self) -> bool:
    """Whether several examples may share a row: an alignment has all of it."""
    return False

  def init(self, config: ModelConfig, key: Key[Array, '']) -> AlignedEncoderDecoder:
    """A fresh model."""
    return AlignedEncoderDecoder(config, nnx.Rngs(key))

  def loss(  # type: ignore[override]
    self,
    model: AlignedEncoderDecoder,
    batch: dict[str, Shaped[Array, 'B ...']],
    key: Key[Array, ''] | None,
  ) -> tuple[Mean, dict[str, Mean]]:
    """Both objectives, and apart from their sum the plain negative log-likelihoods, in nats."""
    reader_key, encoder_key, decoder_key = split_key(key, 3)
    inputs, heard = self.reader.encode(batch['inputs'], batch['inputs_segments'], reader_key)
    memory = model.encode(inputs, segments=heard, key=encoder_key)
    targets, segments = batch['targets'], batch['targets_segments']
    before = model.embed(shift_right(targets, segments, self.first))
    states = model.decoder(before, segments, memory=memory, key=decoder_key).x

    weights = (segments != 0).astype(jnp.float32)
    smoothing = dict(label_smoothing=self.label_smoothing, z_loss=self.z_loss)
    attended, nll = model.readout.cross_entropy(states, targets, weights, **smoothing)
    aligned = ctc(
      model.align(memory.states),
      memory.segments != 0,  # type: ignore[arg-type]  # given, so not None
      targets,
      weights * (targets != self.tokenizer.eos),
      blank=self.tokenizer.pad,
    )
    loss = Mean((1 - self.ctc) * attended.sum + self.ctc * aligned.sum, attended.weight)
    return loss, {'nll_per_token': nll, 'ctc_per_token': aligned}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _best(reader: Processor, blank: int, model: Transcriber, rows):
  """The best token of each position, the blank at padding; and whether all logits are finite."""
  inputs, segments = reader.encode(*separated(rows), None)
  logits, segments = model(inputs, segments=segments)
  real = segments != 0
  path = jnp.where(real, jnp.argmax(logits, axis=-1), blank)
  return path, jnp.all(jnp.isfinite(logits) | ~real[..., None], axis=(1, 2))
