"""Tests of tasks/token_classification.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitting import fit
from parameters import drawn

from transformer.data import tokenizers
from transformer.data.conll import entities
from transformer.data.pipeline import Batches, bucket, pack
from transformer.evaluation.evaluate import evaluate
from transformer.inference.attention_maps import attend
from transformer.inference.decoding import Batching
from transformer.inference.predict import predict
from transformer.modules.config import ModelConfig
from transformer.tasks.token_classification import TokenClassification

LABELS = ('O', 'B-person', 'I-person', 'B-location', 'I-location')
SIZES = dict(width=16, depth=1, heads=2, feedforward=32, prenorm=True, position='rotary', unroll=1)


@pytest.fixture(scope='module')
def task():
  texts = [example['inputs'] for example in entities('train')[:50]]
  tokenizer = tokenizers.train(texts, kind='bpe', vocab=290)
  return TokenClassification(
    tokenizer=tokenizer, decoding=Batching(batch_size=3), max_length=24, labels=LABELS
  )


@pytest.fixture(scope='module')
def model(task):
  config = ModelConfig(vocab=task.tokenizer.size, **SIZES)
  return drawn(lambda: task.init(config, jax.random.key(0)))


def batch_of(task, source, length=0):
  fields = task.columns(source)
  lengths = np.stack([ragged.lengths for ragged in fields.values()], axis=1)
  rows = pack(lengths, length=length) if length else bucket(lengths, buckets=1)
  return jax.tree.map(jnp.asarray, Batches(fields, rows, tokens=9999, seed=None)[0])


def test_label_is_at_the_first_token_of_its_word(task):
  text, labels = 'Annason  visits Reykjavik', 'B-person O B-location'
  fields = task.columns([{'inputs': text, 'targets': labels}])
  tokens, targets = fields['inputs'][0].tolist(), fields['targets'][0].tolist()
  assert len(tokens) == len(targets) > 8
  places = [place for place, target in enumerate(targets) if target >= 0]
  assert [LABELS[targets[place]] for place in places] == labels.split()
  spelled = [
    task.tokenizer.decode(tokens[a:b]) for a, b in zip(places, [*places[1:], -1], strict=True)
  ]
  assert [word.strip() for word in spelled] == text.split()
  assert places == task.processor.encode_example(text).starts


def test_loss_counts_first_tokens_packed_or_not(task, model, close):
  source = entities('val')[:7]
  batch, packed_batch = batch_of(task, source), batch_of(task, source, length=48)
  loss = jax.jit(lambda batch: task.loss(model, batch, None)[0])
  logits = jax.jit(lambda b: model.out(model.encoder(b['inputs'], segments=b['inputs_segments'])))(
    batch
  )
  log_p = jax.nn.log_softmax(np.asarray(logits, np.float64))
  total, words = 0.0, 0
  for row, example in enumerate(source):
    first = task.processor.encode_example(example['inputs']).starts
    for place, label in zip(first, example['targets'].split(), strict=True):
      total, words = total - log_p[row, place, LABELS.index(label)], words + 1
  found = loss(batch)
  close(found.sum, total)
  assert float(found.weight) == words
  assert packed_batch['inputs'].shape[0] < batch['inputs'].shape[0]
  close(loss(packed_batch).sum, total)


@pytest.mark.slow
def test_entities_are_learned(task, seed, bounded):
  source = entities('train')[:120]
  batch = batch_of(task, source)
  config = ModelConfig(vocab=task.tokenizer.size, **SIZES)
  model = jax.jit(lambda key: task.init(config, key))(jax.random.key(seed))
  model, losses = fit(task, model, batch, steps=80, learning_rate=2e-2, seed=seed)
  bounded('loss, of its start', losses[-1] / losses[0], below=0.2)
  # names and places of other sentences
  found = evaluate(task, model, entities('test'), [batch], metrics=['entity_f1'])
  bounded('F1 of entities, in percent', found.metrics['entity_f1'], above=70)
  assert set(found.metrics) == {*task.metrics, 'entity_f1'}
  for example, labels in zip(entities('test'), found.predictions, strict=True):
    assert len(labels.split()) == len(example['inputs'].split())


def test_labels_do_not_depend_on_other_lines(task, model):
  lines = ['Anna visits Rome', 'David', 'Clara likes New Oslo', 'Boris left']
  together = predict(task, model, lines)
  assert [predict(task, model, [line])[0] for line in lines] == together
  weights, rows, columns = attend(task, model, lines[0])
  assert weights.shape == (1, 2, len(rows), len(columns)) and rows[0] == '<s>'


def test_long_and_empty_lines_are_refused_or_truncated(task, model):
  long = ' '.join(['Anna'] * 40)
  with pytest.raises(ValueError, match='line 2: the line is empty'):
    predict(task, model, ['Anna', ' '])
  with pytest.raises(ValueError, match='line 1: the line has .* tokens, more than the 24'):
    predict(task, model, [long])
  tags, nothing = predict(task, model, [long, ' '], truncate=True)
  assert len(tags.split()) == 40 and tags.split()[-1] == 'O' and nothing == ''


def test_wrong_labels_are_refused(task):
  for labels in ('O', 'O O O', 'O B-animal'):
    with pytest.raises(ValueError, match=r"'Anna left': give one of loss.labels"):
      task.columns([{'inputs': 'Anna left', 'targets': labels}])
  with pytest.raises(ValueError, match='two or more labels'):
    dataclasses.replace(task, labels=('O', 'O'))
