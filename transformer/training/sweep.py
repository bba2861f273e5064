"""The variants of an experiment: made by its function sweep(add), trained several at once."""

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

from transformer.training import comparison, workdir
from transformer.training.checks import check
from transformer.training.config import FORMAT
from transformer.training.machine import cores
from transformer.training.signals import Signals
from transformer.training.workdir import Workdir, write

RUN = pathlib.Path(__file__).parents[2] / 'run.py'


class Variant(NamedTuple):
  """One run of a sweep.

  Attributes:
    changed: the values that sweep(add) changed, by keys such as optimizer.learning_rate.
    config: the whole config, checked.
    workdir: the folder of its run.
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
  if not added:
    raise ValueError(f'sweep(add) of {file} added no variant: call add({{key: value}}) for each')
  result = []
  for i, changes in enumerate(added):
    changed = ConfigDict(config)
    try:
      changed.update_from_flattened_dict(changes)
      check(changed.to_dict())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise ValueError(f'sweep(add) of {file} added {changes}: {error}') from error
    result.append(Variant(changes, changed.to_dict(), Workdir(folder / f'sweep-{i}')))
  return result


def train_at_once(runs: list[Variant], jobs: int) -> tuple[list[str], int]:
  """Train each variant in its own process, `jobs` at a time; a failure does not end the others.

  Each process has a share of the processor cores and, if there are GPUs, one of them. Its log is
  log.txt in its workdir. After a signal all processes save and end.

  Returns:
    The outcome of each variant ('ok' or an error), and the number of the signal, or 0.

  Raises:
    ValueError: there are fewer cores or GPUs than jobs.
  """
  outcomes = [''] * len(runs)
  waiting, running = [*enumerate(runs)], dict[int, tuple[int, subprocess.Popen]]()
  shares = _shares(jobs)
  with Signals() as signals, _stopped_at_end(running):
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
def _stopped_at_end(running: dict[int, tuple[int, subprocess.Popen]]) -> Iterator[None]:
  """Stop the processes that still run at the end of the block; wait until they have saved."""
  try:
    yield
  finally:
    for _, process in running.values():
      process.terminate()  # has no effect on one that has ended
    for _, process in running.values():
      process.wait()


def _shares(jobs: int) -> list[tuple[list[int], dict[str, str]]]:
  """Return the cores of each job, and the environment variables to add for it."""
  gpus = sorted(pathlib.Path('/dev').glob('nvidia[0-9]*'))
  if jobs > cores() or (gpus and jobs > len(gpus)):
    devices = f'{len(gpus)} GPUs' if gpus else f'{cores()} processor cores'
    raise ValueError(f'--jobs={jobs} is more than the {devices} of this machine: lower it')
  all_cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
  return [
    (all_cores[slot::jobs], {'CUDA_VISIBLE_DEVICES': str(slot)} if gpus else {})
    for slot in range(jobs)
  ]


def _start(run: Variant, share: list[int], variables: dict[str, str]) -> subprocess.Popen:
  """Start the training of a variant in a process that reads its config from a file."""
  variant = Workdir(run.workdir.path / 'variant')
  text = json.dumps({'format': FORMAT, **check(run.config).as_dict()})
  write(variant.path / 'config.json', text)
  command = [sys.executable, str(RUN), f'--config={workdir.__file__}:{variant}']
  command += [f'--workdir={run.workdir}', '--json']
  with (run.workdir.path / 'log.txt').open('wb') as file, _on_cores(share):
    return subprocess.Popen(
      command, env=os.environ | variables, stdin=subprocess.DEVNULL, stdout=file, stderr=file
    )


@contextlib.contextmanager
def _on_cores(share: list[int]) -> Iterator[None]:
  """Restrict processes that are started inside the block to these cores; [] restricts nothing."""
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
  """Return 'ok', or the last error in the log of a process that failed."""
  if not status:
    return 'ok'
  lines = (run.workdir.path / 'log.txt').read_text(errors='replace').splitlines()
  errors = [line for line in lines if re.match(r'error: |\w*(Error|Exception)\b', line)]
  error = errors[-1] if errors else f'ended with status {status}'
  return f'{error} (see {run.workdir}/log.txt)'


def results(runs: list[Variant], outcomes: list[str]) -> list[dict[str, Any]]:
  """Return for each variant its changes, workdir and outcome, and its metrics if it succeeded."""
  return [
    {'changed': run.changed, 'workdir': str(run.workdir), 'outcome': outcome}
    | ({'metrics': metrics_of(run)} if outcome == 'ok' else {})
    for run, outcome in zip(runs, outcomes, strict=True)
  ]


def table(results: list[dict[str, Any]]) -> str:
  """Return `results` as text: a column for each variant; metrics of parts of a split left out."""
  columns = {}
  for i, result in enumerate(results):
    metrics = {name: x for name, x in result.get('metrics', {}).items() if name.count('/') < 2}
    outcome = result['outcome'].partition(':')[0]
    columns[f'sweep-{i}'] = result['changed'] | {'outcome': outcome} | metrics
  return comparison.table(columns)


def label(i: int, result: dict[str, Any]) -> str:
  """Return the name of a variant in a plot, such as 'sweep-0: optimizer.learning_rate=0.1'."""
  return f'sweep-{i}: ' + ', '.join(f'{key}={value}' for key, value in result['changed'].items())


def metrics_of(run: Variant) -> dict[str, Any]:
  """Return the final metrics of a variant, from its train.json."""
  return json.loads((run.workdir.path / 'train.json').read_text())['metrics']
