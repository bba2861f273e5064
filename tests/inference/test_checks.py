"""Every public way to use a model, against every check: NaN, ids, lengths, settings."""

import jax
import jax.numpy as jnp
import pytest
from parameters import drawn

from transformer.data import tokenizers
from transformer.evaluation.evaluate import evaluate
from transformer.inference.attention_maps import attend
from transformer.inference.decoding import Batching, Decoding
from transformer.inference.generate import generate
from transformer.inference.predict import predict, predict_each
from transformer.modules.config import ModelConfig
from transformer.tasks.classification import Classification
from transformer.tasks.language_model import LanguageModel
from transformer.tasks.masked_lm import MaskedLM
from transformer.tasks.seq2seq import Seq2Seq

SIZES = dict(width=8, depth=1, heads=2, feedforward=8, max_length=12, position='learned', unroll=1)
LETTERS = 'abcdefghijklmnop'
TEXT = tokenizers.train([LETTERS], kind='characters', vocab=24, sentinels=1)
DECODING = Decoding(max_new_tokens=4, batch_size=1)
GIVEN = dict(tokenizer=TEXT, max_length=64)
TASKS = {
  'language_model': LanguageModel(**GIVEN, decoding=DECODING),
  'seq2seq': Seq2Seq(**GIVEN, decoding=DECODING),
  'classification': Classification(**GIVEN, decoding=Batching(batch_size=1), classes=('a', 'b')),
  'masked_lm': MaskedLM(**GIVEN, decoding=Batching(batch_size=1)),
}


def by_generate(task, model, line):
  start = dict(start=task.start_token) if isinstance(task, Seq2Seq) else {}
  generate(model, [task.processor.encode_example(line)], max_new_tokens=4, **start)


def by_predict_each(task, model, line):
  (answer,) = predict_each(task, model, [line])
  if isinstance(answer, Exception):
    raise answer


def by_evaluate(task, model, line):
  source = [{'inputs': line, 'targets': 'a' if isinstance(task, Classification) else line}]
  evaluate(task, model, source, metrics=['exact_match'])


WAYS = {
  'generate': by_generate,
  'predict': lambda task, model, line: predict(task, model, [line]),
  'predict_each': by_predict_each,
  'stream': lambda task, model, line: list(task.stream(model, line)),
  'evaluate': by_evaluate,
  'attend': attend,
}
# by the fault: the line, what of the model is changed, and the error
FAULTS = {
  'too long': ('abcdefgh___cabfadebcd', {}, ValueError, 'more than the 12 learned positions'),
  'unknown id': ('ab___c', dict(vocab=5), ValueError, 'ids from .* the model knows 0 to 4'),
  'NaN': ('ab___c', {}, FloatingPointError, 'NaN'),
}


def cases():
  for task in TASKS:
    for way in WAYS:
      if way == 'generate' and task not in ('language_model', 'seq2seq'):
        continue  # which takes a decoder
      if way == 'stream' and task != 'language_model':
        continue
      for fault in FAULTS:
        # what these predict in an evaluation is a short part of the text
        if (way, fault) != ('evaluate', 'too long') or task in ('seq2seq', 'classification'):
          yield task, way, fault


@pytest.fixture(scope='module')
def model_of():
  made = {}

  def make(task, fault):
    changes = FAULTS[fault][1]
    if (task, fault) not in made:
      config = ModelConfig(**SIZES | dict(vocab=TEXT.size) | changes)
      model = drawn(lambda: TASKS[task].init(config, jax.random.key(0)))
      broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), model)
      made[task, fault] = broken if fault == 'NaN' else model
    return made[task, fault]

  return make


@pytest.mark.parametrize('task, way, fault', cases())
def test_a_fault_is_an_error_in_every_way_of_use(task, way, fault, model_of):
  line, _, error, words = FAULTS[fault]
  line = line if task == 'masked_lm' else line.replace('___', '')
  with pytest.raises(error, match=words):
    WAYS[way](TASKS[task], model_of(task, fault), line)
