"""Extractive question answering: the span of a paragraph that answers a question."""

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

QUESTION, PARAGRAPH, MATCH = 0, 1, 2  # types of tokens
NO_ANSWER = -1  # padding of the lists of answers
OUTSIDE = (0, 0)  # start and end of an answer outside the window: both at <s>


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extraction(Batching):
  """Settings of the extraction of answers.

  Attributes:
    longest: most tokens of an answer.
  """

  longest: int = 30

  def __post_init__(self):
    check_positive(self, 'batch_size', 'longest')


class Question(NamedTuple):
  """A question about a paragraph.

  Attributes:
    question: its tokens.
    paragraph: its tokens.
    places: for each of these, its characters (start, end) in the text.
    text: of the paragraph.
  """

  question: list[int]
  paragraph: list[int]
  places: list[tuple[int, int]]
  text: str

  def answer(self, start: int, end: int) -> str:
    """Return the text of these tokens of the paragraph, or nothing if it has no tokens."""
    if not self.places:
      return ''
    return self.text[self.places[start][0] : self.places[end][1]].strip()


class Window(NamedTuple):
  """A question with a part of its paragraph, which the model reads at once.

  Attributes:
    tokens: of both.
    part_at: index of the part's first token in `tokens`.
    start: index of the same token in the paragraph.
  """

  tokens: list[int]
  part_at: int
  start: int

  @property
  def shift(self) -> int:
    """Return the index of a token in the window, less that in the paragraph."""
    return self.part_at - self.start

  def place(self, start: int, end: int) -> tuple[int, int]:
    """Return the place of an answer in the window, if it is there as a whole."""
    start, end = start + self.shift, end + self.shift
    return (start, end) if self.part_at <= start and end < len(self.tokens) - 1 else OUTSIDE


@dataclasses.dataclass(frozen=True)
class QuestionProcessor:
  """Questions and paragraphs to tokens, and these to windows.

  Attributes:
    tokenizer: text to tokens.
    max_length: of a window in tokens.
    stride: tokens between the beginnings of two windows of a paragraph.
  """

  tokenizer: Tokenizer
  max_length: int
  stride: int

  def encode_example(self, line: str, *, truncate: bool = False) -> Question:
    """Return the question and the paragraph of a line.

    Args:
      line: question<TAB>paragraph, or a JSON object with question and context.
      truncate: accept any line, and of a long question its beginning.

    Raises:
      ValueError: it is neither, one of them is empty, or the question is too long.
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
        f'the question has {len(tokens)} tokens, more than {len(encoded.question)}, half of what '
        'the model reads at once: shorten it'
      )
    return encoded

  def encode(self, pairs: Sequence[tuple[str, str]]) -> list[Question]:
    """Return the tokens of (question, paragraph), of a question at most half a window."""
    questions, paragraphs = zip(*pairs, strict=True) if pairs else ((), ())
    # many questions are about the same paragraph
    different = list(dict.fromkeys(paragraphs))
    spans = dict(zip(different, self.tokenizer.encode_spans(different), strict=True))
    encoded = self.tokenizer.encode_batch(questions)
    return [
      Question(question[: self.max_length // 2 - 2], spans[text][0], spans[text][1], text)
      for question, text in zip(encoded, paragraphs, strict=True)
    ]

  def windows(self, question: Question) -> list[Window]:
    """Return <s> question </s> part of the paragraph </s>, until all of it is covered."""
    before = [self.tokenizer.bos, *question.question, self.tokenizer.eos]
    room = self.max_length - len(before) - 1
    step = min(self.stride, room)
    eos = self.tokenizer.eos
    return [
      Window([*before, *question.paragraph[start : start + room], eos], len(before), start)
      for start in range(0, max(len(question.paragraph) - room, 0) + step, step)
    ]

  def labels(self, row: Sequence[int]) -> list[str]:
    """Return the spelling of each token of a window."""
    return self.tokenizer.pieces(row)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionAnswering:
  """-(log p(start) + log p(end)) / 2 of an answer, in <s> question </s> paragraph </s>.

  Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 4.2, and its published code: a long
  paragraph is read in windows that overlap, and in one without the answer the target is <s>. Where
  several answers are known, all have the same weight; windows are compared by probability. With
  model.token_types=2 question and paragraph have different types; with 3 a token of the paragraph
  that is also in the question has the third (Chen et al. 2017, https://arxiv.org/abs/1704.00051,
  section 3.2, exact match).

  Attributes:
    tokenizer: text to tokens.
    decoding: settings of inference.
    max_length: of a window in tokens, question and special tokens included.
    stride: tokens between the beginnings of two windows of a paragraph.
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
    inputs, found = [], []
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
          found.append([window.place(*answer) for answer in answers] or [OUTSIDE])
      inputs.append(Ragged.from_sequences(rows))
    at = np.full((len(found), max(map(len, found)), 2), NO_ANSWER, np.int32)
    for row, answers in zip(at, found, strict=True):
      row[: len(answers)] = answers
    return {'inputs': Ragged.concatenate(inputs), 'starts': at[..., 0], 'ends': at[..., 1]}

  def loss(self, model: Spans, batch: Batch, key: OptionalKey) -> tuple[Mean, Metrics]:
    """Return -(log p(start) + log p(end)) / 2, the mean over known answers, and the metrics.

    The loss is in nats; the accuracies of start and end are those of the first answer, by windows.
    """
    logits = self.logits(model, batch['inputs'], batch['inputs_segments'] != 0, key)
    loss, metrics = _nll(logits, batch), {}
    weights = _real(batch).astype(jnp.float32)
    for i, side in enumerate(('start', 'end')):
      at = jnp.maximum(batch[f'{side}s'][:, 0], 0)
      metrics[f'{side}_accuracy'] = accuracy(logits[..., i], at, weights)
    return loss, {'nll': loss, **metrics}

  def logits(
    self, model: Spans, tokens: Int[Array, 'B T'], real: Bool[Array, 'B T'], key: OptionalKey = None
  ) -> Float[Array, 'B T 2']:
    """Return the logits of starts and ends: in the paragraph, or at 0 for outside the window."""
    types, inside = self.token_types(tokens, real, model.config.token_types)
    logits = model(tokens, segments=real.astype(jnp.int32), token_types=types, key=key)
    allowed = inside.at[:, 0].set(True)
    return jnp.where(allowed[..., None], logits.astype(jnp.float32), -1e30)

  def token_types(
    self, tokens: Int[Array, 'B T'], real: Bool[Array, 'B T'], count: int
  ) -> tuple[Int[Array, 'B T'], Bool[Array, 'B T']]:
    """Return the type of each token, and whether it is in the paragraph, without its </s>.

    Args:
      tokens: windows.
      real: False for padding.
      count: how many types there are; fewer than 3 do not distinguish all kinds.
    """
    special = (tokens == self.tokenizer.bos) | (tokens == self.tokenizer.eos)
    ends = (tokens == self.tokenizer.eos) & real
    after = (jnp.cumsum(ends, axis=1) - ends > 0) & real
    question = ~after & real & ~special
    found = jnp.any((tokens[:, :, None] == tokens[:, None, :]) & question[:, None, :], axis=2)
    inside = after & ~special
    kinds = jnp.where(inside & found, MATCH, jnp.where(after, PARAGRAPH, QUESTION))
    return jnp.minimum(kinds, max(count - 1, 0)), inside

  def example(self, example: dict[str, Any]) -> tuple[str, str]:
    """Return the line question<TAB>paragraph, and its different answers separated by tabs."""
    answers = dict.fromkeys(example['answers'])
    return f'{example["inputs"]}\t{example["targets"]}', '\t'.join(answers)

  def answer(self, model: Spans, requests: Sequence[Question]) -> list[str]:
    """Return the answer to each question, as it is written in its paragraph."""
    windows = [(i, w) for i, one in enumerate(requests) for w in self.processor.windows(one)]
    found = run_batches(self, model, [window.tokens for _, window in windows])
    best: dict[int, tuple[float, str]] = {}
    for (i, window), (score, start, end) in zip(windows, found, strict=True):
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
    """Return how the tokens of a question's first window attend to each other."""
    return self_attention(self, model, self.processor.windows(request)[0].tokens)


def best_spans(
  logits: Float[Array, 'B T 2'], inside: Bool[Array, 'B T'], longest: int
) -> tuple[Float[Array, ' B'], Int[Array, ' B'], Int[Array, ' B']]:
  """Return the max over s <= e < s + longest of log p(start = s) + log p(end = e), and s and e.

  Args:
    logits: of starts and ends; probabilities are over all T.
    inside: where s and e may be; the score of a row without any is -Inf.
    longest: most places of an answer.
  """
  T = logits.shape[1]
  starts, ends = jnp.moveaxis(jax.nn.log_softmax(logits, axis=1), 2, 0)
  length = jnp.arange(T)[None, :] - jnp.arange(T)[:, None] + 1
  valid = (length > 0) & (length <= longest) & inside[:, :, None] & inside[:, None, :]
  scores = jnp.where(valid, starts[:, :, None] + ends[:, None, :], -jnp.inf).reshape(-1, T * T)
  best = jnp.argmax(scores, axis=1)
  return jnp.max(scores, axis=1), best // T, best % T


def _nll(logits, batch) -> Mean:
  known = (batch['starts'] != NO_ANSWER) & _real(batch)[:, None]
  weights = known / jnp.maximum(jnp.sum(known, axis=1, keepdims=True), 1)
  sides = [
    cross_entropy(
      jnp.broadcast_to(logits[:, None, :, i], (*at.shape, logits.shape[1])),
      jnp.maximum(at, 0),
      weights.astype(jnp.float32),
    )
    for i, at in enumerate((batch['starts'], batch['ends']))
  ]
  return Mean((sides[0].sum + sides[1].sum) / 2, sides[0].weight)


def _real(batch) -> Bool[Array, ' B']:
  return jnp.any(batch['inputs_segments'] != 0, axis=1)


def _tokens_of(places: list[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
  """Return the first and last token that have one of the characters start, ..., end - 1."""
  first = bisect.bisect_right(places, start, key=lambda place: place[1])
  last = bisect.bisect_left(places, end, key=lambda place: place[0]) - 1
  return (first, last) if first <= last else (len(places), len(places))  # nowhere
