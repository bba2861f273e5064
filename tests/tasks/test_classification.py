"""Tests of tasks/classification.py: fine classes in training, coarse ones in evaluation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameters import drawn

from transformer.data import tokenizers
from transformer.evaluation.evaluate import eval_step
from transformer.inference.decoding import Batching
from transformer.inference.predict import predict
from transformer.modules.config import ModelConfig
from transformer.tasks.classification import Classification

CLASSES = ['NUM:date', 'LOC:city', 'NUM:money', 'LOC:state', 'NUM:other']


@pytest.fixture
def task():
  return Classification(
    tokenizer=tokenizers.train(['abc'], kind='bytes', vocab=260),
    decoding=Batching(batch_size=2),
    max_length=8,
    classes=tuple(CLASSES),
    label_smoothing=0.0,
    coarse_until=':',
  )


@pytest.fixture
def model(task):
  config = ModelConfig(
    vocab=260, width=16, depth=1, heads=2, feedforward=32, max_length=8, dropout=0.0, pooling='mean'
  )
  return drawn(lambda: task.init(config, jax.random.key(0)))


def test_coarse_class_probability_is_the_sum_of_its_classes(task, model, close):
  fields = task.columns([{'inputs': 'abc', 'targets': name} for name in CLASSES])
  rows = jnp.asarray(np.stack([fields['inputs'][i] for i in range(len(CLASSES))]))
  batch = {
    'inputs': rows,
    'inputs_segments': jnp.ones_like(rows),
    'label': jnp.asarray(fields['label']),
    'label_segments': jnp.ones(len(CLASSES), jnp.int32),
  }
  logits = jax.jit(lambda: model(rows, segments=batch['inputs_segments']))()
  p = np.asarray(jax.nn.softmax(logits[0]), np.float64)
  number, place = p[0] + p[2] + p[4], p[1] + p[3]
  found = eval_step(task, model, batch)
  close(found['nll'].sum, -(3 * np.log(number) + 2 * np.log(place)))
  assert set(found) == set(task.metrics)
  loss, apart = jax.jit(task.loss)(model, batch, None)
  close(loss.sum, -np.log(p).sum())  # one of each class
  close(apart['nll'].sum, found['nll'].sum)
  assert predict(task, model, ['abc']) == ['NUM' if number > place else 'LOC']


def test_labels_are_compared_in_one_form_of_unicode(task):
  task = dataclasses.replace(task, classes=('pa\u0302te', 'riz'), coarse_until='')
  source = [{'inputs': 'a', 'targets': name} for name in ('p\u00e2te', 'pa\u0302te', 'riz')]
  assert task.columns(source)['label'].tolist() == [0, 0, 1]
  with pytest.raises(ValueError, match='each once'):
    dataclasses.replace(task, classes=('p\u00e2te', 'pa\u0302te'))


def test_example_gives_the_coarse_class(task):
  assert task.coarse == ['NUM', 'LOC']
  assert task.example({'inputs': 'abc', 'targets': 'LOC:city'}) == ('abc', 'LOC')


def test_consistency_adds_the_divergence_of_two_passes(task, model, close):
  rows = jnp.array([[5, 6, 7], [8, 9, 0]])
  batch = dict(inputs=rows, inputs_segments=(rows != 0).astype(jnp.int32))
  batch |= dict(label=jnp.array([0, 3]), label_segments=jnp.ones(2, jnp.int32))
  rate = dataclasses.replace(model.config, dropout=0.5)
  dropping = drawn(lambda: task.init(rate, jax.random.key(0)))
  one, three = (dataclasses.replace(task, consistency=factor) for factor in (1.0, 3.0))

  @jax.jit
  def losses(model, dropping):
    key = jax.random.key(1)
    means = [one.loss(model, batch, None), one.loss(model, batch, key)]  # without dropout
    means += [one.loss(dropping, batch, key), three.loss(dropping, batch, key)]
    return [loss.value for loss, _ in means]

  plain, alike, once, thrice = losses(model, dropping)
  close(alike, plain)
  assert thrice > once + 0.01
