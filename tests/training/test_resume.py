"""A run that was killed, stopped or had a full disk resumes with bit-identical results."""

import json
import pathlib
import random
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from processes import Commands, Process

STEPS = 16

EXPERIMENT = """
from experiments import dates

def get_config():
  c = dates.get_config()
  c.experiment = 'tiny'
  c.data.update(name='pairs', dir={data!r}, test=('test',), max_length=16, batch_tokens=256)
  c.data.buckets = 1
  c.tokenizer.update(kind='characters', vocab=40, split_digits=False)
  c.model.update(width=16, heads=2, depth=1, feedforward=32, dropout=0.1, max_length=16, bias=False)
  # checkpoints are averaged: those of a stopped run must not be among them
  c.train.update(steps={steps}, save_every_steps=2, log_every_steps=1, keep_checkpoints=3)
  c.train.average_checkpoints = 3
  c.train.steps_per_call = 2
  c.eval.update(every_steps=6, limit=4, by='', best='nll_per_token')
  c.decode.update(max_new_tokens=12, batch_size=8, beams=1)
  return c
"""


class Lab:
  """A tiny experiment on disk, and `run.py` in processes of their own."""

  def __init__(self, folder: pathlib.Path, commands: Commands):
    self.folder, self.commands = folder, commands
    rng, data = random.Random(0), folder / 'data'
    data.mkdir()
    # what is generated has one padded length, and one compiled program
    for split, lines, least in (('train', 64, 2), ('val', 8, 5), ('test', 8, 5)):
      words = [rng.choices('abcdef', k=rng.randint(least, 6)) for _ in range(lines)]
      pairs = [f'{" ".join(w)}\t{" ".join(w[::-1])}\n' for w in words]
      (data / f'{split}.tsv').write_text('inputs\ttargets\n' + ''.join(pairs))
    self.config = folder / 'tiny.py'
    self.config.write_text(EXPERIMENT.format(data=str(data), steps=STEPS))

  def start(self, workdir: pathlib.Path, *flags: str, fresh: bool = False) -> Process:
    flags = (f'--config={self.config}', f'--workdir={workdir}', *flags)
    return self.commands.start(*flags, fresh=fresh)

  def finish(self, workdir: pathlib.Path, *flags: str, fresh: bool = False) -> dict:
    """Wait for the end of a run, and return its result."""
    process = self.start(workdir, *flags, fresh=fresh)
    out, err = outputs(process)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope='module')
def lab(commands, tmp_path_factory):
  return Lab(tmp_path_factory.mktemp('lab'), commands)


@pytest.fixture(scope='module')
def uninterrupted(lab):
  """In a new interpreter: nothing may depend on what differs between interpreters."""
  return lab.finish(lab.folder / 'uninterrupted', fresh=True)


def outputs(process: Process) -> tuple[str, str]:
  """Wait for the end of a process, and return (stdout, stderr)."""
  out, err = process.communicate(timeout=600)
  return out.decode(), err.decode()


def lines(workdir):
  file = workdir / 'metrics.jsonl'
  return file.read_bytes().count(b'\n') if file.exists() else 0


def metrics(workdir):
  """Return the lines of metrics.jsonl without what depends on the time."""
  rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [
    {k: v for k, v in row.items() if k not in ('seconds', 'tokens_per_second')} for row in rows
  ]


def saving(workdir, name):
  return any((workdir / 'checkpoints' / name).glob('*tmp*'))


def wait_for(process, happens):
  while not happens() and process.poll() is None:
    time.sleep(0.002)


def assert_same_run(result, workdir, reference, folder):
  for name in ('state_sha256', 'metrics', 'best_step', 'step', 'signatures'):
    assert result[name] == reference[name], name
  expected = folder / 'uninterrupted'
  for file in ('predictions/test.txt', 'predictions/val.txt', 'tokenizer.json'):
    assert (workdir / file).read_bytes() == (expected / file).read_bytes(), file
  assert metrics(workdir) == metrics(expected)
  kept = lambda path: sorted(int(p.name) for p in (path / 'checkpoints' / 'last').iterdir())
  assert kept(workdir) == kept(expected)


def kill(lab, workdir, moment):
  """Start a run, and kill -9 it as soon as moment() is true."""
  process = lab.start(workdir)
  wait_for(process, moment)
  process.kill()
  _, err = outputs(process)
  assert process.returncode == -signal.SIGKILL, err


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_without(lab, uninterrupted):
  """kill -9 while it saves a checkpoint, saves the best, evaluates, or at any moment."""
  workdir, rng = lab.folder / 'killed', random.Random(0)
  moments = [
    lambda: saving(workdir, 'last'),
    lambda: saving(workdir, 'best'),
    lambda: lines(workdir) >= rng.randint(3, 10),
    lambda: lines(workdir) >= 12 and saving(workdir, 'last'),
  ]
  for moment in moments:
    kill(lab, workdir, lambda moment=moment: moment() and not time.sleep(rng.random() * 0.02))
  assert 0 < lines(workdir)
  # a save that was cut off, and a line that was
  (workdir / 'checkpoints' / 'last' / f'{STEPS}.orbax-checkpoint-tmp').mkdir(exist_ok=True)
  with (workdir / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 9')
  result = lab.finish(workdir)
  assert_same_run(result, workdir, uninterrupted, lab.folder)


def test_a_run_stopped_by_signals_ends_as_without(lab, uninterrupted):
  """kill -9 loses nothing; SIGTERM and Ctrl-C save; no other process can train there.

  And a signal before there is anything to save, even in a compilation, ends it with a line.
  """
  workdir = lab.folder / 'stopped'
  process = lab.start(workdir)
  wait_for(process, (workdir / 'lock').exists)
  process.send_signal(signal.SIGTERM)
  _, err = outputs(process)
  assert process.returncode == 143 and err.splitlines()[-1] == 'SIGTERM: stopped', err
  assert not lines(workdir)

  kill(lab, workdir, lambda: lines(workdir) >= 3 and saving(workdir, 'last'))

  process = lab.start(workdir)
  wait_for(process, lambda: lines(workdir) >= 6)  # the evaluation after step 6 is due
  process.send_signal(signal.SIGTERM)
  _, err = outputs(process)
  assert process.returncode == 143, err
  assert 'SIGTERM: saved step ' in err.splitlines()[-1]
  step = int(err.splitlines()[-1].split('saved step ')[1].split(';')[0])
  assert step >= 6 and (workdir / 'checkpoints' / 'last' / str(step)).is_dir()

  before = lines(workdir)
  process = lab.start(workdir)
  wait_for(process, lambda: lines(workdir) >= before + 3)  # an evaluation and two steps
  process.send_signal(signal.SIGSTOP)
  second = lab.start(workdir)
  _, refusal = outputs(second)
  assert second.returncode == 2
  assert refusal.splitlines()[-1].startswith(f'error: process {process.pid} on ')
  process.send_signal(signal.SIGCONT)
  process.send_signal(signal.SIGINT)
  _, err = outputs(process)
  assert process.returncode == 130, err
  assert 'SIGINT: saved step ' in err.splitlines()[-1], err
  assert 'Traceback' not in err

  result = lab.finish(workdir)
  assert_same_run(result, workdir, uninterrupted, lab.folder)


@pytest.mark.slow
def test_a_finished_run_is_only_evaluated(lab, uninterrupted):
  workdir = lab.folder / 'again'
  shutil.copytree(lab.folder / 'uninterrupted', workdir)
  result = lab.finish(workdir)
  assert_same_run(result, workdir, uninterrupted, lab.folder)


@pytest.mark.slow
def test_a_diverged_run_stops_and_names_the_place(lab):
  """It stops, names step, batch and place, and does not change the parameters."""
  workdir = lab.folder / 'diverged'
  flags = ('--config.optimizer.name=sgd', '--config.optimizer.learning_rate=1e30')
  process = lab.start(workdir, *flags, '--config.optimizer.clip=0.0')
  out, err = outputs(process)
  message = err.splitlines()[-1]
  assert process.returncode == 1 and not out, err
  assert message.startswith('error: step 2: the loss or its gradient is not finite, first in ')
  assert 'layer 0' in message and 'Traceback' not in err
  file = workdir / 'not-finite-step-2.npz'
  assert str(file) in message
  assert np.load(file)['targets'].any()
  assert '"step": 2' not in (workdir / 'metrics.jsonl').read_text()


@pytest.fixture
def small_disk(tmp_path):
  """A small disk for a workdir, and a function that makes room on it."""
  disk = tmp_path / 'disk'
  disk.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=400k', 'tmpfs', str(disk)]
  if not shutil.which('mount') or subprocess.run(mount, capture_output=True).returncode:
    pytest.skip('needs the right to mount a small disk: run as root')
  yield disk, lambda: subprocess.run(['mount', '-o', 'remount,size=64m', str(disk)], check=True)
  subprocess.run(['umount', '-l', str(disk)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_resumes(lab, uninterrupted, small_disk):
  """It says so in one line, keeps what is saved, and resumes when there is room."""
  disk, make_room = small_disk
  workdir = disk / 'run'
  process = lab.start(workdir)
  out, err = outputs(process)
  assert process.returncode == 2 and not out, err
  # a thread of Orbax may write its own traceback before it, in the same line, or after it
  (message,) = re.findall('error: the disk of .*', err)
  assert str(workdir) in message
  assert 'disk' in message and 'same command' in message
  make_room()
  result = lab.finish(workdir)
  assert_same_run(result, workdir, uninterrupted, lab.folder)
