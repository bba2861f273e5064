"""Extractive question answering: which piece of a paragraph answers a question."""

import bisect
import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from transformer.data.corpora import Source, chunks
from transformer.data.pipeline import Fields, Ragged
from transformer.data.tokenizers import Tokenizer
from transformer.functional.losses import Mean, accuracy, cross_entropy
from transformer.inference.batching import PAD, Batching, in_batches, self_attention
from transformer.modules.config import ModelConfig
from transformer.modules.heads import Spans

QUESTION, PARAGRAPH, MATCH = 0, 1, 2  # types of tokens
NO_ANSWER = -1  # where there are fewer answers than places for them
NOT_HERE = (0, 0)  # start and end of an answer that is in another window: at <s>


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extraction(Batching):
  """How answers are taken from paragraphs.

  Attributes:
    longest: tokens of an answer.
  """

  longest: int = 30

  def __post_init__(self):
    super().__post_init__()
    if self.longest < 1:
      raise ValueError(f'decode.longest={self.longest} tokens of an answer must be at least 1')


class Asked(NamedTuple):
  """A question about a paragraph.

  Attributes:
    question: its tokens.
    paragraph: its tokens.
    places: for each of these, the characters (start, end) of the text.
    text: of the paragraph.
  """

  question: list[int]
  paragraph: list[int]
  places: list[tuple[int, int]]
  text: str

  def answer(self, start: int, end: int) -> str:
    """The text of these tokens of the paragraph; nothing, if it has none."""
    if not self.places:
      return ''
    return self.text[self.places[start][0] : self.places[end][1]].strip()


class Window(NamedTuple):
  """What the model reads at once.

  Attributes:
    tokens: of the question and a part of the paragraph.
    first: where that part begins in them.
    start: where it begins in the paragraph, in tokens.
  """

  tokens: list[int]
  first: int
  start: int

  @property
  def shift(self) -> int:
    """A place in the tokens, less the same place in the paragraph."""
    return self.first - self.start

  def place(self, start: int, end: int) -> tuple[int, int]:
    """Where an answer is in the tokens, if it is there as a whole."""
    start, end = start + self.shift, end + self.shift
    return (start, end) if self.first <= start and end < len(self.tokens) - 1 else NOT_HERE


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionAnswering:
  """The objective: log p(start) + log p(end) of an answer, in <s> question </s> paragraph </s>.

  Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 4.2, and its published code: a long
  paragraph is read in windows that overlap, and one that lacks the answer points to <s>. Where the
  answers of several people are known each counts alike, and windows are compared by probability.
  With model.types=2 question and paragraph have types of their own, with 3 so has a token of the
  paragraph that is also in the question (Chen et al. 2017, https://arxiv.org/abs/1704.00051,
  section 3.2, exact match).

  Attributes:
    tokenizer: text to tokens.
    decoding: for `predict`.
    length: of a window in tokens, question and special tokens included.
    stride: tokens between the beginnings of two windows of a paragraph.
  """

  tokenizer: Tokenizer
  decoding: Extraction
  length: int
  stride: int = 128

  reads = ('inputs', 'targets')  # of an example: the question and the paragraph
  figures = ('nll', 'start_accuracy', 'end_accuracy')
  packs = False

  def __post_init__(self):
    bos, eos = self.tokenizer.bos, self.tokenizer.eos
    if None in (bos, eos) or bos == eos:
      raise ValueError('the tokenizer has no start and end token, which question answering needs')
    if self.length < 8:
      raise ValueError(f'data.length={self.length} leaves no room for text: make windows longer')
    if not 0 < self.stride < self.length:
      raise ValueError(
        f'loss.stride={self.stride} must be at least 1 and less than data.length={self.length}, or '
        'windows do not overlap'
      )

  def quick(self) -> 'QuestionAnswering':
    """The same task: there is nothing to search."""
    return self

  def init(self, config: ModelConfig, key: Key[Array, '']) -> Spans:
    """A fresh model."""
    return Spans(config, nnx.Rngs(key))

  def features(self, source: Source) -> Fields:
    """All windows of all examples, and where answers start and end in them."""
    inputs, found = [], []
    for examples in chunks(source):
      pairs = [(example['inputs'], example['targets']) for example in examples]
      rows = []
      for example, asked in zip(examples, self.encode(pairs), strict=True):
        answers = [
          _tokens_of(asked.places, start, start + len(text))
          for start, text in zip(example['starts'], example['answers'], strict=True)
        ]
        for window in self.windows(asked):
          rows.append(window.tokens)
          found.append([window.place(*answer) for answer in answers] or [NOT_HERE])
      inputs.append(Ragged.of(rows))
    at = np.full((len(found), max(map(len, found)), 2), NO_ANSWER, np.int32)
    for row, answers in zip(at, found, strict=True):
      row[: len(answers)] = answers
    return {'inputs': Ragged.join(inputs), 'starts': at[..., 0], 'ends': at[..., 1]}

  def encode(self, pairs: Sequence[tuple[str, str]]) -> list[Asked]:
    """Tokens of (question, paragraph); of a question the first so many that half a window holds."""
    questions, paragraphs = zip(*pairs, strict=True) if pairs else ((), ())
    # many questions are about the same paragraph
    different = list(dict.fromkeys(paragraphs))
    spans = dict(zip(different, self.tokenizer.encode_spans(different), strict=True))
    encoded = self.tokenizer.encode_batch(questions)
    return [
      Asked(question[: self.length // 2 - 2], spans[text][0], spans[text][1], text)
      for question, text in zip(encoded, paragraphs, strict=True)
    ]

  def windows(self, asked: Asked) -> list['Window']:
    """<s> question </s> part of the paragraph </s>, so often that all of it is read."""
    before = [self.tokenizer.bos, *asked.question, self.tokenizer.eos]
    room = self.length - len(before) - 1
    step = min(self.stride, room)
    return [
      Window(
        [*before, *asked.paragraph[start : start + room], self.tokenizer.eos], len(before), start
      )
      for start in range(0, max(len(asked.paragraph) - room, 0) + step, step)
    ]

  def loss(
    self, model: Spans, batch: dict[str, Int[Array, 'B ...']], key: Key[Array, ''] | None
  ) -> tuple[Mean, dict[str, Mean]]:
    """-(log p(start) + log p(end)) / 2 in nats, the mean over the known answers."""
    loss = self._losses(self._logits(model, batch, key), batch)
    return loss, {'nll': loss}

  def measure(self, model: Spans, batch: dict[str, Int[Array, 'B ...']]) -> dict[str, Mean]:
    """How likely the true places are, and how often the likeliest is that of the first answer."""
    logits = self._logits(model, batch, None)
    weights = _real(batch).astype(jnp.float32)
    first = {'start': batch['starts'][:, 0], 'end': batch['ends'][:, 0]}
    return {'nll': self._losses(logits, batch)} | {
      f'{side}_accuracy': accuracy(logits[..., i], jnp.maximum(at, 0), weights)
      for i, (side, at) in enumerate(first.items())
    }

  def report(self, totals: dict[str, Mean], source: Source) -> dict[str, float]:
    """The figures of a whole split; accuracies count windows."""
    return {name: float(mean.value) for name, mean in totals.items()}

  def _losses(self, logits, batch) -> Mean:
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

  def _logits(self, model, batch, key):
    return self.logits(model, batch['inputs'], batch['inputs_segments'] != 0, key)

  def logits(
    self,
    model: Spans,
    tokens: Int[Array, 'B T'],
    real: Bool[Array, 'B T'],
    key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'B T 2']:
    """Of starts and ends; an answer is in the paragraph, or at 0: not in this window."""
    types, inside = self.types(tokens, real, model.config.types)
    logits = model(tokens, segments=real.astype(jnp.int32), types=types, key=key)
    allowed = inside.at[:, 0].set(True)
    return jnp.where(allowed[..., None], logits.astype(jnp.float32), -1e30)

  def types(
    self, tokens: Int[Array, 'B T'], real: Bool[Array, 'B T'], types: int
  ) -> tuple[Int[Array, 'B T'], Bool[Array, 'B T']]:
    """The type of each token, and whether an answer may be there: the paragraph without its </s>.

    Args:
      tokens: windows.
      real: False for padding.
      types: how many there are; fewer than 3 do not tell all kinds apart.
    """
    special = (tokens == self.tokenizer.bos) | (tokens == self.tokenizer.eos)
    ends = (tokens == self.tokenizer.eos) & real
    after = (jnp.cumsum(ends, axis=1) - ends > 0) & real
    asked = ~after & real & ~special
    found = jnp.any((tokens[:, :, None] == tokens[:, None, :]) & asked[:, None, :], axis=2)
    inside = after & ~special
    kinds = jnp.where(inside & found, MATCH, jnp.where(after, PARAGRAPH, QUESTION))
    return jnp.minimum(kinds, max(types - 1, 0)), inside

  def capture(
    self, model: Spans, batch: dict[str, Int[Array, 'B ...']]
  ) -> dict[str, dict[str, Array]]:
    """What happens inside the model as it learns from a batch."""
    return {'encoder': self._capture(model, batch['inputs'], batch['inputs_segments'] != 0)}

  def _capture(self, model, tokens, real):
    types, _ = self.types(tokens, real, model.config.types)
    return model.encoder.capture(tokens, real.astype(jnp.int32), types)

  def example(self, example: dict[str, Any]) -> tuple[str, str]:
    """The line question<TAB>paragraph, and its different answers with a tab between them."""
    answers = dict.fromkeys(example['answers'])
    return f'{example["inputs"]}\t{example["targets"]}', '\t'.join(answers)

  def predict(self, model: Spans, lines: Iterable[str], *, cut: bool = False) -> list[str]:
    """The answer to each line, as it is written in its paragraph.

    Raises:
      ValueError: a line is not as `input` wants it.
    """
    asked = [self.input(line, cut=cut) for line in lines]
    windows = [(i, window) for i, one in enumerate(asked) for window in self.windows(one)]
    find = functools.partial(_best, model, self)
    rows = [window.tokens for _, window in windows]
    found = in_batches(find, rows, rows=self.decoding.rows, longest=self.length)
    best: dict[int, tuple[float, str]] = {}
    for (i, window), (score, start, end) in zip(windows, found, strict=True):
      if np.isnan(score):
        raise FloatingPointError('the model computes NaN for these lines: its training diverged')
      if i not in best or score > best[i][0]:
        place = int(start) - window.shift, int(end) - window.shift
        best[i] = float(score), asked[i].answer(*place)
    return [best[i][1] for i in range(len(asked))]

  def input(self, line: str, *, cut: bool = False) -> Asked:
    """The question and the paragraph of a line.

    Args:
      line: question<TAB>paragraph, or a JSON object with question and context.
      cut: take what can be read of a line that is refused else.

    Raises:
      ValueError: it is neither, one of them is empty, or the question is too long.
    """
    question, tab, text = line.partition('\t')
    if not tab and line.startswith('{'):
      try:
        row = json.loads(line)
        question, text = row['question'], row['context']
      except (ValueError, KeyError, TypeError) as error:
        if cut:
          return Asked([], [], [], '')
        raise ValueError(
          f'no JSON object with question and context ({error!r}): give both, or QUESTION<TAB>TEXT'
        ) from error
    (asked,) = self.encode([(question, text)])
    if cut:
      return asked
    if not asked.question or not asked.paragraph:
      raise ValueError('no question or no paragraph: give question<TAB>paragraph')
    if len(tokens := self.tokenizer.encode(question)) > len(asked.question):
      raise ValueError(
        f'the question has {len(tokens)} tokens, more than {len(asked.question)}, half of what the '
        'model reads at once: shorten it'
      )
    return asked

  def attend(self, model: Spans, line: str) -> tuple[np.ndarray, list[str], list[str]]:
    """How the tokens of a line's first window attend to each other: (weights, pieces, pieces)."""
    tokens = self.windows(self.input(line))[0].tokens
    return self_attention(
      lambda rows: self._capture(model, jnp.asarray(rows.clip(0)), jnp.asarray(rows != PAD)),
      tokens,
      self.tokenizer.pieces(tokens),
      self.length,
    )


def best_spans(
  logits: Float[Array, 'B T 2'], inside: Bool[Array, 'B T'], longest: int
) -> tuple[Float[Array, ' B'], Int[Array, ' B'], Int[Array, ' B']]:
  """max over s <= e < s + longest, both inside, of log p(start = s) + log p(end = e), and s and e.

  Args:
    logits: of starts and ends; probabilities are over all T.
    inside: where an answer may be. In a row without any the score is -Inf.
    longest: places of an answer.
  """
  T = logits.shape[1]
  starts, ends = jnp.moveaxis(jax.nn.log_softmax(logits, axis=1), 2, 0)
  length = jnp.arange(T)[None, :] - jnp.arange(T)[:, None] + 1
  valid = (length > 0) & (length <= longest) & inside[:, :, None] & inside[:, None, :]
  scores = jnp.where(valid, starts[:, :, None] + ends[:, None, :], -jnp.inf).reshape(-1, T * T)
  best = jnp.argmax(scores, axis=1)
  return jnp.max(scores, axis=1), best // T, best % T


def _real(batch) -> Bool[Array, ' B']:
  return jnp.any(batch['inputs_segments'] != 0, axis=1)


def _tokens_of(places: list[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
  """The first and the last token that have one of the characters start, ..., end - 1."""
  first = bisect.bisect_right(places, start, key=lambda place: place[1])
  last = bisect.bisect_left(places, end, key=lambda place: place[0]) - 1
  return (first, last) if first <= last else (len(places), len(places))  # nowhere


@functools.partial(jax.jit, static_argnums=1)
def _best(model: Spans, task: QuestionAnswering, rows):
  tokens, real = jnp.maximum(rows, 0), rows != PAD
  _, inside = task.types(tokens, real, model.config.types)
  return best_spans(task.logits(model, tokens, real), inside, task.decoding.longest)
