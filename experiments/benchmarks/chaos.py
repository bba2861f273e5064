"""Fault injection: faults at random moments of training runs, and a table of the outcomes.

  python -m experiments.benchmarks.chaos [--kills=300] [--seed=0] [--runs=ema,muon] [--save]

Every cycle trains a tiny run of one variant to its end, with up to eight faults at random moments
(while it starts, or at some step), each followed by the same command. The outcome is `same bits`
if the state, the metrics and the predictions are equal to those of a run without faults. A command
that finds a damaged checkpoint must end with one line or continue. Mounting a full and a read-only
disk needs root.
"""

import collections
import json
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from experiments.benchmarks import harness

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / 'tests'))
from processes import Commands, Process  # noqa: E402

STEPS = 16
EXPERIMENT = """
import time
from transformer.training import config
from transformer.zoo import presets

def get_config(clock=''):
  if clock:  # set the clock back by a day
    now = time.time
    time.time = lambda: now() - 86_400
  c = config.for_task('classification')  # the task that is traced and compiled fastest
  c.experiment = 'tiny'
  c.data.update(name='pairs', dir={data!r}, test=('test',), max_length=16, batch_tokens=256)
  c.data.buckets = 1
  c.tokenizer.update(kind='characters', vocab=40)
  c.model.update(presets.TRANSFORMER_TINY, width=16, heads=2, depth=1, feedforward=32)
  c.model.update(dropout=0.1, max_length=16, pooling='mean')
  c.optimizer.update(learning_rate=0.01, warmup_steps=4)
  c.train.update(steps={steps}, save_every_steps=2, log_every_steps=1, keep_checkpoints=3)
  c.eval.update(every_steps=6, samples=1, best='nll')
  c.decode.batch_size = 8
  return c
"""
VARIANTS = {
  'plain': (),
  'steps_per_call': ('--config.train.steps_per_call=2',),
  'ema': ('--config.train.ema=0.9',),
  'average': ('--config.train.average_checkpoints=3',),
  'muon': ('--config.optimizer.name=muon', '--config.optimizer.learning_rate=0.01'),
  'adapters': ('--config.train.adapters=(("query|value",2),)',),
}
IN_FLIGHT = {'kill -9': 9, 'SIGTERM': 5, 'SIGSTOP, kill -9': 2, 'clock back, kill -9': 2}
AT_REST = ('newest deleted', 'newest truncated', 'newest flipped')
OF_THE_DISK = ('disk full', 'disk read-only', 'workdir vanished')
_KILLS = flags.DEFINE_integer('kills', 300, 'Signals to send.')
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the random moments.')
_VARIANTS = flags.DEFINE_list('runs', [*VARIANTS], 'The variants to run.')


class Lab:
  """A tiny experiment with its data, and the outcomes so far.

  Attributes:
    kills: number of signals sent.
    outcomes: {(fault, how the run ended, outcome of the next command): count}.
  """

  def __init__(self, folder: pathlib.Path, commands: Commands, rng: random.Random):
    self.folder, self.commands, self.rng, self.kills = folder, commands, rng, 0
    self.outcomes: collections.Counter = collections.Counter()
    self.references: dict[str, tuple] = {}
    data = folder / 'data'
    data.mkdir()
    for split, lines in (('train', 64), ('val', 8), ('test', 8)):
      words = [rng.choices('abcdef', k=rng.randint(2, 6)) for _ in range(lines)]
      pairs = [f'{" ".join(w)}\t{w[0]}\n' for w in words]
      (data / f'{split}.tsv').write_text('inputs\ttargets\n' + ''.join(pairs))
    self.config = folder / 'tiny.py'
    self.config.write_text(EXPERIMENT.format(data=str(data), steps=STEPS))

  def start(self, variant: str, workdir: pathlib.Path, *more: str, clock: str = '') -> Process:
    """Start the run of a variant."""
    config = f'--config={self.config}' + f':{clock}' * bool(clock)
    return self.commands.start(config, f'--workdir={workdir}', *VARIANTS[variant], *more)

  def finish(self, variant: str, workdir: pathlib.Path, *more: str) -> str:
    """Run to the end; return the outcome: same bits, other bits, or the error."""
    process = self.start(variant, workdir, *more)
    out, err = process.communicate(timeout=600)
    if process.returncode:
      return _words(process.returncode, err.decode())
    result = _result(out, workdir)
    return 'same bits' if result == self.references.setdefault(variant, result) else 'other bits'

  def interrupt(self, variant: str, workdir: pathlib.Path, fault: str) -> str:
    """Start a run and apply a fault at a random moment; return how the run ended."""
    process = self.start(variant, workdir, clock='back' * fault.startswith('clock'))
    before, ahead = _lines(workdir), self.rng.randint(0, 4)
    while process.poll() is None and _lines(workdir) < before + ahead:
      time.sleep(0.002)
    time.sleep(self.rng.random() * (0.1 if ahead else 3.0))
    self._apply(fault, process, workdir)
    _, err = process.communicate(timeout=600)
    if process.returncode in (0, -signal.SIGKILL):
      return 'killed' if process.returncode else 'it had ended'
    return _words(process.returncode, err.decode())

  def _apply(self, fault, process, workdir):
    if fault.startswith('SIGSTOP'):
      process.send_signal(signal.SIGSTOP)
      time.sleep(0.1)
    if 'kill' in fault or fault == 'SIGTERM':
      self.kills += process.poll() is None
      process.send_signal(signal.SIGTERM if fault == 'SIGTERM' else signal.SIGKILL)
    elif fault == 'workdir vanished':
      shutil.rmtree(workdir, ignore_errors=True)

  def cycle(self, number: int):
    """Train one run to its end with up to eight faults, and count the outcomes."""
    variant = _VARIANTS.value[number % len(_VARIANTS.value)]
    workdir = self.folder / f'run-{number}'
    for fault in self.rng.choices([*IN_FLIGHT], weights=[*IN_FLIGHT.values()], k=8):
      end = self.interrupt(variant, workdir, fault)
      if end == 'it had ended':
        break
      self._count(fault, variant, end, 'resumed')
    damage = self.rng.choice(('', *AT_REST))
    if damage and _damage(damage, workdir, self.rng):
      end = self.finish(variant, workdir)
      if end != 'same bits':
        cure = '--config.train.damaged_checkpoint=previous'
        self._count(damage, variant, end, f'{cure}: {self.finish(variant, workdir, cure)}')
      else:
        self._count(damage, variant, 'went on', end)
    self._count('all of a cycle', variant, '', self.finish(variant, workdir))
    shutil.rmtree(workdir, ignore_errors=True)

  def on_small_disk(self, fault: str):
    """Run on a separate disk that becomes full or read-only, or whose folder is deleted."""
    variant, disk = self.rng.choice(_VARIANTS.value), self.folder / 'disk'
    disk.mkdir(exist_ok=True)
    size = f'{self.rng.randint(150, 700)}k' if fault == 'disk full' else '64m'
    subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(disk)], check=True)
    try:
      if fault == 'disk read-only':
        self.interrupt(variant, disk / 'run', 'kill -9')
        subprocess.run(['mount', '-o', 'remount,ro', str(disk)], check=True)
        end = self.finish(variant, disk / 'run')
      else:
        end = self.interrupt(variant, disk / 'run', fault)
      subprocess.run(['mount', '-o', 'remount,rw,size=64m', str(disk)], check=True)
      self._count(fault, variant, end, self.finish(variant, disk / 'run'))
    finally:
      subprocess.run(['umount', '-l', str(disk)], check=True)

  def _count(self, fault, variant, end, outcome):
    self.outcomes[fault, end, outcome] += 1
    print(f'{self.kills} kills; {fault}, {variant}: {end} -> {outcome}', file=sys.stderr)


def _words(status: int, err: str) -> str:
  """Return the exit status and the error message of a process, without paths."""
  lines = err.splitlines() or ['']
  message = next((line for line in lines if line.startswith(('error:', 'SIG'))), lines[-1])
  message = ' '.join(re.sub(r'\d+', 'N', word) for word in message.split() if '/' not in word)[:90]
  return f'{status}: {message}' + ' WITH A TRACEBACK' * ('Traceback' in err)


def _result(out: bytes, workdir: pathlib.Path) -> tuple:
  """Return what must be equal: the state, the metrics of every step, and the predictions."""
  result = json.loads(out.splitlines()[-1])
  hidden = ('seconds', 'tokens_per_second')
  rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  rows = [{k: v for k, v in row.items() if k not in hidden} for row in rows]
  predictions = (workdir / 'predictions' / 'test.txt').read_text()
  return result['state_sha256'], result['metrics'], result['best_step'], rows, predictions


def _lines(workdir: pathlib.Path) -> int:
  try:
    return (workdir / 'metrics.jsonl').read_bytes().count(b'\n')
  except OSError:
    return 0


def _damage(how: str, workdir: pathlib.Path, rng: random.Random) -> bool:
  """Damage the newest checkpoint, if there are several; return whether that was done."""
  folders = [f for f in (workdir / 'checkpoints' / 'last').glob('*') if f.name.isdecimal()]
  if len(folders) < 2:
    return False
  newest = max(folders, key=lambda f: int(f.name))
  if how == 'newest deleted':
    shutil.rmtree(newest)
    return True
  file = rng.choice([f for f in sorted(newest.rglob('*')) if f.is_file() and f.stat().st_size])
  content = bytearray(file.read_bytes())
  place = rng.randrange(len(content))
  if how == 'newest truncated':
    del content[place:]
  else:
    content[place] ^= 1 << rng.randrange(8)
  file.write_bytes(content)
  return True


def main(argv):
  del argv
  rng = random.Random(_SEED.value)
  with tempfile.TemporaryDirectory() as folder, Commands(pathlib.Path(folder, 'cache')) as commands:
    lab = Lab(pathlib.Path(folder), commands, rng)
    for variant in _VARIANTS.value:
      print(variant, lab.finish(variant, lab.folder / variant), file=sys.stderr)
    for fault in OF_THE_DISK * max(1, _KILLS.value // 75):
      lab.on_small_disk(fault)
    number = 0
    while lab.kills < _KILLS.value:
      lab.cycle(number)
      number += 1
  rows = [(*key, count) for key, count in sorted(lab.outcomes.items())]
  for fault, end, outcome, count in rows:
    print(f'| {fault} | {end} | {outcome} | {count} |', file=sys.stderr)
  result = {'case': 'chaos', 'kills': lab.kills, 'outcomes': rows, **harness.machine('chaos')}
  harness.write(result, save=harness.SAVE.value)


if __name__ == '__main__':
  app.run(main)
