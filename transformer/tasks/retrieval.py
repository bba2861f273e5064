"""Retrieval of the documents that answer a query, by vectors, by words (BM25), or by both.

BM25 needs the extra `retrieval`: pip install 'functional-transformer[retrieval]'.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from transformer.data.corpora import Source
from transformer.data.documents import collection
from transformer.data.pipeline import Columns
from transformer.data.processors import TextProcessor, encode_columns
from transformer.data.tokenizers import Tokenizer
from transformer.functional.losses import Mean, accuracy, cross_entropy
from transformer.inference.attention_maps import Probe, self_attention
from transformer.inference.batching import split_padding
from transformer.inference.decoding import Batching, check_positive
from transformer.inference.predict import Rows, run_batches
from transformer.modules import sites
from transformer.modules.config import ModelConfig
from transformer.modules.heads import Embedding
from transformer.modules.layers import split_key
from transformer.tasks.task import Batch, Metrics, OptionalKey

QUERY, DOCUMENT = 0, 1  # token types
RANK_CONSTANT = 60  # of reciprocal rank fusion, as published


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking(Batching):
  """Settings of the ranking of documents.

  Attributes:
    collection: the file of all documents, needed for predictions; see data.documents.
    first: number of document names in an answer, best first.
    bm25: weight of BM25; the weight of the vectors is 1 - bm25.
    fusion: 'scores': weighted sum of the scores, scaled to 0 to 1 for each query; 'ranks': weighted
      sum of 1 / (60 + rank).
  """

  collection: str = ''
  first: int = 10
  bm25: float = 0.0
  fusion: Literal['scores', 'ranks'] = 'scores'

  def __post_init__(self):
    check_positive(self, 'batch_size', 'first')
    if not 0 <= self.bm25 <= 1:
      raise ValueError(f'decode.bm25={self.bm25} is a weight: give 0 (vectors) to 1 (BM25)')

  def fast(self) -> 'Ranking':
    """Return the settings without BM25."""
    return dataclasses.replace(self, bm25=0.0)


class Query(NamedTuple):
  """A query, as tokens and as text (for BM25)."""

  tokens: list[int]
  text: str


class QueryProcessor(TextProcessor):
  """Encodes queries as tokens, and keeps their text."""

  def encode_example(self, line: str, *, truncate: bool = False) -> Query:  # type: ignore[override]
    """Return an encoded query."""
    return Query(super().encode_example(line, truncate=truncate), line)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval:
  """-log softmax(q D^T / t)(d) for query q and its document d, among the documents D of a batch.

  q and d are unit vectors from one encoder (InfoNCE, van den Oord et al. 2018,
  https://arxiv.org/abs/1807.03748, equation 4; in-batch negatives as in Karpukhin et al. 2020,
  https://arxiv.org/abs/2004.04906, section 3.2). With model.token_types=2 queries and documents
  have different token types. The loss depends on the other documents of the batch, and so on the
  batch size and on microbatches.

  Attributes:
    tokenizer: text to tokens.
    decoding: settings of inference.
    max_length: largest number of tokens of a query or document, <s> and </s> included; longer ones
      are truncated.
    temperature: t; 0.05 is common.
    symmetric: use the mean of this loss and that of the query given the document.
    cloze: share of queries that are replaced in training by a piece of their own document, which is
      removed from the document with probability 0.9 (inverse cloze task, Lee et al. 2019,
      https://arxiv.org/abs/1906.00300, section 4).
    piece: largest number of tokens of such a piece; the smallest is half of it.
  """

  tokenizer: Tokenizer
  decoding: Ranking
  max_length: int
  temperature: float = 0.05
  symmetric: bool = False
  cloze: float = 0.0
  piece: int = 24

  text_fields = ('inputs', 'targets')  # the query and the document
  metrics = {'nll_in_batch': False, 'accuracy_in_batch': True}
  supports_packing = False

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
  def processor(self) -> QueryProcessor:
    """Return the processor of queries and documents."""
    return QueryProcessor(self.tokenizer, self.max_length, start=True, truncate=True)

  def init(self, config: ModelConfig, key: Key[Array, '']) -> Embedding:
    """Return a freshly initialized model."""
    return Embedding(config, nnx.Rngs(key))

  def columns(self, source: Source) -> Columns:
    """Return the tokens of queries and of their documents, both truncated."""
    encode = self.processor.encode_column
    return encode_columns(source, inputs=('inputs', encode), targets=('targets', encode))

  def loss(self, model: Embedding, batch: Batch, key: OptionalKey) -> tuple[Mean, Metrics]:
    """Return the loss in nats, and as metrics its plain part and the accuracy in the batch."""
    cloze_key, *keys = split_key(key, 3)
    if cloze_key is not None and self.cloze:
      batch = self.with_pieces(batch, cloze_key)
    logits, weights = self._logits(model, batch, keys)
    own_documents = jnp.arange(len(logits))
    loss = nll = cross_entropy(logits, own_documents, weights)
    if self.symmetric:
      back = cross_entropy(logits.T, own_documents, weights)
      loss = loss._replace(sum=(loss.sum + back.sum) / 2)
    return loss, {
      'nll_in_batch': nll,
      'accuracy_in_batch': accuracy(logits, own_documents, weights),
    }

  def _logits(self, model, batch, keys) -> tuple[Float[Array, 'B B'], Float[Array, ' B']]:
    """Return q D^T / t, with -1e30 for padding and for other copies of a query's document."""
    vectors = []
    for side, kind, key in zip(self.text_fields, (QUERY, DOCUMENT), keys, strict=True):
      embed = sites.within(f'{side}.', _embed)  # one encoder, with two prefixes for its sites
      side_vectors, values = embed(model, batch[side], batch[f'{side}_segments'], kind, key)
      sites.record(values)
      vectors.append(side_vectors)
    queries, documents = vectors
    tokens, real = batch['targets'], jnp.any(batch['targets_segments'] != 0, axis=1)
    # compare the original tokens: a piece may be removed from one copy and not from the other
    whole = batch.get('whole', tokens)
    same = jnp.all(whole[:, None] == whole[None], axis=2)
    own = jnp.eye(len(tokens), dtype=bool)
    others = ~same & real[:, None] & real[None, :]
    logits = jnp.where(own | others, queries @ documents.T / self.temperature, -1e30)
    return logits, real.astype(jnp.float32)

  def with_pieces(self, batch: Batch, key: Key[Array, '']) -> dict[str, Int[Array, 'B _']]:
    """Return the batch with some of its queries replaced by a piece of their document."""
    keys = jax.random.split(key, 4)
    documents, segments = batch['targets'], batch['targets_segments']
    B, T = documents.shape
    count = jnp.sum(segments != 0, axis=1) - 2  # tokens without <s> and </s>
    size = jax.random.randint(keys[0], (B,), self.piece // 2, self.piece + 1)
    size = jnp.minimum(size, count // 2)
    chosen = jax.random.bernoulli(keys[1], self.cloze, (B,)) & (size > 0)
    start = 1 + jnp.floor(jax.random.uniform(keys[2], (B,)) * (count - size + 1)).astype(jnp.int32)
    cut = jax.random.bernoulli(keys[3], 0.9, (B,)) & chosen

    # <s> piece </s>
    width = self.piece + 2
    column = jnp.arange(width)[None]
    piece = jnp.take_along_axis(documents, jnp.minimum(start[:, None] + column - 1, T - 1), axis=1)
    piece = jnp.where(column == 0, self.tokenizer.bos, piece)
    piece = jnp.where(column == size[:, None] + 1, self.tokenizer.eos, piece)
    piece_segments = (column < size[:, None] + 2).astype(jnp.int32)
    length = max(batch['inputs'].shape[1], width)

    def replace(queries, pieces):
      queries, pieces = (jnp.pad(x, ((0, 0), (0, length - x.shape[1]))) for x in (queries, pieces))
      return jnp.where(chosen[:, None], pieces, queries)

    offset = jnp.arange(T)[None] - start[:, None]
    removed = cut[:, None] & (offset >= 0) & (offset < size[:, None])
    return dict(
      batch,
      inputs=replace(batch['inputs'], piece),
      inputs_segments=replace(batch['inputs_segments'], piece_segments),
      targets_segments=jnp.where(removed, 0, segments),
      whole=documents,
    )

  def example(self, example: dict[str, Any]) -> tuple[str, str]:
    """Return the query, and the names of relevant documents with their gains, as '12:4 184:1'.

    Raises:
      ValueError: the corpus does not name relevant documents.
    """
    if 'relevant' not in example:
      raise ValueError(
        f'the corpus does not say which documents answer {example["inputs"]!r}: no ranking can be '
        "evaluated. Take data.name='squad' or 'cranfield', or eval.metrics='' and eval.samples=0"
      )
    return example['inputs'], example['relevant']

  def open(self):
    """Read the collection, and with BM25 build its index; both are needed by `answer`."""
    collection(self.decoding.collection)
    if self.decoding.bm25:
      bm25(self.decoding.collection, ['a'])

  def answer(self, model: Embedding, requests: Sequence[Query]) -> list[str]:
    """Return the names of the best documents for each query, best first.

    Raises:
      ValueError: there is no collection.
    """
    documents = collection(self.decoding.collection)
    names, weight = np.array(list(documents)), self.decoding.bm25
    scores = np.zeros((len(requests), len(names)), np.float32)
    if weight < 1:
      rows = self.processor.encode_column(documents.values())
      vectors = self.embed(model, rows, DOCUMENT)
      by_vectors = self.embed(model, [query.tokens for query in requests], QUERY) @ vectors.T
      scores += (1 - weight) * comparable(by_vectors, self.decoding.fusion)
    if weight:
      queries = [query.text for query in requests]
      by_words = bm25(self.decoding.collection, queries)
      scores += weight * comparable(by_words, self.decoding.fusion)
    order = np.argsort(-scores, axis=1, kind='stable')[:, : self.decoding.first]
    return [' '.join(names[row]) for row in order]

  def embed(self, model: Embedding, rows: Rows, kind: int) -> Float[np.ndarray, 'N D']:
    """Return the vectors of rows of tokens of one kind, QUERY or DOCUMENT."""
    return np.stack(run_batches(self, model, rows, kind))

  def forward(self, model: Embedding, rows: Int[Array, 'B T'], kind: int = QUERY):
    """Return the vector of each row."""
    tokens, segments = split_padding(rows)
    return _embed(model, tokens, segments, kind, None)

  def attention(self, model: Embedding, request: Query) -> Probe:
    """Return the Probe of attention between the tokens of a query."""
    return self_attention(self, model, request.tokens)


def comparable(scores: Float[np.ndarray, 'Q N'], fusion: str) -> Float[np.ndarray, 'Q N']:
  """Return scores that may be added to those of another ranking.

  Args:
    scores: of all documents for each query.
    fusion: 'ranks' for 1 / (60 + rank), reciprocal rank fusion (Cormack et al. 2009), or 'scores'
      for scores scaled to 0 to 1 for each query.
  """
  if fusion == 'ranks':
    ranks = np.argsort(np.argsort(-scores, axis=1, kind='stable'), axis=1, kind='stable')
    return 1 / (RANK_CONSTANT + 1 + ranks)
  low, high = scores.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
  return (scores - low) / np.maximum(high - low, 1e-12)


def bm25(path: str, queries: Sequence[str]) -> Float[np.ndarray, 'Q N']:
  """Return the BM25 scores of all documents of a collection for each query.

  Robertson et al. 1994 (Okapi at TREC-3), in Lucene's variant, with k1 = 1.2, b = 0.75, English
  stop words and Porter's stems (Snowball).

  Args:
    path: file of the collection.
    queries: texts.
  """
  import bm25s

  index, stemmer = _index(path)
  words_of_queries = bm25s.tokenize(
    list(queries), stopwords='en', stemmer=stemmer, return_ids=False, show_progress=False
  )
  zeros = np.zeros(len(collection(path)), np.float32)  # for a query of stop words only
  return np.stack([index.get_scores(words) if words else zeros for words in words_of_queries])


@functools.lru_cache(maxsize=1)
def _index(path: str):
  import bm25s
  import Stemmer

  stemmer = Stemmer.Stemmer('english')
  documents = list(collection(path).values())
  index = bm25s.BM25(k1=1.2, b=0.75)
  words = bm25s.tokenize(documents, stopwords='en', stemmer=stemmer, show_progress=False)
  index.index(words, show_progress=False)
  return index, stemmer


def _embed(model, tokens, segments, kind, key):
  types = jnp.full_like(tokens, min(kind, max(model.config.token_types - 1, 0)))
  return model(tokens, segments=segments, token_types=types, key=key)
