"""The README and the guides: links lead to files, snippets run, tables agree with the code."""

import pathlib
import re
import shlex
import sys
import types

import jax
import numpy as np
import pytest
from flax import nnx

import transformer
from transformer import EncoderDecoder, ModelConfig
from transformer.data.tokenizers import train

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [*ROOT.glob('*.md'), *(ROOT / 'docs').glob('*.md')]


def paths_of(pattern, page):
  return re.findall(pattern, page.read_text(encoding='utf-8'))


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page):
  for link in paths_of(r'\]\(([^)#\s]+)', page):
    # pages of the reference exist once docs/build.py has run, which checks links to them
    if not re.match(r'https?://|reference/', link):
      assert (page.parent / link).exists(), link


def test_the_layout_of_parameters_is_the_documented_one():
  sizes = dict(L=3, D=32, H=8, G=2, K=5, F=48, N=100, P=64)
  config = ModelConfig(
    vocab=100, width=32, depth=3, heads=8, kv_heads=2, head_size=5, feedforward=48, max_length=64,
    tie='none', gated=True, position='learned',
  )  # fmt: skip
  model = jax.eval_shape(lambda: EncoderDecoder(config, nnx.Rngs(0)))
  leaves = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(nnx.state(model)))[0]
  shapes = {jax.tree_util.keystr(path, simple=True, separator='/'): x.shape for path, x in leaves}
  text = (ROOT / 'docs' / 'parameters.md').read_text(encoding='utf-8')
  table = text.split('<!-- parameters -->')[1].split('<!-- end of parameters -->')[0]
  documented = {
    path: tuple(
      int(np.prod([sizes[letter] for letter in axis.split()])) for axis in shape.split(', ')
    )
    for path, shape in re.findall(r'`(.+)` \| ([A-Z ,]+) \|', table)
  }
  documented |= {
    path.replace('encoder/', 'decoder/'): shape
    for path, shape in documented.items()
    if path.startswith('encoder/')
  }
  assert documented == shapes


def blocks(page, language='python'):
  text = (ROOT / page).read_text(encoding='utf-8')
  found = re.findall(r'^```(\w*)\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
  return [block for kind, block in found if kind == language]


def test_the_code_of_the_readme_runs(monkeypatch, tmp_path, capsys):
  """In order, in one namespace; published models are the small ones of the tests."""
  golden = ROOT / 'tests' / 'zoo' / 'golden' / 'gpt2'
  tokenizer = train(['The Transformer is'], kind='characters')
  model, _ = transformer.load_pretrained(golden)
  monkeypatch.setattr(transformer, 'load_pretrained', lambda name: (model, tokenizer))
  monkeypatch.chdir(tmp_path)
  namespace = {}
  found = blocks('README.md')
  assert len(found) == 3
  for block in found:
    exec(compile(block, 'README.md', 'exec'), namespace)
  assert (tmp_path / 'mine' / 'model.safetensors').exists()
  assert np.isfinite(float(namespace['metrics']['loss'].value))
  assert capsys.readouterr().out


@pytest.mark.parametrize('page', ['README.md', 'docs/from_laptop_to_pod.md', 'CONTRIBUTING.md'])
def test_commands_name_files_and_keys_that_exist(page):
  from transformer.training import config

  sections = {s: config.keys(s, 'seq2seq') for s in ('', *config.SECTIONS)}
  text = (ROOT / page).read_text(encoding='utf-8')
  keys = re.findall(r'config\.([a-z_]+(?:\.[a-z_0-9]+)?)=', text)
  assert keys or page != 'README.md'
  for key in keys:
    section, _, name = key.rpartition('.')
    assert name in sections[section], key
  for file in re.findall(r'--config=(experiments/[a-z0-9_]+\.py)', text):
    assert (ROOT / file).exists() or file == 'experiments/NAME.py', file
  for command in blocks(page, ''):
    shlex.split(command, comments=True)  # quotes are closed


def test_the_recipes_of_contributing_work(monkeypatch, tmp_path, bounded):
  """Every block of code is a file, or what is added to one; together they are an experiment."""
  from transformer.evaluation.evaluate import evaluate
  from transformer.training import optimizers
  from transformer.training.experiment import restore_best
  from transformer.training.loop import fit
  from transformer.training.start import start_run
  from transformer.training.workdir import Workdir

  files = {}
  for block in blocks('CONTRIBUTING.md'):
    path = re.match(r'# (\S+)\.py\n', block)[1]
    files[path] = types.ModuleType(path.replace('/', '.'))
    if (ROOT / f'{path}.py').exists():
      vars(files[path]).update(vars(sys.modules[files[path].__name__]))
    else:
      monkeypatch.setitem(sys.modules, files[path].__name__, files[path])
    exec(compile(block, f'{path}.py', 'exec'), vars(files[path]))
  nadam = files['transformer/training/optimizers'].nadam
  monkeypatch.setitem(optimizers.OPTIMIZERS, 'nadam', nadam)

  c = files['experiments/ratings'].get_config()
  c.optimizer.name = 'nadam'
  c.train.update(steps=60, save_every_steps=60)
  c.eval.update(every_steps=60)
  workdir = Workdir(tmp_path / 'ratings')
  experiment = start_run(c.to_dict(), workdir)
  fit(experiment, workdir)
  model, _ = restore_best(experiment, workdir)
  found = evaluate(experiment.task, model, experiment.source('test'), metrics=c.eval.metrics)
  error = found.metrics['transformer.evaluation.errors:mean_absolute_error']
  bounded('mean absolute error of ratings', error, below=0.7)  # of always 2.5: 0.94
