"""The variants of an experiment, trained one after the other or several at once.

Every variant has a workdir and an outcome: one that fails does not end the others.
"""

import contextlib
import json
import os
import pathlib
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from absl import logging
from ml_collections import ConfigDict

from transformer.training import workdir
from transformer.training.checks import check
from transformer.training.config import FORMAT
from transformer.training.machine import cores
from transformer.training.signals import Signals
from transformer.training.workdir import Workdir, write

RUN = pathlib.Path(__file__).parents[2] / 'run.py'


class Variant(NamedTuple):
  """One run of a sweep.

  Attributes:
    changed: what sweep(add) has changed, by keys such as optimizer.learning_rate.
    config: the whole, checked.
    workdir: of the run.
  """

  changed: dict[str, Any]
  config: dict[str, Any]
  workdir: Workdir


def variants(config: dict[str, Any], file: str, folder: pathlib.Path) -> list[Variant]:
  """Return the variants that the function sweep(add) of an experiment's file adds.

  Raises:
    ValueError: there is no such function, or a variant has a wrong key or value.
  """
  experiment = runpy.run_path(file)
  if 'sweep' not in experiment:
    raise ValueError(f'{file} has no function sweep(add): write one, or use --mode=train')
  added: list[dict[str, Any]] = []
  experiment['sweep'](added.append)
  found = []
  for i, changes in enumerate(added):
    changed = ConfigDict(config)
    try:
      changed.update_from_flattened_dict(changes)
    except (AttributeError, KeyError, TypeError) as error:
      raise ValueError(f'sweep(add) of {file} added {changes}: {error}') from error
    found.append(Variant(changes, changed.to_dict(), Workdir(folder / f'sweep-{i}')))
    check(found[-1].config)
  return found


def train_at_once(runs: list[Variant], jobs: int) -> tuple[list[str], int]:
  """Train variants in processes of their own, `jobs` at a time.

  Each has a share of the processor cores, and a GPU of its own where there are any. Its log is
  log.txt in its workdir. A signal is passed on, and ends them all after they have saved.

  Returns:
    The outcomes, and the number of the signal that ended them, or 0.

  Raises:
    ValueError: there are fewer cores or GPUs than jobs.
  """
  outcomes = [''] * len(runs)
  waiting, running = [*enumerate(runs)], dict[int, tuple[int, subprocess.Popen]]()
  shares = _shares(jobs)
  with Signals() as signals, _ending(running):
    signals.listen()
    while (waiting or running) and not signals.received:
      for slot in range(jobs):
        if slot in running and (status := running[slot][1].poll()) is not None:
          i, _ = running.pop(slot)
          outcomes[i] = _outcome(runs[i], status)
          logging.info('sweep %d of %d has ended: %s', i + 1, len(runs), outcomes[i])
        if slot not in running and waiting:
          i, run = waiting.pop(0)
          logging.info('sweep %d of %d: %s', i + 1, len(runs), run.changed)
          running[slot] = i, _start(run, *shares[slot])
      time.sleep(0.05)
  return outcomes, signals.received


@contextlib.contextmanager
def _ending(running: dict[int, tuple[int, subprocess.Popen]]) -> Iterator[None]:
  """Ask the processes that still run at the end to stop, and wait until they have saved."""
  try:
    yield
  finally:
    for _, process in running.values():
      process.terminate()  # nothing happens if it has ended
    for _, process in running.values():
      process.wait()


def _shares(jobs: int) -> list[tuple[list[int], dict[str, str]]]:
  """Return the cores of each job, and what its environment has more."""
  gpus = sorted(pathlib.Path('/dev').glob('nvidia[0-9]*'))
  if jobs > cores() or (gpus and jobs > len(gpus)):
    there = f'{len(gpus)} GPUs' if gpus else f'{cores()} processor cores'
    raise ValueError(f'--jobs={jobs} is more than the {there} of this machine: lower it')
  ours = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
  return [
    (ours[slot::jobs], {'CUDA_VISIBLE_DEVICES': str(slot)} if gpus else {}) for slot in range(jobs)
  ]


def _start(run: Variant, share: list[int], more: dict[str, str]) -> subprocess.Popen:
  """Start the training of a variant; its config goes by a file."""
  given = Workdir(run.workdir.path / 'variant')
  text = json.dumps({'format': FORMAT, **check(run.config).as_dict()})
  write(given.path / 'config.json', text)
  command = [sys.executable, str(RUN), f'--config={workdir.__file__}:{given}']
  command += [f'--workdir={run.workdir}', '--json']
  with (run.workdir.path / 'log.txt').open('wb') as file, _on_cores(share):
    return subprocess.Popen(
      command, env=os.environ | more, stdin=subprocess.DEVNULL, stdout=file, stderr=file
    )


@contextlib.contextmanager
def _on_cores(share: list[int]) -> Iterator[None]:
  """Let the processes that are started meanwhile use these cores alone."""
  if not share:
    yield
    return
  before = os.sched_getaffinity(0)
  os.sched_setaffinity(0, share)
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)


def _outcome(run: Variant, status: int) -> str:
  """Return 'ok', or what the log says of the end of a process."""
  if not status:
    return 'ok'
  lines = (run.workdir.path / 'log.txt').read_text(errors='replace').splitlines()
  errors = [line for line in lines if re.match(r'error: |\w*(Error|Exception)\b', line)]
  said = errors[-1] if errors else f'ended with status {status}'
  return f'{said} (see {run.workdir}/log.txt)'


def metrics_of(run: Variant) -> dict[str, Any]:
  """Return the metrics that a variant has ended with."""
  return json.loads((run.workdir.path / 'train.json').read_text())['metrics']
