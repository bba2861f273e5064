"""Extractive question answering: find the span of a paragraph that answers a question."""

import bisect
import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from transformer.data.corpora import Source, chunks
from transformer.data.pipeline import Columns, Ragged
from transformer.data.tokenizers import Tokenizer
from transformer.functional.losses import Mean, accuracy, cross_entropy
from transformer.inference.attention_maps import Probe, self_attention
from transformer.inference.batching import split_padding
from transformer.inference.decoding import Batching, check_positive
from transformer.inference.predict import run_batches
from transformer.modules.config import ModelConfig
from transformer.modules.heads import Spans
from transformer.tasks.task import Batch, Metrics, OptionalKey

QUESTION, PARAGRAPH, MATCH = 0, 1, 2  # token types
NO_ANSWER = -1  # padding of the columns of answers
OUTSIDE = (0, 0)  # target start and end, both at <s>, if the answer is outside the window


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extraction(Batching):
  """Settings of the extraction of answers.

  Attributes:
    longest: largest number of tokens of an answer.
  """

  longest: int = 30

  def __post_init__(self):
    check_positive(self, 'batch_size', 'longest')


class Question(NamedTuple):
  """A question about a paragraph.

  Attributes:
    question: tokens of the question.
    paragraph: tokens of the paragraph.
    places: (start, end) of the characters of each token of the paragraph in its text.
    text: text of the paragraph.
  """

  question: list[int]
  paragraph: list[int]
  places: list[tuple[int, int]]
  text: str

  def answer(self, start: int, end: int) -> str:
    """Return the text of tokens `start` to `end` of the paragraph; '' if it has no tokens."""
    if not self.places:
      return ''
    return self.text[self.places[start][0] : self.places[end][1]].strip()


class Window(NamedTuple):
  """One row of the model: a question and a part of its paragraph.

  Attributes:
    tokens: of both.
    part_at: index of the first token of the part in `tokens`.
    start: index of the same token in the paragraph.
  """

  tokens: list[int]
  part_at: int
  start: int

  @property
  def shift(self) -> int:
    """Return the index of a token in the window minus its index in the paragraph."""
    return self.part_at - self.start

  def place(self, start: int, end: int) -> tuple[int, int]:
    """Return the start and end of an answer in the window; OUTSIDE if it is not wholly there."""
    start, end = start + self.shift, end + self.shift
    return (start, end) if self.part_at <= start and end < len(self.tokens) - 1 else OUTSIDE


@dataclasses.dataclass(frozen=True)
class QuestionProcessor:
  """Encodes questions and paragraphs, and divides them into windows.

  Attributes:
    tokenizer: text to tokens.
    max_length: number of tokens of a window.
    stride: number of tokens between the starts of two windows of a paragraph.
  """

  tokenizer: Tokenizer
  max_length: int
  stride: int

  def encode_example(self, line: str, *, truncate: bool = False) -> Question:
    """Return the encoded question and paragraph of a line.

    Args:
      line: question<TAB>paragraph, or a JSON object with question and context.
      truncate: accept any line, and cut a long question.

    Raises:
      ValueError: the line has another form, an empty part, or a question that is too long.
    """
    question, tab, text = line.partition('\t')
    if not tab and line.startswith('{'):
      try:
        row = json.loads(line)
        question, text = row['question'], row['context']
      except (ValueError, KeyError, TypeError) as error:
        if truncate:
          return Question([], [], [], '')
        raise ValueError(
          f'no JSON object with question and context ({error!r}): give both, or QUESTION<TAB>TEXT'
        ) from error
    (encoded,) = self.encode([(question, text)])
    if truncate:
      return encoded
    if not encoded.question or not encoded.paragraph:
      raise ValueError('no question or no paragraph: give question<TAB>paragraph')
    if len(tokens := self.tokenizer.encode(question)) > len(encoded.question):
      raise ValueError(
        f'the question has {len(tokens)} tokens, more than {len(encoded.question)}, half of a '
        'window: shorten it'
      )
    return encoded

  def encode(self, pairs: Sequence[tuple[str, str]]) -> list[Question]:
    """Return encoded pairs (question, paragraph); questions are cut to half a window."""
    questions, paragraphs = zip(*pairs, strict=True) if pairs else ((), ())
    # many questions are about the same paragraph
    unique = list(dict.fromkeys(paragraphs))
    spans = dict(zip(unique, self.tokenizer.encode_spans(unique), strict=True))
    encoded = self.tokenizer.encode_batch(questions)
    return [
      Question(question[: self.max_length // 2 - 2], spans[text][0], spans[text][1], text)
      for question, text in zip(encoded, paragraphs, strict=True)
    ]

  def windows(self, question: Question) -> list[Window]:
    """Return windows <s> question </s> part of the paragraph </s> that cover the paragraph."""
    before = [self.tokenizer.bos, *question.question, self.tokenizer.eos]
    room = self.max_length - len(before) - 1
    step = min(self.stride, room)
    eos = self.tokenizer.eos
    return [
      Window([*before, *question.paragraph[start : start + room], eos], len(before), start)
      for start in range(0, max(len(question.paragraph) - room, 0) + step, step)
    ]

  def labels(self, row: Sequence[int]) -> list[str]:
    """Return the text of each token of a window."""
    return self.tokenizer.pieces(row)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionAnswering:
  """-(log p(start) + log p(end)) / 2 of an answer, in <s> question </s> paragraph </s>.

  A long paragraph is divided into windows that overlap; in windows without the answer the target is
  <s>. Several reference answers have the same weight. The predicted answer is that of the window
  where it is most probable. Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 4.2, and
  its published code.

  With model.token_types=2 question and paragraph have different types; with 3 tokens of the
  paragraph that are also in the question have the third type (Chen et al. 2017,
  https://arxiv.org/abs/1704.00051, section 3.2, exact match).

  Attributes:
    tokenizer: text to tokens.
    decoding: settings of inference.
    max_length: number of tokens of a window, question and special tokens included.
    stride: number of tokens between the starts of two windows of a paragraph.
  """

  tokenizer: Tokenizer
  decoding: Extraction
  max_length: int
  stride: int = 128

  text_fields = ('inputs', 'targets')  # the question and the paragraph
  metrics = {'nll': False, 'start_accuracy': True, 'end_accuracy': True}
  supports_packing = False

  def __post_init__(self):
    bos, eos = self.tokenizer.bos, self.tokenizer.eos
    if None in (bos, eos) or bos == eos:
      raise ValueError('the tokenizer has no start and end token, which question answering needs')
    if self.max_length < 8:
      raise ValueError(
        f'data.max_length={self.max_length} leaves no room for text: make windows longer'
      )
    if not 0 < self.stride < self.max_length:
      raise ValueError(
        f'loss.stride={self.stride} must be at least 1 and less than data.max_length='
        f'{self.max_length}, or windows do not overlap'
      )

  @property
  def processor(self) -> QuestionProcessor:
    """Return the processor of questions."""
    return QuestionProcessor(self.tokenizer, self.max_length, self.stride)

  def init(self, config: ModelConfig, key: Key[Array, '']) -> Spans:
    """Return a freshly initialized model."""
    return Spans(config, nnx.Rngs(key))

  def columns(self, source: Source) -> Columns:
    """Return all windows of all examples, and the starts and ends of answers in them."""
    inputs, targets = [], []
    for examples in chunks(source):
      pairs = [(example['inputs'], example['targets']) for example in examples]
      rows = []
      for example, question in zip(examples, self.processor.encode(pairs), strict=True):
        answers = [
          _tokens_of(question.places, start, start + len(text))
          for start, text in zip(example['starts'], example['answers'], strict=True)
        ]
        for window in self.processor.windows(question):
          rows.append(window.tokens)
          targets.append([window.place(*answer) for answer in answers] or [OUTSIDE])
      inputs.append(Ragged.from_sequences(rows))
    places = np.full((len(targets), max(map(len, targets)), 2), NO_ANSWER, np.int32)
    for row, answers in zip(places, targets, strict=True):
      row[: len(answers)] = answers
    return {'inputs': Ragged.concatenate(inputs), 'starts': places[..., 0], 'ends': places[..., 1]}

  def loss(self, model: Spans, batch: Batch, key: OptionalKey) -> tuple[Mean, Metrics]:
    """Return -(log p(start) + log p(end)) / 2 in nats, the mean over answers, and metrics.

    The accuracies of start and end count windows, and compare with the first reference.
    """
    logits = self.logits(model, batch['inputs'], batch['inputs_segments'] != 0, key)
    loss, metrics = _nll(logits, batch), {}
    weights = _real(batch).astype(jnp.float32)
    for i, side in enumerate(('start', 'end')):
      place = jnp.maximum(batch[f'{side}s'][:, 0], 0)
      metrics[f'{side}_accuracy'] = accuracy(logits[..., i], place, weights)
    return loss, {'nll': loss, **metrics}

  def logits(
    self, model: Spans, tokens: Int[Array, 'B T'], real: Bool[Array, 'B T'], key: OptionalKey = None
  ) -> Float[Array, 'B T 2']:
    """Return the logits of starts and ends, -1e30 outside the paragraph and <s> (no answer)."""
    types, inside = self.token_types(tokens, real, model.config.token_types)
    logits = model(tokens, segments=real.astype(jnp.int32), token_types=types, key=key)
    allowed = inside.at[:, 0].set(True)
    return jnp.where(allowed[..., None], logits.astype(jnp.float32), -1e30)

  def token_types(
    self, tokens: Int[Array, 'B T'], real: Bool[Array, 'B T'], count: int
  ) -> tuple[Int[Array, 'B T'], Bool[Array, 'B T']]:
    """Return the type of each token, and whether it is in the paragraph (its </s> is not).

    Args:
      tokens: windows.
      real: False for padding.
      count: model.token_types.
    """
    special = (tokens == self.tokenizer.bos) | (tokens == self.tokenizer.eos)
    ends = (tokens == self.tokenizer.eos) & real
    after = (jnp.cumsum(ends, axis=1) > ends.astype(int)) & real
    question = ~after & real & ~special
    in_question = jnp.any((tokens[:, :, None] == tokens[:, None, :]) & question[:, None, :], axis=2)
    inside = after & ~special
    kinds = jnp.where(inside & in_question, MATCH, jnp.where(after, PARAGRAPH, QUESTION))
    return jnp.minimum(kinds, max(count - 1, 0)), inside

  def example(self, example: dict[str, Any]) -> tuple[str, str]:
    """Return the line question<TAB>paragraph, and its distinct answers separated by tabs."""
    answers = dict.fromkeys(example['answers'])
    return f'{example["inputs"]}\t{example["targets"]}', '\t'.join(answers)

  def answer(self, model: Spans, requests: Sequence[Question]) -> list[str]:
    """Return the answer to each question, as it is written in its paragraph."""
    windows = [(i, window) for i, q in enumerate(requests) for window in self.processor.windows(q)]
    spans = run_batches(self, model, [window.tokens for _, window in windows])
    best: dict[int, tuple[float, str]] = {}
    for (i, window), (score, start, end) in zip(windows, spans, strict=True):
      if i not in best or score > best[i][0]:
        place = int(start) - window.shift, int(end) - window.shift
        best[i] = float(score), requests[i].answer(*place)
    return [best[i][1] for i in range(len(requests))]

  def forward(self, model: Spans, rows: Int[Array, 'B T']):
    """Return the score, start and end of the best answer in each window."""
    tokens, segments = split_padding(rows)
    _, inside = self.token_types(tokens, segments != 0, model.config.token_types)
    logits = self.logits(model, tokens, segments != 0)
    return best_spans(logits, inside, self.decoding.longest)

  def attention(self, model: Spans, request: Question) -> Probe:
    """Return the Probe of attention between the tokens of a question's first window."""
    return self_attention(self, model, self.processor.windows(request)[0].tokens)


def best_spans(
  logits: Float[Array, 'B T 2'], inside: Bool[Array, 'B T'], longest: int
) -> tuple[Float[Array, ' B'], Int[Array, ' B'], Int[Array, ' B']]:
  """Return (the score, start s and end e) of the best span of each row.

  The score is max over s <= e < s + longest of log p(start = s) + log p(end = e).

  Args:
    logits: of starts and ends; probabilities are over all T.
    inside: where s and e may be; a row without such places has score -Inf.
    longest: largest length of a span.
  """
  T = logits.shape[1]
  starts, ends = jnp.moveaxis(jax.nn.log_softmax(logits, axis=1), 2, 0)
  at = jnp.arange(T)
  length = at[None, None, :] - at[None, :, None] + 1
  valid = (length > 0) & (length <= longest) & inside[:, :, None] & inside[:, None, :]
  scores = jnp.where(valid, starts[:, :, None] + ends[:, None, :], -jnp.inf).reshape(-1, T * T)
  best = jnp.argmax(scores, axis=1)
  return jnp.max(scores, axis=1), best // T, best % T


def _nll(logits, batch) -> Mean:
  is_answer = (batch['starts'] != NO_ANSWER) & _real(batch)[:, None]
  answers = is_answer.astype(jnp.float32)
  weights = answers / jnp.maximum(jnp.sum(answers, axis=1, keepdims=True), 1)
  sides = [
    cross_entropy(
      jnp.broadcast_to(logits[:, None, :, i], (*places.shape, logits.shape[1])),
      jnp.maximum(places, 0),
      weights,
    )
    for i, places in enumerate((batch['starts'], batch['ends']))
  ]
  return Mean((sides[0].sum + sides[1].sum) / 2, sides[0].weight)


def _real(batch) -> Bool[Array, ' B']:
  return jnp.any(batch['inputs_segments'] != 0, axis=1)


def _tokens_of(places: list[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
  """Return the first and last token that contain any of the characters start to end - 1."""
  first = bisect.bisect_right(places, start, key=lambda place: place[1])
  last = bisect.bisect_left(places, end, key=lambda place: place[0]) - 1
  return (first, last) if first <= last else (len(places), len(places))  # in no window
