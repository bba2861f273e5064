"""Tests of tasks/retrieval.py: the loss in a batch, cloze pieces, fusion of rankings."""

import dataclasses
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitting import fit
from parameters import drawn

from transformer.data import tokenizers
from transformer.data.pipeline import Batches, bucket
from transformer.evaluation.evaluate import eval_step
from transformer.inference.attention_maps import attend, capture_layers
from transformer.inference.predict import predict
from transformer.modules.config import ModelConfig
from transformer.tasks.retrieval import Ranking, Retrieval, bm25, comparable

WORDS = 'ant bee cat dog elk fox gnu hen ibex jay koi lynx mole newt owl pig quail ram'.split()
SIZES = dict(width=32, depth=1, heads=2, feedforward=32, max_length=32, dropout=0.0, prenorm=True)
SIZES |= dict(position='rotary', token_types=2, pooling='mean', unroll=1)


@pytest.fixture(scope='module')
def texts():
  rng = np.random.default_rng(0)
  return [' '.join(rng.choice(WORDS, rng.integers(8, 20))) for _ in range(12)]


@pytest.fixture(scope='module')
def file(texts, tmp_path_factory):
  path = tmp_path_factory.mktemp('collection') / 'documents.tsv'
  path.write_text(''.join(f'd{i}\t{text}\n' for i, text in enumerate(texts)))
  return str(path)


@pytest.fixture(scope='module')
def task(texts, file):
  return Retrieval(
    tokenizer=tokenizers.train(texts, kind='wordpiece', vocab=80),
    decoding=Ranking(batch_size=4, collection=file, first=12, bm25=0.0, fusion='scores'),
    max_length=32,
    temperature=0.1,
  )


def batch_of(task, pairs):
  fields = task.columns([{'inputs': q, 'targets': d} for q, d in pairs])
  lengths = np.stack([field.lengths for field in fields.values()], axis=1)
  rows = len(pairs) + 1  # one of them empty
  batch = Batches(fields, bucket(lengths, buckets=1), tokens=1, multiple=rows, seed=None)[0]
  return jax.tree.map(jnp.asarray, batch)


def model_of(task):
  config = ModelConfig(vocab=task.tokenizer.size, **SIZES)
  return drawn(lambda: task.init(config, jax.random.key(0)))


@pytest.mark.parametrize('symmetric', [False, True])
def test_loss_uses_the_other_documents_of_the_batch(task, texts, symmetric, close):
  """The loss is the cross-entropy among different documents, of queries and of documents."""
  task = dataclasses.replace(task, symmetric=symmetric)
  pairs = [('ant bee', texts[0]), ('cat', texts[1]), ('dog', texts[0]), ('elk fox', texts[2])]
  model = model_of(task)
  loss, _ = jax.jit(task.loss)(model, batch_of(task, pairs), None)
  q = task.embed(model, task.processor.encode_column([q for q, _ in pairs]), 0)
  d = task.embed(model, task.processor.encode_column([d for _, d in pairs]), 1)
  scores = q @ d.T / 0.1
  scores[0, 2] = scores[2, 0] = -np.inf  # the same document

  def nll(scores):
    return -np.log(np.diag(np.exp(scores)) / np.exp(scores).sum(axis=1)).sum()

  expected = (nll(scores) + nll(scores.T)) / 2 if symmetric else nll(scores)
  close(loss.sum, expected)
  close(loss.weight, 4)


def test_vectors_have_unit_length_and_depend_on_their_type(task, texts):
  model, rows = model_of(task), task.processor.encode_column(texts)
  queries, documents = task.embed(model, rows, 0), task.embed(model, rows, 1)
  np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, rtol=1e-5)
  assert np.abs(queries - documents).max() > 1e-3


def test_cloze_pieces_are_removed_from_their_documents(task, texts):
  task = dataclasses.replace(task, cloze=0.5, piece=6)
  batch = batch_of(task, [('ant', text) for text in texts])
  cut, replaced, sizes = [], [], set()
  cloze = jax.jit(task.with_pieces)
  for seed in range(20):
    made = jax.tree.map(np.asarray, cloze(batch, jax.random.key(seed)))
    for row in range(len(texts)):
      query = made['inputs'][row][made['inputs_segments'][row] != 0].tolist()
      whole = np.asarray(batch['targets'])[row]
      whole = whole[np.asarray(batch['targets_segments'])[row] != 0].tolist()
      rest = made['targets'][row][made['targets_segments'][row] != 0].tolist()
      replaced.append(query != task.processor.encode_example('ant').tokens)
      if not replaced[-1]:
        assert rest == whole
        continue
      piece = query[1:-1]
      sizes.add(len(piece))
      assert query[0] == whole[0] and query[-1] == whole[-1]
      at = [i for i in range(len(whole)) if whole[i : i + len(piece)] == piece]
      assert at
      cut.append(rest != whole)
      assert rest in ([whole[:i] + whole[i + len(piece) :] for i in at] if cut[-1] else [whole])
    assert not made['inputs_segments'][len(texts)].any()  # the empty row
  assert sizes == {3, 4, 5, 6}
  assert 0.4 < np.mean(replaced) < 0.6
  assert 0.8 < np.mean(cut) < 1
  model = model_of(task)
  assert np.isfinite(jax.jit(task.loss)(model, batch, jax.random.key(0))[0].value)


def test_bm25_equals_the_published_formula(file, texts):
  queries = ['ant owl', 'pig pig zebra']
  documents = [Counter(text.split()) for text in texts]
  mean = np.mean([d.total() for d in documents])

  def score(query, document):
    total = 0
    for word in query.split():
      n = sum(word in d for d in documents)
      idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
      tf, length = document[word], document.total() / mean
      total += idf * tf / (tf + 1.2 * (1 - 0.75 + 0.75 * length)) if n else 0
    return total

  expected = [[score(q, d) for d in documents] for q in queries]
  np.testing.assert_allclose(bm25(file, queries), expected, rtol=1e-4)


def order(scores):
  return [f'd{i}' for i in np.argsort(-np.asarray(scores), kind='stable')]


def test_rankings_are_fused_by_scores_or_ranks(task, file, texts):
  model, lines = model_of(task), ['ant owl bee', 'pig']
  by_words = bm25(file, lines)
  queries = task.embed(model, task.processor.encode_column(lines), 0)
  by_vectors = queries @ task.embed(model, task.processor.encode_column(texts), 1).T

  def predicted(**kwargs):
    decoding = dataclasses.replace(task.decoding, **kwargs)
    found = predict(dataclasses.replace(task, decoding=decoding), model, lines)
    return [line.split() for line in found]

  assert predicted() == [order(row) for row in by_vectors]
  assert predicted(bm25=1.0) == [order(row) for row in by_words]
  assert predicted(first=3) == [order(row)[:3] for row in by_vectors]

  def scaled(row):
    return (row - row.min()) / (row.max() - row.min())

  mixed = [0.3 * scaled(w) + 0.7 * scaled(v) for w, v in zip(by_words, by_vectors, strict=True)]
  assert predicted(bm25=0.3) == [order(row) for row in mixed]
  ranks = [
    [1 / (61 + order(w).index(f'd{i}')) + 1 / (61 + order(v).index(f'd{i}')) for i in range(12)]
    for w, v in zip(by_words, by_vectors, strict=True)
  ]
  assert predicted(bm25=0.5, fusion='ranks') == [order(row) for row in ranks]
  np.testing.assert_allclose(
    comparable(np.array([[3.0, 9.0, 5.0]]), 'ranks'), [[1 / 63, 1 / 61, 1 / 62]]
  )


@pytest.mark.slow
def test_documents_are_found(task, tmp_path, seed, bounded):
  """A model that has learned the pairs ranks the right document first."""
  rng = np.random.default_rng(1)
  texts = [' '.join(rng.choice(WORDS, rng.integers(8, 20))) for _ in range(32)]
  (tmp_path / 'documents.tsv').write_text(''.join(f'd{i}\t{t}\n' for i, t in enumerate(texts)))
  decoding = dataclasses.replace(task.decoding, collection=str(tmp_path / 'documents.tsv'))
  task = dataclasses.replace(task, decoding=decoding)
  pairs = [(' '.join(text.split()[2:5]), text) for text in texts]
  batch = batch_of(task, pairs)
  config = ModelConfig(vocab=task.tokenizer.size, **SIZES)
  model = jax.jit(lambda key: task.init(config, key))(jax.random.key(seed))
  model, losses = fit(task, model, batch, steps=60, learning_rate=1e-2, seed=seed)
  bounded('loss, of its start', losses[-1] / losses[0], below=0.2)
  lines = [query for query, _ in pairs]
  first = [line.split()[0] for line in predict(task, model, lines)]
  right = [name == f'd{i}' for i, name in enumerate(first)]
  bounded('share of queries whose document is first', np.mean(right), above=0.8)
  totals = eval_step(task, model, batch)
  assert totals['accuracy_in_batch'].value == pytest.approx(np.mean(right))
  weights, pieces, _ = attend(task, model, lines[0])
  assert weights.shape == (1, 2, len(pieces), len(pieces))
  layers = capture_layers(task, model, batch)
  assert {*layers} == {'inputs', 'targets'}
  assert not np.array_equal(layers['inputs']['states'], layers['targets']['states'])


def test_ranking_without_relevance_judgements_is_refused(task):
  assert task.example({'inputs': 'a?', 'relevant': '1:4'}) == ('a?', '1:4')
  with pytest.raises(ValueError, match="which documents answer 'a\\?'.*cranfield"):
    task.example({'inputs': 'a?', 'targets': 'b'})


def test_invalid_settings_and_lines_are_refused(task):
  model = model_of(task)
  with pytest.raises(ValueError, match='empty'):
    predict(task, model, [''])
  with pytest.raises(ValueError, match='shorten'):
    predict(task, model, ['ant ' * 40])
  assert len(predict(task, model, ['ant ' * 40, ''], truncate=True)) == 2
  decoding = dataclasses.replace(task.decoding, collection='')
  with pytest.raises(FileNotFoundError, match='decode.collection'):
    predict(dataclasses.replace(task, decoding=decoding), model, ['ant'])
  for wrong in ({'temperature': 0.0}, {'cloze': 1.5}, {'piece': 1}):
    with pytest.raises(ValueError, match=next(iter(wrong))):
      dataclasses.replace(task, **wrong)
  with pytest.raises(ValueError, match='bm25=2'):
    dataclasses.replace(task.decoding, bm25=2.0)


def test_a_query_without_words_scores_nothing(tmp_path):
  (tmp_path / 'documents.tsv').write_text('a\tred wine\nb\tblue sea\n')
  scores = bm25(str(tmp_path / 'documents.tsv'), ['the', 'unheard', '?', 'the sea'])
  np.testing.assert_array_equal(scores > 0, [[0, 0], [0, 0], [0, 0], [0, 1]])
