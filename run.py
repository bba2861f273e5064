"""The command line of every experiment.

  python run.py [--config=FILE[:ARG]] [--workdir=DIR] [--mode=MODE] [--config.SECTION.KEY=VALUE ...]

  train     learn, then report on val and test (the default); the same command again goes on
  evaluate  report on val and test, of a workdir
  predict   one output line for each line of --input or stdin
  attend    draw how the output attends to each line of --input or stdin: HTML and PNG
  export    write the model as the `transformers` library reads it: WORKDIR/export
  sweep     train the variants that the experiment's sweep(add) lists, each in a workdir of its own
  config    print every key of the config with its value, type, default and meaning
  runs      compare the runs in the folders given after the flags: a table and a plot
  doctor    versions, devices, and a self-test of every attention path on this machine

Results go to stdout: one JSON object on the last line, or the predicted lines. All else to stderr.
Exit status: 0 success, 1 failure, 2 wrong usage or input, 128 + signal if stopped by one.
"""

import pathlib
import sys

try:
  from absl import app, flags
  from ml_collections import config_flags

  from transformer.training import commands
except ModuleNotFoundError as error:
  sys.stderr.write(f"error: {error.name} is not installed: pip install -e '.[train]'\n")
  sys.exit(2)

flags.DEFINE_enum('mode', 'train', [*commands.MODES, 'runs'], 'What to do.')
flags.DEFINE_string('workdir', '', 'Folder of the run; runs/EXPERIMENT by default.')
flags.DEFINE_string('input', '-', 'File of lines for predict and attend; - is stdin.')
EXPERIMENT = str(pathlib.Path(__file__).parent / 'experiments' / 'dates.py')


def parse(argv: list[str]) -> list[str]:
  """Absl's flags, with wrong ones reported in one line."""
  commands.log_ours()
  try:
    argv = commands.with_config_of_workdir(argv)
    config_flags.register_flag_parser_for_type(tuple, commands.TupleParser())
    # defined here, for the flag reads the file and its overrides at once
    config_flags.DEFINE_config_file('config', EXPERIMENT, 'The experiment.', sys_argv=argv)
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    commands.usage_error(error)


def main(argv: list[str]):
  if argv[1:] and flags.FLAGS.mode != 'runs':
    commands.usage_error(ValueError(f'{argv[1]!r} is no flag: flags begin with --, see --help'))
  sys.exit(commands.main(flags.FLAGS, argv[1:]))


if __name__ == '__main__':
  app.run(main, flags_parser=parse)
