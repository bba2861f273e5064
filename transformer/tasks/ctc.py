"""Transcription with the CTC loss: an encoder alone, or an encoder-decoder with both losses."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Key, Shaped

from transformer.data.corpora import Source
from transformer.data.pipeline import Columns, Ragged
from transformer.data.processors import Line, Processor, Row, TextProcessor, encode_columns
from transformer.data.tokenizers import Tokenizer
from transformer.functional.losses import Mean, ctc
from transformer.inference.attention_maps import Probe, out_logits, self_attention
from transformer.inference.batching import split_padding
from transformer.inference.decoding import Batching
from transformer.inference.predict import run_batches
from transformer.modules.config import ModelConfig
from transformer.modules.heads import AlignedEncoderDecoder, Transcriber
from transformer.modules.layers import split_key
from transformer.tasks.seq2seq import Seq2Seq, shift_right
from transformer.tasks.task import Batch, Metrics, OptionalKey


@dataclasses.dataclass(frozen=True, kw_only=True)
class CTC:
  """-log P of the targets, where P is summed over all alignments; see losses.ctc.

  The tokenizer's padding token is the blank. Inference takes the best token of each position.

  Attributes:
    tokenizer: text to tokens and back.
    decoding: settings of inference.
    max_length: largest length of an input.
    input_processor: processor of images or sounds; None for texts.
  """

  tokenizer: Tokenizer
  decoding: Batching
  max_length: int
  input_processor: Processor | None = None

  text_fields = ('inputs', 'targets')
  metrics = {'nll_per_token': False, 'tokens_without_alignment': False}
  supports_packing = False

  def __post_init__(self):
    if self.tokenizer.pad is None:
      raise ValueError('the tokenizer has no padding token, which CTC uses as the blank')

  @property
  def processor(self) -> Processor:
    """Return the processor of inputs."""
    return self.input_processor or TextProcessor(self.tokenizer, self.max_length)

  def init(self, config: ModelConfig, key: Key[Array, '']) -> Transcriber:
    """Return a freshly initialized model."""
    return Transcriber(config, nnx.Rngs(key))

  def columns(self, source: Source) -> Columns:
    """Return the encoded inputs and the target tokens."""

    def tokens(texts: list[str]) -> Ragged:
      return Ragged.from_sequences(self.tokenizer.encode_batch(texts))

    inputs = self.processor.encode_column
    return encode_columns(source, inputs=('inputs', inputs), targets=('targets', tokens))

  def loss(self, model: Transcriber, batch: Batch, key: OptionalKey) -> tuple[Mean, Metrics]:
    """Return -log P of the targets, in nats per token, and the share of tokens left out.

    A target is left out if its input has fewer positions than an alignment needs.
    """
    input_key, model_key = split_key(key, 2)
    encoded = self.processor.prepare_batch(batch['inputs'], batch['inputs_segments'], input_key)
    logits, segments = model(encoded[0], segments=encoded[1], key=model_key)
    targets, weights = batch['targets'], (batch['targets_segments'] != 0).astype(jnp.float32)
    mean = ctc(logits, segments != 0, targets, weights, blank=self.tokenizer.pad)
    tokens = jnp.sum(weights)
    left_out = Mean(tokens - mean.weight, tokens)
    return mean, {'nll_per_token': mean, 'tokens_without_alignment': left_out}

  def warnings(self, columns: Columns, model: ModelConfig, *, training: bool) -> Iterator[str]:
    """Yield a warning for the log if inputs of a split have no alignment."""
    yield from _without_alignment(columns, model, end=0)

  def example(self, example: dict[str, Any]) -> tuple[Line, str]:
    """Return the input and its transcript."""
    return example['inputs'], example['targets']

  def answer(self, model: Transcriber, requests: Sequence[Row]) -> list[str]:
    """Return the transcript of each input."""
    paths = run_batches(self, model, requests)
    return [self.tokenizer.decode(self.collapse(path.tolist())) for path, _ in paths]

  def forward(self, model: Transcriber, rows: Shaped[Array, 'B ...']):
    """Return the best token of each position, the blank at padding; and NaN if a logit is NaN."""
    inputs, segments = split_padding(rows)
    inputs, segments = self.processor.prepare_batch(inputs, segments, None)
    logits, segments = model(inputs, segments=segments)
    real = segments != 0
    path = jnp.where(real, jnp.argmax(logits, axis=-1), self.tokenizer.pad)
    finite = jnp.all(jnp.isfinite(logits) | ~real[..., None], axis=(1, 2))
    return path, jnp.where(finite, 0.0, jnp.nan)

  def collapse(self, path: Iterable[int]) -> list[int]:
    """Return the tokens of an alignment: repetitions are merged, then blanks removed."""
    return [int(token) for token, _ in itertools.groupby(path) if token != self.tokenizer.pad]

  def attention(self, model: Transcriber, request: Row) -> Probe:
    """Return the Probe of attention between the positions of an input."""
    readout = dict(readout=out_logits, names=self.tokenizer.pieces)
    return self_attention(self, model, request, **readout)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointCTC(Seq2Seq):
  """-(1 - w) log P(targets | inputs) - w log P_CTC(targets | inputs).

  Seq2Seq with CTC as a second loss, on the encoder, which helps with little data. Watanabe et al.
  2017, https://doi.org/10.1109/JSTSP.2017.2763455, equation 17. Inference uses the decoder only.

  Attributes:
    ctc: w, between 0 and 1.
  """

  ctc: float = 0.3

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.ctc <= 1:
      raise ValueError(f'loss.ctc={self.ctc} is a share: give 0 <= ctc <= 1, such as 0.3')
    if self.tokenizer.pad is None:
      raise ValueError('the tokenizer has no padding token, which CTC uses as the blank')
    if self.prefix:
      raise ValueError(f'loss.prefix={self.prefix} would be aligned with the input: set it to ()')

  @property
  def supports_packing(self) -> bool:
    """Return False: an alignment uses a whole row, so examples cannot be packed."""
    return False

  def init(self, config: ModelConfig, key: Key[Array, '']) -> AlignedEncoderDecoder:
    """Return a freshly initialized model."""
    return AlignedEncoderDecoder(config, nnx.Rngs(key))

  def loss(  # type: ignore[override]
    self,
    model: AlignedEncoderDecoder,
    batch: Batch,
    key: OptionalKey,
  ) -> tuple[Mean, Metrics]:
    """Return the joint loss, and the negative log-likelihoods of decoder and CTC, in nats."""
    input_key, encoder_key, decoder_key = split_key(key, 3)
    encoded = self.processor.prepare_batch(batch['inputs'], batch['inputs_segments'], input_key)
    memory = model.encode(encoded[0], segments=encoded[1], key=encoder_key)
    targets, segments = batch['targets'], batch['targets_segments']
    before = model.embed(shift_right(targets, segments, self.start_token))
    states = model.decoder(before, segments, memory=memory, key=decoder_key).x

    weights = (segments != 0).astype(jnp.float32)
    smoothing = dict(label_smoothing=self.label_smoothing, z_loss=self.z_loss)
    attended, nll = model.lm_head.cross_entropy(states, targets, weights, **smoothing)
    aligned = ctc(
      model.align(memory.states),
      memory.segments != 0,  # type: ignore[arg-type]  # not None: the input has segments
      targets,
      jnp.where(targets == self.tokenizer.eos, 0, weights),
      blank=self.tokenizer.pad,
    )
    loss = Mean((1 - self.ctc) * attended.sum + self.ctc * aligned.sum, attended.weight)
    return loss, {'nll_per_token': nll, 'ctc_per_token': aligned}

  def warnings(self, columns: Columns, model: ModelConfig, *, training: bool) -> Iterator[str]:
    """Yield the warnings of Seq2Seq and of CTC."""
    yield from super().warnings(columns, model, training=training)
    yield from _without_alignment(columns, model, end=1)


def _without_alignment(columns: Columns, model: ModelConfig, *, end: int) -> Iterator[str]:
  """Yield a message if inputs have no alignment: how many, and their share of the tokens.

  Args:
    columns: inputs and targets.
    model: config of the model; with frames it has one position for every two.
    end: number of end tokens of each target, which are not aligned.
  """
  inputs: Any = columns['inputs']
  targets: Any = columns['targets']
  if not isinstance(inputs, Ragged):
    return  # images, which all have the same number of positions
  positions = -(-inputs.sizes // 2) if model.modality == 'frames' else inputs.sizes
  tokens = targets.lengths - end
  repeated = np.append(targets.tokens[1:] == targets.tokens[:-1], False)
  repeated[targets.offsets[1:][targets.lengths > 0] - 1] = False  # the next example's first token
  repeats = np.diff(np.append(0, np.cumsum(repeated))[targets.offsets])
  left_out = tokens + repeats > positions  # equal neighbors need a blank between them
  if count := int(left_out.sum()):
    yield (
      f'{count} of {len(targets)} inputs have fewer positions than their transcript needs, no '
      'alignment: CTC learns nothing from them, and its loss leaves out '
      f'{100 * tokens[left_out].sum() / max(tokens.sum(), 1):.3g} % of the tokens'
    )
