"""Sequence to sequence: translation, captioning and speech recognition by an encoder-decoder."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, Shaped

from transformer.data.corpora import Source
from transformer.data.pipeline import Columns
from transformer.data.processors import Line, Processor, Row, TextProcessor, encode_columns
from transformer.data.reading import naming
from transformer.data.tokenizers import Tokenizer
from transformer.evaluation.likelihood import TOKEN_METRICS, token_metrics
from transformer.functional.losses import Mean
from transformer.functional.search import repeat_rows
from transformer.inference.attention_maps import Probe, cross_attention, lm_logits
from transformer.inference.batching import split_padding
from transformer.inference.checks import check_possible, log_cut
from transformer.inference.decoding import Decoding
from transformer.inference.generate import cut_at_end, decode_inputs
from transformer.inference.predict import map_batches
from transformer.modules.config import ModelConfig
from transformer.modules.layers import split_key
from transformer.modules.model import EncoderDecoder
from transformer.tasks.task import Batch, Metrics, OptionalKey


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seq2Seq:
  """Cross-entropy of each target token, given the input and the earlier targets.

  Attributes:
    tokenizer: text to tokens and back, of inputs and targets.
    decoding: settings of inference.
    max_length: largest number of tokens of an input, end token included.
    input_processor: processor of images or sounds; None for texts.
    label_smoothing, z_loss: of the training loss; see losses.cross_entropy.
    consistency: factor of the divergence between two passes with different dropout (R-Drop; see
      losses.consistency), which take twice the time of one; 5 for translation in the paper. 0 for
      one pass.
    start: the token that the decoder starts from: bos, eos or pad of the tokenizer, or its name; in
      published models eos (BART), pad (T5, Marian) or <|startoftranscript|> (Whisper).
    prefix: names of tokens with which every target begins, such as a language; outputs begin with
      them, too, and answers are without them. () for those of a published tokenizer's template.
  """

  tokenizer: Tokenizer
  decoding: Decoding
  max_length: int
  input_processor: Processor | None = None
  label_smoothing: float = 0.0
  z_loss: float = 0.0
  consistency: float = 0.0
  start: str = 'bos'
  prefix: tuple[str, ...] = ()

  text_fields = ('inputs', 'targets')
  metrics = TOKEN_METRICS
  leaves_out_long = True

  def __post_init__(self):
    if None in (self.start_token, self.tokenizer.eos):
      raise ValueError(
        f'the tokenizer has no {self.start} or no end token, which sequence to sequence needs: set '
        'loss.start to one that it has'
      )
    if self.prefix:
      if self.decoding.prefix not in ((), self._prefix):
        raise ValueError(
          f'decode.prefix={self.decoding.prefix}, but loss.prefix={self.prefix} has the ids '
          f'{self._prefix}: set one of them to ()'
        )
      decoding = dataclasses.replace(self.decoding, prefix=self._prefix)
      object.__setattr__(self, 'decoding', decoding)

  @staticmethod
  def positions(max_length: int, max_new_tokens: int) -> int:
    """Return the number of positions that the model needs for inputs and outputs."""
    return max(max_length, max_new_tokens)

  @property
  def start_token(self) -> int:
    """Return the id of the token that the decoder starts from."""
    if self.start in ('bos', 'eos', 'pad'):
      return getattr(self.tokenizer, self.start)
    with naming('loss.start', 'give bos, eos, pad, or the name of a token'):
      return self.tokenizer.token_id(self.start)

  @property
  def _prefix(self) -> tuple[int, ...]:
    """Return the ids of the tokens in `prefix`."""
    with naming('loss.prefix', 'give names of tokens'):
      return tuple(map(self.tokenizer.token_id, self.prefix))

  @property
  def supports_packing(self) -> bool:
    """Return whether several examples may share a row; only texts may."""
    return self.input_processor is None

  @property
  def processor(self) -> Processor:
    """Return the processor of inputs."""
    return self.input_processor or TextProcessor(self.tokenizer, self.max_length)

  def init(self, config: ModelConfig, key: Key[Array, '']) -> EncoderDecoder:
    """Return a freshly initialized model."""
    return EncoderDecoder(config, nnx.Rngs(key))

  def columns(self, source: Source) -> Columns:
    """Return the encoded inputs and the target tokens."""
    inputs = self.processor.encode_column
    targets = TextProcessor(self.tokenizer, self.max_length, prefix=self._prefix).encode_column
    return encode_columns(source, inputs=('inputs', inputs), targets=('targets', targets))

  def loss(self, model: EncoderDecoder, batch: Batch, key: OptionalKey) -> tuple[Mean, Metrics]:
    """Return the smoothed cross-entropy, with the consistency loss, and the plain one, in nats."""
    two_passes = bool(self.consistency) and key is not None
    states, *targets = self._states(model, repeat_rows(batch, 2) if two_passes else batch, key)
    loss, nll = model.lm_head.cross_entropy(
      states,
      *targets,
      label_smoothing=self.label_smoothing,
      z_loss=self.z_loss,
      consistency=self.consistency if two_passes else 0.0,
    )
    return loss, {'nll_per_token': nll}

  def batch_metrics(self, model: EncoderDecoder, batch: Batch) -> Metrics:
    """Return the metrics of teacher forcing."""
    states, *targets = self._states(model, batch, None)
    return token_metrics(model.lm_head.attend(states), *targets)

  def _states(self, model, batch, key):
    """Return the decoder's states, the targets, and the weights of these."""
    # texts have no augmentation, which needs a key of its own
    input_key, model_key = split_key(key, 2) if self.input_processor else (None, key)
    inputs, input_segments = self.processor.prepare_batch(
      batch['inputs'], batch['inputs_segments'], input_key
    )
    targets, segments = batch['targets'], batch['targets_segments']
    states = model.states(
      inputs,
      shift_right(targets, segments, self.start_token),
      input_segments=input_segments,
      target_segments=segments,
      key=model_key,
    )
    return states, targets, (segments != 0).astype(jnp.float32)

  def warnings(self, columns: Columns, model: ModelConfig, *, training: bool) -> Iterator[str]:
    """Yield a warning for the log if targets of a split are longer than answers can be."""
    targets: Any = columns['targets']
    longer = int(np.sum(targets.lengths > self.decoding.max_new_tokens))
    if longer and not training:
      yield (
        f'{longer} of {len(targets)} targets are longer than decode.max_new_tokens='
        f'{self.decoding.max_new_tokens}: answers of that length will be cut, and scored so'
      )

  def example(self, example: dict[str, Any]) -> tuple[Line, str]:
    """Return the input and its target; several references are separated by tabs."""
    return example['inputs'], '\t'.join(example.get('references', [example['targets']]))

  def answer(self, model: EncoderDecoder, requests: Sequence[Row]) -> list[str]:
    """Return the output text of each input."""
    begin = len(self.prefix)
    return [self.tokenizer.decode(output[begin:]) for output in self.best(model, requests)]

  def n_best(self, model: EncoderDecoder, requests: Sequence[Row]) -> list[list[tuple[str, float]]]:
    """Return (text, score) of the num_return_sequences best outputs of each input, best first.

    Raises:
      ValueError: there are fewer beams, as in sampling.
    """
    if (n := self.decoding.num_return_sequences) > self.decoding.beams:
      raise ValueError(
        f'decode.num_return_sequences={n} is more than decode.beams={self.decoding.beams}: raise '
        'beams and set temperature to 0'
      )
    return [
      [
        (self.tokenizer.decode(output[len(self.prefix) :]), round(float(score), 4))
        for output, score in zip(outputs[:n], scores[:n], strict=True)
      ]
      for outputs, scores in self._searched(model, requests)
    ]

  def best(
    self, model: EncoderDecoder, requests: Sequence[Row], *, sentinels: bool = False
  ) -> list[Int[np.ndarray, ' T']]:
    """Return the tokens of the best output of each input, up to and including the end token.

    Args:
      model, requests: as in `answer`.
      sentinels: as in `search`.
    """

    results = self._searched(model, requests, sentinels=sentinels)
    log_cut((self.tokenizer.eos in outputs[0] for outputs, _ in results), self.decoding)
    return [cut_at_end(outputs[0], self.tokenizer.ends) for outputs, _ in results]

  def _searched(self, model, requests, **kwargs):
    """Return the (outputs, scores) of `search` for each input; at least one must be possible."""
    results = map_batches(self, model, lambda x: self.search(model, x, **kwargs), requests)
    check_possible(scores[0] for _, scores in results)
    return results

  def search(
    self, model: EncoderDecoder, inputs: Shaped[Array, 'B S ...'], *, sentinels: bool = False
  ) -> tuple[Int[Array, 'B W T'], Float[Array, 'B W']]:
    """Return the best outputs of each input and their scores, best first.

    Args:
      model: the model.
      inputs: from batching.pad_rows; tokens that are the tokenizer's padding are also padding.
      sentinels: whether outputs may have sentinels; they never have the padding or start token.
    """
    encoded, key, tokenizer = _prepared(self.processor, inputs), self.decoding.key, self.tokenizer
    never = (tokenizer.pad, self.start_token, *(() if sentinels else tokenizer.sentinels))
    decoding = dataclasses.replace(self.decoding, num_return_sequences=1)  # one program for any n
    decoding = decoding.for_model(model, never, eos=tokenizer.ends)
    return decode_inputs(model, inputs, encoded, key, decoding, self.start_token, tokenizer.ends)

  def attention(self, model: EncoderDecoder, request: Row) -> Probe:
    """Return the Probe of the attention of an input's output to the input."""
    (outputs,) = self.best(model, [request])
    readout = dict(readout=lm_logits, names=self.tokenizer.pieces)
    return cross_attention(self, model, request, outputs, self.tokenizer.pieces(outputs), **readout)


@functools.partial(jax.jit, static_argnums=0)
def _prepared(processor, rows):
  return processor.prepare_batch(*split_padding(rows), None)


def shift_right(
  targets: Int[Array, 'B T'], segments: Int[Array, 'B T'], bos: int
) -> Int[Array, 'B T']:
  """Return the inputs of the decoder: targets shifted right, with bos where a segment starts.

  >>> shift_right(jnp.array([[7, 8, 9, 5, 0]]), jnp.array([[1, 1, 1, 2, 0]]), 1)
  Array([[1, 7, 8, 1, 1]], dtype=int32)
  """
  first = segments != jnp.pad(segments[:, :-1], ((0, 0), (1, 0)))
  previous = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
  return jnp.where(first, bos, previous)
