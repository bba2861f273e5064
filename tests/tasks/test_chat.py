"""Fine-tuning of chat models: what is scored, and what is preferred."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import chat as experiment
from transformer import Decoder, ModelConfig
from transformer.data import chat, tokenizers
from transformer.inference.batching import PAD
from transformer.inference.decoding import Decoding
from transformer.tasks.chat import Chat
from transformer.tasks.preference import CHOSEN, REJECTED, Preference

pytest.importorskip('jinja2')
EXAMPLES = [
  {'inputs': '3 + 4 ?', 'targets': '7', 'rejected': '9'},
  {'inputs': '8 + 8 ?', 'targets': '16', 'rejected': '4'},
]


@pytest.fixture(scope='module')
def tokenizer():
  return tokenizers.train(['user assistant\n 0123456789+?'], kind='characters')


@pytest.fixture(scope='module')
def given(tokenizer):
  return dict(tokenizer=tokenizer, decoding=Decoding(max_new_tokens=4), max_length=40)


@pytest.fixture(scope='module')
def model(tokenizer):
  config = ModelConfig(
    vocab=tokenizer.size, width=16, depth=1, heads=2, feedforward=16, position='rotary', unroll=1
  )
  return Decoder(config, nnx.Rngs(0))


def test_only_answers_are_scored(given, tokenizer):
  columns = Chat(**given).columns(EXAMPLES)
  for i, example in enumerate(EXAMPLES):
    inputs, targets = columns['inputs'][i], columns['targets'][i]
    scored = targets[targets != PAD].tolist()
    assert scored == [*tokenizer.encode(example['targets']), tokenizer.eos]
    assert (inputs[1:][targets[:-1] != PAD] == targets[:-1][targets[:-1] != PAD]).all()
  with pytest.raises(ValueError, match='no message of the assistant'):
    Chat(**given).columns([{'messages': [{'role': 'user', 'content': '1'}]}])


def test_a_request_is_what_training_saw_before_an_answer(given, model):
  task = Chat(**given)
  request = task.processor.encode_example('3 + 4 ?')
  assert task.columns(EXAMPLES)['inputs'][0][: len(request)].tolist() == request
  assert len(task.answer(model, [request])) == 1
  assert task.example(EXAMPLES[0]) == ('3 + 4 ?', '7')


def test_preference_is_the_formula(given, model):
  task = Preference(**given, beta=0.3, preference_smoothing=0.1)
  columns = task.columns(EXAMPLES)
  batch, expected = {}, []
  for name, column in columns.items():
    if isinstance(column, np.ndarray):
      batch[name] = jnp.array([0.5, -0.25])
      batch[f'{name}_segments'] = jnp.ones(2, jnp.int32)
      continue
    batch[name] = jnp.array([[*row, *[0] * (40 - len(row))] for row in column])
    batch[f'{name}_segments'] = jnp.array([[1] * len(r) + [0] * (40 - len(r)) for r in column])
  forward = jax.jit(lambda model, tokens, segments: model(tokens, segments=segments))
  logits = {
    targets: forward(model, batch[x], batch[f'{x}_segments']) for x, targets in (CHOSEN, REJECTED)
  }
  for i, reference in enumerate((0.5, -0.25)):
    p = []
    for name, found in logits.items():
      log = np.asarray(jax.nn.log_softmax(found[i]))
      targets = columns[name][i]
      p.append(sum(log[t, token] for t, token in enumerate(targets) if token != PAD))
    m = 0.3 * (p[0] - p[1] - reference)
    expected.append(0.9 * np.log1p(np.exp(-m)) + 0.1 * np.log1p(np.exp(m)))
  run = jax.jit(lambda model, batch: task.loss(model, batch, None))
  loss, metrics = run(model, batch)
  np.testing.assert_allclose(loss.sum, sum(expected), rtol=1e-4)
  assert float(loss.weight) == 2 and set(metrics) == {'preferred', 'margin'}
  empty = batch | {'reference_segments': jnp.array([1, 0])}
  np.testing.assert_allclose(run(model, empty)[0].sum, expected[0], rtol=1e-4)


def test_the_reference_is_a_published_model(given, model, tmp_path, monkeypatch):
  import transformer.zoo.pretrained as zoo

  monkeypatch.setattr(zoo, 'load_pretrained', lambda folder: (model, None))
  task = Preference(**given, reference=str(tmp_path))
  found = task.columns(EXAMPLES)
  plain = dataclasses.replace(task, reference='').columns(EXAMPLES)
  assert (plain['reference'] == 0).all()
  assert np.isfinite(found['reference']).all() and (found['reference'] != 0).all()
  other = Preference(**given, reference=str(tmp_path)).columns(EXAMPLES[::-1])
  np.testing.assert_allclose(found['reference'], other['reference'][::-1], rtol=1e-5)


def test_synthetic_sums_are_right():
  row = chat.sums(pathlib.Path(), 'val')[0]
  a, b = row['inputs'].rstrip(' ?').split(' + ')
  assert int(row['targets']) == int(a) + int(b) != int(row['rejected'])


def test_an_experiment_takes_the_sizes_of_a_published_folder():
  folder = pathlib.Path(__file__).parents[1] / 'zoo/golden/qwen2'
  c = experiment.get_config(f'dpo,{folder}')
  assert (c.model.width, c.model.kv_heads, c.model.bias_qkv) == (24, 2, True)
  assert c.warm_start == c.loss.reference == str(folder) and c.model.dtype == 'auto'
