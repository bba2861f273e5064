"""Masked language models: hide some tokens, learn to say which they were (BERT, RoBERTa)."""

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int, Key

from transformer.data.corpora import Source
from transformer.data.pipeline import Ragged
from transformer.data.text import BLANK, windows, with_blanks
from transformer.data.tokenizers import Tokenizer
from transformer.evaluation.metrics import TEACHER_FORCED, of_logits, with_perplexity
from transformer.functional import corruption
from transformer.functional.losses import Mean, accuracy, cross_entropy
from transformer.inference.batching import PAD, Batching, in_batches, self_attention
from transformer.modules.config import ModelConfig
from transformer.modules.heads import MaskedTokens

EVALUATION = 0  # the seed of what is hidden when a model is judged: the same every time


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLM:
  """The objective, on texts in windows of `length` tokens, a start and an end token among them.

  Devlin et al. 2019, https://arxiv.org/abs/1810.04805; drawn anew for every step, as in Liu et al.
  2019, https://arxiv.org/abs/1907.11692.

  Attributes:
    tokenizer: text to tokens and back; with a mask token.
    decoding: for `predict`.
    length: of a window.
    rate: share of tokens that are hidden; 0.15 in the paper.
    whole_words: hide all tokens of a word or none.
    next_sentence: cut each window in two, and learn to tell whether the second part belongs to the
      first: half of them are taken from the row before, where that has the same lengths.
  """

  tokenizer: Tokenizer
  decoding: Batching
  length: int
  rate: float = 0.15
  whole_words: bool = False
  next_sentence: bool = False

  reads = ('targets',)  # of an example
  figures = TEACHER_FORCED

  def __post_init__(self):
    if not 0 < self.rate < 1:
      raise ValueError(f'loss.rate={self.rate} is a share of tokens: give 0 < rate < 1, as 0.15')
    if self.length < 3 + 2 * self.next_sentence:
      raise ValueError(f'data.length={self.length} leaves no room for text: make windows longer')
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
  def packs(self) -> bool:
    """Whether several texts may share a row."""
    return not self.next_sentence

  def quick(self) -> 'MaskedLM':
    """The same task: there is nothing to search."""
    return self

  def init(self, config: ModelConfig, key: Key[Array, '']) -> MaskedTokens:
    """A fresh model."""
    return MaskedTokens(config, nnx.Rngs(key), next_sentence=self.next_sentence)

  def features(self, source: Source) -> dict[str, Ragged]:
    """The texts in windows: <s> text </s>, or <s> first half </s> second half </s>."""
    bos, eos = self.tokenizer.bos, self.tokenizer.eos
    rows = []
    for window in windows(self.tokenizer, source, self.length - 2 - self.next_sentence):
      middle = [eos] if self.next_sentence else []
      half = len(window) // 2
      rows.append([bos, *window[:half], *middle, *window[half:], eos])
    return {'inputs': Ragged.of(rows)}

  def loss(
    self, model: MaskedTokens, batch: dict[str, Int[Array, 'B _']], key: Key[Array, ''] | None
  ) -> tuple[Mean, dict[str, Mean]]:
    """Negative log-likelihood of the hidden tokens, and of the order of halves if it is asked."""
    hide_key, model_key = (None, None) if key is None else jax.random.split(key)
    hidden = self._hide(batch, hide_key)
    states, *asked = self._ask(model, batch, hidden, model_key)
    loss, nll = model.readout.cross_entropy(*asked)
    metrics = {'nll_per_token': nll}
    if self.next_sentence:
      order = self._order(model, states, hidden, batch)
      metrics |= order
      # both are means in the paper, over different counts
      share = loss.weight / jnp.maximum(order['nll_of_order'].weight, 1)
      loss = loss._replace(sum=loss.sum + share * order['nll_of_order'].sum)
    return loss, metrics

  def measure(self, model: MaskedTokens, batch: dict[str, Int[Array, 'B _']]) -> dict[str, Mean]:
    """How well hidden tokens are found, always the same ones."""
    hidden = self._hide(batch, None)
    states, x, *true = self._ask(model, batch, hidden, None)
    found = of_logits(model.readout.attend(x), *true)
    return found | (self._order(model, states, hidden, batch) if self.next_sentence else {})

  def report(self, totals: dict[str, Mean], source: Source) -> dict[str, float]:
    """The figures of a whole split; tokens are those hidden."""
    return with_perplexity(totals)

  def capture(
    self, model: MaskedTokens, batch: dict[str, Int[Array, 'B _']]
  ) -> dict[str, dict[str, Array]]:
    """What happens inside the model on a batch with nothing hidden."""
    return {'encoder': model.encoder.capture(batch['inputs'], batch['inputs_segments'])}

  def example(self, example: dict[str, str]) -> tuple[str, str]:
    """A line of a text with its middle word left out, and the line."""
    line = next((line for line in example['targets'].split('\n') if line.strip()), '')
    words = line.split()[:30]
    shown = [*words]
    if words:
      shown[len(words) // 2] = BLANK
    return ' '.join(shown), ' '.join(words)

  def predict(self, model: MaskedTokens, lines: Iterable[str], *, cut: bool = False) -> list[str]:
    """Each line with every ___ filled in by the likeliest token.

    Raises:
      ValueError: a line has no ___ or is too long.
    """
    rows = [self.input(line, cut=cut) for line in lines]
    find = functools.partial(_likeliest, model, tuple(self.tokenizer.specials))
    found = in_batches(find, rows, rows=self.decoding.rows, longest=self.length)
    texts = []
    for row, likeliest in zip(rows, found, strict=True):
      tokens = np.asarray(row)
      filled = np.where(tokens == self.tokenizer.mask, likeliest[: len(row)], tokens)
      texts.append(self.tokenizer.decode(filled[1:-1]))
    return texts

  def input(self, line: str, *, cut: bool = False) -> list[int]:
    """The tokens of a line, with the mask for every ___.

    Raises:
      ValueError: there is none, or the line is too long.
    """
    tokens = with_blanks(self.tokenizer, line, [self.tokenizer.mask] * line.count(BLANK))
    if cut:
      tokens = tokens[: self.length - 2]
    elif BLANK not in line:
      raise ValueError(f'the line has nothing to fill in: write {BLANK} where a token is missing')
    elif len(tokens) > self.length - 2:
      raise ValueError(
        f'the line has {len(tokens)} tokens, more than the {self.length - 2} the model was trained '
        'for: split it'
      )
    return [self.tokenizer.bos, *tokens, self.tokenizer.eos]

  def attend(self, model: MaskedTokens, line: str) -> tuple[np.ndarray, list[str], list[str]]:
    """How the tokens of a line attend to each other: (weights [L, H, T, T], pieces, pieces)."""
    tokens = self.input(line, cut=True)
    return self_attention(
      lambda rows: model.encoder.capture(rows.clip(0), (rows != PAD).astype(np.int32)),
      tokens,
      self.tokenizer.pieces(tokens),
      self.length,
    )

  def _hide(self, batch, key) -> 'Hidden':
    keys = jax.random.split(jax.random.key(EVALUATION) if key is None else key, 3)
    tokens, segments = batch['inputs'], batch['inputs_segments']
    bos, eos = self.tokenizer.bos, self.tokenizer.eos
    types = jnp.zeros_like(tokens)
    swapped = jnp.zeros(len(tokens), bool)
    if self.next_sentence:
      before = jnp.cumsum(tokens == eos, axis=1) - (tokens == eos)
      types = jnp.where(segments != 0, jnp.minimum(before, 1), 0)
      shape = 2 * segments + types
      alike = jnp.all(shape == jnp.roll(shape, 1, axis=0), axis=1) & jnp.any(segments, axis=1)
      swapped = jax.random.bernoulli(keys[0], 0.5, (len(tokens),)) & alike & (len(tokens) > 1)
      other = swapped[:, None] & (types == 1)
      tokens = jnp.where(other, jnp.roll(tokens, 1, axis=0), tokens)
    eligible = (segments != 0) & (tokens != bos) & (tokens != eos)
    words = self._words(tokens) if self.whole_words else None
    chosen = corruption.choose(keys[1], eligible, self.rate, words)
    shown = corruption.replace_chosen(
      keys[2], tokens, chosen, mask=self.tokenizer.mask, vocab=self.tokenizer.size
    )
    return Hidden(shown, tokens, chosen, types, swapped)

  def _ask(self, model, batch, hidden, key):
    """(all states, what the logits of hidden tokens are read from, these tokens, weights)."""
    segments = batch['inputs_segments']
    states = model.encoder(hidden.tokens, segments=segments, types=hidden.types, key=key)
    # nothing else is read: the output layer is the largest
    at, weights = _places(hidden.chosen, self._most(hidden.tokens.shape[1]))
    x = model.transform(jnp.take_along_axis(states, at[..., None], axis=1))
    return states, x, jnp.take_along_axis(hidden.targets, at, axis=1), weights

  def _words(self, tokens: Int[Array, 'B T']) -> Int[Array, 'B T']:
    special = (tokens == self.tokenizer.bos) | (tokens == self.tokenizer.eos)
    after = jnp.pad(special[:, :-1], ((0, 0), (1, 0)))
    begins = jnp.asarray(self.tokenizer.begins_word)[tokens] | after
    return jnp.minimum(jnp.cumsum(begins, axis=1), tokens.shape[1] - 1)

  def _most(self, T: int) -> int:
    """How many tokens of a row may be hidden."""
    return max(round(T * self.rate), 1)

  def _order(self, model, states, hidden, batch) -> dict[str, Mean]:
    segments = batch['inputs_segments']
    logits = model.next_sentence(model.encoder.summary(states, segments))
    weights = jnp.any(segments != 0, axis=1).astype(jnp.float32)
    swapped = hidden.swapped.astype(jnp.int32)
    return {
      'nll_of_order': cross_entropy(logits, swapped, weights),
      'accuracy_of_order': accuracy(logits, swapped, weights),
    }


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hidden:
  """What the model is shown, and what it is asked."""

  tokens: Int[Array, 'B T']
  targets: Int[Array, 'B T']
  chosen: Bool[Array, 'B T']
  types: Int[Array, 'B T']
  swapped: Bool[Array, ' B']


def _places(chosen, most: int):
  """Where the chosen tokens of each row are, and a weight of 0 for what is not one of them."""
  weights, at = jax.lax.top_k(chosen.astype(jnp.float32), most)
  return at, weights


@functools.partial(jax.jit, static_argnums=1)
def _likeliest(model: MaskedTokens, specials: tuple[int, ...], rows):
  logits = model(jnp.maximum(rows, 0), segments=(rows != PAD).astype(jnp.int32))
  return jnp.argmax(logits.at[..., jnp.asarray(specials)].set(-jnp.inf), axis=-1)
