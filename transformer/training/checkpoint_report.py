"""Reports about checkpoints: the contents of one or the differences between two."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from transformer.training.checkpoints import Checkpoints
from transformer.training.reporting import align
from transformer.training.workdir import Workdir


def read(folder: str, step: str = '') -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Return the arrays of a checkpoint by path, and facts about it.

  Args:
    folder: the workdir of a run.
    step: a number, best, or '' for the newest.

  Raises:
    FileNotFoundError, ValueError: the checkpoint does not exist, or is damaged.
  """
  if step not in ('', 'best') and not step.isdecimal():
    raise ValueError(f'--step={step} is neither a number nor best')
  path = Workdir(folder).checkpoint_dir()
  if not (path / 'checkpoints').is_dir():  # Orbax would create it
    raise FileNotFoundError(f'there is no checkpoint in {path}: give the workdir of a run')
  with Checkpoints(path) as checkpoints:
    which = 'best' if step == 'best' else 'last'
    arrays, metadata = checkpoints.read(int(step) if step.isdecimal() else None, which=which)
  host = {name: np.asarray(x) for name, x in arrays.items()}
  return host, {'workdir': str(path), 'which': which} | _facts(metadata, host)


def _facts(metadata: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Return the step, data position, scores and sizes of a checkpoint."""
  run = metadata.get('run', {})
  facts = {'step': metadata['step'], 'format': metadata.get('format', 1)}
  if data := run.get('data'):
    epoch, batch = divmod(metadata['step'], data['batches'])
    facts['data'] = {'split': data['split'], 'epoch': epoch, 'batch': batch} | data
  if config := run.get('config'):
    facts |= {'experiment': config['experiment'], 'task': config['task']}
  return facts | {
    'scores': metadata.get('scores', {}),
    'arrays': len(arrays),
    'numbers': sum(x.size for x in arrays.values()),
    'bytes': sum(x.nbytes for x in arrays.values()),
  }


def summarize(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
  """Return {path: shape, dtype, Euclidean norm, largest magnitude, count of non-finite values}."""
  return {
    path: {'shape': list(x.shape), 'dtype': str(x.dtype), **_sizes(x)} for path, x in arrays.items()
  }


def compare(
  a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]
) -> tuple[dict[str, dict[str, Any]], int]:
  """Return {path: difference} of two checkpoints, and the number of arrays that are bit-identical.

  The difference of two arrays of one shape is their norms, and the norm and largest magnitude of
  b - a.
  """
  differences: dict[str, dict[str, Any]] = {}
  for path in dict.fromkeys([*a, *b]):
    if path not in a or path not in b:
      differences[path] = {'only in': 'first' if path in a else 'second'}
    elif a[path].shape != b[path].shape:
      differences[path] = {'shapes': [list(a[path].shape), list(b[path].shape)]}
    elif a[path].dtype != b[path].dtype or a[path].tobytes() != b[path].tobytes():
      change = _sizes(b[path].astype(np.float64) - a[path].astype(np.float64))
      norms = {'first': _sizes(a[path])['norm'], 'second': _sizes(b[path])['norm']}
      differences[path] = norms | {'difference': change['norm'], 'largest': change['largest']}
  return differences, len({*a, *b}) - len(differences)


def _sizes(x: np.ndarray) -> dict[str, float]:
  x = np.abs(x.astype(np.float64))
  largest = float(x.max()) if x.size else 0.0
  nonfinite = int(np.count_nonzero(~np.isfinite(x)))
  return {'norm': math.sqrt(float(np.sum(x * x))), 'largest': largest, 'nonfinite': nonfinite}


def text(result: Mapping[str, Any]) -> str:
  """Return the result of `--mode=inspect` as lines of text and a table."""
  lines = [line for facts in result['checkpoints'] for line in _lines(facts)]
  if 'arrays' in result:
    return '\n'.join([*lines, '', _table(result['arrays'])])
  differ, same = result['differences'], result['same']
  if not differ:
    return '\n'.join([*lines, f'all {same} arrays are the same'])
  return '\n'.join(
    [*lines, f'{same} arrays are the same, {len(differ)} differ', '', _table(differ)]
  )


def _lines(facts: Mapping[str, Any]) -> list[str]:
  """Return the facts of a checkpoint as lines of text."""
  path = pathlib.Path(facts['workdir'], 'checkpoints', facts['which'], str(facts['step']))
  lines = [
    f'{path}: step {facts["step"]}, format {facts["format"]}',
    f'  {facts["arrays"]} arrays, {facts["numbers"]:,} numbers, {facts["bytes"]:,} bytes',
  ]
  if 'experiment' in facts:
    lines.append(f'  experiment {facts["experiment"]}, task {facts["task"]}')
  if data := facts.get('data'):
    lines.append(
      f'  next: batch {data["batch"]} of {data["batches"]} in epoch {data["epoch"]} of '
      f'{data["split"]}'
    )
  if scores := facts['scores']:
    lines.append('  ' + ', '.join(f'{name} {value:.4g}' for name, value in scores.items()))
  return lines


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
  """Return a table as text: a row for each array, a column for each fact."""
  columns = list(dict.fromkeys(name for row in rows.values() for name in row))
  cells = [[path, *(_cell(row.get(name, '')) for name in columns)] for path, row in rows.items()]
  return align([['', *columns], *cells], str.rjust)


def _cell(value: Any) -> str:
  if isinstance(value, list):
    if value and isinstance(value[0], list):  # two shapes
      return ' '.join(map(_cell, value))
    return 'x'.join(map(str, value)) or 'scalar'
  return f'{value:.5g}' if isinstance(value, float) else str(value)
