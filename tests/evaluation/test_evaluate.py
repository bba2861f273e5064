"""Tests of evaluation/evaluate.py."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from transformer.data import tokenizers
from transformer.evaluation.evaluate import eval_step, evaluate
from transformer.inference.batching import pad_rows
from transformer.inference.decoding import Batching, Decoding
from transformer.modules.config import ModelConfig
from transformer.tasks.seq2seq import Seq2Seq
from transformer.tasks.token_classification import TokenClassification


@pytest.fixture
def parrot(monkeypatch):
  """A task that answers with its input, and the list of its requests."""
  asked = []

  def answer(task, model, requests):
    lines = [task.tokenizer.decode(request) for request in requests]
    asked.extend(lines)
    return lines

  monkeypatch.setattr(Seq2Seq, 'answer', answer)
  tokenizer = tokenizers.train(['abcdefghijklmnopqrstuvwxyz 0123'], kind='characters', vocab=64)
  return Seq2Seq(
    tokenizer=tokenizer, decoding=Decoding(max_new_tokens=8, batch_size=1), max_length=40
  ), asked


def captions(images=4, each=3):
  source = []
  for i in range(images):
    references = tuple(f'caption {i} {j} of all' for j in range(each))
    for caption in references:
      example = {'inputs': f'caption {i} 1 of all', 'targets': caption, 'name': f'{i}.jpg'}
      source.append(example | {'references': references})
  return source


def test_image_is_predicted_once_and_compared_with_all_captions(parrot):
  task, asked = parrot
  metrics = ['bleu1_lowercase_words', 'bleu4_lowercase_words']
  found = evaluate(task, None, captions(), metrics=metrics, samples=2)
  assert asked == [f'caption {i} 1 of all' for i in range(4)] == found.predictions
  assert found.metrics == dict.fromkeys(metrics, pytest.approx(100))
  assert found.references[2] == 'caption 2 0 of all\tcaption 2 1 of all\tcaption 2 2 of all'
  assert [sample['inputs'] for sample in found.samples] == ['0.jpg', '1.jpg']
  assert len(evaluate(task, None, captions(), metrics=metrics, limit=3).predictions) == 3


def test_texts_are_compared_in_one_form_of_unicode(parrot):
  """A tokenizer writes composed characters; a file may have them as a letter and a mark."""
  task, _ = parrot
  task = dataclasses.replace(task, tokenizer=tokenizers.train(['é'], kind='bytes', vocab=260))
  source = [{'inputs': 'caf\u00e9', 'targets': 'cafe\u0301'}]
  found = evaluate(task, None, source, metrics=['exact_match', 'chrf'])
  assert found.metrics == {'exact_match': 100, 'chrf': 100}
  assert found.references == ['cafe\u0301']


def test_without_references_every_example_is_predicted(parrot):
  task, _ = parrot
  source = [{'inputs': word, 'targets': 'a'} for word in 'aab']
  found = evaluate(task, None, source, metrics=['exact_match'])
  assert found.metrics == {'exact_match': pytest.approx(200 / 3)}
  assert found.references == ['a'] * 3
  assert evaluate(task, None, source, metrics=[], samples=2).predictions == ['a', 'a']


def test_metrics_are_also_given_for_groups(parrot):
  task, _ = parrot
  source = [
    {'inputs': word, 'targets': word if right else '1', 'kind': kind}
    for word, kind, right in (('a', 'x', 1), ('b', 'x', 0), ('c', 'y', 1))
  ]
  found = evaluate(task, None, source, metrics=['exact_match'], by='kind').metrics
  expected = {'exact_match': 200 / 3, 'exact_match/x': 50, 'exact_match/y': 100}
  assert found == pytest.approx(expected)


def test_metrics_of_teacher_forcing_are_means_over_batches_and_compile_once():
  tokenizer = tokenizers.train(['abc'], kind='characters', vocab=16)
  labels = TokenClassification(
    tokenizer=tokenizer, decoding=Batching(batch_size=2), max_length=8, labels=('O', 'B')
  )
  config = ModelConfig(vocab=tokenizer.size, width=8, depth=1, heads=2, feedforward=8, unroll=1)
  model = jax.jit(lambda key: labels.init(config, key))(jax.random.key(0))
  source = [{'inputs': 'a b', 'targets': 'B O'}, {'inputs': 'c', 'targets': 'O'}] * 2
  columns = labels.columns(source)
  batches = []
  for rows in ([0, 1], [2, 3]):
    batch = {}
    for name, column in columns.items():
      batch[name] = jnp.asarray(pad_rows([column[i] for i in rows], 8, pad=0))
    batch['inputs_segments'] = (batch['inputs'] != 0).astype(jnp.int32)
    batches.append(batch)
  before = eval_step._cache_size()
  twice = evaluate(labels, model, source, batches).metrics
  # with other settings of inference it is the same program
  faster = dataclasses.replace(labels, labels=('O', 'B'))
  once = evaluate(faster, model, source, batches[:1], fast=True).metrics
  assert eval_step._cache_size() == before + 1
  assert set(twice) == set(labels.metrics) and twice == pytest.approx(once)
