"""The shape of the house: who may import whom, and what a public name owes its reader."""

import ast
import importlib
import inspect
import pathlib
import pkgutil
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
  'tasks': {'functional', 'modules', 'data', 'inference', 'evaluation'},
  'inspection': {'functional', 'modules', 'data'},
  'training': {*PARTS} - {'training'},
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


def test_experiments_import_presets_and_the_config_library_alone():
  for file in (ROOT / 'experiments').glob('*.py'):
    assert {name.split('.')[0] for name in imports(file)} <= {'ml_collections', 'transformer'}
    for name in imports(file):
      assert not name.startswith('transformer') or name == 'transformer.zoo.presets', file


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
