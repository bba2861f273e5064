"""Masked language modeling: predict masked tokens (BERT, RoBERTa)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int, Key

from transformer.data.corpora import Source
from transformer.data.pipeline import Ragged
from transformer.data.processors import BlankProcessor
from transformer.data.text import Cut, blanked_middle, windows
from transformer.data.tokenizers import Tokenizer
from transformer.evaluation.likelihood import TOKEN_METRICS, token_metrics
from transformer.functional import corruption
from transformer.functional.losses import Mean, accuracy, cross_entropy
from transformer.inference.attention_maps import Probe, self_attention
from transformer.inference.batching import split_padding
from transformer.inference.decoding import Batching
from transformer.inference.predict import run_batches
from transformer.modules.config import ModelConfig
from transformer.modules.heads import MaskedTokens
from transformer.modules.layers import split_key
from transformer.tasks.task import Batch, Metrics, OptionalKey


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLM:
  """Cross-entropy of masked tokens, in windows of `max_length` tokens with start and end token.

  Devlin et al. 2019, https://arxiv.org/abs/1810.04805; with new masks in every step, as in Liu et
  al. 2019, https://arxiv.org/abs/1907.11692.

  Attributes:
    tokenizer: text to tokens and back; with a mask token.
    decoding: settings of inference.
    max_length: number of tokens of a window.
    rate: share of tokens that are masked; 0.15 in the paper.
    whole_words: mask all tokens of a word or none.
    next_sentence: also learn whether the second half of a window follows the first. With
      probability 1/2 the second half is replaced: in training by that of the previous row of the
      batch, if both rows have the same lengths, in evaluation by that of the previous window of the
      same length.
  """

  tokenizer: Tokenizer
  decoding: Batching
  max_length: int
  rate: float = 0.15
  whole_words: bool = False
  next_sentence: bool = False

  text_fields = ('targets',)
  metrics = TOKEN_METRICS

  def __post_init__(self):
    if not 0 < self.rate < 1:
      raise ValueError(f'loss.rate={self.rate} is a share of tokens: give 0 < rate < 1, as 0.15')
    if self.max_length < 3 + 2 * self.next_sentence:
      raise ValueError(
        f'data.max_length={self.max_length} leaves no room for text: make windows longer'
      )
    if self.whole_words and not any(self.tokenizer.begins_word):
      raise ValueError(
        'loss.whole_words=True needs a tokenizer whose pieces show where a word begins, such as '
        'bpe, wordpiece or unigram: set it to False'
      )
    missing = [name for name in ('bos', 'eos', 'mask') if getattr(self.tokenizer, name) is None]
    if missing:
      raise ValueError(
        f'the tokenizer has no token for {", ".join(missing)}: train one with '
        '--config.tokenizer.sentinels=1'
      )

  @property
  def supports_packing(self) -> bool:
    """Return whether several texts may share a row."""
    return not self.next_sentence

  @property
  def processor(self) -> BlankProcessor:
    """Return the processor of requests."""
    fillers = (self.tokenizer.mask,) * self.max_length
    return BlankProcessor(self.tokenizer, self.max_length, start=True, fillers=fillers)

  def init(self, config: ModelConfig, key: Key[Array, '']) -> MaskedTokens:
    """Return a freshly initialized model."""
    return MaskedTokens(config, nnx.Rngs(key), next_sentence=self.next_sentence)

  @property
  def cut(self) -> Cut:
    """Return how documents are cut into windows."""
    added = 2 + self.next_sentence
    return Cut(self.max_length - added, self.max_length - added, added)

  def columns(self, source: Source) -> dict[str, Ragged]:
    """Return the windows: <s> text </s>, or <s> first half </s> second half </s> (next_sentence).

    With next_sentence also 'others': for each window the previous one of the same length, or
    itself, from which an evaluation takes the second half.
    """
    bos, eos = self.tokenizer.bos, self.tokenizer.eos
    rows = []
    for tokens in windows(self.tokenizer, source, self.cut.length):
      window = tokens.tolist()
      middle = [eos] if self.next_sentence else []
      half = len(window) // 2
      rows.append([bos, *window[:half], *middle, *window[half:], eos])
    if not self.next_sentence:
      return {'inputs': Ragged.from_sequences(rows)}
    last: dict[int, list[int]] = {}
    others = []
    for row in rows:
      others.append(last.get(len(row), row))
      last[len(row)] = row
    return {'inputs': Ragged.from_sequences(rows), 'others': Ragged.from_sequences(others)}

  def loss(self, model: MaskedTokens, batch: Batch, key: OptionalKey) -> tuple[Mean, Metrics]:
    """Return the cross-entropy of the masked tokens, plus that of next_sentence if it is on."""
    mask_key, model_key = split_key(key, 2)
    masked = self.mask(batch, mask_key)
    states, *at_masks = self._at_masks(model, batch, masked, model_key, by_content=key is None)
    loss, nll = model.lm_head.cross_entropy(*at_masks)
    metrics = {'nll_per_token': nll}
    if self.next_sentence:
      order = _order_metrics(model, states, masked, batch)
      metrics |= order
      # the paper adds two means, over different counts
      share = loss.weight / jnp.maximum(order['nll_of_order'].weight, 1)
      loss = loss._replace(sum=loss.sum + share * order['nll_of_order'].sum)
    return loss, metrics

  def batch_metrics(self, model: MaskedTokens, batch: Batch) -> Metrics:
    """Return the metrics of masked tokens; the masks depend only on the text."""
    masked = self.mask(batch, None)
    states, x, *targets = self._at_masks(model, batch, masked, None, by_content=True)
    metrics = token_metrics(model.lm_head.attend(x), *targets)
    return metrics | (_order_metrics(model, states, masked, batch) if self.next_sentence else {})

  def mask(self, batch: Batch, key: OptionalKey) -> 'Masked':
    """Return the batch with some of its tokens masked.

    Without a key, as in evaluation, the masks of a text depend only on the text, not on its batch
    or row.
    """
    keys: Any = split_key(key, 3)
    tokens, segments = batch['inputs'], batch['inputs_segments']
    types, swapped = jnp.zeros_like(tokens), jnp.zeros(len(tokens), bool)
    if self.next_sentence:
      tokens, types, swapped = self._swap_halves(batch, keys[0])
    eligible = (segments != 0) & (tokens != self.tokenizer.bos) & (tokens != self.tokenizer.eos)
    words = self.words(tokens) if self.whole_words else None
    random: Any
    if key is None:
      chosen = corruption.choose_masked_by_content(tokens, segments, eligible, self.rate, words)
      bits = corruption.hash_by_content(tokens, segments, 2)
      random = corruption.uniform_by_content(tokens, segments, 1), bits
    else:
      chosen = corruption.choose_masked(keys[1], eligible, self.rate, words)
      random = keys[2]
    mask, vocab = self.tokenizer.mask, self.tokenizer.size
    shown = corruption.replace_chosen(random, tokens, chosen, mask=mask, vocab=vocab)
    return Masked(shown, tokens, chosen, types, swapped)

  def _swap_halves(self, batch: Batch, key: OptionalKey):
    """Return (the tokens with some second halves replaced, token types, which were replaced)."""
    tokens, segments = batch['inputs'], batch['inputs_segments']
    ends = (tokens == self.tokenizer.eos).astype(int)
    types = jnp.where(segments != 0, jnp.minimum(jnp.cumsum(ends, axis=1) - ends, 1), 0)
    if key is None:
      others = batch['others']
      swappable = jnp.any((others != tokens) & (types == 1), axis=1)
      drawn = corruption.uniform_by_content(tokens, segments, 3)[:, 0] < 0.5
    else:
      others, layout = jnp.roll(tokens, 1, axis=0), 2 * segments + types
      same = jnp.all(layout == jnp.roll(layout, 1, axis=0), axis=1)
      swappable = same & jnp.any(segments, axis=1)
      drawn = jax.random.bernoulli(key, 0.5, (len(tokens),)) & (len(tokens) > 1)
    swapped = drawn & swappable
    return jnp.where(swapped[:, None] & (types == 1), others, tokens), types, swapped

  def words(self, tokens: Int[Array, 'B T']) -> Int[Array, 'B T']:
    """Return the index of the word of each token in its row."""
    special = (tokens == self.tokenizer.bos) | (tokens == self.tokenizer.eos)
    after = jnp.pad(special[:, :-1], ((0, 0), (1, 0)))
    begins = jnp.asarray(self.tokenizer.begins_word)[tokens] | after
    return jnp.minimum(jnp.cumsum(begins, axis=1), tokens.shape[1] - 1)

  def _at_masks(self, model, batch, masked, key, by_content=False):
    """Return (all states, and for masked tokens: states before the logits, targets, weights)."""
    segments = batch['inputs_segments']
    types = masked.token_types
    states = model.encoder(masked.tokens, segments=segments, token_types=types, key=key)
    # logits only at masks, because the output layer is the largest
    T = masked.tokens.shape[1]
    max_masks = max(round(T * self.rate), 1)
    if by_content and self.supports_packing:  # every text of a row has at least one mask
      n = np.arange(1, T + 1)
      share = np.max(np.maximum(np.round(n * self.rate), 1) / (n + 2))
      max_masks = min(int(share * T) + 1, T)
    weights, places = jax.lax.top_k(masked.chosen.astype(jnp.float32), max_masks)
    x = model.transform(jnp.take_along_axis(states, places[..., None], axis=1))
    return states, x, jnp.take_along_axis(masked.targets, places, axis=1), weights

  def example(self, example: dict[str, str]) -> tuple[str, str]:
    """Return a line of a text with a blank for its middle word, and the whole line."""
    line, words, _ = blanked_middle(example['targets'])
    return line, ' '.join(words)

  def answer(self, model: MaskedTokens, requests: Sequence[Sequence[int]]) -> list[str]:
    """Return each line with the most probable token for every ___."""
    texts = []
    for row, (best, _) in zip(requests, run_batches(self, model, requests), strict=True):
      tokens = np.asarray(row)
      filled = np.where(tokens == self.tokenizer.mask, best[: len(row)], tokens)
      texts.append(self.tokenizer.decode(filled[1:-1]))
    return texts

  def forward(self, model: MaskedTokens, rows: Int[Array, 'B T']):
    """Return the best token at each position, special ones excluded, and its logit."""
    tokens, segments = split_padding(rows)
    logits = model(tokens, segments=segments)
    logits = logits.at[..., jnp.asarray(self.tokenizer.specials)].set(-jnp.inf)
    return jnp.argmax(logits, axis=-1), jnp.max(logits, axis=-1)

  def attention(self, model: MaskedTokens, request: Sequence[int]) -> Probe:
    """Return the Probe of attention between the tokens of a line."""
    readout = dict(readout=self._readout, names=self.tokenizer.pieces)
    return self_attention(self, model, request, **readout)

  def _readout(self, model, states):
    """Return the logits of tokens from the states of any layer."""
    return model.lm_head.attend(model.transform(states))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Masked:
  """A batch with masks.

  Attributes:
    tokens: the inputs of the model, with masks.
    targets: the tokens before masking.
    chosen: which tokens are masked.
    token_types: 1 in the second half of a window with next_sentence, else 0.
    swapped: whether the second half was replaced.
  """

  tokens: Int[Array, 'B T']
  targets: Int[Array, 'B T']
  chosen: Bool[Array, 'B T']
  token_types: Int[Array, 'B T']
  swapped: Bool[Array, ' B']


def _order_metrics(model, states, masked: Masked, batch) -> Metrics:
  segments = batch['inputs_segments']
  logits = model.next_sentence(model.encoder.pool(states, segments))
  weights = jnp.any(segments != 0, axis=1).astype(jnp.float32)
  swapped = masked.swapped.astype(jnp.int32)
  return {
    'nll_of_order': cross_entropy(logits, swapped, weights),
    'accuracy_of_order': accuracy(logits, swapped, weights),
  }
