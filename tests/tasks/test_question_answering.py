"""Tests of tasks/question_answering.py: windows, the best span, the text of answers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitting import fit
from parameters import drawn

from transformer.data import tokenizers
from transformer.data.facts import facts
from transformer.data.pipeline import Batches, bucket
from transformer.evaluation.evaluate import eval_step
from transformer.inference.attention_maps import attend
from transformer.inference.predict import predict
from transformer.modules.config import ModelConfig
from transformer.tasks.question_answering import MATCH, Extraction, QuestionAnswering, best_spans

TEXT = 'Émile   owns 3 goats, (says “Zoë”) and  lives in Nîmes\u00a0today.'
SIZES = dict(width=32, depth=2, heads=2, feedforward=64, max_length=64, dropout=0.0, prenorm=True)
SIZES |= dict(position='rotary', token_types=3, unroll=1)


def asked_of(text, *answers):
  starts = [text.index(answer) for answer in answers]
  return {
    'inputs': 'what does he own ?',
    'targets': text,
    'answers': [*answers],
    'starts': starts,
  }


@pytest.fixture(scope='module', params=['wordpiece', 'bpe', 'bytes'])
def task(request):
  examples = facts('train')
  texts = [TEXT, *(examples[i][side] for i in range(50) for side in ('inputs', 'targets'))]
  tokenizer = tokenizers.train(texts, kind=request.param, vocab=400, lowercase=True)
  return of(tokenizer, length=160 if request.param == 'bytes' else 64)


def of(tokenizer, length=64, **kwargs):
  decoding = Extraction(batch_size=3, longest=12)
  kwargs = dict(stride=8) | kwargs
  return QuestionAnswering(tokenizer=tokenizer, decoding=decoding, max_length=length, **kwargs)


def batch_of(task, source):
  fields = task.columns(source)
  rows = len(fields['starts']) + 1  # one of them empty
  lengths = fields['inputs'].lengths[:, None]
  batch = Batches(fields, bucket(lengths, buckets=1), tokens=1, multiple=rows, seed=None)[0]
  return jax.tree.map(jnp.asarray, batch)


def test_best_spans_equals_a_search_of_all_spans(rng):
  logits = rng.normal(size=(20, 9, 2)).astype(np.float32)
  inside = rng.random((20, 9)) < 0.6
  inside[0] = False
  found = best_spans(jnp.asarray(logits), jnp.asarray(inside), 3)
  log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
  for row in range(20):
    scores = {
      (s, e): log_p[row, s, 0] + log_p[row, e, 1]
      for s in range(9)
      for e in range(s, min(s + 3, 9))
      if inside[row, s] and inside[row, e]
    }
    if not scores:
      assert found[0][row] == -np.inf
      continue
    best = max(scores, key=scores.__getitem__)
    assert (int(found[1][row]), int(found[2][row])) == best
    np.testing.assert_allclose(found[0][row], scores[best], rtol=1e-5)


@pytest.mark.parametrize('answer', ['Émile', '3 goats', 'Zoë', 'Nîmes', 'lives in', 'today', TEXT])
def test_places_are_characters_of_the_text(task, answer):
  """Answers as places in windows, and back to characters, are the answers."""
  (asked,) = task.processor.encode([('what does he own ?', TEXT)])
  fields = task.columns([asked_of(TEXT, answer)])
  places = [*zip(fields['starts'][:, 0].tolist(), fields['ends'][:, 0].tolist(), strict=True)]
  windows = task.processor.windows(asked)
  found = {
    asked.answer(start - window.shift, end - window.shift)
    for (start, end), window in zip(places, windows, strict=True)
    if (start, end) != (0, 0)
  }
  assert found == ({answer} if len(windows) == 1 or found else set())
  assert found or len(windows) > 1


def test_windows_overlap_and_cover_the_paragraph(task):
  text = ' '.join(f'goat {i}' for i in range(100))
  (asked,) = task.processor.encode([('how many goats are there ?', text)])
  windows = task.processor.windows(asked)
  assert len(windows) > 2
  read = set()
  for before, window in zip([None, *windows], windows, strict=False):
    assert len(window.tokens) <= task.max_length
    part = range(window.start, window.start + len(window.tokens) - 1 - window.part_at)
    assert window.tokens[window.part_at : -1] == asked.paragraph[part.start : part.stop]
    assert before is None or part.start < max(read)
    read |= {*part}
  assert read == {*range(len(asked.paragraph))}
  assert not {*range(len(asked.paragraph) - 1)} <= read - {*part}  # the last was needed


def test_answer_positions_are_relative_to_their_window(task):
  text = ' '.join(f'goat {i}' for i in range(100))
  fields = task.columns([asked_of(text, 'goat 57')])
  (asked,) = task.processor.encode([('what does he own ?', text)])
  windows, seen = task.processor.windows(asked), 0
  for window, start, end in zip(windows, fields['starts'], fields['ends'], strict=True):
    if start[0]:
      seen += 1
      assert window.part_at <= start[0] <= end[0] < len(window.tokens) - 1
      assert asked.answer(int(start[0]) - window.shift, int(end[0]) - window.shift) == 'goat 57'
  assert 1 <= seen < len(windows)


# the host's part is tested with all tokenizers, the device's knows tokens alone
ONE = pytest.mark.parametrize(
  'task',
  ['wordpiece', *(pytest.param(kind, marks=pytest.mark.slow) for kind in ('bpe', 'bytes'))],
  indirect=True,
)


@ONE
def test_loss_is_the_mean_over_answers(task, close):
  source = [asked_of(TEXT, '3 goats', 'goats', '3 goats'), asked_of(TEXT, 'Zoë')]
  batch = batch_of(task, source)
  config = ModelConfig(vocab=task.tokenizer.size, **SIZES)
  model = drawn(lambda: task.init(config, jax.random.key(0)))
  loss, _ = jax.jit(task.loss)(model, batch, None)
  logits = jax.jit(task.logits)(model, batch['inputs'], batch['inputs_segments'] != 0)
  log_p = np.asarray(jax.nn.log_softmax(logits, axis=1))
  expected = [
    [
      -(log_p[row, s, 0] + log_p[row, e, 1]) / 2
      for s, e in zip(batch['starts'][row], batch['ends'][row], strict=True)
      if s >= 0
    ]
    for row in range(len(batch['starts']) - 1)
  ]
  close(loss.sum, sum(np.mean(row) for row in expected))
  close(loss.weight, len(expected))


@ONE
def test_answers_are_inside_the_paragraph_or_at_the_start_token(task):
  batch = batch_of(task, [asked_of(TEXT, 'Zoë')])
  config = ModelConfig(vocab=task.tokenizer.size, **SIZES)
  model = drawn(lambda: task.init(config, jax.random.key(0)))
  logits = jax.jit(task.logits)(model, batch['inputs'], batch['inputs_segments'] != 0)
  window = task.processor.windows(task.processor.encode([('what does he own ?', TEXT)])[0])[0]
  possible = {0, *range(window.part_at, len(window.tokens) - 1)}
  assert set(np.flatnonzero(np.asarray(logits[0, :, 0]) > -1e29)) == possible


def test_paragraph_tokens_in_the_question_have_their_own_type():
  tokenizer = tokenizers.train(['red ants eat big bees ?'] * 9, kind='wordpiece', vocab=99)
  task = of(tokenizer)
  (asked,) = task.processor.encode([('bees eat ?', 'big ants eat red bees')])
  (window,) = task.processor.windows(asked)
  tokens = jnp.asarray([[*window.tokens, 0, 0]])
  real = jnp.arange(tokens.shape[1])[None] < len(window.tokens)
  types, inside = task.token_types(tokens, real, 3)
  marked = tokenizer.decode([t for t, k in zip(tokens[0], types[0], strict=True) if k == MATCH])
  assert marked == 'eat bees'
  assert int(inside.sum()) == len(asked.paragraph)
  assert [int(task.token_types(tokens, real, n)[0].max()) for n in range(4)] == [0, 0, 1, 2]


SOURCE = [facts('train')[i] for i in range(24)]


@pytest.fixture(scope='module')
def untrained(seed):
  """(a task, a model with random parameters)."""
  texts = [example[side] for example in SOURCE for side in ('inputs', 'targets')]
  task = of(tokenizers.train(texts, kind='wordpiece', vocab=300))
  config = ModelConfig(vocab=task.tokenizer.size, **SIZES)
  return task, jax.jit(lambda key: task.init(config, key))(jax.random.key(seed))


@pytest.mark.slow
def test_answers_are_found(untrained, seed, bounded):
  """By a model that has learned some questions by heart."""
  task, model = untrained
  batch = batch_of(task, SOURCE)
  model, losses = fit(task, model, batch, steps=80, learning_rate=5e-3, seed=seed)
  lines, answers = zip(*map(task.example, SOURCE), strict=True)
  found = predict(task, model, lines)
  bounded('loss, of its start', losses[-1] / losses[0], below=0.2)
  bounded('share of answers found', np.mean(np.array(found) == answers), above=0.8)
  totals = eval_step(task, model, batch)
  bounded('end accuracy', totals['end_accuracy'].value, above=0.8)
  rows = [json.dumps({'question': e['inputs'], 'context': e['targets']}) for e in SOURCE]
  assert predict(task, model, rows[:3]) == found[:3]
  weights, pieces, _ = attend(task, model, lines[0])
  assert weights.shape == (2, 2, len(pieces), len(pieces)) and pieces[0] == '<s>'


@pytest.mark.parametrize(
  'line, words',
  [
    ('only a question?', 'question<TAB>paragraph'),
    ('\tno question', 'question<TAB>paragraph'),
    ('{"question": "who?"}', 'context'),
    ('who ' * 99 + '?\tAnna', 'shorten'),
  ],
)
def test_invalid_lines_are_refused(untrained, line, words):
  task, model = untrained
  with pytest.raises(ValueError, match=words):
    task.processor.encode_example(line)
  assert len(predict(task, model, [line], truncate=True)) == 1


def test_contradictory_settings_are_refused(untrained):
  task, _ = untrained
  with pytest.raises(ValueError, match='stride'):
    of(task.tokenizer, stride=64)
