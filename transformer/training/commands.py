"""The modes of `run.py`."""

import dataclasses
import json
import pathlib
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging
from ml_collections import config_flags

from transformer.inference.predict import predict, predict_each
from transformer.training import comparison, loop, processes, report_page, reporting, sweep
from transformer.training.checkpoints import digest
from transformer.training.checks import check
from transformer.training.command_line import FAILURE, USAGE, explain, printable, usage_error
from transformer.training.config import describe
from transformer.training.experiment import Experiment, reopen, restore_best
from transformer.training.input_lines import read_chunks
from transformer.training.machine import cores, start_devices
from transformer.training.results import evaluate_splits
from transformer.training.signals import Signals, Stopped
from transformer.training.start import draft_run, prepare_corpus, start_run
from transformer.training.step import Model
from transformer.training.workdir import Workdir, default_workdir, write, write_new


def main(flags: Any, folders: Sequence[str] = ()) -> int:
  """Run the mode of `--mode`, and return the exit status.

  Args:
    flags: of `run.py`, parsed.
    folders: the arguments after the flags: the runs that --mode=runs or report compares, or the
      one or two that --mode=inspect reads.
  """
  workdir = None
  try:
    if flags.mode in OF_FOLDERS:
      return OF_FOLDERS[flags.mode](folders, pathlib.Path(flags.workdir or 'runs'))
    if getattr(flags, 'jobs', 1) < 2:  # otherwise each job starts them in its own process
      start_devices()
    if flags.mode == 'inspect':
      return _inspect(folders or [flags.workdir or 'runs'], flags)
    if processes.several() and flags.mode not in SEVERAL:
      raise ValueError(f'--mode={flags.mode} runs in one process: start it alone')
    config = _config(flags)
    workdir = Workdir(flags.workdir or default_workdir(str(config.get('experiment'))))
    status = MODES[flags.mode](config, workdir, flags)
    sys.stdout.flush()  # inside the try, so that a closed pipe is handled below
    return status
  except FloatingPointError as error:
    print(f'error: {printable(str(error))}', file=sys.stderr)
    return FAILURE
  except KeyboardInterrupt:
    processes.stop_all(signal.SIGINT, 'SIGINT: stopped')
    print('SIGINT: stopped', file=sys.stderr)
    return 128 + signal.SIGINT
  except BrokenPipeError:  # run.py handles it
    raise
  except Exception as error:
    logging.debug('raised here', exc_info=True)  # --verbosity=1 shows it
    processes.wait_for_lost_process()
    error = explain(error, workdir)
    if isinstance(error, (ValueError, OSError)):  # the user can correct it
      usage_error(error)
    raise


def _config(flags) -> dict[str, Any]:
  """Return the config as plain Python values."""
  if flags.config is None:
    raise ValueError('--config names no file: give one of experiments/*.py')
  try:
    config = flags.config.to_dict()
    if (folder := config['data']['dir']) and flags.mode != 'config':
      # absolute, because the run may be used from another folder later
      config['data']['dir'] = str(pathlib.Path(folder).expanduser().absolute())
    return config
  except AttributeError as error:  # ml_collections raises the errors of the file only now
    raise ValueError(f'--config cannot be read: {error}') from error


def _train(config, workdir, flags) -> int:
  began = time.perf_counter()
  experiment = start_run(config, workdir)
  with Signals() as signals:  # until the result is printed
    try:
      state = loop.fit(experiment, workdir, signals)
      with signals.stopping(int(state.step), 'makes the final report'):
        model, step = restore_best(experiment, workdir)
        result = evaluate_splits(experiment, model, workdir)
        facts = {'step': int(state.step), 'best_step': step, 'state_sha256': digest(state)}
        # with the seconds before an interruption
        seconds = workdir.add_seconds(time.perf_counter() - began)
        return _print_result(config, workdir, flags, seconds, facts | result)
    except Stopped as stopped:
      workdir.add_seconds(time.perf_counter() - began)
      if processes.is_first():
        print(stopped, file=sys.stderr)
      return 128 + stopped.number


def _prepare(config, workdir, flags) -> int:
  began = time.perf_counter()
  splits = prepare_corpus(config, workdir, cores())['splits']
  rows = {name: split['columns'] for name, split in splits.items()}
  facts = {'splits': {name: next(iter(c.values()))['count'] for name, c in rows.items()}}
  return _print_result(config, workdir, flags, time.perf_counter() - began, facts)


def _restored(config, workdir) -> tuple[Experiment, Model, int]:
  """Return the run of a workdir, its best model, and the step of that model."""
  experiment = reopen(config, workdir)
  return experiment, *restore_best(experiment, workdir)


def _evaluate(config, workdir, flags) -> int:
  began = time.perf_counter()
  experiment, model, step = _restored(config, workdir)
  result = evaluate_splits(experiment, model, workdir)
  facts = {'step': step, 'state_sha256': digest(model)}
  return _print_result(config, workdir, flags, time.perf_counter() - began, facts | result)


def _export(config, workdir, flags) -> int:
  from transformer.training import exports

  exports.check_format(flags.format, flags.int8)
  began = time.perf_counter()
  experiment, model, step = _restored(config, workdir)
  facts = exports.export_run(workdir.path, experiment, model, flags.format, flags.int8)
  facts = {'step': step} | facts
  return _print_result(config, workdir, flags, time.perf_counter() - began, facts)


def _print_result(config, workdir, flags, seconds, result) -> int:
  """Write the result to the workdir, and print it: as a table on a terminal, else as JSON."""
  result = {
    'experiment': config['experiment'],
    'mode': 'train' if flags.mode == 'sweep' else flags.mode,
    **result,
    'seconds': round(seconds, 1),
    'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    'cores': cores(),
    'workdir': str(workdir),
  }
  line = json.dumps(result, ensure_ascii=False)
  write(workdir.path / f'{result["mode"]}.json', line + '\n')
  if not processes.is_first() or flags.mode == 'sweep':  # a sweep prints one table for all runs
    return 0
  if flags.json or not sys.stdout.isatty():
    print(line)
  else:
    print(reporting.summary(result, [config['data']['val'], *config['data']['test']]))
  return 0


def _predict(config, workdir, flags) -> int:
  """Print one line of output for each line of input, in chunks; errors go to stderr."""
  experiment, model, _ = _restored(config, workdir)
  task, status, lines_done = experiment.task, 0, 0
  escaped = printable if sys.stdout.isatty() else str
  if sys.stdout.isatty() and hasattr(task, 'stream') and task.decoding.beams == 1:
    return _stream(task, model, flags)
  method = None
  if (n := getattr(task.decoding, 'num_return_sequences', 1)) > 1:
    method = getattr(task, 'n_best', None)
    if method is None:
      raise ValueError(
        f'decode.num_return_sequences={n}: the task {config["task"]} has one answer for a line'
      )
  for chunk in read_chunks(flags.input, size=16 * task.decoding.batch_size):
    answers = predict_each(task, model, chunk, method)
    for number, answer in enumerate(answers, start=lines_done + 1):
      if isinstance(answer, Exception):
        _print_error(number, f'{answer}. Its output line is empty')
        status, answer = USAGE, ''
      print(escaped(_text(answer, workdir).replace('\n', ' ')))
    lines_done += len(chunk)
    sys.stdout.flush()
  return status


def _stream(task, model, flags) -> int:
  """Print the continuation of each line while it is generated; it may have several lines."""
  status, lines = 0, (line for (line,) in read_chunks(flags.input, size=1))
  for number, line in enumerate(lines, start=1):
    try:
      if isinstance(line, Exception):
        raise line
      for piece in task.stream(model, line):
        print(printable(piece), end='', flush=True)
      print()
    except ValueError as error:
      _print_error(number, error)
      status = USAGE
  return status


def _serve(config, workdir, flags) -> int:
  from transformer.inference.server import application, serve

  experiment, model, _ = _restored(config, workdir)
  serve(application(experiment.task, model, config['experiment']), flags.port)
  return 0


def _attend(config, workdir, flags) -> int:
  """Write a page and two pictures of the attention weights for each line of input."""
  from transformer.inspection.inside import look

  experiment, model, _ = _restored(config, workdir)
  task, pictures = experiment.task, []
  for number, (line,) in enumerate(read_chunks(flags.input, size=1), start=1):
    try:
      if isinstance(line, Exception):
        raise line
      inside = look(task, model, line)
    except ValueError as error:
      raise ValueError(f'line {number}: {error}') from error
    (answer,) = predict(task, model, [line], truncate=True)
    output = _text(answer, workdir)
    inside = dataclasses.replace(inside, subtitle=output)
    file = write_new(workdir.path / 'attention', inside.html().encode(), '.html')
    files = {'html': str(file)}
    for kind in ('png', 'svg'):
      files[kind] = str(file.with_suffix(f'.{kind}'))
      inside.draw(files[kind])
    pictures.append({'input': line, 'output': output, **files})
  _print_json({'experiment': config['experiment'], 'mode': 'attend', 'pictures': pictures})
  return 0


def _text(answer: str | bytes | list, workdir: Workdir) -> str:
  """Return an answer as text; for a sound, the path of the file that it is written to."""
  if isinstance(answer, str):
    return answer
  if isinstance(answer, list):  # several answers with their scores
    return json.dumps(answer, ensure_ascii=False)
  return str(write_new(workdir.path / 'wav', answer, '.wav'))


def _print_json(result: dict[str, Any]):
  print(json.dumps(result, ensure_ascii=False))


def _print_error(number: int, error: Any):
  print(f'error: line {number}: {printable(str(error))}', file=sys.stderr)


def _sweep(config, workdir, flags) -> int:
  """Train every variant; one that fails does not stop the others, a signal stops all."""
  file = config_flags.get_config_filename(flags['config']).partition(':')[0]
  runs = sweep.variants(config, file, workdir.path)
  if flags.jobs > 1:
    if processes.several():
      raise ValueError(f'--jobs={flags.jobs} with several processes: give one of the two')
    outcomes, stopped = sweep.train_at_once(runs, flags.jobs)
    if stopped:
      name = signal.Signals(stopped).name
      print(f'{name}: the variants have saved; the same command resumes them', file=sys.stderr)
      return 128 + stopped
  else:
    outcomes = []
    for i, run in enumerate(runs):
      logging.info('sweep %d of %d: %s', i + 1, len(runs), run.changed)
      try:
        if status := _train(run.config, run.workdir, flags):
          return status
        outcomes.append('ok')
      except Exception as error:
        logging.debug('raised here', exc_info=True)
        outcomes.append(f'{type(error).__name__}: {explain(error, run.workdir)}')
        print(f'error: sweep {i + 1}: {printable(outcomes[-1])}', file=sys.stderr)
  if processes.is_first():
    results = sweep.results(runs, outcomes)
    print(sweep.table(results))
    result = {'experiment': config['experiment'], 'mode': 'sweep', 'runs': results}
    finished = {sweep.label(i, x): x['workdir'] for i, x in enumerate(results) if 'metrics' in x}
    if finished:
      plot = workdir.path / 'sweep.png'
      comparison.draw([*finished.values()], plot, [*finished])
      result['plot'] = str(plot)
    _print_json(result)
  return FAILURE if {*outcomes} - {'ok'} else 0


def _compare_runs(folders: Sequence[str], folder: pathlib.Path) -> int:
  """Print a table of the runs, and write a plot and a page that compare them into `folder`."""
  if not folders:
    raise ValueError('--mode=runs compares runs: give their folders, as in --mode=runs runs/*')
  rows, plot = comparison.compare(folders), folder / 'runs.png'
  print(comparison.table(rows))
  comparison.draw(folders, plot)
  page = plot.with_suffix('.html')
  write(page, report_page.page(folders, rows, folder))
  _print_json({'mode': 'runs', 'plot': str(plot), 'page': str(page), 'runs': rows})
  return 0


def _report(folders: Sequence[str], folder: pathlib.Path) -> int:
  """Write a page into the folder of each run; if there are several, also one that compares them."""
  if not folders:
    raise ValueError('--mode=report describes runs: give their folders, as in --mode=report runs/*')
  groups = {pathlib.Path(one): [one] for one in folders}
  if len(folders) > 1:
    groups[folder] = [*folders]
  pages = []
  for target, runs in groups.items():
    pages.append(str(target / 'report.html'))
    write(target / 'report.html', report_page.page(runs, comparison.compare(runs), target))
  _print_json({'mode': 'report', 'pages': pages})
  return 0


def _inspect(folders: Sequence[str], flags) -> int:
  """Print the contents of a checkpoint, or the differences between two."""
  from transformer.training import checkpoint_report

  steps = flags.step.split(',')
  chosen = [(folder, step) for folder in folders for step in steps]
  if len(chosen) > 2:
    raise ValueError('--mode=inspect takes one checkpoint, or two to compare')
  arrays, facts = zip(*(checkpoint_report.read(*each) for each in chosen), strict=True)
  result: dict[str, Any] = {'mode': 'inspect', 'checkpoints': list(facts)}
  if len(chosen) == 1:
    result['arrays'] = checkpoint_report.summarize(arrays[0])
  else:
    result['differences'], result['same'] = checkpoint_report.compare(*arrays)
  if flags.json:
    _print_json(reporting.without_nan(result))
  else:
    print(checkpoint_report.text(result))
  return 0


def _print_config(config, workdir, flags) -> int:
  print(describe(check(config).as_dict()))
  return 0


def _doctor(config, workdir, flags) -> int:
  from transformer.inspection import self_test

  report = self_test.run()
  _print_json({'mode': 'doctor', **report})
  return 0 if report['passed'] else FAILURE


def _plan(config, workdir, flags) -> int:
  from transformer.training import plan

  devices = plan.topology_devices(flags.topology) if flags.topology else None
  experiment = draft_run(config, workdir, devices)
  plans = plan.cheapest(experiment, plan.largest_batch(experiment))
  if sys.stdout.isatty() and not flags.json:
    print(plan.table(plans))
  else:
    facts = {'mode': 'plan', 'experiment': config['experiment'], 'topology': flags.topology}
    _print_json(facts | {'plans': [each.as_dict() for each in plans]})
  return 0 if plans[-1].fits else FAILURE


def _profile(config, workdir, flags) -> int:
  from transformer.training.profile import profile

  experiment = draft_run(config, workdir)
  steps = min(10, experiment.settings.train.steps)
  result = profile(experiment, workdir.path / 'profile', steps)
  _print_json({'mode': 'profile', 'experiment': config['experiment'], **result})
  return 0


# The modes whose arguments are folders of runs; they read no config.
OF_FOLDERS = {'runs': _compare_runs, 'report': _report}
MODES = {
  'train': _train,
  'prepare': _prepare,
  'evaluate': _evaluate,
  'predict': _predict,
  'serve': _serve,
  'attend': _attend,
  'export': _export,
  'sweep': _sweep,
  'config': _print_config,
  'doctor': _doctor,
  'plan': _plan,
  'profile': _profile,
}
SEVERAL = ('train', 'evaluate', 'sweep', 'config')  # the modes that several processes can run
