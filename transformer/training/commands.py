"""The modes of `run.py`."""

import contextlib
import itertools
import json
import pathlib
import runpy
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict, config_flags

from transformer.inference.attention_maps import attend
from transformer.inference.predict import predict
from transformer.training import loop
from transformer.training.checkpoints import digest
from transformer.training.command_line import FAILURE, USAGE, explained, usage_error
from transformer.training.config import check, describe
from transformer.training.experiment import prepare, reopen, restore_best
from transformer.training.process import cores, tune
from transformer.training.workdir import Workdir, as_line, default_workdir, write


def main(flags: Any, folders: Sequence[str] = ()) -> int:
  """Run the mode that the flags ask for, and return the exit status.

  Args:
    flags: of absl.
    folders: the runs that --mode=runs compares.
  """
  tune()
  workdir = None
  try:
    if flags.mode == 'runs':
      return _compare_runs(folders, pathlib.Path(flags.workdir or 'runs'))
    config = _config(flags)
    workdir = Workdir(flags.workdir or default_workdir(str(config.get('experiment'))))
    return MODES[flags.mode](config, workdir, flags)
  except FloatingPointError as error:
    print(f'error: {error}', file=sys.stderr)
    return FAILURE
  except KeyboardInterrupt:
    print('SIGINT: stopped', file=sys.stderr)
    return 128 + signal.SIGINT
  except Exception as error:
    logging.debug('raised here', exc_info=True)  # --verbosity=1 shows it
    error = explained(error, workdir)
    if isinstance(error, (ValueError, OSError)):  # what a user can correct
      usage_error(error)
    raise


def _train(config, workdir, flags) -> int:
  began = time.perf_counter()
  experiment = prepare(config, workdir)
  try:
    state = loop.fit(experiment, workdir)
  except loop.Stopped as stopped:
    workdir.add_seconds(time.perf_counter() - began)
    print(stopped, file=sys.stderr)
    return 128 + stopped.number
  model, step = restore_best(experiment, workdir)
  result = loop.report_result(experiment, model, workdir)
  facts = {'step': int(state.step), 'best_step': step, 'state_sha256': digest(state)}
  seconds = workdir.add_seconds(time.perf_counter() - began)  # with those before an interruption
  return _print_result(config, workdir, 'train', seconds, facts | result)


def _evaluate(config, workdir, flags) -> int:
  began = time.perf_counter()
  experiment = reopen(config, workdir)
  model, step = restore_best(experiment, workdir)
  result = loop.report_result(experiment, model, workdir)
  facts = {'step': step, 'state_sha256': digest(model)}
  return _print_result(config, workdir, 'evaluate', time.perf_counter() - began, facts | result)


def _print_result(config, workdir, mode, seconds, result) -> int:
  """Print the result as one line of JSON, and write it to the workdir."""
  result = {
    'experiment': config['experiment'],
    'mode': mode,
    **result,
    'seconds': round(seconds, 1),
    'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    'cores': cores(),
    'workdir': str(workdir),
  }
  line = json.dumps(result, ensure_ascii=False)
  write(workdir.path / f'{mode}.json', line + '\n')
  print(line)
  return 0


def _predict(config, workdir, flags) -> int:
  experiment = reopen(config, workdir)
  model, _ = restore_best(experiment, workdir)
  task, status = experiment.task, 0
  if sys.stdout.isatty() and hasattr(task, 'stream') and task.decoding.beams == 1:
    return _stream(task, model, flags)
  with _lines(flags.input) as lines:
    for chunk in _chunks(lines, size=16 * task.decoding.batch_size):
      good = {}
      for number, line in chunk:
        try:
          good[number] = _text(line)
          task.processor.encode_example(good[number])
        except (ValueError, OSError) as error:
          good.pop(number, None)
          print(f'error: line {number}: {error}. Its output line is empty', file=sys.stderr)
          status = USAGE
      outputs = dict(zip(good, predict(task, model, good.values()), strict=True))
      for number, _ in chunk:
        file = workdir.path / 'wav' / f'{number}.wav'
        print(as_line(outputs.get(number, ''), file).replace('\n', ' '), flush=True)
  return status


def _stream(task, model, flags) -> int:
  """Print the continuation of each line while it is generated, line ends included."""
  status = 0
  with _lines(flags.input) as lines:
    for number, line in lines:
      try:
        for piece in task.stream(model, _text(line)):
          print(piece, end='', flush=True)
        print()
      except ValueError as error:
        print(f'error: line {number}: {error}', file=sys.stderr)
        status = USAGE
  return status


def _attend(config, workdir, flags) -> int:
  from transformer.inspection import heatmap

  experiment = reopen(config, workdir)
  model, _ = restore_best(experiment, workdir)
  pictures = []
  with _lines(flags.input) as lines:
    for number, raw in lines:
      try:
        line = _text(raw)
        weights, rows, columns = attend(experiment.task, model, line)
      except ValueError as error:
        raise ValueError(f'line {number}: {error}') from error
      file = workdir.path / 'attention' / f'{number}.html'
      (answer,) = predict(experiment.task, model, [line], truncate=True)
      output = as_line(answer, file.with_suffix('.wav'))
      write(file, heatmap.html(weights, rows, columns, title=line, subtitle=output))
      heatmap.png(weights, rows, columns, file.with_suffix('.png'), title=line)
      pictures.append(
        {'input': line, 'output': output, 'html': str(file), 'png': str(file.with_suffix('.png'))}
      )
  result = {'experiment': config['experiment'], 'mode': 'attend', 'pictures': pictures}
  print(json.dumps(result, ensure_ascii=False))
  return 0


def _sweep(config, workdir, flags) -> int:
  file = config_flags.get_config_filename(flags['config']).partition(':')[0]
  experiment = runpy.run_path(file)
  if 'sweep' not in experiment:
    raise ValueError(f'{file} has no function sweep(add): write one, or use --mode=train')
  variants: list[dict[str, Any]] = []
  experiment['sweep'](variants.append)
  configs = []
  for variant in variants:  # checks all before the first is run
    changed = ConfigDict(config)
    try:
      changed.update_from_flattened_dict(variant)
    except (AttributeError, KeyError, TypeError) as error:
      raise ValueError(f'sweep(add) of {file} added {variant}: {error}') from error
    configs.append(changed.to_dict())
    check(configs[-1])
  results = []
  for i, (variant, changed) in enumerate(zip(variants, configs, strict=True)):
    logging.info('sweep %d of %d: %s', i + 1, len(variants), variant)
    folder = Workdir(workdir.path / f'sweep-{i}')
    if status := _train(changed, folder, flags):
      return status
    metrics = json.loads((folder.path / 'train.json').read_text())['metrics']
    results.append({'changed': variant, 'metrics': metrics, 'workdir': str(folder)})
  print(json.dumps({'experiment': config['experiment'], 'mode': 'sweep', 'runs': results}))
  return 0


def _compare_runs(folders: Sequence[str], folder: pathlib.Path) -> int:
  from transformer.training import comparison

  if not folders:
    raise ValueError('--mode=runs compares runs: give their folders, as in --mode=runs runs/*')
  rows, plot = comparison.compare(folders), folder / 'runs.png'
  print(comparison.table(rows))
  comparison.draw(folders, plot)
  print(json.dumps({'mode': 'runs', 'plot': str(plot), 'runs': rows}, ensure_ascii=False))
  return 0


def _print_config(config, workdir, flags) -> int:
  print(describe(check(config).as_dict()))
  return 0


def published_settings(task) -> dict[str, Any]:
  """Return what config.json says of a task: the names of its classes, where its decoder starts."""
  settings: dict[str, Any] = {}
  if classes := getattr(task, 'classes', ()):
    settings['id2label'] = {str(i): name for i, name in enumerate(classes)}
  if (first := getattr(task, 'first', None)) is not None:
    settings['decoder_start_token_id'] = first
  return settings


def _export(config, workdir, flags) -> int:
  from transformer.modules import adapters
  from transformer.zoo.pretrained import save_pretrained

  began = time.perf_counter()
  experiment = reopen(config, workdir)
  model, step = restore_best(experiment, workdir)
  adapters.merge(model)
  folder = workdir.path / 'export'
  save_pretrained(folder, model, experiment.task.tokenizer, **published_settings(experiment.task))
  facts = {'step': step, 'folder': str(folder)}
  return _print_result(config, workdir, 'export', time.perf_counter() - began, facts)


def _doctor(config, workdir, flags) -> int:
  from transformer.inspection import self_test

  report = self_test.run()
  print(json.dumps({'mode': 'doctor', **report}))
  return 0 if report['passed'] else FAILURE


# Without 'runs', which has no config.
MODES = {
  'train': _train,
  'evaluate': _evaluate,
  'predict': _predict,
  'attend': _attend,
  'export': _export,
  'sweep': _sweep,
  'config': _print_config,
  'doctor': _doctor,
}


def _config(flags) -> dict[str, Any]:
  """Return the config as plain Python values."""
  if flags.config is None:
    raise ValueError('--config names no file: give one of experiments/*.py')
  try:
    return flags.config.to_dict()
  except AttributeError as error:  # ml_collections raises an error in the file only here
    raise ValueError(f'--config cannot be read: {error}') from error


@contextlib.contextmanager
def _lines(name: str) -> Iterator[Iterator[tuple[int, bytes]]]:
  """Open a file, or stdin for '-', and yield its numbered lines."""
  if name != '-' and not pathlib.Path(name).is_file():
    raise FileNotFoundError(f'--input={name} is no file: give a file of lines, or - for stdin')
  with sys.stdin.buffer if name == '-' else open(name, 'rb') as file:
    yield enumerate(file, start=1)


def _text(line: bytes) -> str:
  try:
    return line.decode('utf-8').rstrip('\r\n')
  except UnicodeDecodeError as error:
    raise ValueError(
      f'it is not UTF-8 ({error.reason} at byte {error.start}): convert it'
    ) from error


def _chunks(items: Iterable, size: int) -> Iterator[list]:
  """Yield lists of at most `size` items, in order."""
  items = iter(items)
  while chunk := list(itertools.islice(items, size)):
    yield chunk
