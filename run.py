"""The command line of every experiment.

  python run.py [--config=FILE[:ARG]] [--workdir=DIR] [--mode=MODE] [--config.SECTION.KEY=VALUE ...]

  train     train, then evaluate on val and test (the default); the same command again resumes
  prepare   tokenize the data of an experiment, of any size, into --workdir, for runs with
            --config.data.name=prepared --config.data.dir=THAT_FOLDER
  evaluate  evaluate a run on val and test
  predict   print one output line for each line of --input or stdin
  serve     answer requests on http://127.0.0.1:PORT, from a page or as JSON
  attend    plot the attention weights for each line of --input or stdin: HTML, PNG and SVG
  export    write the model as a folder: --format=hf for the `transformers` library, stablehlo for a
            program that runs without this package; --int8 for weights in 8 bits
  sweep     train the variants that the function sweep(add) of the experiment's file adds, --jobs=N
            at once
  config    print every key of the config with its value, type, default and meaning
  runs      compare the runs in the folders after the flags: a table, a plot and a page
  report    write a page about each run in the folders after the flags, and one about all
  inspect   print the step, data position, shapes and norms of a checkpoint of --workdir, or the
            differences between two: of two folders after the flags, or --step=4,8; --json for JSON
  plan      compile the training step and print the memory that each device needs, and the
            cheapest change that fits; --topology=v5e:2x2x1 for TPUs that are not in this machine
  profile   trace ten steps: time by kind of operation, and the share of the peak (MFU)
  doctor    print versions and devices, and test every attention path on this machine

FILE is experiments/dates.py by default. Modes that use a trained model read the config that is
stored in its workdir; there --config only names the run, in runs/EXPERIMENT.

Results go to stdout: one JSON object on the last line, or a table on a terminal; the predicted
lines; or the keys. Everything else goes to stderr. Exit status: 0 success, 1 failure, 2 wrong usage
or input, or a place that cannot be written, 128 + number of the signal that stopped it.
"""

import os
import pathlib
import signal
import sys
import threading
from typing import Any

MODES = 'train prepare evaluate predict serve attend export'.split()
MODES += 'sweep config runs report inspect plan profile doctor'.split()
DEFAULT_CONFIG = str(pathlib.Path(__file__).parent / 'experiments' / 'dates.py')


def parse(argv: list[str]) -> list[str]:
  """Parse the flags and read the experiment; print an error as one line and exit with status 2."""
  from absl import flags
  from ml_collections import config_flags

  from transformer.training import command_line, reporting

  reporting.log_ours()
  try:
    argv = command_line.with_stored_config(argv)
    config_flags.register_flag_parser_for_type(tuple, command_line.TupleParser())
    # not earlier: this executes the file of the experiment and applies the overrides of argv
    config_flags.DEFINE_config_file('config', DEFAULT_CONFIG, 'The experiment.', sys_argv=argv)
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    command_line.usage_error(error)


def main(argv: list[str]):
  """Run the mode, and exit with its status."""
  from absl import flags

  from transformer.training import command_line, commands, machine, processes

  takes_folders = flags.FLAGS.mode in (*commands.OF_FOLDERS, 'inspect')
  if argv[1:] and not takes_folders:
    command_line.usage_error(ValueError(f'{argv[1]!r} is no flag: flags begin with --, see --help'))
  machine.tune()  # before JAX starts its threads
  try:
    if not takes_folders:
      processes.start(flags.FLAGS.coordinator, flags.FLAGS.process, flags.FLAGS.processes)
  except (OSError, RuntimeError, ValueError) as error:
    command_line.usage_error(error)
  with processes.ending_together():
    status = commands.main(flags.FLAGS, argv[1:])
  sys.exit(status)


def stop(number: int, _=None):
  """Print a line and end this process at once, with status 128 + number; a signal handler."""
  sys.stderr.write(f'{signal.Signals(number).name}: stopped\n')
  sys.stderr.flush()
  os._exit(128 + number)


def stop_by_signals():
  """Make `stop` the handler of the signals of schedulers, unless they are ignored.

  Python runs handlers only when the main thread returns from the compiler, maybe after minutes.
  Therefore a thread waits for these signals and calls `stop` at once, as long as it is their
  handler. Forked processes get the default handlers.
  """
  if not hasattr(os, 'register_at_fork'):  # Windows
    return
  numbers = [getattr(signal, name, None) for name in ('SIGTERM', 'SIGHUP', 'SIGUSR1')]
  # nohup ignores SIGHUP
  numbers = [n for n in numbers if n and signal.getsignal(n) == signal.SIG_DFL]
  reader, writer = os.pipe()
  os.set_blocking(writer, False)

  def listen():
    while received := os.read(reader, 1):
      if signal.getsignal(received[0]) is stop:
        stop(received[0])

  def restore_defaults():
    signal.set_wakeup_fd(-1)
    for number in numbers:
      signal.signal(number, signal.SIG_DFL)

  for number in numbers:
    signal.signal(number, stop)
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  os.register_at_fork(after_in_child=restore_defaults)
  threading.Thread(target=listen, daemon=True).start()


def run():
  """Define the flags and run `main`; slow imports come after a message to the terminal."""
  stop_by_signals()
  streams: Any = (sys.stdout, sys.stderr)
  for stream in streams:  # UTF-8 in every locale; file names that are not UTF-8 pass unchanged
    stream.reconfigure(encoding='utf-8', errors='surrogateescape')
  sys.argv = ['--help' if word == '-h' else word for word in sys.argv]
  try:
    from absl import app, flags

    helps = {'--help', '--helpfull', '--helpshort'} & {*sys.argv}
    if not helps:
      if sys.stderr.isatty():
        sys.stderr.write('importing JAX ...\n')
      import transformer.training.commands  # noqa: F401
  except ModuleNotFoundError as error:
    sys.stderr.write(f"error: {error.name} is not installed: pip install -e '.[train]'\n")
    sys.exit(2)
  flags.DEFINE_enum('mode', 'train', MODES, 'What to do.')
  flags.DEFINE_string(
    'workdir', '', 'Folder of the run, or of the page of runs; runs/EXPERIMENT by default.'
  )
  flags.DEFINE_string('topology', '', 'For plan: TPUs such as v5e:1x1x1, v5e:4x4x1, v5p:2x2x4.')
  flags.DEFINE_string('step', '', 'For inspect: a step, best, or two to compare, as in 4,8.')
  flags.DEFINE_string('input', '-', 'File of lines for predict and attend; - is stdin.')
  flags.DEFINE_string(
    'coordinator',
    '',
    'HOST:PORT of process 0 of several, or auto; not needed with Slurm, Open MPI.',
  )
  flags.DEFINE_integer('process', -1, 'The index of this process among several, from 0.')
  flags.DEFINE_integer('processes', 0, 'The number of processes that train together.')
  flags.DEFINE_integer('port', 8000, 'For serve; 0 takes any free port.', 0, 65535)
  flags.DEFINE_integer('jobs', 1, 'For sweep: the number of variants that train at once.', 1)
  flags.DEFINE_enum('format', 'hf', ['hf', 'stablehlo', 'onnx'], 'For export.')
  flags.DEFINE_bool('int8', False, 'For export to stablehlo: 8-bit weights, evaluated on val.')
  flags.DEFINE_bool('json', False, 'Print the result as JSON on a terminal, too.')
  try:
    app.run(main, **({} if helps else {'flags_parser': parse}))
  except BrokenPipeError:  # the reader, such as `| head -1`, has closed the pipe
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # takes the buffered output
    sys.exit(128 + signal.SIGPIPE)


if __name__ == '__main__':
  run()
