"""The notebooks run from top to bottom, with fewer steps, and are stored without outputs."""

import dataclasses
import functools
import json
import logging
import pathlib
import re
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from flax import nnx
from parameters import drawn

import transformer
from experiments import dates, tinyshakespeare
from transformer.data.tokenizers import train
from transformer.functional import kernels
from transformer.training import sharding

FOLDER = pathlib.Path(__file__).parents[1] / 'experiments' / 'notebooks'
NAMES = sorted(path.stem for path in FOLDER.glob('*.ipynb'))


def cells_of(name):
  """The cells of code of a notebook by their id, in order: (its metadata, its program)."""
  notebook = json.loads((FOLDER / f'{name}.ipynb').read_text(encoding='utf-8'))
  assert all(not c.get('outputs') and not c.get('execution_count') for c in notebook['cells']), name
  return {
    cell['id']: (cell['metadata'], ''.join(cell['source']))
    for cell in notebook['cells']
    if cell['cell_type'] == 'code'
  }


def run(name, monkeypatch, tmp_path, until='', **values):
  """Run the cells in this process, up to one of them; return the names that they have defined.

  Args:
    name: of the notebook.
    monkeypatch, tmp_path: fixtures.
    until: id of the first cell that is not run.
    values: what a notebook is shortened by: names that get another value where they are set.
  """
  monkeypatch.chdir(FOLDER)
  monkeypatch.setattr(sys, 'path', [*sys.path])
  monkeypatch.setenv('TMPDIR', str(tmp_path))
  monkeypatch.setenv('MPLBACKEND', 'Agg')
  namespace = {'__name__': name}
  for key, (metadata, program) in cells_of(name).items():
    if key == until:
      break
    if 'needs-equinox' in metadata.get('tags', ()):
      try:
        import equinox  # noqa: F401
      except ImportError:
        continue
    for variable, value in values.items():
      program = re.sub(rf'(?m)^{variable} = .*', f'{variable} = {value!r}', program)
    exec(compile(program, f'{name}.ipynb, cell {key}', 'exec'), namespace)
  return namespace


def test_they_are_five_whose_setup_is_the_same():
  assert NAMES == [
    'finetune_published_model', 'import_into_your_code', 'look_inside', 'quickstart', 'train_on_tpu'
  ]  # fmt: skip
  found = {name: cells_of(name) for name in NAMES}
  assert len({cells['setup'][1] for cells in found.values()}) == 1
  text = '\n'.join(path.read_text(encoding='utf-8') for path in FOLDER.glob('*.ipynb'))
  assert 'OWNER' not in text and 'github.com/' not in text  # no address that may not exist
  programs = '\n'.join(program for cells in found.values() for _, program in cells.values())
  imports = set(re.findall(r'(?m)^(?:import|from) .*transformer.*', programs))
  assert len(imports) > 8
  exec('\n'.join(imports), {})  # what they import exists


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  """setup(source): run the cell of the setup in an empty folder; return the commands it runs."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', [*sys.path])
  commands = []

  def record(command, check):
    commands.append(command)
    if command[0] == 'git':
      copy(tmp_path / command[-1])

  monkeypatch.setattr(subprocess, 'run', record)
  _, program = cells_of('quickstart')['setup']

  def setup(source='', flax='0.10.6'):
    versions = {'jax': '9.9', 'jaxlib': '9.9', 'flax': flax, 'jax-cuda12-plugin': '9.8'}
    found = [types.SimpleNamespace(name=n, version=v) for n, v in versions.items()]
    jax.devices()  # which asks for the distributions, too
    monkeypatch.setattr('importlib.metadata.distributions', lambda: found)
    exec(program.replace("SOURCE = ''", f'SOURCE = {source!r}'), {})
    return commands

  return setup


def copy(folder):
  """Make what the setup looks for in a copy of the repository."""
  (folder / 'transformer').mkdir(parents=True)
  (folder / 'run.py').touch()
  (folder / 'setup.cfg').write_text('  flax >= 0.12.0\n')


def test_without_a_copy_the_setup_says_what_to_do(elsewhere):
  with pytest.raises(FileNotFoundError, match='set SOURCE to the address .* or upload a zip'):
    elsewhere()


def test_the_setup_clones_and_keeps_jax(elsewhere, tmp_path):
  git, pip = elsewhere('https://example.org/code')
  assert git[-2:] == ['https://example.org/code', 'repository']
  assert pip[-1] == f'{tmp_path}/repository[train]' and 'kept.txt' in pip
  kept = (tmp_path / 'kept.txt').read_text().split()
  assert kept == ['jax==9.9', 'jaxlib==9.9', 'jax-cuda12-plugin==9.8', 'flax==0.12.0']


def test_the_setup_unpacks_a_zip_file_and_keeps_what_is_new_enough(elsewhere, tmp_path):
  copy(tmp_path / 'packed' / 'code-main')
  shutil.make_archive('code', 'zip', tmp_path / 'packed')
  shutil.rmtree(tmp_path / 'packed')
  assert elsewhere(flax='0.12.9') == []  # all is installed here
  assert sys.path[0] == str(tmp_path / 'repository' / 'code-main')


def test_the_first_cells_of_the_quickstart_run(monkeypatch, tmp_path, capsys):
  run('quickstart', monkeypatch, tmp_path, until='train')
  out = capsys.readouterr().out
  assert 'equal to the function of the library: True' in out
  assert '7 ·····███' in out  # a window of three


@pytest.fixture
def one_device(monkeypatch):
  """Train on one of the devices that the tests have: for several, compiling takes longer."""
  make = functools.partial(sharding.make_mesh, over=jax.devices()[:1])
  monkeypatch.setattr(sharding, 'make_mesh', make)


@pytest.mark.slow
def test_the_quickstart_runs(monkeypatch, tmp_path, one_device):
  config = dates.get_config()
  config.model.update(width=16, feedforward=16, depth=1)
  config.data.buckets = config.eval.samples = 1
  config.decode.max_new_tokens = 4
  monkeypatch.setattr(dates, 'get_config', lambda: config)
  found = run('quickstart', monkeypatch, tmp_path, STEPS=2)
  assert len(found['answers']) == len(found['lines']) > 2 and found['step'] == 2


@pytest.mark.slow
def test_functions_and_models_run_in_other_code(monkeypatch, tmp_path, bounded):
  found = run('import_into_your_code', monkeypatch, tmp_path)
  bounded('loss, of its start', found['learnt'][-1] / found['learnt'][0], below=0.1)
  assert found['norms'].shape == (8,) and found['logits'].shape == (4, 8, 12, 10)
  assert found['variables']['params']['transformer'].keys() == found['params'].keys()


@pytest.mark.slow
def test_a_run_is_planned_trained_and_measured(monkeypatch, tmp_path, capsys, one_device):
  config = tinyshakespeare.get_config()
  config.model.update(width=16, feedforward=16, depth=1)
  config.decode.max_new_tokens = 8
  monkeypatch.setattr(tinyshakespeare, 'get_config', lambda: config)
  kernels._log_once.cache_clear()  # it says once what another test may have heard
  choices = logging.getLogger('transformer.functional.kernels')
  monkeypatch.setattr(choices, 'handlers', [])  # the notebook adds one
  monkeypatch.setattr(choices, 'level', choices.level)
  monkeypatch.setattr(choices, 'propagate', True)
  (tmp_path / 'text.txt').write_text(
    'def attention(q, k, v):\n  return softmax(q @ k.T) @ v\n' * 600
  )
  monkeypatch.setattr('tempfile.mkdtemp', lambda: str(tmp_path))  # where its text is found
  found = run('train_on_tpu', monkeypatch, tmp_path, STEPS=10)
  assert found['workdir'].last_step() == 10 and found['needed'].total > 0 and found['used'] > 0
  assert 'attention on' in capsys.readouterr().out


@pytest.mark.slow
def test_a_published_model_is_adapted_and_written(monkeypatch, tmp_path, bounded):
  published, _ = transformer.load_pretrained(FOLDER.parents[1] / 'tests/zoo/golden/gpt2')
  config = dataclasses.replace(published.config, vocab=300, max_length=64)
  model = drawn(lambda: transformer.Decoder(config, nnx.Rngs(0)))
  sentences = re.findall("'(The .*)'", cells_of('finetune_published_model')['before'][1])
  words = train(sentences, kind='bpe', vocab=300)
  transformer.save_pretrained(tmp_path / 'model', model, words)
  found = run(
    'finetune_published_model', monkeypatch, tmp_path, MODEL=str(tmp_path / 'model'), STEPS=20
  )
  bounded('loss, of its start', found['learnt'][-1] / found['learnt'][0], below=0.95)
  assert found['same'] and found['trained'] < found['size']


@pytest.mark.slow
def test_heads_are_found_removed_patched_and_steered(monkeypatch, tmp_path):
  found = run('look_inside', monkeypatch, tmp_path, STEPS=2)
  logits = {
    name: np.asarray(found['apply'](found['model'], found[name])) for name in ('tokens', 'other')
  }
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-4)
  close(found['patched'][0, 19], logits['other'][0, 19])
  close(found['patched'][0, :19], logits['tokens'][0, :19])
  assert {*found['changes']} == {'blocks.0.attention', 'blocks.1.attention'}
  as_if = found['tokens'].at[0, 19].set(found['tokens'][0, 18])
  close(found['steered'], found['apply'](found['model'], as_if))
