"""Every public way to use a model, against every check: docs/checks.md has the table of CELLS."""

import dataclasses
import pathlib
import types

import jax
import jax.numpy as jnp
import pytest
from parameters import drawn
from starlette.testclient import TestClient

from transformer.data import tokenizers
from transformer.data.processors import ImageProcessor
from transformer.evaluation.evaluate import evaluate
from transformer.inference.attention_maps import attend
from transformer.inference.decoding import Batching, Decoding
from transformer.inference.generate import generate
from transformer.inference.predict import predict, predict_each
from transformer.inference.server import application
from transformer.modules.config import ModelConfig
from transformer.tasks.classification import Classification
from transformer.tasks.language_model import LanguageModel
from transformer.tasks.masked_lm import MaskedLM
from transformer.tasks.seq2seq import Seq2Seq
from transformer.training import commands

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


def by_generate(task, model, line, **settings):
  start = dict(start=task.start_token) if isinstance(task, Seq2Seq) else {}
  generate(model, [task.processor.encode_example(line)], max_new_tokens=4, **start, **settings)


def by_predict_each(task, model, line):
  (answer,) = predict_each(task, model, [line])
  if isinstance(answer, Exception):
    raise answer


def by_call(task, model, line):
  tokens = jnp.asarray([task.processor.encode_example(line)])
  model(tokens, tokens) if isinstance(task, Seq2Seq) else model(tokens)


def by_n_best(task, model, line):
  task = dataclasses.replace(task, decoding=dataclasses.replace(task.decoding, beams=2))
  task.n_best(model, [task.processor.encode_example(line)])


def by_export(task, model, line):
  """As --mode=export does, up to the writing of files."""
  experiment = types.SimpleNamespace(task=task)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(commands, '_restored', lambda *_: (experiment, model, 0))
    flags = types.SimpleNamespace(int8=False, format='hf')
    commands._export({}, types.SimpleNamespace(path=pathlib.Path()), flags)


def by_serve(task, model, line):
  with TestClient(application(task, model, 'a task'), base_url='http://127.0.0.1') as client:
    found = client.post('/predict', json={'inputs': [line]})
  assert found.status_code in (400, 500)
  raise (ValueError if found.status_code == 400 else FloatingPointError)(found.json()['error'])


def by_evaluate(task, model, line):
  source = [{'inputs': line, 'targets': 'a' if isinstance(task, Classification) else line}]
  evaluate(task, model, source, metrics=['exact_match'])


WAYS = {
  'call': by_call,
  'generate': by_generate,
  'predict': lambda task, model, line: predict(task, model, [line]),
  'predict_each': by_predict_each,
  'stream': lambda task, model, line: list(task.stream(model, line)),
  'n_best': by_n_best,
  'serve': by_serve,
  'evaluate': by_evaluate,
  'attend': attend,
  'export': by_export,
}
# by the fault: the line, what of the model and of decoding is changed, and the error
FAULTS = {
  'NaN': ('ab___c', {}, {}, FloatingPointError, 'NaN'),
  'too long': ('abcdefgh___cabfadebcd', {}, {}, ValueError, 'more than the 12 learned positions'),
  'unknown id': (
    'ab___c',
    dict(vocab=5),
    {},
    ValueError,
    'from .* the model has ids 0 to 4',
  ),
  'setting': ('ab___c', {}, dict(suppress=(99,)), ValueError, r'decode.suppress has ids \[99\]'),
}
# What happens in the table of docs/checks.md; without an entry the fault is an error
CELLS = {
  ('call', 'NaN'): 'NaN is returned: a compiled program cannot raise',
  ('call', 'setting'): 'none',
  ('attend', 'setting'): 'none of a decoder alone',
  ('export', 'too long'): 'nothing is read',
  ('export', 'unknown id'): 'nothing is read',
  ('export', 'setting'): 'none',
}
PADDING = {
  'call': "the model's own pad, or segments of 0, are padding",
  'attend': 'not shown',
  'export': 'pad_token_id is written',
  'evaluate': 'never predicted; weighs 0 in metrics',
}


def table():
  """The table of docs/checks.md."""
  head = ['way', *FAULTS, 'padding']
  rows = [
    [way, *(CELLS.get((way, fault), 'error') for fault in FAULTS)]
    + [PADDING.get(way, 'never generated, unless it is an end token')]
    for way in WAYS
  ]
  return '\n'.join(f'| {" | ".join(row)} |' for row in [head, ['---'] * len(head), *rows])


def test_the_documentation_has_the_table():
  page = pathlib.Path(__file__).parents[2] / 'docs' / 'checks.md'
  assert table() in page.read_text()


def cases():
  for task in TASKS:
    searches = task in ('language_model', 'seq2seq')
    for way in WAYS:
      if way in ('generate', 'call') and not searches:
        continue  # which takes a decoder; a call of the others is one of an encoder
      if way == 'serve' and task != 'language_model':
        continue  # which is predict_each
      if (way == 'stream' and task != 'language_model') or (way == 'n_best' and task != 'seq2seq'):
        continue
      for fault in FAULTS:
        if (way, fault) in CELLS and (way, task, fault) != ('attend', 'seq2seq', 'setting'):
          continue
        if fault == 'setting' and not searches:
          continue
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


@pytest.mark.parametrize('name, way, fault', cases())
def test_a_fault_is_an_error_in_every_way_of_use(name, way, fault, model_of):
  line, _, decoding, error, words = FAULTS[fault]
  line = line if name == 'masked_lm' else line.replace('___', '')
  task = TASKS[name]
  task = dataclasses.replace(task, decoding=dataclasses.replace(task.decoding, **decoding))
  with pytest.raises(error, match=words):
    if way == 'generate':
      by_generate(task, model_of(name, fault), line, **decoding)
    else:
      WAYS[way](task, model_of(name, fault), line)


def test_what_is_cut_is_counted(caplog, model_of):
  task, model = TASKS['seq2seq'], model_of('seq2seq', 'setting')
  long = dataclasses.replace(task, max_length=6)
  evaluate(long, model, [{'inputs': x, 'targets': x} for x in ('abc', 'abcdefgh', '')], samples=3)
  assert '2 of 3 inputs are empty or too long, and read in part' in caplog.text
  assert '3 of 3 answers were cut at decode.max_new_tokens=4' in caplog.text


@pytest.mark.parametrize('truncate', [True, False])
def test_what_cannot_be_read_names_its_line(truncate):
  images = ImageProcessor(height=4, width=4, channels=1, patch=4)
  task = dataclasses.replace(TASKS['classification'], input_processor=images)
  with pytest.raises(ValueError, match='line 1: there is no file nowhere.png'):
    predict(task, None, ['nowhere.png'], truncate=truncate)
