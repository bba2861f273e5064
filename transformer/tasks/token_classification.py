"""Token classification: a label for each word of a text (named entities, parts of speech)."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NamedTuple
from unicodedata import normalize

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, Key

from transformer.data.corpora import Source
from transformer.data.pipeline import Columns, Ragged
from transformer.data.processors import TextProcessor, check_text
from transformer.data.tokenizers import Tokenizer
from transformer.functional.losses import Mean, accuracy, cross_entropy
from transformer.inference.attention_maps import Probe, out_logits, self_attention
from transformer.inference.batching import PAD, split_padding
from transformer.inference.decoding import Batching
from transformer.inference.predict import run_batches
from transformer.modules.config import ModelConfig
from transformer.modules.heads import TokenClassifier
from transformer.tasks.task import Batch, Metrics, OptionalKey


class Words(NamedTuple):
  """An encoded line.

  Attributes:
    tokens: with start and end token.
    starts: index of the first token of each word; -1 if it is truncated.
  """

  tokens: list[int]
  starts: list[int]


class WordProcessor(TextProcessor):
  """Encodes lines of words, separated by white space, as tokens between start and end token."""

  def encode_example(self, line: str, *, truncate: bool = False) -> Words:  # type: ignore[override]
    """Return the tokens of one line."""
    ((tokens, spans),) = self.tokenizer.encode_spans([line])
    tokens = [self.tokenizer.bos, *tokens, self.tokenizer.eos]
    starts = [word.start() for word in re.finditer(r'\S+', line)]
    # the first token that ends after the word starts; + 1 for the start token
    first = 1 + np.searchsorted([end for _, end in spans], starts, side='right')
    if not truncate:
      check_text(line, tokens, self.max_length)
    kept = min(len(tokens), self.max_length) - 1
    return Words([*tokens[:kept], tokens[-1]], np.where(first < kept, first, -1).tolist())


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenClassification:
  """Cross-entropy of the label of each word, at its first token.

  Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 5.3.

  Attributes:
    tokenizer: text to tokens.
    decoding: settings of inference.
    max_length: largest number of tokens of a text, start and end token included; longer texts are
      truncated.
    labels: names of the labels; truncated words get the first one.
    label_smoothing: of the training loss; see losses.cross_entropy.
  """

  tokenizer: Tokenizer
  decoding: Batching
  max_length: int
  labels: tuple[str, ...]
  label_smoothing: float = 0.0

  text_fields = ('inputs',)
  metrics = {'nll_per_word': False, 'word_accuracy': True}
  supports_packing = True

  def __post_init__(self):
    if len(set(self.labels)) < max(len(self.labels), 2):
      raise ValueError(f'loss.labels={self.labels!r}: give two or more labels, each once')
    if None in (self.tokenizer.bos, self.tokenizer.eos):
      raise ValueError('the tokenizer has no start or end token, which token classification needs')

  @property
  def processor(self) -> WordProcessor:
    """Return the processor of lines."""
    return WordProcessor(self.tokenizer, self.max_length)

  def init(self, config: ModelConfig, key: Key[Array, '']) -> TokenClassifier:
    """Return a freshly initialized model."""
    return TokenClassifier(config, len(self.labels), nnx.Rngs(key))

  def columns(self, source: Source) -> Columns:
    """Return the tokens of each text, and for each token the number of a label or PAD."""
    number = {normalize('NFC', label): i for i, label in enumerate(self.labels)}
    rows, targets = [], []
    for i in range(len(source)):
      text, labels = source[i]['inputs'], normalize('NFC', source[i]['targets']).split()
      words = self.processor.encode_example(text, truncate=True)
      if len(labels) != len(words.starts) or not number.keys() >= {*labels}:
        raise ValueError(f'{text!r}: give one of loss.labels={self.labels} a word, not {labels}')
      rows.append(words.tokens)
      targets.append(np.full(len(words.tokens), PAD, np.int32))
      for place, label in zip(words.starts, labels, strict=True):
        targets[-1][place] = number[label] if place >= 0 else PAD  # index -1 is the end token's
    return {'inputs': Ragged.from_sequences(rows), 'targets': Ragged.from_sequences(targets)}

  def loss(self, model: TokenClassifier, batch: Batch, key: OptionalKey) -> tuple[Mean, Metrics]:
    """Return the smoothed cross-entropy, and the cross-entropy in nats per word and accuracy."""
    segments, targets = batch['inputs_segments'], batch['targets']
    logits = model(batch['inputs'], segments=segments, key=key)
    scored = ((segments != 0) & (targets != PAD)).astype(jnp.float32)
    labeled = logits, jnp.maximum(targets, 0), scored
    smoothed = cross_entropy(*labeled, label_smoothing=self.label_smoothing)
    return smoothed, {'nll_per_word': cross_entropy(*labeled), 'word_accuracy': accuracy(*labeled)}

  def example(self, example: dict[str, Any]) -> tuple[str, str]:
    """Return the line of words and the line of their labels."""
    return example['inputs'], example['targets']

  def answer(self, model: TokenClassifier, requests: Sequence[Words]) -> list[str]:
    """Return a line of labels for each line of words."""
    rows = run_batches(self, model, [words.tokens for words in requests])
    return [
      ' '.join(self.labels[best[place] if place >= 0 else 0] for place in words.starts)
      for words, (best, _) in zip(requests, rows, strict=True)
    ]

  def forward(self, model: TokenClassifier, rows: Int[Array, 'B T']):
    """Return the number of the best label of each token, and its logit."""
    tokens, segments = split_padding(rows)
    logits = model(tokens, segments=segments)
    return jnp.argmax(logits, axis=-1), jnp.max(logits, axis=-1)

  def attention(self, model: TokenClassifier, request: Words) -> Probe:
    """Return the Probe of attention between the tokens of a line."""
    return self_attention(self, model, request.tokens, readout=out_logits, names=self._names)

  def _names(self, numbers):
    return [self.labels[number] for number in numbers]
