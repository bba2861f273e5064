"""Comparison of runs: differences of their configs, metrics, and curves."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from transformer.training.reporting import align
from transformer.training.workdir import Workdir, flatten


def compare(folders: Sequence[str]) -> dict[str, dict[str, Any]]:
  """Return {workdir: the config keys in which the runs differ, and the metrics of the run}.

  Args:
    folders: workdirs of runs. If a run has not ended, its metrics are those of its last evaluation.

  Raises:
    FileNotFoundError, ValueError: there is no run in a folder, or its files are damaged.
  """
  configs = {folder: flatten(Workdir(folder).read_config()) for folder in folders}
  keys = dict.fromkeys(key for config in configs.values() for key in config)
  differ = [k for k in keys if len({repr(config.get(k)) for config in configs.values()}) > 1]
  return {
    folder: {key: config[key] for key in differ if key in config} | _metrics(folder)
    for folder, config in configs.items()
  }


def table(rows: dict[str, dict[str, Any]]) -> str:
  """Return a table as text: a column for each run, a line for each key of any run."""
  keys = list(dict.fromkeys(key for row in rows.values() for key in row))
  lines = [[key, *(text(row.get(key, '')) for row in rows.values())] for key in keys]
  return align([['', *rows], *lines])


def draw(folders: Sequence[str], file: pathlib.Path, labels: Sequence[str] = ()):
  """Write `figure(folders, labels)` to a PNG file."""
  file.parent.mkdir(parents=True, exist_ok=True)
  figure(folders, labels).savefig(file, dpi=120)


def figure(folders: Sequence[str], labels: Sequence[str] = ()) -> Any:
  """Return a Matplotlib figure of the training loss and validation metrics of the runs by step.

  Args:
    folders: workdirs of runs.
    labels: their names in the legends; () for the folders.
  """
  from matplotlib.figure import Figure

  histories = dict(zip(labels or folders, map(history, folders), strict=True))
  evaluations = [row for rows in histories.values() for row in rows if row['split'] != 'train']
  names = dict.fromkeys(
    name for row in evaluations for name in row if name not in ('step', 'split', 'seconds')
  )
  curves = [('training loss', True, 'loss')]
  curves += [(f'validation {name}', False, name) for name in names]
  lines = -(-len(curves) // 2)
  result = Figure(figsize=(11, 3 * lines), layout='constrained')
  plots = result.subplots(lines, 2, squeeze=False).ravel()
  for axes in plots[len(curves) :]:
    axes.remove()
  for axes, (label, training, name) in zip(plots, curves, strict=False):
    for i, (run, rows) in enumerate(histories.items()):
      if (points := _points(rows, name, training))[0]:  # a run that has ended early may have none
        axes.plot(*points, '.-', label=run, color=f'C{i}')
    axes.set(xlabel='step', ylabel=label)
    if axes.lines:
      axes.legend(frameon=False, fontsize=8)
  return result


def _points(rows: list[dict], name: str, training: bool) -> tuple[list[int], list[float]]:
  """Return the steps and the values of a metric of training or validation."""
  rows = [row for row in rows if name in row and (row['split'] == 'train') == training]
  return [row['step'] for row in rows], [float(row[name]) for row in rows]


def history(folder: str) -> list[dict[str, Any]]:
  """Return the lines of a run's metrics.jsonl, in order; [] if there is no file."""
  file = Workdir(folder).path / 'metrics.jsonl'
  if not file.exists():
    return []
  # while a run writes, the last line may be incomplete
  lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith('\n')]
  return [json.loads(line) for line in lines]


def _metrics(folder: str) -> dict[str, Any]:
  """Return the metrics of a run's best model, or of its last evaluation if it has not ended."""
  file = Workdir(folder).path / 'train.json'
  if file.exists():
    result = json.loads(file.read_text())
    return {'step': result['step'], **result['metrics'], 'seconds': result['seconds']}
  evaluations = [row for row in history(folder) if row['split'] != 'train']
  if not evaluations:
    return {}
  last = dict(evaluations[-1])
  step, split, seconds = last.pop('step'), last.pop('split'), last.pop('seconds', 0.0)
  values = {f'{split}/{name}': value for name, value in last.items()}
  return {'step': step, **values, 'seconds': seconds}


def text(value: Any) -> str:
  """Return a value as the text of a table cell."""
  return f'{value:.5g}' if isinstance(value, float) else str(value)
