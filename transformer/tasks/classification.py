"""Classification: which of a few labels a text, an image or a sound has."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Key, Shaped

from transformer.data.corpora import Source, chunks
from transformer.data.pipeline import Fields, joined
from transformer.data.processors import Line, Processor, Row, TextProcessor, read
from transformer.data.tokenizers import Tokenizer
from transformer.functional.losses import Mean, accuracy, cross_entropy
from transformer.inference.batching import Batching, in_batches, self_attention, separated
from transformer.modules.config import ModelConfig
from transformer.modules.heads import Classifier
from transformer.modules.layers import split_key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification:
  """The objective.

  Attributes:
    tokenizer: text to tokens.
    decoding: for `predict`.
    length: longest text in tokens, start and end token included.
    inputs: how images or sounds are read; None for texts.
    classes: the labels.
    label_smoothing: of the training loss; see losses.cross_entropy.
    coarse_until: a mark, such as the colon of NUM:date: training tells all classes apart; judged
      and predicted is what stands before the mark, by the sum of the probabilities. '' for none.
  """

  tokenizer: Tokenizer
  decoding: Batching
  length: int
  inputs: Processor | None = None
  classes: tuple[str, ...]
  label_smoothing: float = 0.0
  coarse_until: str = ''

  reads = ('inputs',)  # of an example
  figures = ('nll', 'accuracy')
  packs = False

  def __post_init__(self):
    if len(set(self.names)) < max(len(self.names), 2):
      raise ValueError(f'loss.classes={self.classes!r}: give two or more labels, each once')
    if not self.inputs and None in (self.tokenizer.bos, self.tokenizer.eos):
      raise ValueError('the tokenizer has no start or end token, which classification needs')

  @property
  def names(self) -> list[str]:
    """The labels, in the order of their numbers."""
    return list(self.classes)

  @property
  def coarse(self) -> list[str]:
    """The labels that are judged and predicted, in the order of their numbers."""
    return list(dict.fromkeys(map(self._of, self.names)))

  def _of(self, name: str) -> str:
    """The coarse label of a class."""
    return name.partition(self.coarse_until)[0] if self.coarse_until else name

  @property
  def _parents(self) -> np.ndarray:
    """The number of each class's coarse label: [C]."""
    return np.asarray([self.coarse.index(self._of(name)) for name in self.names])

  @property
  def reader(self) -> Processor:
    """How an input is read."""
    return self.inputs or TextProcessor(self.tokenizer, self.length, start=True, cuts=True)

  def quick(self) -> 'Classification':
    """The same task: there is nothing to search."""
    return self

  def init(self, config: ModelConfig, key: Key[Array, '']) -> Classifier:
    """A fresh model."""
    return Classifier(config, len(self.names), nnx.Rngs(key))

  def features(self, source: Source) -> Fields:
    """The inputs as numbers, texts cut to `length`, and the numbers of their labels.

    Raises:
      ValueError: a label is none of `classes`.
    """
    number = {name: i for i, name in enumerate(self.names)}
    parts: list[Fields] = []
    for examples in chunks(source):
      for example in examples:
        if example['targets'] not in number:
          raise ValueError(
            f'the label {example["targets"]!r} of {example.get("name", example["inputs"])!r} is '
            f'none of loss.classes={self.classes!r}: add it there'
          )
      labels = [number[example['targets']] for example in examples]
      rows = self.reader.field([example['inputs'] for example in examples])
      parts.append({'inputs': rows, 'label': np.asarray(labels, np.int32)})
    return joined(parts)

  def loss(
    self, model: Classifier, batch: dict[str, Shaped[Array, 'B ...']], key: Key[Array, ''] | None
  ) -> tuple[Mean, dict[str, Mean]]:
    """The smoothed objective, and apart from it the plain negative log-likelihood, in nats."""
    logits, labels, weights = self._logits(model, batch, key)
    smoothed = cross_entropy(logits, labels, weights, label_smoothing=self.label_smoothing)
    logits, labels = self._judged(logits, labels)
    return smoothed, {'nll': cross_entropy(logits, labels, weights)}

  def measure(self, model: Classifier, batch: dict[str, Shaped[Array, 'B ...']]) -> dict[str, Mean]:
    """How often the likeliest label is right."""
    logits, labels, weights = self._logits(model, batch, None)
    logits, labels = self._judged(logits, labels)
    return {
      'nll': cross_entropy(logits, labels, weights),
      'accuracy': accuracy(logits, labels, weights),
    }

  def report(self, totals: dict[str, Mean], source: Source) -> dict[str, float]:
    """The figures of a whole split."""
    return {name: float(mean.value) for name, mean in totals.items()}

  def capture(
    self, model: Classifier, batch: dict[str, Shaped[Array, 'B ...']]
  ) -> dict[str, dict[str, Array]]:
    """What happens inside the model as it learns from a batch."""
    rows, segments = batch['inputs'], batch['inputs_segments']
    return {'encoder': model.encoder.capture(*self.reader.encode(rows, segments, None))}

  def _logits(self, model, batch, key):
    reader_key, key = split_key(key, 2) if self.inputs else (None, key)
    x, segments = self.reader.encode(batch['inputs'], batch['inputs_segments'], reader_key)
    logits = model(x, segments=segments, key=key)
    return logits, batch['label'], batch['label_segments'].astype(jnp.float32)

  def _judged(self, logits, labels):
    """The logits and the numbers of the coarse labels."""
    return self._summed(logits), jnp.asarray(self._parents)[labels]

  def _summed(self, logits):
    """log sum of exp of the logits [..., C] of each coarse label's classes: [..., coarse C]."""
    belongs = self._parents == np.arange(len(self.coarse))[:, None]
    return jax.nn.logsumexp(jnp.where(belongs, logits[..., None, :], -jnp.inf), axis=-1)

  def example(self, example: dict[str, Any]) -> tuple[Line, str]:
    """The text, image or sound, and its label."""
    return example['inputs'], self._of(example['targets'])

  def predict(self, model: Classifier, lines: Iterable[Line], *, cut: bool = False) -> list[str]:
    """The label of each line; of images and sounds, lines are their paths.

    Raises:
      ValueError: a line is empty, too long, or no such file.
    """
    rows = read(self.reader, lines, cut=cut)
    find = functools.partial(_best, self, model)
    found = in_batches(find, rows, rows=self.decoding.rows, longest=self.reader.longest)
    return [self.coarse[i] for i in found]

  def input(self, line: Line) -> Row:
    """What is read of a line.

    Raises:
      ValueError: it is empty, too long, or no such file.
    """
    return self.reader.input(line)

  def attend(self, model: Classifier, line: Line) -> tuple[np.ndarray, list[str], list[str]]:
    """How the positions of a line attend to each other: (weights [L, H, T, T], pieces, pieces)."""
    row = self.input(line)
    return self_attention(
      lambda rows: model.encoder.capture(*self.reader.encode(*separated(jnp.asarray(rows)), None)),
      row,
      self.reader.pieces(row),
      self.reader.longest,
    )


@functools.partial(jax.jit, static_argnums=0)
def _best(task: Classification, model: Classifier, rows):
  x, segments = task.reader.encode(*separated(rows), None)
  return jnp.argmax(task._summed(model(x, segments=segments)), axis=-1)
