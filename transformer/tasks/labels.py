"""Classification: which of a few labels a text has."""

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, Key

from transformer.data.corpora import Source, chunks
from transformer.data.pipeline import Fields, Ragged
from transformer.data.tokenizers import Tokenizer
from transformer.functional.losses import Mean, accuracy, cross_entropy
from transformer.modules.config import ModelConfig
from transformer.modules.heads import Classifier
from transformer.modules.model import Encoder
from transformer.tasks.batching import PAD, Batching, in_batches, self_attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
  """The objective.

  Attributes:
    tokenizer: text to tokens.
    decoding: for `predict`.
    length: longest text in tokens, start and end token included.
    classes: the labels, separated by commas.
    label_smoothing: of the training loss; see losses.cross_entropy.
  """

  tokenizer: Tokenizer
  decoding: Batching
  length: int
  classes: str
  label_smoothing: float

  reads = ('inputs',)  # of an example
  figures = ('nll', 'accuracy')
  packs = False

  def __post_init__(self):
    if len(set(self.names)) < max(len(self.names), 2):
      raise ValueError(
        f'loss.classes={self.classes!r}: give two or more labels, separated by commas, each once'
      )
    if None in (self.tokenizer.bos, self.tokenizer.eos):
      raise ValueError('the tokenizer has no start or end token, which classification needs')

  @property
  def names(self) -> list[str]:
    """The labels, in the order of their numbers."""
    return [name.strip() for name in self.classes.split(',')]

  def quick(self) -> 'Labels':
    """The same task: there is nothing to search."""
    return self

  def init(self, config: ModelConfig, key: Key[Array, '']) -> Classifier:
    """A fresh model."""
    return Classifier(config, len(self.names), nnx.Rngs(key))

  def features(self, source: Source) -> Fields:
    """The texts as tokens, cut to `length`, and the numbers of their labels.

    Raises:
      ValueError: a label is none of `classes`.
    """
    number = {name: i for i, name in enumerate(self.names)}
    texts, labels = [], []
    for examples in chunks(source):
      rows = self.encode([example['inputs'] for example in examples])
      texts.append(Ragged.of([self._cut(row) for row in rows]))
      for example in examples:
        if example['targets'] not in number:
          raise ValueError(
            f'the label {example["targets"]!r} of {example["inputs"]!r} is none of '
            f'loss.classes={self.classes!r}: add it there'
          )
        labels.append(number[example['targets']])
    return {'inputs': Ragged.join(texts), 'label': np.asarray(labels, np.int32)}

  def encode(self, lines: list[str]) -> list[list[int]]:
    """Tokens of each line, start and end included."""
    bos, eos = self.tokenizer.bos, self.tokenizer.eos
    return [[bos, *tokens, eos] for tokens in self.tokenizer.encode_batch(lines)]

  def loss(
    self, model: Classifier, batch: dict[str, Int[Array, 'B ...']], key: Key[Array, ''] | None
  ) -> tuple[Mean, dict[str, Mean]]:
    """The smoothed objective, and apart from it the plain negative log-likelihood, in nats."""
    logits, labels, weights = self._logits(model, batch, key)
    smoothed = cross_entropy(logits, labels, weights, label_smoothing=self.label_smoothing)
    return smoothed, {'nll': cross_entropy(logits, labels, weights)}

  def measure(self, model: Classifier, batch: dict[str, Int[Array, 'B ...']]) -> dict[str, Mean]:
    """How often the likeliest label is right."""
    found = self._logits(model, batch, None)
    return {'nll': cross_entropy(*found), 'accuracy': accuracy(*found)}

  def report(self, totals: dict[str, Mean], source: Source) -> dict[str, float]:
    """The figures of a whole split."""
    return {name: float(mean.value) for name, mean in totals.items()}

  def capture(
    self, model: Classifier, batch: dict[str, Int[Array, 'B ...']]
  ) -> dict[str, dict[str, Array]]:
    """What happens inside the model as it learns from a batch."""
    return {'encoder': _capture(model.encoder, batch['inputs'], batch['inputs_segments'])}

  def _logits(self, model, batch, key):
    segments = batch['inputs_segments']
    logits = model(batch['inputs'], segments=segments, key=key)
    return logits, batch['label'], jnp.any(segments != 0, axis=1).astype(jnp.float32)

  def example(self, example: dict[str, str]) -> tuple[str, str]:
    """The text, and its label."""
    return example['inputs'], example['targets']

  def predict(self, model: Classifier, lines: Iterable[str], *, cut: bool = False) -> list[str]:
    """The label of each line.

    Raises:
      ValueError: a line is empty or too long.
    """
    rows = [self.input(line, cut=cut) for line in lines]
    find = functools.partial(_best, model)
    found = in_batches(find, rows, rows=self.decoding.rows, longest=self.length)
    return [self.names[i] for i in found]

  def input(self, line: str, *, cut: bool = False) -> list[int]:
    """The tokens of a line.

    Raises:
      ValueError: it is empty or too long.
    """
    (tokens,) = self.encode([line])
    if cut:
      return self._cut(tokens)
    if len(tokens) == 2:
      raise ValueError('the line is empty: give it some text')
    if len(tokens) > self.length:
      raise ValueError(
        f'the line has {len(tokens)} tokens, more than the {self.length} the model was trained '
        'for: shorten it'
      )
    return tokens

  def _cut(self, tokens: list[int]) -> list[int]:
    return [*tokens[: self.length - 1], tokens[-1]] if len(tokens) > self.length else tokens

  def attend(self, model: Classifier, line: str) -> tuple[np.ndarray, list[str], list[str]]:
    """How the tokens of a line attend to each other: (weights [L, H, T, T], pieces, pieces)."""
    tokens = self.input(line)
    return self_attention(
      lambda rows: _capture(model.encoder, rows.clip(0), (rows != PAD).astype(np.int32)),
      tokens,
      self.tokenizer,
      self.length,
    )


@jax.jit
def _best(model: Classifier, rows):
  logits = model(jnp.maximum(rows, 0), segments=(rows != PAD).astype(jnp.int32))
  return jnp.argmax(logits, axis=-1)


_capture = jax.jit(Encoder.capture)
