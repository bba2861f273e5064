"""Reports of a run (progress bar, log, TensorBoard events, metrics.jsonl) and tables as text."""

import contextlib
import io
import json
import logging as std_logging
import math
import pathlib
import shlex
import sys
import textwrap
import threading
import time
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging
from tqdm.auto import tqdm  # in a notebook a widget

from transformer.training.command_line import printable
from transformer.training.workdir import write


def log_ours():
  """Set up logging to stderr: all messages of this package, warnings and errors of libraries.

  Errors that Orbax logs with a traceback for each of its threads are dropped, because it raises
  them, too. On a terminal a line has the time of day and no file name.
  """
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().addFilter(_is_shown)
  if sys.stderr.isatty():
    short = std_logging.Formatter('%(asctime)s %(levelname)s %(message)s', '%H:%M:%S')
    logging.get_absl_handler().setFormatter(short)
  threading.excepthook = _end_of_thread
  sys.unraisablehook = _unraisable


def _unraisable(args: Any):
  """Print an error that cannot be raised, unless it is TensorStore's, which comes too late.

  TensorStore answers each request of Orbax, which closes its event loop after the first error.
  """
  if str(args.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(args)


def _end_of_thread(args: Any):
  """Print the error that ended a thread, unless it is Orbax's, which is raised again."""
  if not any('orbax' in frame.filename for frame in traceback.extract_tb(args.exc_traceback)):
    threading.__excepthook__(args)


def _is_shown(record: std_logging.LogRecord) -> bool:
  # asyncio logs the errors of Orbax's other reads of TensorStore when they are deleted
  late = record.name == 'asyncio' and 'tensorstore' in str(record.exc_info)
  if record.exc_info and (late or 'orbax' in record.pathname):
    return False
  # a message may contain texts of the data, with control characters
  record.msg, record.args = printable(record.getMessage()), None
  ours = str(pathlib.Path(__file__).parents[1])
  return record.levelno >= std_logging.WARNING or record.pathname.startswith(ours)


class Report(contextlib.AbstractContextManager):
  """Writer of the metrics of a run; a context manager that closes its files at the end.

  If a run resumes at `step`, the lines of later steps are deleted, so that the files are those of
  an uninterrupted run.

  Args:
    folder: of the run.
    step: the step to resume after; 0 for a new run.
    steps: of the whole run.
    logged: the last step whose metrics were written; 0 if unknown.

  Attributes:
    evaluated: whether the evaluation after `step` was written before the interruption.
  """

  def __init__(self, folder: pathlib.Path, *, step: int, steps: int, logged: int = 0):
    file = folder / 'metrics.jsonl'
    self.evaluated, self._seconds, last = _delete_after(file, step, steps)
    if last < logged:
      logging.warning(
        '%s was cut or deleted: it ends at step %d, and had lines up to step %d, which are not '
        'written again; the checkpoints are not concerned',
        *(file, last, logged),
      )
    self._file = file.open('a', encoding='utf-8')
    self._events = _Events(folder / 'events', purge_step=step + 1)
    # disable=None: no bar where stderr is not a terminal
    self._bar = tqdm(initial=step, total=steps, unit='step', disable=None, dynamic_ncols=True)
    logging.get_absl_handler().addFilter(self._clear_line)
    self._began = self._since = time.perf_counter()
    self._tokens, self._at_peak = 0, 0.0

  def __exit__(self, *_):
    logging.get_absl_handler().removeFilter(self._clear_line)
    with self._file, contextlib.closing(self._events), contextlib.closing(self._bar):
      pass  # all are closed, even if one of them fails because the disk is full

  def _clear_line(self, _) -> bool:
    """Clear the bar before a log message is written; the next step draws it again."""
    self._bar.clear()
    return True

  def start(self):
    """Start to measure the speed; called when the first step has been compiled."""
    self._bar.unpause()
    self._restart()

  def _restart(self):
    self._since, self._tokens, self._at_peak = time.perf_counter(), 0, 0.0

  def advance(self, tokens: int, at_peak: float = 0.0):
    """Count a training step.

    Args:
      tokens: its number of tokens.
      at_peak: the seconds it would take at the device's peak; 0 if unknown.
    """
    self._bar.update()
    self._tokens += tokens
    self._at_peak += at_peak

  def train(self, step: int, metrics: dict[str, float]):
    """Write the training metrics of a step."""
    seconds = max(time.perf_counter() - self._since, 1e-9)
    speed, mfu = self._tokens / seconds, self._at_peak / seconds
    self._restart()
    postfix = {'loss': f'{metrics["loss"]:.3f}', 'tokens/s': f'{speed:,.0f}'}
    self._bar.set_postfix(postfix | ({'mfu': f'{mfu:.1%}'} if mfu else {}))
    speeds = {'tokens_per_second': round(speed, 1)} | ({'mfu': round(mfu, 4)} if mfu else {})
    self._write(step, 'train', metrics | speeds)
    if self._bar.disable:
      logging.info('step %d: loss %.4f, %s tokens/s', step, metrics['loss'], f'{speed:,.0f}')

  def evaluation(
    self,
    step: int,
    split: str,
    metrics: dict[str, float],
    samples: list[dict],
    pictures: Mapping[str, bytes] = types.MappingProxyType({}),
  ):
    """Write the metrics, samples and pictures (PNG) of a split, evaluated after a step."""
    self._write(step, split, metrics)
    self._events.write(step, {f'{split}/{name}': png for name, png in pictures.items()})
    if samples:
      self._events.write(step, {f'{split}/samples': f'```\n{table(samples)}\n```'})
    text = ', '.join(f'{name} {value:.4g}' for name, value in metrics.items())
    logging.info('step %d, %s: %s', step, split, text)
    self._restart()  # evaluation does not count as training

  def _write(self, step: int, split: str, metrics: dict[str, float]):
    seconds = round(self._seconds + time.perf_counter() - self._began, 1)
    line = {'step': step, 'split': split, **metrics, 'seconds': seconds}
    self._file.write(json.dumps(without_nan(line)) + '\n')
    self._file.flush()
    self._events.write(step, {f'{split}/{name}': value for name, value in metrics.items()})


class _Events:
  """A writer of a TensorBoard file that uses no thread.

  The thread of tensorboardX's SummaryWriter ends when the disk is full, and the program then waits
  forever to put more into its queue.
  """

  def __init__(self, folder: pathlib.Path, *, purge_step: int):
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import SessionLog

    folder.mkdir(parents=True, exist_ok=True)
    self._writer = EventsWriter(str(folder / 'events'))
    self._write(purge_step, session_log=SessionLog(status=SessionLog.START))

  def write(self, step: int, values: dict[str, float | str | bytes]):
    """Write {tag: number, text or PNG} of a step."""
    from tensorboardX import summary

    makers: dict[type, Callable[..., Any]] = {str: summary.text, bytes: _image}
    for name, value in values.items():
      self._write(step, summary=makers.get(type(value), summary.scalar)(name, value))
    self._writer.flush()

  def _write(self, step, **content):
    from tensorboardX.proto.event_pb2 import Event

    self._writer.write_event(Event(step=step, wall_time=time.time(), **content))

  def close(self):
    self._writer.close()


def _image(name: str, png: bytes) -> Any:
  from PIL import Image
  from tensorboardX.proto.summary_pb2 import Summary

  width, height = Image.open(io.BytesIO(png)).size
  image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
  return Summary(value=[Summary.Value(tag=name, image=image)])


def summary(result: dict[str, Any], splits: Sequence[str]) -> str:
  """Return a result as text: a table of metrics, the workdir, and commands to try next.

  Args:
    result: of a mode. Metrics of parts of a split, such as a locale, are not in the table.
    splits: the columns of the table.
  """
  metrics = {name: f'{value:.4g}' for name, value in result.get('metrics', {}).items()}
  names = dict.fromkeys(
    key.removeprefix(f'{s}/') for s in splits for key in metrics if key.startswith(f'{s}/')
  )
  rows = [
    [name, *(metrics.get(f'{split}/{name}', '') for split in splits)]
    for name in names
    if '/' not in name
  ]
  workdir = shlex.quote(result['workdir'])
  return '\n'.join(
    [
      *([align([['', *splits], *rows], str.rjust)] if rows else []),
      '',
      f'{result["seconds"]} s on {result["device"]}; everything is in {workdir}, these and more '
      f'metrics in {result["mode"]}.json',
      f'  python run.py --workdir={workdir} --mode=predict   # outputs for lines that you type',
      f'  python run.py --workdir={workdir} --mode=attend    # plots of the attention weights',
      f'  tensorboard --logdir={workdir}/events',
    ]
  )


def align(rows: Sequence[Sequence[str]], justify: Callable[[str, int], str] = str.ljust) -> str:
  """Return a table as text, in which every column is as wide as its longest cell.

  Args:
    rows: lists of cells, all of the same length.
    justify: str.ljust or str.rjust, for all columns but the first, which is left-justified.
  """
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = ([row[0].ljust(widths[0]), *map(justify, row[1:], widths[1:])] for row in rows)
  return '\n'.join('  '.join(line).rstrip() for line in lines)


def short_table(samples: list[dict[str, Any]]) -> str:
  """Return samples as text, a line for each; wrong ones are marked, with the reference."""
  lines = []
  for sample in samples:
    right = sample['prediction'] == sample['targets']
    mark, correction = (' ', '') if right else ('*', f'  (is {_short(sample["targets"])})')
    lines.append(f'{mark} {_short(sample["inputs"])} -> {_short(sample["prediction"])}{correction}')
  return '\n'.join(lines)


def _short(text: Any) -> str:
  return textwrap.shorten(str(text), 100, placeholder=' ...')


def table(samples: list[dict[str, Any]]) -> str:
  """Return samples as text, three lines for each: inputs, reference, prediction."""
  lines = []
  for sample in samples:
    mark = ' ' if sample['prediction'] == sample['targets'] else '*'
    lines.append(f'{mark} {sample["inputs"]}')
    lines.append(f'    is  {sample["targets"]}')
    lines.append(f'    got {sample["prediction"]}')
  return '\n'.join(lines)


def without_nan(value: Any) -> Any:
  """Return a value with NaN and Inf, which JSON does not have, as strings."""
  if isinstance(value, dict):
    return {name: without_nan(item) for name, item in value.items()}
  if isinstance(value, list):
    return [without_nan(item) for item in value]
  return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _delete_after(file: pathlib.Path, step: int, steps: int) -> tuple[bool, float, int]:
  """Delete the lines of steps after `step`, and of the final evaluation, which is repeated.

  Returns:
    Whether the file has the evaluation after `step`; the seconds of training until its last line;
    the last step whose training metrics it has.
  """
  kept: list[str] = []
  evaluated, seconds, last = False, 0.0, 0
  if not file.exists():
    return evaluated, seconds, last
  # the part after the last line end is empty, or a line that was cut when the run was killed
  for number, line in enumerate(file.read_bytes().split(b'\n')[:-1], start=1):
    try:
      entry = json.loads(line)
      line_step, evaluation = entry['step'], entry['split'] != 'train'
    except (KeyError, RecursionError, TypeError, ValueError) as error:
      zeros = f', {line.count(0)} bytes of it are zero' if 0 in line else ''
      raise ValueError(
        f'{file}:{number} is damaged ({error}{zeros}): delete that line, which only the log needs'
        f'\n  sed -i {number}d {shlex.quote(str(file))}'
      ) from error
    if line_step <= step and not (line_step == steps and evaluation):
      kept.append(line.decode() + '\n')
      last = last if evaluation else line_step
      evaluated |= line_step == step and evaluation
      seconds = entry.get('seconds', seconds)
  write(file, ''.join(kept))
  return evaluated, seconds, last
