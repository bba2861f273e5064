"""The shape of the house: who may import whom, and what a public name owes its reader."""

import ast
import configparser
import importlib
import inspect
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import transformer

ROOT = pathlib.Path(__file__).parents[1]
MODULES = sorted(m.name for m in pkgutil.walk_packages(transformer.__path__, 'transformer.'))
PARTS = 'functional modules data zoo inference evaluation tasks inspection training'.split()
# Each part may import itself and these.
MAY_IMPORT = {
  'functional': set(),
  'modules': {'functional'},
  'data': {'functional'},
  'zoo': {'functional', 'modules', 'data'},
  'inference': {'functional', 'modules', 'data'},
  'evaluation': {'functional', 'modules', 'data', 'inference'},
  'tasks': {'functional', 'modules', 'data', 'zoo', 'inference', 'evaluation'},
  'inspection': {'functional', 'modules', 'data', 'inference'},
  'training': {*PARTS} - {'training'},
}

OF_EXPERIMENTS = {  # what a file of experiments/ may import of ours
  'transformer.training.config',
  'transformer.zoo.presets',
  'transformer.zoo.pretrained.read_model_config',
}


def imports(file):
  """Every module a file imports, at its top or inside a function."""
  for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{file} imports relatively: write the whole name'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('part', MAY_IMPORT)
def test_imports_point_one_way(part):
  for file in (ROOT / 'transformer' / part).rglob('*.py'):
    for name in imports(file):
      if name.startswith('transformer.'):
        other = name.split('.')[1]
        assert other in MAY_IMPORT[part] | {part}, f'{file} imports {name}'


def test_equations_know_jax_alone():
  allowed = {'jax', 'jaxtyping', 'numpy', 'optax', 'transformer', *sys.stdlib_module_names}
  for file in (ROOT / 'transformer' / 'functional').glob('*.py'):
    assert {name.split('.')[0] for name in imports(file)} <= allowed, file


def test_flax_stays_in_the_modules():
  for file in (ROOT / 'transformer').rglob('*.py'):
    text = file.read_text(encoding='utf-8')
    assert 'jax._src' not in text, file
    for banned in ('nnx.jit', 'nnx.grad', 'nnx.Optimizer', 'nnx.scan', 'nnx.vmap', 'linen'):
      assert banned not in text, f'{file} uses {banned}'


def test_experiments_import_presets_configs_and_published_sizes_alone():
  for file in (ROOT / 'experiments').glob('*.py'):
    assert {name.split('.')[0] for name in imports(file)} <= {'ml_collections', 'transformer'}
    for name in imports(file):
      assert not name.startswith('transformer') or name in OF_EXPERIMENTS, file


def test_importing_the_package_costs_little():
  """Data, training and drawing are imported by those who use them."""
  code = 'import sys, transformer; print(*sys.modules)'
  loaded = subprocess.check_output([sys.executable, '-c', code], text=True, cwd=ROOT).split()
  for heavy in (
    'grain',
    'tensorflow_datasets',
    'orbax.checkpoint',
    'matplotlib',
    'babel',
    'sacrebleu',
    'safetensors',
    'tokenizers',
  ):
    assert heavy not in loaded


def core_requirements():
  """Return the names of the packages that setup.cfg asks for, without their versions."""
  config = configparser.ConfigParser()
  config.read(ROOT / 'setup.cfg', encoding='utf-8')
  lines = config['options']['install_requires'].strip().splitlines()
  return [re.split(r'[ \[>]', line)[0] for line in lines if line[0] != '#']


# What the core requirements themselves may need: Flax asks for Orbax, Orbax for absl.
CORE_ONLY = """
import importlib.abc, importlib.metadata, pathlib, re, sys

def closure(names):
  found = set()
  while names:
    name = re.sub('[-_.]+', '-', names.pop()).lower()
    if name not in found:
      found.add(name)
      try:
        needs = importlib.metadata.requires(name) or ()
      except importlib.metadata.PackageNotFoundError:
        continue
      names += [re.match('[\\w.-]+', need)[0] for need in needs if 'extra ==' not in need]
  return found

allowed = closure(sys.argv[1].split(','))
owners = importlib.metadata.packages_distributions()

class Forbid(importlib.abc.MetaPathFinder):
  def find_spec(self, name, path=None, target=None):
    top = name.split('.')[0]
    of = {re.sub('[-_.]+', '-', owner).lower() for owner in owners.get(top, ())}
    if of and not of & allowed and top != 'transformer':
      raise ModuleNotFoundError(f'no module {top} in a core install', name=top)

sys.meta_path.insert(0, Forbid())
"""


def core_only(code, *arguments):
  """Run code where no package but the core requirements and what these need can be imported."""
  command = [sys.executable, '-c', CORE_ONLY + code, ','.join(core_requirements()), *arguments]
  return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_the_core_requirements_import_run_attention_and_load_a_published_model():
  golden = ROOT / 'tests' / 'zoo' / 'golden' / 'gpt2'
  code = """
import transformer
from transformer import *
import jax.numpy as jnp
x = jnp.ones((2, 5, 4, 8))
assert transformer.multi_head_attention(x, x, x).shape == x.shape
model, tokenizer = transformer.load_pretrained(sys.argv[2])
assert model(jnp.ones((1, 3), int)).shape[:2] == (1, 3)
assert transformer.generate(model, [[5, 6], [7]], max_new_tokens=3).shape == (2, 3)
transformer.functionalize(model), transformer.train_step, transformer.optimizers.build
print(type(model).__name__, tokenizer)
# what it lacks is named, with the extra that has it
for name in ('Classification', 'LanguageModel'):
  try:
    getattr(transformer, name)
  except ImportError as error:
    print(error)
"""
  done = core_only(code, str(golden))
  assert done.returncode == 0, done.stderr
  first, *lacking = done.stdout.splitlines()
  assert first.split() == ['Decoder', 'None'] and len(lacking) == 2
  for message in lacking:
    assert 'needs tokenizers, which is not installed' in message
    assert 'functional-transformer[train]' in message


def test_the_command_line_names_the_extra_it_needs():
  done = core_only(
    "sys.argv = ['run.py']; import runpy; runpy.run_path('run.py', run_name='__main__')"
  )
  assert done.returncode == 2
  assert done.stderr == "error: ml_collections is not installed: pip install -e '.[train]'\n"


def test_lazy_names_are_those_that_type_checkers_see():
  tree = ast.parse(pathlib.Path(transformer.__file__).read_text(encoding='utf-8'))
  (block,) = (node for node in tree.body if isinstance(node, ast.If))
  seen = {alias.asname: node.module for node in block.body for alias in node.names}
  assert seen == transformer._LAZY
  for name in seen:
    assert getattr(transformer, name) is not None
    assert name in dir(transformer)
  with pytest.raises(AttributeError, match="has no attribute 'atention'"):
    transformer.atention  # noqa: B018


def test_no_name_is_both_a_module_and_something_else():
  for name in ('transformer', *MODULES):
    package = importlib.import_module(name)
    for child in (
      getattr(package, '__path__', None) and pkgutil.iter_modules(package.__path__) or ()
    ):
      attribute = getattr(package, child.name, None)
      assert attribute is None or inspect.ismodule(attribute), f'{name}.{child.name}'


def test_the_version_and_the_mark_of_types_are_installed():
  assert re.fullmatch(r'\d+\.\d+\.\d+', transformer.__version__)
  assert f'## {transformer.__version__}' in (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8')
  assert (ROOT / 'transformer' / 'py.typed').exists()


@pytest.mark.parametrize('name', MODULES)
def test_public_names_have_docstrings(name):
  module = importlib.import_module(name)
  assert module.__doc__, f'{name} does not say what it is'
  for attribute, value in vars(module).items():
    public = not attribute.startswith('_') and getattr(value, '__module__', '') == name
    if public and (inspect.isfunction(value) or inspect.isclass(value)):
      assert value.__doc__, f'{name}.{attribute} has no docstring'
    if public and inspect.isclass(value):
      for method, function in vars(value).items():
        if inspect.isfunction(function) and not method.startswith('_'):
          assert function.__doc__, f'{name}.{attribute}.{method} has no docstring'
