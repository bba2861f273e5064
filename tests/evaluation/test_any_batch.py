"""The metrics of a model on a data set do not depend on how its examples are batched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameters import drawn

from transformer.data import tokenizers
from transformer.data.pipeline import Batches, Ragged, bucket, pack
from transformer.evaluation.evaluate import teacher_forced
from transformer.inference.decoding import Batching, Decoding
from transformer.modules.config import ModelConfig
from transformer.tasks.question_answering import Extraction
from transformer.tasks.retrieval import Ranking
from transformer.tasks.text_to_speech import Synthesis
from transformer.training import sharding
from transformer.training.config import TASKS

WORDS = 'ant bee cat dog elk fox gnu hen'.split()
SIZES = dict(width=16, depth=1, heads=2, feedforward=16, dropout=0.0, position='rotary', unroll=1)
GENERAL = dict(decoding=Decoding(max_new_tokens=8), max_length=32)
BATCHING = dict(decoding=Batching(), max_length=32)
MEAN, TAGS = dict(pooling='mean'), ('O', 'B-x', 'I-x')
ARGUMENTS = {  # of each task, and of its model
  'seq2seq': (GENERAL, {}),
  'language_model': (GENERAL, {}),
  'masked_lm': (BATCHING, {}),
  'span_corruption': (GENERAL | dict(max_length=20), {}),
  'classification': (BATCHING | dict(classes=('a', 'b')), MEAN),
  'token_classification': (BATCHING | dict(labels=TAGS), {}),
  'ctc': (BATCHING, {}),
  'joint_ctc': (GENERAL, {}),
  'question_answering': (dict(decoding=Extraction(), max_length=48, stride=8), dict(token_types=3)),
  'retrieval': (dict(decoding=Ranking(), max_length=32), MEAN),
  'text_to_speech': (
    dict(decoding=Synthesis(max_new_tokens=8), max_length=64, rate=4000, window=0.03, hop=0.01)
    | dict(mels=6, frames_per_step=2),
    dict(tie='none'),
  ),
}
# By their definition they compare the rows of a batch: their names say so.
OF_A_BATCH = ('nll_in_batch', 'accuracy_in_batch')


def example(i, task):
  rng = np.random.default_rng(i)
  words = rng.choice(WORDS, 2 + i % 4).tolist()
  found = {'inputs': ' '.join(words), 'targets': ' '.join(words[:2])}
  if task in ('language_model', 'masked_lm', 'span_corruption'):
    return {'targets': found['inputs']}
  if task == 'classification':
    return found | {'targets': 'ab'[i % 2]}
  if task == 'token_classification':
    return found | {'targets': ' '.join(TAGS[n % 2] for n in range(len(words)))}
  if task == 'question_answering':
    return {'inputs': words[0], 'targets': found['inputs'], 'answers': words[1:2], 'starts': [4]}
  if task == 'text_to_speech':
    return {'inputs': rng.normal(size=300 + 100 * i).astype(np.float32), 'targets': 'ant bee'}
  return found


# The one whose metrics draw at random is tried always; each takes a second or more.
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in TASKS if name != 'masked_lm']


@pytest.mark.parametrize('name', ['masked_lm', *SLOW])
def test_metrics_are_the_same_for_any_batch(name):
  tokenizer = tokenizers.train([' '.join(WORDS)], kind='characters', vocab=40, sentinels=8)
  arguments, sizes = ARGUMENTS[name]
  task = TASKS[name](tokenizer=tokenizer, **arguments)
  config = ModelConfig(vocab=tokenizer.size, **SIZES | sizes)
  model = drawn(lambda: task.init(config, jax.random.key(0)))
  source = [example(i, name) for i in range(7)]
  columns = task.columns(source)
  lengths = np.stack([c.lengths for c in columns.values() if isinstance(c, Ragged)], axis=1)
  longest = int(lengths.max())
  ways = [  # rows, tokens of a batch, devices that share it
    (bucket(lengths, buckets=3), longest, 1),  # a row at a time
    (bucket(lengths, buckets=1, multiple=longest + 8), 9999, 8),  # all at once, more padding
  ]
  if task.supports_packing and name != 'masked_lm':  # Experiment.batches does not pack it
    ways.append((pack(lengths, length=2 * longest), 9999, 1))
  found = []
  for rows, tokens, devices in ways:
    batches = Batches(columns, rows, tokens=tokens, multiple=devices, seed=None)
    every = [batches[i] for i in range(len(batches))]
    if devices == 1:
      placed = [jax.tree.map(jnp.asarray, batch) for batch in every]
    else:
      placed = [sharding.shard_batch(batch, sharding.make_mesh()) for batch in every]
    found.append(teacher_forced(task, model, placed, source))
  for metrics in found[1:]:
    assert metrics.keys() == found[0].keys()
    for metric in metrics.keys() - {*OF_A_BATCH}:
      np.testing.assert_allclose(metrics[metric], found[0][metric], rtol=1e-5, err_msg=metric)
