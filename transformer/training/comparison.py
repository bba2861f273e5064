"""Several runs side by side: where their configs differ, their metrics, and their curves."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from transformer.training.reporting import align
from transformer.training.workdir import Workdir, flatten


def compare(folders: Sequence[str]) -> dict[str, dict[str, Any]]:
  """Return for each run what differs in its config from the others', and its metrics.

  Args:
    folders: workdirs of runs; of a run that has not ended, the last metrics count.

  Raises:
    FileNotFoundError, ValueError: there is no run in a folder, or it is damaged.
  """
  configs = {folder: flatten(Workdir(folder).read_config()) for folder in folders}
  keys = dict.fromkeys(key for config in configs.values() for key in config)
  differ = [k for k in keys if len({repr(config.get(k)) for config in configs.values()}) > 1]
  return {
    folder: {key: config[key] for key in differ if key in config} | _metrics(folder)
    for folder, config in configs.items()
  }


def table(rows: dict[str, dict[str, Any]]) -> str:
  """Return a table as text: a column for each run, a line for each key that one of them has."""
  keys = list(dict.fromkeys(key for row in rows.values() for key in row))
  lines = [[key, *(text(row.get(key, '')) for row in rows.values())] for key in keys]
  return align([['', *rows], *lines])


def draw(folders: Sequence[str], file: pathlib.Path):
  """Write `figure` as a PNG file."""
  file.parent.mkdir(parents=True, exist_ok=True)
  figure(folders).savefig(file, dpi=120)


def figure(folders: Sequence[str]) -> Any:
  """Return a figure of the training loss and the validation metrics of the runs by step."""
  from matplotlib.figure import Figure

  histories = {folder: history(folder) for folder in folders}
  evaluations = [row for rows in histories.values() for row in rows if row['split'] != 'train']
  names = dict.fromkeys(
    name for row in evaluations for name in row if name not in ('step', 'split', 'seconds')
  )
  curves = [('training loss', True, 'loss')]
  curves += [(f'validation {name}', False, name) for name in names]
  lines = -(-len(curves) // 2)
  drawn = Figure(figsize=(11, 3 * lines), layout='constrained')
  plots = drawn.subplots(lines, 2, squeeze=False).ravel()
  for axes in plots[len(curves) :]:
    axes.remove()
  for axes, (label, training, name) in zip(plots, curves, strict=False):
    for folder, rows in histories.items():
      axes.plot(*_points(rows, name, training), '.-', label=folder)
    axes.set(xlabel='step', ylabel=label)
    axes.legend(frameon=False, fontsize=8)
  return drawn


def _points(rows: list[dict], name: str, training: bool) -> tuple[list[int], list[float]]:
  """The steps and values of a metric of training or validation."""
  found = [row for row in rows if name in row and (row['split'] == 'train') == training]
  return [row['step'] for row in found], [float(row[name]) for row in found]


def history(folder: str) -> list[dict[str, Any]]:
  """Return the metrics that a run has written, in the order of steps."""
  file = Workdir(folder).path / 'metrics.jsonl'
  if not file.exists():
    return []
  # the last line is not whole while a run writes it
  lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith('\n')]
  return [json.loads(line) for line in lines]


def _metrics(folder: str) -> dict[str, Any]:
  """The metrics of the best model of a run, or, before its end, those of its last evaluation."""
  result = Workdir(folder).path / 'train.json'
  if result.exists():
    found = json.loads(result.read_text())
    return {'step': found['step'], **found['metrics'], 'seconds': found['seconds']}
  evaluations = [row for row in history(folder) if row['split'] != 'train']
  if not evaluations:
    return {}
  last = dict(evaluations[-1])
  step, split, seconds = last.pop('step'), last.pop('split'), last.pop('seconds', 0.0)
  values = {f'{split}/{name}': value for name, value in last.items()}
  return {'step': step, **values, 'seconds': seconds}


def text(value: Any) -> str:
  """Return a value as a table has it."""
  return f'{value:.5g}' if isinstance(value, float) else str(value)
