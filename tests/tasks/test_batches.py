"""A metric of one model and one data set does not depend on how its batches are made."""

from typing import get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameters import drawn

from transformer.data import tokenizers
from transformer.data.pipeline import Batches, Ragged, bucket, pack
from transformer.evaluation.evaluate import compute_metrics
from transformer.functional.losses import accuracy, cross_entropy, ctc, linear_cross_entropy
from transformer.modules.config import ModelConfig
from transformer.training import sharding
from transformer.training.config import TASKS

TEXTS = [
  'red ant',
  'big red bee eats',
  'blue bee',
  'ant',
  'big blue ant sees',
  'a red bee',
  'red ant',  # again
]
SIZES = dict(width=8, depth=1, heads=2, feedforward=8, max_length=32, position='rotary', unroll=1)
LENGTH = 20
OWN = {
  'classification': (
    dict(classes=('a', 'b')),
    lambda text: dict(inputs=text, targets='ab'['a' in text]),
  ),
  'token_classification': (
    dict(labels=('O', 'B')),
    lambda text: dict(inputs=text, targets=' '.join('OB'[len(w) % 2] for w in text.split())),
  ),
  'question_answering': (
    dict(stride=4),
    lambda text: dict(inputs='who', targets=text, answers=[text[-2:]], starts=[len(text) - 2]),
  ),
  'language_model documents': (
    dict(documents=True, overlap=3),
    lambda text: dict(targets=text),
  ),
  'masked_lm': (dict(rate=0.3), lambda text: dict(targets=text)),
  'masked_lm words': (dict(rate=0.3, whole_words=True), lambda text: dict(targets=text)),
  'masked_lm order': (dict(next_sentence=True), lambda text: dict(targets=text)),
  'span_corruption': (dict(rate=0.3, mean_span=2.0), lambda text: dict(targets=text)),
  'span_corruption prefix': (dict(objective='prefix'), lambda text: dict(targets=text)),
  'text_to_speech': (dict(mels=4), lambda text: dict(inputs=None, targets=text)),
}


@pytest.fixture(scope='module')
def letters():
  return tokenizers.train(TEXTS, kind='characters', vocab=40, sentinels=8)


@pytest.fixture(scope='module')
def words():
  return tokenizers.train(TEXTS * 9, kind='bpe', vocab=270, sentinels=1)


def columns_of(task, source):
  if 'mel_error' not in task.metrics:
    return task.columns(source)
  rng, texts = np.random.default_rng(0), [example['targets'] for example in source]
  frames = [rng.normal(size=(len(text), 4)).astype(np.float32) for text in texts]
  return {'inputs': task.processor.encode_column(texts), 'targets': Ragged.from_sequences(frames)}


NAMES = [*(name for name in TASKS if name != 'retrieval'), *filter(lambda name: ' ' in name, OWN)]
DRAWN = ('masked_lm', 'span_corruption', 'language_model')  # at random, or over several windows


@pytest.mark.parametrize(
  'name',
  [name if name in DRAWN else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_metrics_do_not_depend_on_batches_and_packing(name, letters, words):
  own, example = OWN.get(name, ({}, lambda text: dict(inputs=text, targets=text[:3])))
  kind = TASKS[name.split()[0]]
  task = kind(
    tokenizer=words if 'words' in name else letters,
    decoding=get_type_hints(kind)['decoding'](),
    max_length=LENGTH,
    **own,
  )
  config = ModelConfig(vocab=task.tokenizer.size, token_types=2 * ('order' in name), **SIZES)
  model = drawn(lambda: task.init(config, jax.random.key(0)))
  source = [example(text) for text in TEXTS]
  fields = columns_of(task, source)
  lengths = np.stack([c.lengths for c in fields.values() if isinstance(c, Ragged)], axis=1)
  divided = pack(lengths, length=24) if task.supports_packing else bucket(lengths, buckets=1)

  def made(rows, tokens, multiple=1):
    batches = Batches(fields, rows, tokens=tokens, multiple=multiple, seed=None)
    return [batches[i] for i in range(len(batches))]

  found = [
    compute_metrics(task, model, map(jax.device_put, made(rows, tokens)), source)
    for rows, tokens in ((bucket(lengths, buckets=1, multiple=4), 9999), (divided, 48))
  ]
  if name not in DRAWN[1:]:  # and on 8 devices; of these two by their other settings
    wide = [
      sharding.shard_batch(batch, sharding.make_mesh())
      for batch in made(bucket(lengths, buckets=1, multiple=16), 9999, multiple=8)
    ]
    found.append(compute_metrics(task, model, wide, source))
  assert set(found[0]) >= {*task.metrics}
  for other in found[1:]:
    for metric, value in found[0].items():
      assert other[metric] == pytest.approx(value, rel=1e-5, abs=1e-6), metric


def test_only_metrics_of_retrieval_are_of_a_batch_and_say_so():
  for name, task in TASKS.items():
    assert all(metric.endswith('_in_batch') == (name == 'retrieval') for metric in task.metrics)


def test_targets_of_no_token_count_nothing_where_their_weight_is_0(rng):
  """-100 marks what is not scored in other libraries."""
  x, table = (rng.normal(size=size).astype(np.float32) for size in ((4, 6), (5, 6)))
  targets, weights = np.array([1, 3, -100, -100]), np.array([1, 1, 0, 0], np.float32)

  @jax.jit
  def compute(x, table, targets, weights):
    def loss(x):
      logits = x @ table.T
      plain, fused = (
        cross_entropy(logits, targets, weights),
        linear_cross_entropy(x, table, targets, weights),
      )
      ones = jnp.ones((1, 4), bool)
      aligned = ctc(logits[None], ones, targets[None], weights[None], blank=0)
      total = plain.value + fused[0].value + aligned.value
      return total, (plain, fused, aligned, accuracy(logits, targets, weights))

    return jax.value_and_grad(loss, has_aux=True)(x)

  found, want = (compute(x, table, t, weights) for t in (targets, np.maximum(targets, 0)))
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
    np.testing.assert_array_equal(a, b)
  assert np.isfinite(found[0][0])
