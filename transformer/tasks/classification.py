"""Classification of texts, images and sounds."""

import dataclasses
from collections.abc import Sequence
from typing import Any
from unicodedata import normalize

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, Shaped

from transformer.data.corpora import Source, chunks
from transformer.data.pipeline import Columns, concatenate
from transformer.data.processors import Line, Processor, Row, TextProcessor
from transformer.data.tokenizers import Tokenizer
from transformer.functional.losses import Mean, consistency, cross_entropy
from transformer.functional.search import repeat_rows
from transformer.inference.attention_maps import Probe, self_attention
from transformer.inference.batching import split_padding
from transformer.inference.decoding import Batching
from transformer.inference.predict import run_batches
from transformer.modules.config import ModelConfig
from transformer.modules.heads import Classifier
from transformer.modules.layers import split_key
from transformer.tasks.task import Batch, Metrics, OptionalKey


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification:
  """Cross-entropy of the class of an input, a text, an image or a sound.

  Attributes:
    tokenizer: text to tokens.
    decoding: settings of inference.
    max_length: largest number of tokens of a text, start and end token included.
    input_processor: processor of images or sounds; None for texts.
    classes: names of the classes; () for those of the training examples, sorted.
    label_smoothing: of the training loss; see losses.cross_entropy.
    consistency: factor of the divergence between two passes with different dropout (R-Drop; see
      losses.consistency), which take twice the time of one; 0.5 to 5 in the paper. 0 for one pass.
    coarse_until: separator after the name of a coarse class, such as the colon in NUM:date.
      Training uses all classes; evaluation and prediction use the coarse ones, whose probability is
      the sum over their classes. '' for no coarse classes.
  """

  tokenizer: Tokenizer
  decoding: Batching
  max_length: int
  input_processor: Processor | None = None
  classes: tuple[str, ...] = ()
  label_smoothing: float = 0.0
  consistency: float = 0.0
  coarse_until: str = ''

  text_fields = ('inputs',)
  metrics = {'nll': False}
  supports_packing = False

  def __post_init__(self):
    if len({normalize('NFC', name) for name in self.classes}) < max(len(self.classes), 2):
      raise ValueError(f'loss.classes={self.classes!r}: give two or more labels, each once')
    if not self.input_processor and None in (self.tokenizer.bos, self.tokenizer.eos):
      raise ValueError('the tokenizer has no start or end token, which classification needs')

  @property
  def processor(self) -> Processor:
    """Return the processor of inputs."""
    return self.input_processor or TextProcessor(
      self.tokenizer, self.max_length, start=True, truncate=True
    )

  @property
  def coarse(self) -> list[str]:
    """Return the names of the coarse classes, in the order of their numbers."""
    return list(dict.fromkeys(map(self._coarse_of, self.classes)))

  def _coarse_of(self, name: str) -> str:
    return name.partition(self.coarse_until)[0] if self.coarse_until else name

  def init(self, config: ModelConfig, key: Key[Array, '']) -> Classifier:
    """Return a freshly initialized model."""
    return Classifier(config, len(self.classes), nnx.Rngs(key))

  def columns(self, source: Source) -> Columns:
    """Return the encoded inputs, long texts truncated, and the numbers of their classes.

    Raises:
      ValueError: a label is not one of the classes.
    """
    number = {normalize('NFC', name): i for i, name in enumerate(self.classes)}
    parts: list[Columns] = []
    for examples in chunks(source):
      for example in examples:
        if normalize('NFC', example['targets']) not in number:
          raise ValueError(
            f'the label {example["targets"]!r} of {example.get("name", example["inputs"])!r} is '
            f'none of loss.classes={self.classes!r}: add it there'
          )
      labels = [number[normalize('NFC', example['targets'])] for example in examples]
      rows = self.processor.encode_column([example['inputs'] for example in examples])
      parts.append({'inputs': rows, 'label': np.asarray(labels, np.int32)})
    return concatenate(parts)

  def loss(self, model: Classifier, batch: Batch, key: OptionalKey) -> tuple[Mean, Metrics]:
    """Return the loss, and the plain cross-entropy of coarse classes, in nats.

    The loss is the smoothed cross-entropy, with the consistency loss.
    """
    two_passes = bool(self.consistency) and key is not None
    batch = repeat_rows(batch, 2) if two_passes else batch
    input_key, key = split_key(key, 2) if self.input_processor else (None, key)
    x, segments = self.processor.prepare_batch(batch['inputs'], batch['inputs_segments'], input_key)
    logits = model(x, segments=segments, key=key)
    labels, weights = batch['label'], batch['label_segments'].astype(jnp.float32)
    loss = cross_entropy(logits, labels, weights, label_smoothing=self.label_smoothing)
    if two_passes:
      divergence = consistency(logits, weights)
      loss = loss._replace(sum=loss.sum + self.consistency / 2 * divergence)
    labels = jnp.asarray(self._coarse_numbers())[labels]
    return loss, {'nll': cross_entropy(self.coarse_logits(logits), labels, weights)}

  def _coarse_numbers(self) -> Int[np.ndarray, ' C']:
    """Return the number of the coarse class of each class."""
    return np.asarray([self.coarse.index(self._coarse_of(name)) for name in self.classes])

  def coarse_logits(self, logits: Float[Array, '*B C']) -> Float[Array, '*B coarse']:
    """Return the logits of the coarse classes: log sum exp over the classes of each."""
    belongs = self._coarse_numbers() == np.arange(len(self.coarse))[:, None]
    return jax.nn.logsumexp(jnp.where(belongs, logits[..., None, :], -jnp.inf), axis=-1)

  def example(self, example: dict[str, Any]) -> tuple[Line, str]:
    """Return the text, image or sound, and its coarse class."""
    return example['inputs'], self._coarse_of(example['targets'])

  def answer(self, model: Classifier, requests: Sequence[Row]) -> list[str]:
    """Return the most probable coarse class of each input."""
    return [self.coarse[best] for best, _ in run_batches(self, model, requests)]

  def forward(self, model: Classifier, rows: Shaped[Array, 'B ...']):
    """Return the number of the most probable coarse class of each row, and its logit."""
    inputs, segments = split_padding(rows)
    x, segments = self.processor.prepare_batch(inputs, segments, None)
    logits = self.coarse_logits(model(x, segments=segments))
    return jnp.argmax(logits, axis=-1), jnp.max(logits, axis=-1)

  def attention(self, model: Classifier, request: Row) -> Probe:
    """Return the Probe of attention between the positions of an input."""
    return self_attention(self, model, request, readout=self._readout, names=self._names)

  def _readout(self, model, states):
    """Return the logits [L, 1, C] of the classes from the pooled states of each layer."""
    pooled = model.encoder.pool(states, jnp.ones(states.shape[:2], jnp.int32))
    return self.coarse_logits(model.out(pooled))[:, None]

  def _names(self, numbers):
    return [self.coarse[number] for number in numbers]
