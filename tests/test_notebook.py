"""The quickstart runs from top to bottom, with fewer steps, and is stored without outputs."""

import json
import pathlib
import re
import subprocess
import sys

import processes
import pytest

NOTEBOOK = pathlib.Path(__file__).parents[1] / 'experiments' / 'quickstart.ipynb'

SMALLER = {
  r'^STEPS = .*': 'STEPS = 2',
  r'^config.data.limit = .*': (
    'config.data.update(limit=200, batch_tokens=256, buckets=1)\n'
    'config.model.update(width=16, feedforward=16, depth=1)'
  ),
  r'limit=64\)': 'limit=8, samples=2)',
}
# As much of IPython as is used. Flax first: parts of it would take this for the real one.
BEFORE = """
import sys, types
from flax import nnx
display = types.ModuleType('IPython.display')
display.HTML = lambda text: shown.append(text)
sys.modules |= {'IPython': types.ModuleType('IPython'), 'IPython.display': display}
shown = []
"""
AFTER = """
import json
found = dict(lines=lines, answers=answers, step=int(step), shown=shown, learnt=learnt)
print(json.dumps(found))
"""


@pytest.fixture(scope='module')
def cells():
  """The notebook's cells of code by their id, in order."""
  notebook = json.loads(NOTEBOOK.read_text(encoding='utf-8'))
  return {cell['id']: cell for cell in notebook['cells'] if cell['cell_type'] == 'code'}


def test_what_it_imports_exists(cells):
  """Shown at once; that it runs is shown by the slow test below."""
  lines = [line.strip() for cell in cells.values() for line in cell['source']]
  imports = [line for line in lines if re.match('(import|from) .*transformer', line)]
  assert len(imports) > 3
  exec('\n'.join(imports), {})


@pytest.mark.slow
def test_runs_from_top_to_bottom(cells, tmp_path, bounded):
  lines = [line.rstrip('\n') for cell in cells.values() for line in cell['source']]
  program = '\n'.join(line for line in lines if not line.lstrip().startswith(('%', '!')))
  for pattern, value in SMALLER.items():
    program, count = re.subn(pattern, value, program, flags=re.MULTILINE)
    assert count == 1, pattern
  ran = subprocess.run(
    [sys.executable, '-c', BEFORE + program + AFTER],
    capture_output=True,
    text=True,
    cwd=NOTEBOOK.parent,
    env=processes.environment(tmp_path / 'compiled')
    | {'TMPDIR': str(tmp_path), 'PYTHONIOENCODING': 'utf-8'},
  )
  assert ran.returncode == 0, ran.stderr
  found = json.loads(ran.stdout.splitlines()[-1])
  assert len(found['answers']) == len(found['lines']) > 2
  assert found['step'] == 2
  assert 'equal to the function of the library: True' in ran.stdout
  assert '7 ·····███' in ran.stdout  # a window of three
  bounded('loss, of its start', found['learnt'][-1] / found['learnt'][0], below=0.5)
  assert re.search(r'after \[1 2 3 4 5 6\] comes \d', ran.stdout)
  (page,) = found['shown']
  assert 'srcdoc="&lt;!doctype html&gt;' in page and 'thousandths' in page
  assert 'step 2, val' in ran.stderr  # the log of training


def test_has_no_outputs(cells):
  for name, cell in cells.items():
    assert cell['outputs'] == [] and cell['execution_count'] is None, name


def test_the_notebook_installs_nothing_where_the_package_is(cells):
  lines = [line for cell in cells.values() for line in cell['source']]
  shell = [line for line in lines if line.lstrip().startswith(('%', '!'))]
  assert shell and all(line.startswith('  ') for line in shell)  # under `if root is None`
