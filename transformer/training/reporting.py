"""What a run says while it runs: progress bar, log, TensorBoard events, metrics.jsonl."""

import json
import logging as std_logging
import math
import pathlib
import sys
import time
from typing import Any

from absl import logging
from tqdm import tqdm


def log_ours():
  """Sends our log to stderr, and of other libraries only what is a warning or worse."""
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  ours = str(pathlib.Path(__file__).parents[1])
  logging.get_absl_handler().addFilter(
    lambda record: record.levelno >= std_logging.WARNING or record.pathname.startswith(ours)
  )


class Report:
  """Writes metrics of steps to every place where they are read.

  A run that goes on after a break at `step` forgets what it had written of later steps, so that the
  files are those of a run without a break.
  """

  def __init__(self, folder: pathlib.Path, *, step: int, steps: int):
    from tensorboardX import SummaryWriter

    self._jsonl = folder / 'metrics.jsonl'
    _forget_after(self._jsonl, step, steps)
    self._file = self._jsonl.open('a', encoding='utf-8')
    self._events = SummaryWriter(str(folder / 'events'), purge_step=step + 1)
    # disable=None: no bar where stderr is not a terminal
    self._bar = tqdm(initial=step, total=steps, unit='step', disable=None, dynamic_ncols=True)
    self._since, self._tokens, self._steps = time.perf_counter(), 0.0, steps

  def __enter__(self) -> 'Report':
    return self

  def __exit__(self, *_):
    self._bar.close()
    self._events.close()
    self._file.close()

  def advance(self, tokens: float):
    """A step is done that learnt so many tokens."""
    self._bar.update()
    self._tokens += tokens

  def train(self, step: int, metrics: dict[str, float]):
    """The training metrics of a step."""
    now = time.perf_counter()
    speed = self._tokens / max(now - self._since, 1e-9)
    self._since, self._tokens = now, 0.0
    self._bar.set_postfix(loss=f'{metrics["loss"]:.3f}', **{'tokens/s': f'{speed:,.0f}'})
    self._write(step, 'train', metrics)
    self._events.add_scalar('train/tokens_per_second', speed, step)
    if self._bar.disable:
      logging.info('step %d: loss %.4f, %s tokens/s', step, metrics['loss'], f'{speed:,.0f}')

  def evaluation(self, step: int, split: str, metrics: dict[str, float], samples: list[dict]):
    """Metrics and samples of a split."""
    self._write(step, split, metrics)
    if samples:
      self._events.add_text(f'{split}/samples', '```\n' + table(samples) + '\n```', step)
    text = ', '.join(f'{name} {value:.4g}' for name, value in metrics.items())
    self.say(f'step {step}, {split}: {text}')
    self._since, self._tokens = time.perf_counter(), 0.0  # evaluating is not training

  def say(self, text: str):
    """A line or table for whoever watches, on stderr, above the bar."""
    with tqdm.external_write_mode(file=sys.stderr):
      logging.info('%s', text)

  def _write(self, step: int, split: str, metrics: dict[str, float]):
    line = {'step': step, 'split': split, **{k: _number(v) for k, v in metrics.items()}}
    self._file.write(json.dumps(line) + '\n')
    self._file.flush()
    for name, value in metrics.items():
      self._events.add_scalar(f'{split}/{name}', value, step)


def table(samples: list[dict[str, Any]]) -> str:
  """Samples as text: inputs, reference, prediction; wrong ones are marked."""
  lines = []
  for sample in samples:
    mark = ' ' if sample['prediction'] == sample['targets'] else '*'
    lines.append(f'{mark} {sample["inputs"]}')
    lines.append(f'    is  {sample["targets"]}')
    lines.append(f'    got {sample["prediction"]}')
  return '\n'.join(lines)


def _number(value: float) -> float | str:
  """JSON knows neither NaN nor Inf."""
  return value if math.isfinite(value) else str(value)


def _forget_after(file: pathlib.Path, step: int, steps: int):
  if not file.exists():
    return
  kept = []
  for line in file.read_text(encoding='utf-8').splitlines(keepends=True):
    if not line.endswith('\n'):
      continue  # the run was killed while it wrote
    written = json.loads(line)
    final = written['step'] == steps and written['split'] != 'train'  # is judged again
    if written['step'] <= step and not final:
      kept.append(line)
  file.write_text(''.join(kept), encoding='utf-8')
