"""Retrieval: which documents of a collection answer a query; by vectors, by words, or by both.

Words need the extra `retrieval`: pip install 'functional-transformer[retrieval]'.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from transformer.data.corpora import Source, chunks
from transformer.data.documents import collection
from transformer.data.pipeline import Fields, Ragged, joined
from transformer.data.processors import Row, TextProcessor, read
from transformer.data.tokenizers import Tokenizer
from transformer.functional.losses import Mean, accuracy, cross_entropy
from transformer.inference.batching import PAD, Batching, in_batches, self_attention
from transformer.modules.config import ModelConfig
from transformer.modules.heads import Embedding

QUERY, DOCUMENT = 0, 1  # types of tokens
RANK_CONSTANT = 60  # of reciprocal rank fusion, as published


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking(Batching):
  """How documents are ranked.

  Attributes:
    collection: the file of all documents; see data.documents. Without one nothing can be predicted.
    first: so many names are the answer to a query, the best one first.
    bm25: weight of BM25, a score by words; that of the vectors is the rest to 1.
    fusion: what is added: scores, scaled to 0 to 1 for each query, or 1 / (60 + rank).
  """

  collection: str = ''
  first: int = 10
  bm25: float = 0.0
  fusion: Literal['scores', 'ranks'] = 'scores'

  def __post_init__(self):
    super().__post_init__()
    if self.first < 1:
      raise ValueError(f'decode.first={self.first} documents must be at least 1')
    if not 0 <= self.bm25 <= 1:
      raise ValueError(f'decode.bm25={self.bm25} is a weight: give 0 (vectors) to 1 (BM25)')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval:
  """The objective: -log softmax(q D^T / t)(d), for query q its document d among all D of a batch.

  q and d are vectors of length 1 from one encoder (InfoNCE, van den Oord et al. 2018,
  https://arxiv.org/abs/1807.03748, equation 4; in-batch negatives as in Karpukhin et al. 2020,
  https://arxiv.org/abs/2004.04906, section 3.2). With model.types=2 queries and documents have
  types of their own. The other documents of a batch are part of the loss, so it changes with the
  size of a batch and with microbatches.

  Attributes:
    tokenizer: text to tokens.
    decoding: for `predict`.
    length: of queries and documents in tokens, <s> and </s> included; what is longer is cut.
    temperature: t; 0.05 is common.
    symmetric: also tell which query belongs to a document; the mean of both.
    cloze: share of queries that are replaced while training by a piece of their own document, which
      is cut out of that nine times out of ten (the inverse cloze task, Lee et al. 2019,
      https://arxiv.org/abs/1906.00300, section 4).
    piece: tokens of such a piece; half of them at least.
  """

  tokenizer: Tokenizer
  decoding: Ranking
  length: int
  temperature: float = 0.05
  symmetric: bool = False
  cloze: float = 0.0
  piece: int = 24

  reads = ('inputs', 'targets')  # of an example
  figures = ('nll_in_batch', 'accuracy_in_batch')
  packs = False

  def __post_init__(self):
    if None in (self.tokenizer.bos, self.tokenizer.eos):
      raise ValueError('the tokenizer has no start or end token, which retrieval needs')
    if self.temperature <= 0:
      raise ValueError(f'loss.temperature={self.temperature} must be more than 0, such as 0.05')
    if not 0 <= self.cloze <= 1 or self.piece < 2:
      raise ValueError(
        f'loss.cloze={self.cloze} is a share of queries: give 0 to 1, and loss.piece={self.piece} '
        'tokens, at least 2'
      )

  @property
  def reader(self) -> TextProcessor:
    """How queries and documents are read."""
    return TextProcessor(self.tokenizer, self.length, start=True, cuts=True)

  def quick(self) -> 'Retrieval':
    """The same task, by vectors alone."""
    return dataclasses.replace(self, decoding=dataclasses.replace(self.decoding, bm25=0.0))

  def init(self, config: ModelConfig, key: Key[Array, '']) -> Embedding:
    """A fresh model."""
    return Embedding(config, nnx.Rngs(key))

  def features(self, source: Source) -> Fields:
    """Queries and their documents as tokens, both cut to `length`."""
    return joined(
      [
        {side: self.reader.field([example[side] for example in examples]) for side in self.reads}
        for examples in chunks(source)
      ]
    )

  def loss(
    self, model: Embedding, batch: dict[str, Int[Array, 'B _']], key: Key[Array, ''] | None
  ) -> tuple[Mean, dict[str, Mean]]:
    """What is minimised, in nats, and how often the right document is the likeliest."""
    cloze_key, *keys = (None, None, None) if key is None else jax.random.split(key, 3)
    if cloze_key is not None and self.cloze:
      batch = self._cloze(batch, cloze_key)
    logits, weights = self._logits(model, batch, keys)
    own = jnp.arange(len(logits))
    loss = cross_entropy(logits, own, weights)
    if self.symmetric:
      back = cross_entropy(logits.T, own, weights)
      loss = loss._replace(sum=(loss.sum + back.sum) / 2)
    return loss, {'accuracy_in_batch': accuracy(logits, own, weights)}

  def measure(self, model: Embedding, batch: dict[str, Int[Array, 'B _']]) -> dict[str, Mean]:
    """How well queries find their documents among those of a batch."""
    logits, weights = self._logits(model, batch, (None, None))
    own = jnp.arange(len(logits))
    return {
      'nll_in_batch': cross_entropy(logits, own, weights),
      'accuracy_in_batch': accuracy(logits, own, weights),
    }

  def report(self, totals: dict[str, Mean], source: Source) -> dict[str, float]:
    """The figures of a whole split, by its batches."""
    return {name: float(mean.value) for name, mean in totals.items()}

  def _logits(self, model, batch, keys) -> tuple[Float[Array, 'B B'], Float[Array, ' B']]:
    """q D^T / t, without what is no other document: padding, and the same document once more."""
    queries, documents = (
      _embed(model, batch[side], batch[f'{side}_segments'], kind, key)
      for side, kind, key in zip(self.reads, (QUERY, DOCUMENT), keys, strict=True)
    )
    tokens, real = batch['targets'], jnp.any(batch['targets_segments'] != 0, axis=1)
    # by their original tokens: a piece may be cut out of one and not of the other
    whole = batch.get('whole', tokens)
    same = jnp.all(whole[:, None] == whole[None], axis=2)
    own = jnp.eye(len(tokens), dtype=bool)
    others = ~same & real[:, None] & real[None, :]
    logits = jnp.where(own | others, queries @ documents.T / self.temperature, -1e30)
    return logits, real.astype(jnp.float32)

  def _cloze(self, batch, key):
    """The batch with some of its queries replaced by a piece of their document."""
    keys = jax.random.split(key, 4)
    documents, segments = batch['targets'], batch['targets_segments']
    B, T = documents.shape
    words = jnp.sum(segments != 0, axis=1) - 2  # without <s> and </s>
    size = jax.random.randint(keys[0], (B,), self.piece // 2, self.piece + 1)
    size = jnp.minimum(size, words // 2)
    chosen = jax.random.bernoulli(keys[1], self.cloze, (B,)) & (size > 0)
    start = 1 + jnp.floor(jax.random.uniform(keys[2], (B,)) * (words - size + 1)).astype(jnp.int32)
    cut = jax.random.bernoulli(keys[3], 0.9, (B,)) & chosen

    # <s> piece </s>
    width = self.piece + 2
    at = jnp.arange(width)
    piece = jnp.take_along_axis(documents, jnp.minimum(start[:, None] + at - 1, T - 1), axis=1)
    piece = jnp.where(at == 0, self.tokenizer.bos, piece)
    piece = jnp.where(at == size[:, None] + 1, self.tokenizer.eos, piece)
    piece_segments = (at < size[:, None] + 2).astype(jnp.int32)
    room = max(batch['inputs'].shape[1], width)

    def replaced(given, made):
      given, made = (jnp.pad(x, ((0, 0), (0, room - x.shape[1]))) for x in (given, made))
      return jnp.where(chosen[:, None], made, given)

    place = jnp.arange(T) - start[:, None]
    gone = cut[:, None] & (place >= 0) & (place < size[:, None])
    return dict(
      batch,
      inputs=replaced(batch['inputs'], piece),
      inputs_segments=replaced(batch['inputs_segments'], piece_segments),
      targets_segments=jnp.where(gone, 0, segments),
      whole=documents,
    )

  def capture(
    self, model: Embedding, batch: dict[str, Int[Array, 'B _']]
  ) -> dict[str, dict[str, Array]]:
    """What happens inside the model on the queries and the documents of a batch."""
    return {
      side: model.encoder.capture(
        batch[side],
        batch[f'{side}_segments'],
        _types(model, batch[side], kind),
      )
      for side, kind in zip(self.reads, (QUERY, DOCUMENT), strict=True)
    }

  def example(self, example: dict[str, Any]) -> tuple[str, str]:
    """The query, and the names of what is relevant with their gains, '12:4 184:1'.

    Raises:
      ValueError: the corpus does not name what is relevant.
    """
    if 'relevant' not in example:
      raise ValueError(
        f'the corpus does not tell which documents answer {example["inputs"]!r}: no ranking can be '
        "judged by it; take data.name='squad' or 'cranfield', or eval.metrics='' and eval.samples=0"
      )
    return example['inputs'], example['relevant']

  def predict(self, model: Embedding, lines: Iterable[str], *, cut: bool = False) -> list[str]:
    """The names of the first documents for each line, the best one first.

    Raises:
      ValueError: a line is empty or too long, or there is no collection.
    """
    lines = list(lines)
    queries = read(self.reader, lines, cut=cut)
    if not lines:
      return []
    found = collection(self.decoding.collection)
    names, weight = np.array(list(found)), self.decoding.bm25
    scores = np.zeros((len(lines), len(names)), np.float32)
    if weight < 1:
      documents = self.embed(model, self.reader.field(found.values()), DOCUMENT)
      by_vectors = self.embed(model, queries, QUERY) @ documents.T
      scores += (1 - weight) * self._comparable(by_vectors)
    if weight:
      scores += weight * self._comparable(bm25(self.decoding.collection, lines))
    order = np.argsort(-scores, axis=1, kind='stable')[:, : self.decoding.first]
    return [' '.join(names[row]) for row in order]

  def embed(
    self, model: Embedding, rows: Sequence[Row] | Ragged, kind: int
  ) -> Float[np.ndarray, 'N D']:
    """The vectors of rows of tokens, which are queries (0) or documents (1)."""
    find = functools.partial(_vectors, model, kind)
    return np.stack(in_batches(find, rows, rows=self.decoding.rows, longest=self.length))

  def _comparable(self, scores: np.ndarray) -> np.ndarray:
    """Scores of queries as numbers that may be added to those of another ranking."""
    if self.decoding.fusion == 'ranks':  # Cormack et al. 2009
      ranks = np.argsort(np.argsort(-scores, axis=1, kind='stable'), axis=1, kind='stable')
      return 1 / (RANK_CONSTANT + 1 + ranks)
    low, high = scores.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
    return (scores - low) / np.maximum(high - low, 1e-12)

  def input(self, line: str) -> list[int]:
    """The tokens of a query.

    Raises:
      ValueError: it is empty or too long.
    """
    return self.reader.input(line)

  def attend(self, model: Embedding, line: str) -> tuple[np.ndarray, list[str], list[str]]:
    """How the tokens of a query attend to each other: (weights [L, H, T, T], pieces, pieces)."""
    tokens = self.input(line)
    return self_attention(
      lambda rows: model.encoder.capture(rows.clip(0), (rows != PAD).astype(np.int32)),
      tokens,
      self.tokenizer.pieces(tokens),
      self.length,
    )


def bm25(where: str, queries: Sequence[str]) -> Float[np.ndarray, 'Q N']:
  """The scores of all documents of a collection by the words of each query.

  Robertson et al. 1994 (Okapi at TREC-3), as Lucene computes it, with k1 = 1.2, b = 0.75, English
  stop words and Porter's stems (Snowball).
  """
  import bm25s

  index, stemmer = _index(where)
  asked = bm25s.tokenize(
    list(queries), stopwords='en', stemmer=stemmer, return_ids=False, show_progress=False
  )
  return np.stack([index.get_scores(words) for words in asked])


@functools.lru_cache(maxsize=1)
def _index(where: str):
  import bm25s
  import Stemmer

  stemmer = Stemmer.Stemmer('english')
  documents = list(collection(where).values())
  index = bm25s.BM25(k1=1.2, b=0.75)
  words = bm25s.tokenize(documents, stopwords='en', stemmer=stemmer, show_progress=False)
  index.index(words, show_progress=False)
  return index, stemmer


def _types(model, tokens, kind):
  return jnp.full_like(tokens, min(kind, max(model.config.types - 1, 0)))


def _embed(model, tokens, segments, kind, key):
  return model(tokens, segments=segments, types=_types(model, tokens, kind), key=key)


@functools.partial(jax.jit, static_argnums=1)
def _vectors(model: Embedding, kind: int, rows):
  return _embed(model, jnp.maximum(rows, 0), (rows != PAD).astype(jnp.int32), kind, None)
