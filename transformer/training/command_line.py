"""The command-line arguments of `run.py`, and its error messages of one line."""

import ast
import difflib
import errno
import os
import pathlib
import re
import sys
import traceback
from typing import Any, NoReturn

from absl import flags

from transformer.data.lookup import load_file
from transformer.training import workdir as workdir_module
from transformer.training.config import SECTIONS
from transformer.training.workdir import Workdir, default_workdir

USAGE, FAILURE = 2, 1  # exit statuses
# the modes that do not need a trained run
NEEDS_NO_RUN = ('train', 'prepare', 'sweep', 'config', 'plan', 'profile')
EXPERIMENTS = pathlib.Path(__file__).parents[2] / 'experiments'
EXTRAS = {  # {module: the extra of setup.cfg that installs it}
  **dict.fromkeys(('soundfile', 'librosa', 'jiwer'), 'audio'),
  'pyarrow': 'parquet',
  'flatbuffers': 'export',
  **dict.fromkeys(('starlette', 'uvicorn'), 'serve'),
  **dict.fromkeys(('bm25s', 'Stemmer', 'pytrec_eval'), 'retrieval'),
}


def with_stored_config(argv: list[str]) -> list[str]:
  """Return the arguments with --config set to the config of the workdir, if the mode uses it.

  The modes of NEEDS_NO_RUN use it if the workdir has one and no --config is given. The others use
  it always, because a model needs the config that it was trained with.
  """
  argv, config_file = _without(argv, 'config')
  experiment = _experiment_of(config_file) if config_file else 'dates'
  mode, workdir = _without(argv, 'mode')[1] or 'train', _without(argv, 'workdir')[1]
  stored = bool(workdir and not config_file and Workdir(workdir).has_config())
  if mode in ('doctor', 'runs', 'report', 'inspect') or (mode in NEEDS_NO_RUN and not stored):
    return [*argv[:1], *([f'--config={config_file}'] if config_file else []), *argv[1:]]
  if not workdir:
    workdir = str(default_workdir(experiment))
  # ml_collections requires --config before the overrides
  config = f'--config={workdir_module.__file__}:{workdir}'
  return [argv[0], config, *argv[1:], f'--workdir={workdir}']


def _experiment_of(config: str) -> str:
  """Return the name of the experiment in a FILE or FILE:ARGUMENT (of its get_config).

  Raises:
    FileNotFoundError: there is no such file; names the nearest one.
    ValueError: the file has an error; names the line.
  """
  file, _, argument = config.partition(':')
  if not pathlib.Path(file).is_file():
    files = [*pathlib.Path(file).parent.glob('*.py'), *EXPERIMENTS.glob('*.py')]
    near = difflib.get_close_matches(file, map(str, files), n=1, cutoff=0)
    raise FileNotFoundError(f'--config={file} is no file: did you mean {near[0]}?')
  try:
    return str(load_file(file).get_config(*filter(None, [argument]))['experiment'])
  except Exception as error:
    numbers = [
      number for name, number, *_ in traceback.extract_tb(error.__traceback__) if name == file
    ]
    where = f'{file}, line {numbers[-1]}' if numbers else file
    # ml_collections lists every key, and at the end the nearest one: keep only that
    reason = re.sub(r'Other fields present: .*?}"', '', _reason(error), flags=re.DOTALL)
    raise ValueError(f'{where}: {reason}') from error


def _reason(error: Any) -> str:
  """Return the message of an error; str(KeyError) would quote it."""
  while isinstance(error, AttributeError | KeyError) and error.args:
    error = error.args[0]
  return re.sub('^Configuration is not available because of .*?: ', '', str(error))


def _without(argv: list[str], flag: str) -> tuple[list[str], str]:
  """Return the arguments without a flag, and the flag's value."""
  for i, word in enumerate(argv):
    name, equals, value = word.lstrip('-').partition('=')
    if word.startswith('-') and name == flag:
      end = i + 1 if equals else i + 2
      return argv[:i] + argv[end:], value if equals else ''.join(argv[i + 1 : end])
  return argv, ''


class TupleParser(flags.ArgumentParser):
  """Parser of a tuple: strings separated by commas, or a tuple or list in Python's syntax."""

  def parse(self, argument: Any) -> tuple:
    """Return the tuple; the empty one for ''."""
    if not isinstance(argument, str):
      return tuple(argument)
    if not argument.lstrip().startswith(('(', '[')):
      return tuple(name.strip() for name in argument.split(',') if name.strip())
    try:
      return tuple(ast.literal_eval(argument))
    except (SyntaxError, TypeError, ValueError) as error:
      raise ValueError(f"{argument!r} is no tuple: write a,b or ('a', 'b')") from error

  def flag_type(self) -> str:
    """Return the name of the type, for --help."""
    return 'tuple'


def usage_error(error: Exception) -> NoReturn:
  """Print the error as one line (commands to paste have lines of their own); exit with USAGE."""
  text = _reason(error)
  key, _, hint = text.partition('\n')
  if error.args and isinstance(error.args[0], KeyError):  # an unknown key, from ml_collections
    text = f'--config has no key {key}: {hint or "--mode=config prints every key"}'
  elif key.strip("'").isidentifier():  # an unknown section
    near = difflib.get_close_matches(key.strip("'"), SECTIONS, n=1, cutoff=0)
    text = f'--config has no section {key}: did you mean {near[0]!r}?'
  parts = re.split(r'\n  (?=(?:pip|python|rm|sed) )', text.strip())  # before each command
  # strip each line, but keep double spaces in file names
  lines = [' '.join(map(str.strip, part.splitlines())) for part in parts]
  text = '\n  '.join(lines)
  # one call, because another thread may write at the same time
  sys.stderr.write(f'error: {printable(text)}\n')
  sys.exit(USAGE)


def printable(text: str) -> str:
  r"""Return a text with control characters escaped, because they can change a terminal's state.

  >>> print(printable('a\x1b[31mb\n'), end='')
  a\x1b[31mb
  """
  return re.sub(
    '[\x00-\x08\x0b-\x1f\x7f-\x9f]', lambda c: c[0].encode('unicode_escape').decode(), text
  )


def explain(error: Exception, workdir: Any) -> Exception:
  """Return an error with a cure for a full disk, a missing HOME or library; others unchanged."""
  # Orbax raises other types of errors, whose messages have the text of the system's error
  text = f'{error} {error.__cause__ or ""}'
  if any(os.strerror(n) in text for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)):
    return OSError(
      f'the disk of {workdir} is full. What was saved before is safe: make room, and the same '
      'command continues from the last checkpoint'
    )
  if isinstance(error, RuntimeError) and 'home directory' in str(error):
    return ValueError(f'{error}: there is no HOME, so write paths without ~')
  if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
    return ValueError(
      f'{error.name} is not installed, which this experiment needs: '
      f"pip install -e '.[{EXTRAS[error.name]}]'"
    )
  return error
