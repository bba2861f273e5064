"""A run that an earlier version trained can still be opened, evaluated and resumed."""

import json
import pathlib
import shutil

import pytest

from transformer.training.checkpoints import Checkpoints, digest
from transformer.training.workdir import Workdir

GOLDEN = pathlib.Path(__file__).parent / 'golden_run'


@pytest.fixture
def workdir(tmp_path):
  """A copy of the run."""
  shutil.copytree(GOLDEN, tmp_path / 'run')
  shutil.unpack_archive(GOLDEN / 'checkpoints.tar.xz', tmp_path / 'run', filter='data')
  return tmp_path / 'run'


@pytest.fixture
def run(commands, workdir):
  """run(*flags): what a command on the run prints last, as JSON."""

  def command(*flags, input=b''):
    done = commands.run(
      f'--workdir={workdir}', f'--config.data.dir={workdir}/data', *flags, input=input
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()

  return command


def test_the_golden_metrics_are_computed_again(run):
  before = json.loads((GOLDEN / 'train.json').read_text())
  (line,) = run('--mode=evaluate')
  after = json.loads(line)
  assert (
    after['step'] == before['best_step'] and after['metrics'].keys() == before['metrics'].keys()
  )
  for name, value in before['metrics'].items():
    assert after['metrics'][name] == pytest.approx(value, rel=1e-3, abs=1e-3), name


def test_the_golden_checkpoint_has_the_bits_that_were_trained(workdir, tmp_path):
  """It was written by Orbax's API of version 0, and its copy by that of version 1."""
  shutil.unpack_archive(GOLDEN / 'checkpoints-2.tar.xz', tmp_path / '2', filter='data')
  for folder, number in ((workdir, 1), (tmp_path / '2', 2)):
    with Checkpoints(folder) as checkpoints:
      arrays, about = checkpoints.read()
    assert about['step'] == 2 and about.get('format', 1) == number
    assert digest(arrays) == json.loads((GOLDEN / 'train.json').read_text())['state_sha256']
  assert about['scores']['step'] == 2 and about['run']['config']['experiment'] == 'golden'


def test_the_golden_run_predicts(run):
  assert len(run('--mode=predict', input=b'abc\ncab\n')) == 2


@pytest.mark.slow
def test_the_golden_run_is_resumed(run, workdir):
  """Its metrics up to the last step stay, but for the final evaluation, which is made again."""
  result = json.loads(run('--config.train.steps=4')[-1])
  assert result['step'] == 4
  before, after = ((f / 'metrics.jsonl').read_text().splitlines() for f in (GOLDEN, workdir))
  assert after[:2] == before[:2] and [json.loads(x)['step'] for x in after] == [1, 2, 2, 3, 4, 4]


def test_the_golden_config_has_a_format():
  assert json.loads((GOLDEN / 'config.json').read_text())['format'] == 2
  assert Workdir(GOLDEN).read_config()['experiment'] == 'golden'
