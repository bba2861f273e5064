"""Span corruption: an encoder reads a text without some spans, a decoder predicts these (T5)."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from transformer.data.corpora import Source
from transformer.data.pipeline import Ragged
from transformer.data.processors import BlankProcessor, TextProcessor
from transformer.data.text import BLANK, Cut, blanked_middle, windows
from transformer.data.tokenizers import Tokenizer
from transformer.evaluation.likelihood import TOKEN_METRICS
from transformer.functional import corruption
from transformer.functional.losses import Mean
from transformer.inference.attention_maps import Probe
from transformer.inference.decoding import Decoding
from transformer.modules.config import ModelConfig
from transformer.modules.layers import split_key
from transformer.modules.model import EncoderDecoder
from transformer.tasks.seq2seq import Seq2Seq
from transformer.tasks.task import Batch, Metrics, OptionalKey


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption:
  """Cross-entropy of removed spans, in windows of `max_length` tokens.

  Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 3.1.4 and table 3.

  Attributes:
    tokenizer: text to tokens and back; with a sentinel for each span of a window.
    decoding: settings of inference.
    max_length: number of tokens of a window.
    objective: 'spans': the decoder predicts removed spans, each after its sentinel; 'prefix': the
      encoder reads the beginning of a text, of random length, and the decoder predicts the rest.
    rate: share of tokens in removed spans; 0.15 in the paper.
    mean_span: mean length of spans; 3 in the paper.
    label_smoothing, z_loss, start: as in Seq2Seq.
  """

  tokenizer: Tokenizer
  decoding: Decoding
  max_length: int
  objective: Literal['spans', 'prefix'] = 'spans'
  rate: float = 0.15
  mean_span: float = 3.0
  label_smoothing: float = 0.0
  z_loss: float = 0.0
  start: Literal['bos', 'eos', 'pad'] = 'bos'

  text_fields = ('targets',)
  metrics = TOKEN_METRICS
  supports_packing = False  # spans would reach from one text into the next

  def __post_init__(self):
    if not 0 < self.rate < 1 or self.mean_span < 1:
      raise ValueError(
        f'loss.rate={self.rate}, loss.mean_span={self.mean_span}: give 0 < rate < 1 and spans of '
        'at least 1 token, such as 0.15 and 3'
      )
    _, spans = self._counts
    if self.objective == 'spans' and len(self.tokenizer.sentinels) < spans:
      raise ValueError(
        f'data.max_length={self.max_length} leaves out up to {spans} spans, but the tokenizer has '
        f'{len(self.tokenizer.sentinels)} sentinels: train one with '
        f'--config.tokenizer.sentinels={spans}, or use shorter windows or longer spans'
      )
    self._seq2seq  # noqa: B018  raises where the tokenizer lacks its tokens

  @staticmethod
  def positions(max_length: int, max_new_tokens: int) -> int:
    """Return the number of positions that the model needs for inputs and outputs."""
    return max(max_length + 1, max_new_tokens)

  @property
  def _seq2seq(self) -> Seq2Seq:
    """Return the sequence-to-sequence task on corrupted texts."""
    return Seq2Seq(
      tokenizer=self.tokenizer,
      decoding=self.decoding,
      max_length=self.max_length + 1,
      label_smoothing=self.label_smoothing,
      z_loss=self.z_loss,
      start=self.start,
    )

  @property
  def start_token(self) -> int:
    """Return the id of the token that the decoder starts from."""
    return self._seq2seq.start_token

  @property
  def _counts(self) -> tuple[int, int]:
    """Return the numbers of tokens and of spans that are removed from a full window."""
    settings = dict(rate=self.rate, mean_span=self.mean_span)
    tokens, spans = corruption.noise_counts(np.int32(self.max_length), **settings, xp=np)
    return int(tokens), int(spans)

  @property
  def processor(self) -> TextProcessor:
    """Return the processor of requests, which for spans are lines with blanks."""
    if self.objective == 'prefix':
      return self._seq2seq.processor  # type: ignore[return-value]
    fillers = tuple(self.tokenizer.sentinels)
    return BlankProcessor(self.tokenizer, self.max_length + 1, fillers=fillers)

  def init(self, config: ModelConfig, key: Key[Array, '']) -> EncoderDecoder:
    """Return a freshly initialized model."""
    return self._seq2seq.init(config, key)

  @property
  def cut(self) -> Cut:
    """Return how documents are cut into windows."""
    return Cut(self.max_length, self.max_length)

  def columns(self, source: Source) -> dict[str, Ragged]:
    """Return the windows of all texts."""
    return {'inputs': Ragged.from_sequences(list(windows(self.tokenizer, source, self.max_length)))}

  def corrupt(self, batch: Batch, key: OptionalKey) -> dict[str, Int[Array, 'B _']]:
    """Return the inputs of the encoder and the targets of the decoder, both with an end token."""
    tokens, segments = batch['inputs'], batch['inputs_segments']
    real = segments != 0
    # without a key (evaluation) the corruption depends only on the text, not on its row or batch
    uniform = functools.partial(corruption.uniform_by_content, tokens, segments)
    lengths, T, eos = jnp.sum(real, axis=1), tokens.shape[1], self.tokenizer.eos
    if self.objective == 'prefix':
      share = uniform(0)[:, :1] if key is None else jax.random.uniform(key, (len(tokens), 1))
      split = 1 + (share * (lengths[:, None] - 1).astype(jnp.float32)).astype(int)
      shown = jnp.arange(T)[None] < split
      inputs = corruption.compact(tokens, real & shown, T + 1, eos)
      targets = corruption.compact(tokens, real & ~shown, T + 1, eos)
    else:
      count, spans = self._counts
      source = (uniform(0), uniform(1)) if key is None else key
      removed = corruption.noise_spans(source, lengths, T, rate=self.rate, mean_span=self.mean_span)
      sentinels = jnp.asarray(self.tokenizer.sentinels)
      marked, kept = corruption.with_sentinels(tokens, removed, sentinels)
      longest = T if T < self.max_length else self.max_length - count + spans
      inputs = corruption.compact(marked, kept & real, longest + 1, eos)
      marked, kept = corruption.with_sentinels(tokens, ~removed, sentinels)
      longest = T if T < self.max_length else count + spans
      targets = corruption.compact(marked, kept & real, longest + 1, eos)
    # a row without a text has no target
    rows = (lengths > 0)[:, None]
    return {
      'inputs': inputs[0],
      'inputs_segments': jnp.where(rows, inputs[1], 0),
      'targets': targets[0],
      'targets_segments': jnp.where(rows, targets[1], 0),
    }

  def loss(self, model: EncoderDecoder, batch: Batch, key: OptionalKey) -> tuple[Mean, Metrics]:
    """Return the cross-entropy of the removed tokens, which differ in every step."""
    noise_key, model_key = split_key(key, 2)
    return self._seq2seq.loss(model, self.corrupt(batch, noise_key), model_key)

  def batch_metrics(self, model: EncoderDecoder, batch: Batch) -> Metrics:
    """Return the metrics of the targets, sentinels and end token included, without a key."""
    return self._seq2seq.batch_metrics(model, self.corrupt(batch, None))

  def example(self, example: dict[str, str]) -> tuple[str, str]:
    """Return a line without its middle word, or its second half, and the removed words."""
    line, words, middle = blanked_middle(example['targets'])
    if self.objective == 'prefix':
      return ' '.join(words[:middle]), ' '.join(words[middle:])
    return line, ' '.join(words[middle : middle + 1])

  def answer(self, model: EncoderDecoder, requests: Sequence[Sequence[int]]) -> list[str]:
    """Return the continuation of each line, or the texts for its blanks ___, separated by ___."""
    outputs = self._seq2seq.best(model, requests, sentinels=self.objective != 'prefix')
    return [self._spell(output.tolist()) for output in outputs]

  def _spell(self, output: list[int]) -> str:
    sentinels = set(self.tokenizer.sentinels)
    parts: list[list[int]] = [[]]
    for token in output:
      if token in sentinels:
        parts.append([])
      else:
        parts[-1].append(token)
    texts = [self.tokenizer.decode(part).strip() for part in parts]
    return f' {BLANK} '.join(texts[1:] if len(texts) > 1 else texts)

  def attention(self, model: EncoderDecoder, request: Sequence[int]) -> Probe:
    """Return the Probe of the attention of a line's output to the line."""
    return self._seq2seq.attention(model, request)
