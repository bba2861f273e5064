"""A run as a folder that answers without this package."""

import dataclasses
import functools
import os
import pathlib
import re
import runpy
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameters import drawn

from transformer.data import tokenizers
from transformer.data.processors import ImageProcessor
from transformer.inference.decoding import Batching, Decoding
from transformer.inference.predict import predict
from transformer.inference.predict_exported import Model
from transformer.modules.config import ModelConfig
from transformer.tasks.classification import Classification
from transformer.tasks.ctc import CTC
from transformer.tasks.language_model import LanguageModel
from transformer.tasks.seq2seq import Seq2Seq
from transformer.training import exports

LINES = ['the fox', 'jumps over the dog', 'a', 'lazy </s> dog', 'x' * 12]
TOKENIZER = tokenizers.train([*LINES, 'quick brown z'], kind='characters', vocab=40)
COMMON = dict(tokenizer=TOKENIZER, max_length=24)
IMAGES = ImageProcessor(height=8, width=8, channels=1, patch=4)
DECODING = Decoding(max_new_tokens=20, batch_size=4)
TASKS = {
  'classification': Classification(
    **COMMON, decoding=Batching(batch_size=4), classes=('A:x', 'A:y', 'B:x'), coarse_until=':'
  ),
  'seq2seq': Seq2Seq(**COMMON, decoding=DECODING),
  'language_model': LanguageModel(**COMMON, decoding=DECODING),
}


@functools.cache
def model_of(task, seed=0, **settings):
  """A model of random parameters."""
  tiny = dict(vocab=TOKENIZER.size, width=16, depth=2, heads=2, feedforward=24, max_length=64)
  config = ModelConfig(**tiny, position='rotary', prenorm=True, unroll=1, **settings)
  return drawn(lambda: task.init(config, jax.random.key(0)), seed)


def test_a_classifier_answers_as_before_from_its_folder(tmp_path, close, monkeypatch):
  task = TASKS['classification']
  model = model_of(task, pooling='attention')
  exports.write(tmp_path, task, model, exports.weights_of(model))
  expected, found = predict(task, model, LINES), Model(tmp_path)
  assert len({*expected}) > 1 and found.answer(LINES) == expected
  tokens = np.asarray([[1, *TOKENIZER.encode('the fox'), 2]], np.int32)
  logits = found.functions['classify'](found.weights, tokens, np.ones_like(tokens))
  close(logits, task.coarse_logits(jax.jit(lambda m, x: m(x))(model, tokens)))
  for lines in (['the fox', ''], ['x' * 40]):
    with pytest.raises(ValueError, match='give 1 to 24'):
      found.answer(lines)
  (tmp_path / 'lines').write_text('the fox\n\n')

  def run():
    opened = os.open(tmp_path / 'lines', os.O_RDONLY)  # which the script closes
    monkeypatch.setattr(sys, 'stdin', types.SimpleNamespace(fileno=lambda: opened))
    runpy.run_path(str(tmp_path / 'predict.py'), run_name='__main__')

  with pytest.raises(SystemExit, match="error: '' has 0 tokens"):
    run()
  for name in ('classify.stablehlo', 'model.safetensors', 'tokenizer.json', 'config.json'):
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(SystemExit, match='error: this folder is damaged or not whole: '):
      run()
    (tmp_path / name).unlink()
    with pytest.raises(SystemExit, match='error: this folder is damaged or not whole: '):
      run()
    (tmp_path / name).write_bytes(content)


def test_a_folder_that_is_not_whole_has_no_predict_py(tmp_path, monkeypatch):
  monkeypatch.setattr(exports, '_functions', lambda *_: ({}, {}))
  monkeypatch.setattr(exports, 'save', lambda _: 1 / 0)
  (tmp_path / 'predict.py').write_text('of an earlier export')
  with pytest.raises(ZeroDivisionError):
    exports.write(tmp_path, TASKS['seq2seq'], model_of(TASKS['seq2seq']), {})
  assert not (tmp_path / 'predict.py').exists()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['seq2seq', 'language_model'])
def test_a_folder_answers_as_before_where_the_package_is_not_installed(name, tmp_path):
  task = TASKS[name]
  model = model_of(task)
  exports.write(tmp_path, task, model, exports.weights_of(model))
  blocked = "import runpy, sys; sys.modules['transformer'] = sys.modules['flax'] = None; "
  code = blocked + "runpy.run_path('predict.py', run_name='__main__')"
  found = subprocess.run(
    [sys.executable, '-c', code],
    cwd=tmp_path,
    env=os.environ | {'PYTHONPATH': ''},
    input='\n'.join(LINES).encode(),
    capture_output=True,
  )
  assert found.returncode == 0, found.stderr.decode()
  assert found.stdout.decode().split('\n')[:-1] == predict(task, model, LINES)


def test_kernels_and_tables_are_written_in_8_bits():
  """A quarter of the bytes; other parameters and their names stay."""
  task = TASKS['seq2seq']
  model = model_of(task)
  weights = exports.weights_of(model)
  rounded = exports.in_8_bits(weights)
  names = {n for n, x in rounded.items() if x.dtype == jnp.int8}
  assert names == {n for n in weights if n.endswith(('kernel', 'embed.table'))}
  again = exports.weights_of(exports.restored(task, model, rounded))
  assert again.keys() == weights.keys() == rounded.keys() - {f'{n}.scale' for n in names}
  for name, array in weights.items():
    error = np.abs(np.asarray(again[name]) - np.asarray(array)).max()
    assert (0 < error <= np.abs(array).max() / 250) if name in names else error == 0, name


def test_an_export_in_8_bits_has_the_metrics_before_and_after(monkeypatch, tmp_path):
  values = {'a model': 1.0, 'a model in 8 bits': 2.0}
  calls = []
  replaced = dict(
    check_finite=lambda *_: None,
    weights_of=lambda model: f'weights of {model}',
    in_8_bits=lambda weights: f'{weights} in 8 bits',
    restored=lambda task, model, weights: weights.removeprefix('weights of '),
    evaluate_split=lambda _, model, split: types.SimpleNamespace(
      metrics={'nll': values[model], 'nll/part': 0.0}
    ),
    write=lambda folder, task, model, weights: calls.append((folder.mkdir(), model, weights)),
  )
  for name, function in replaced.items():
    monkeypatch.setattr(exports, name, function)
  monkeypatch.setattr(exports.adapters, 'merge', lambda model: None)
  settings = types.SimpleNamespace(data=types.SimpleNamespace(val='val'))
  experiment = types.SimpleNamespace(task=None, settings=settings)
  facts = exports.export_run(tmp_path, experiment, 'a model', 'stablehlo', int8=True)
  folder = str(tmp_path / 'export-stablehlo')
  assert facts == {'from_to': {'nll': [1.0, 2.0]}, 'folder': folder, 'bytes': 0}
  assert calls == [(None, 'a model', 'weights of a model in 8 bits')]


@pytest.mark.slow
def test_a_folder_in_8_bits_answers_as_the_rounded_model(tmp_path):
  task = TASKS['classification']
  model = model_of(task, pooling='attention')
  weights = exports.in_8_bits(exports.weights_of(model))
  exports.write(tmp_path, task, model, weights)
  assert Model(tmp_path).answer(LINES) == predict(
    task, exports.restored(task, model, weights), LINES
  )


@pytest.mark.parametrize(
  'task, words',
  [
    (CTC(**COMMON, decoding=Batching()), 'not CTC'),
    (dataclasses.replace(TASKS['seq2seq'], input_processor=IMAGES), 'images or sounds'),
    (
      dataclasses.replace(TASKS['seq2seq'], decoding=Decoding(bad_words=((5, 6),))),
      'decode.bad_words',
    ),
  ],
)
def test_what_cannot_be_exported_is_refused_by_name(task, words, tmp_path):
  with pytest.raises(ValueError, match=words):
    exports.write(tmp_path / 'out', task, model_of(TASKS['seq2seq']), {})
  assert not (tmp_path / 'out').exists()


def test_what_an_export_does_otherwise_is_said(tmp_path, caplog, monkeypatch):
  decoding = Decoding(beams=4, alpha=0.6, bad_words=((5,),), choices=())
  task = dataclasses.replace(TASKS['seq2seq'], decoding=decoding)
  _, facts = exports._functions(task, model := model_of(TASKS['seq2seq']))
  assert 'decode.beams=4 not exported: predict.py' in caplog.text and 5 in facts['suppress']
  monkeypatch.setattr(exports, 'save_pretrained', lambda folder, *_, **__: folder.mkdir())
  settings = types.SimpleNamespace(warm_start='')
  exports.export_run(tmp_path, types.SimpleNamespace(task=task, settings=settings), model, 'hf')
  assert 'decode.beams=4, decode.bad_words=((5,),) not exported: pass them' in caplog.text


def test_predict_py_is_short_and_imports_what_it_says():
  file = pathlib.Path(exports.__file__).parents[1] / 'inference' / 'predict_exported.py'
  text = file.read_text()
  lines = re.sub('""".*?"""', '', text, flags=re.DOTALL).splitlines()
  code = [line for line in lines if line.strip()]
  assert 'transformer' not in text and len(code) < 80
