"""Span corruption: an encoder reads a text without some spans, a decoder predicts them (T5)."""

import dataclasses
from collections.abc import Iterable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from transformer.data.corpora import Source
from transformer.data.pipeline import Ragged
from transformer.data.text import BLANK, windows, with_blanks
from transformer.data.tokenizers import Tokenizer
from transformer.evaluation.metrics import TEACHER_FORCED, with_perplexity
from transformer.functional import corruption
from transformer.functional.losses import Mean
from transformer.inference.decoding import Decoding
from transformer.modules.config import ModelConfig
from transformer.modules.model import EncoderDecoder
from transformer.tasks.seq2seq import Seq2Seq

EVALUATION = 0  # the seed of what is left out when a model is judged: the same every time


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption:
  """The objective, on texts in windows of `length` tokens.

  Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 3.1.4 and table 3.

  Attributes:
    tokenizer: text to tokens and back; with as many sentinels as spans may be left out.
    decoding: for `predict`.
    length: of a window.
    objective: spans leaves out spans, which the decoder says, each after its sentinel; prefix
      shows the beginning of a text, cut anywhere, and asks for the rest.
    rate: share of tokens that are left out in spans; 0.15 in the paper.
    mean_span: how long spans are in the mean; 3 in the paper.
    label_smoothing, z_loss, start: as of Seq2Seq.
  """

  tokenizer: Tokenizer
  decoding: Decoding
  length: int
  objective: Literal['spans', 'prefix'] = 'spans'
  rate: float = 0.15
  mean_span: float = 3.0
  label_smoothing: float = 0.0
  z_loss: float = 0.0
  start: Literal['bos', 'eos', 'pad'] = 'bos'

  reads = ('targets',)  # of an example
  figures = TEACHER_FORCED
  packs = False  # spans would reach from one text into the next

  def __post_init__(self):
    if not 0 < self.rate < 1 or self.mean_span < 1:
      raise ValueError(
        f'loss.rate={self.rate}, loss.mean_span={self.mean_span}: give 0 < rate < 1 and spans of '
        'at least 1 token, such as 0.15 and 3'
      )
    if self.objective == 'spans' and len(self.tokenizer.sentinels) < self._spans:
      raise ValueError(
        f'data.length={self.length} leaves out up to {self._spans} spans, but the tokenizer has '
        f'{len(self.tokenizer.sentinels)} sentinels: train one with '
        f'--config.tokenizer.sentinels={self._spans}, or use shorter windows or longer spans'
      )
    self._sequence  # noqa: B018, which has demands of its own

  @property
  def _sequence(self) -> Seq2Seq:
    """What is left when the text has been corrupted."""
    return Seq2Seq(
      tokenizer=self.tokenizer,
      decoding=self.decoding,
      length=self.length + 1,
      label_smoothing=self.label_smoothing,
      z_loss=self.z_loss,
      start=self.start,
    )

  @property
  def _counts(self):
    how = dict(rate=self.rate, mean_span=self.mean_span)
    return corruption.noise_counts(np.int32(self.length), **how, np=np)

  @property
  def _hidden(self) -> int:
    """How many tokens of a whole window are left out."""
    return int(self._counts[0])

  @property
  def _spans(self) -> int:
    """In how many spans."""
    return int(self._counts[1])

  def quick(self) -> 'SpanCorruption':
    """The same task without beams."""
    return dataclasses.replace(self, decoding=dataclasses.replace(self.decoding, beams=1))

  def init(self, config: ModelConfig, key: Key[Array, '']) -> EncoderDecoder:
    """A fresh model."""
    return self._sequence.init(config, key)

  def features(self, source: Source) -> dict[str, Ragged]:
    """The texts in windows."""
    return {'inputs': Ragged.of(list(windows(self.tokenizer, source, self.length)))}

  def corrupt(
    self, batch: dict[str, Int[Array, 'B _']], key: Key[Array, ''] | None
  ) -> dict[str, Int[Array, 'B _']]:
    """What the encoder reads and the decoder is to say, both with an end token."""
    key = jax.random.key(EVALUATION) if key is None else key
    tokens, real = batch['inputs'], batch['inputs_segments'] != 0
    lengths, T, eos = jnp.sum(real, axis=1), tokens.shape[1], self.tokenizer.eos
    if self.objective == 'prefix':
      split = 1 + (jax.random.uniform(key, (len(tokens), 1)) * (lengths[:, None] - 1)).astype(int)
      shown = jnp.arange(T) < split
      inputs = corruption.compact(tokens, real & shown, T + 1, eos)
      targets = corruption.compact(tokens, real & ~shown, T + 1, eos)
    else:
      hidden = corruption.noise_spans(key, lengths, T, rate=self.rate, mean_span=self.mean_span)
      sentinels = jnp.asarray(self.tokenizer.sentinels)
      marked, kept = corruption.with_sentinels(tokens, hidden, sentinels)
      longest = T if T < self.length else self.length - self._hidden + self._spans
      inputs = corruption.compact(marked, kept & real, longest + 1, eos)
      marked, kept = corruption.with_sentinels(tokens, ~hidden, sentinels)
      longest = T if T < self.length else self._hidden + self._spans
      targets = corruption.compact(marked, kept & real, longest + 1, eos)
    # a row without a text asks for nothing
    rows = (lengths > 0)[:, None]
    return {
      'inputs': inputs[0],
      'inputs_segments': inputs[1] * rows,
      'targets': targets[0],
      'targets_segments': targets[1] * rows,
    }

  def loss(
    self, model: EncoderDecoder, batch: dict[str, Int[Array, 'B _']], key: Key[Array, ''] | None
  ) -> tuple[Mean, dict[str, Mean]]:
    """Of the tokens left out, each anew in every step."""
    noise_key, model_key = (None, None) if key is None else jax.random.split(key)
    return self._sequence.loss(model, self.corrupt(batch, noise_key), model_key)

  def measure(self, model: EncoderDecoder, batch: dict[str, Int[Array, 'B _']]) -> dict[str, Mean]:
    """How well they are said, always the same ones."""
    return self._sequence.measure(model, self.corrupt(batch, None))

  def report(self, totals: dict[str, Mean], source: Source) -> dict[str, float]:
    """The figures of a whole split; tokens are those left out, sentinels and ends included."""
    return with_perplexity(totals)

  def capture(
    self, model: EncoderDecoder, batch: dict[str, Int[Array, 'B _']]
  ) -> dict[str, dict[str, Array]]:
    """What happens inside the model as it learns from a batch."""
    return self._sequence.capture(model, self.corrupt(batch, None))

  def example(self, example: dict[str, str]) -> tuple[str, str]:
    """A line with its middle, or its end, left out; and what is missing."""
    line = next((line for line in example['targets'].split('\n') if line.strip()), '')
    words = line.split()[:30]
    if self.objective == 'prefix':
      half = len(words) // 2
      return ' '.join(words[:half]), ' '.join(words[half:])
    at = len(words) // 2
    return ' '.join([*words[:at], BLANK, *words[at + 1 :]]), ' '.join(words[at : at + 1])

  def predict(self, model: EncoderDecoder, lines: Iterable[str], *, cut: bool = False) -> list[str]:
    """What each line lacks: its end, or what belongs at every ___, one after the other.

    Raises:
      ValueError: a line has no ___ where it should, or is too long.
    """
    rows = [self.input(line, cut=cut) for line in lines]
    outputs = self._sequence.best(model, rows)
    sentinels = set(self.tokenizer.sentinels)
    texts = []
    for output in outputs:
      parts: list[list[int]] = [[]]
      for token in output.tolist():
        if token in sentinels:
          parts.append([])
        else:
          parts[-1].append(token)
      spelt = [self.tokenizer.decode(part).strip() for part in parts]
      texts.append(f' {BLANK} '.join(spelt[1:] if len(spelt) > 1 else spelt))
    return texts

  def input(self, line: str, *, cut: bool = False) -> list[int]:
    """The tokens of a line, with a sentinel for every ___.

    Raises:
      ValueError: there is none where one is needed, too many, or the line is too long.
    """
    blanks = line.count(BLANK) if self.objective == 'spans' else 0
    if blanks > len(self.tokenizer.sentinels):
      raise ValueError(f'the line has {blanks} {BLANK}, more than the tokenizer has sentinels')
    if self.objective == 'spans' and not blanks and not cut:
      raise ValueError(f'the line has nothing to fill in: write {BLANK} where words are missing')
    if not line.strip() and not cut:
      raise ValueError('the line is empty: give it some text')
    if blanks:
      tokens = with_blanks(self.tokenizer, line, self.tokenizer.sentinels[:blanks])
    else:
      tokens = self.tokenizer.encode(line)
    if len(tokens) > self.length and not cut:
      raise ValueError(
        f'the line has {len(tokens)} tokens, more than the {self.length} the model was trained '
        'for: split it'
      )
    return [*tokens[: self.length], self.tokenizer.eos]

  def attend(self, model: EncoderDecoder, line: str) -> tuple[np.ndarray, list[str], list[str]]:
    """How the output of a line attends to it: (weights [L, H, T, S], output and input pieces)."""
    return self._sequence.attend_tokens(model, self.input(line))
