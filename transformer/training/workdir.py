"""The folder of a run: its config, tokenizer, checkpoints, metrics and predictions."""

import hashlib
import json
import os
import pathlib
import platform
import re
import shlex
from collections.abc import Mapping
from typing import Any

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from transformer.data.reading import naming
from transformer.data.tokenizers import SETTINGS, Tokenizer
from transformer.training import processes
from transformer.training.checkpoints import reachable
from transformer.training.config import FORMAT, from_values, upgrade

# Keys, or sections, that may change when a run is resumed, because they do not affect the
# parameters.
MAY_CHANGE = (
  *('train.steps', 'train.log_every_steps', 'train.save_every_steps', 'train.keep_checkpoints'),
  *('train.average_checkpoints', 'train.microbatches', 'train.steps_per_call'),
  *('train.nonfinite', 'train.max_nonfinite', 'train.max_compiles', 'train.damaged_checkpoint'),
  *('eval.', 'decode.', 'mesh.', 'data.dir', 'data.test'),
)


class Workdir:
  """The folder of a run.

  Args:
    path: of the folder, which need not exist.

  Raises:
    ValueError: the path is a URL.
  """

  def __init__(self, path: str | pathlib.Path):
    if '://' in str(path):
      raise ValueError(
        f'--workdir={path} is a URL, and a run is written to a file system: give a folder, where '
        'the bucket may be mounted, and copy it when the run has ended'
      )
    self.path = pathlib.Path(path).expanduser().absolute()

  def has_config(self) -> bool:
    """Return whether there is a run here."""
    return (self.path / 'config.json').exists()

  def __str__(self) -> str:
    return str(self.path)

  def read_config(self) -> dict[str, Any]:
    """Return the config of the run, with the keys added that are newer than it; see `upgrade`.

    Raises:
      FileNotFoundError: there is no run here.
      ValueError: the file is damaged, or of another version.
    """
    file = self.path / 'config.json'
    if not self.has_config():
      raise FileNotFoundError(
        f'there is no trained model in {self.path} (no config.json): train one first, as by\n'
        f'  python run.py --config=experiments/dates.py --workdir={shlex.quote(str(self.path))}'
      )
    try:
      config = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
      raise ValueError(
        f'{file} is not JSON ({error}): restore it, or use another --workdir'
      ) from error
    try:
      return upgrade(config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise ValueError(
        f'{file} is not the config of a run ({error}): restore it, or use another --workdir'
      ) from error

  def stored(self, name: str) -> Any:
    """Return the content of a JSON file in the folder."""
    return json.loads((self.path / name).read_bytes())

  def lock(self):
    """Prevent other processes from training here until this one ends, also if it is killed.

    Raises:
      ValueError: another process trains here.
    """
    try:
      import fcntl
    except ImportError:  # Windows
      return
    self.path.mkdir(parents=True, exist_ok=True)
    # never closed, because closing the file would release the lock
    file = os.open(self.path / 'lock', os.O_RDWR | os.O_CREAT, 0o666)
    try:
      fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
      raise ValueError(
        f'process {os.read(file, 99).decode().strip()} is training in {self.path}: wait for it, '
        'stop it, or use another --workdir'
      ) from error
    except OSError as error:  # a file system without locks
      logging.warning('%s cannot be locked (%s): start only one run there', self.path, error)
      return
    os.truncate(file, 0)
    os.write(file, f'{os.getpid()} on {platform.node()}\n'.encode())

  def compare(self, config: Mapping[str, Any]):
    """Check that the folder has no run, or one with this config.

    Raises:
      ValueError: it has a run with another config; names the keys that differ.
    """
    differ = [
      f'{key} is {old!r} there and {new!r} here'
      for key, (old, new) in self._changes(config).items()
      if not {key, key.partition('.')[0] + '.'} & {*MAY_CHANGE}  # the key, or its whole section
    ]
    if differ:
      empty = not self.last_step()
      raise ValueError(
        f'{self.path} holds a run of another experiment{", which saved no step" * empty}: '
        f'{"; ".join(differ[:5])}. Use another --workdir, or delete that folder to start again'
        + f':\n  rm -r {shlex.quote(str(self.path))}'
        * empty
      )

  def _changes(self, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return {key: (stored value, this value)} where they differ; {} if there is no run."""
    if not self.has_config():
      return {}
    old, new = flatten(self.read_config()), flatten(config)
    keys = sorted(old.keys() | new.keys())
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}

  def claim(self, config: Mapping[str, Any]):
    """Store the config of the run, and log what has changed; errors as of `compare`."""
    self.compare(config)
    for key, (old, new) in self._changes(config).items():
      logging.info('the run goes on with %s=%r, which was %r', key, new, old)
    text = json.dumps({'format': FORMAT, **config}, indent=2, ensure_ascii=False)
    write(self.path / 'config.json', text + '\n')

  def checkpoint_dir(self) -> epath.Path:
    """Return the folder or URL that has the folder `checkpoints` of the run."""
    configured = self.read_config()['train']['checkpoint_dir'] if self.has_config() else ''
    return reachable(configured or self.path)

  def last_step(self) -> int:
    """Return the step of the newest checkpoint; 0 if there is none."""
    folders = (self.checkpoint_dir() / 'checkpoints' / 'last').glob('*')
    return max((int(f.name) for f in folders if f.name.isdecimal()), default=0)

  def tokenizer(self) -> Tokenizer | None:
    """Return the run's tokenizer; None if it has none yet.

    Raises:
      ValueError: the file has changed since the run was trained.
    """
    file = self.path / 'tokenizer.json'
    if not file.exists():
      return None
    self._compare_fingerprints(_hashes(file))
    return Tokenizer.load(file)

  def save_tokenizer(self, tokenizer: Tokenizer):
    """Store the tokenizer of the run; of a published one also its special tokens and template."""
    file = self.path / 'tokenizer.json'
    if any(tokenizer.settings.values()):
      write(file.with_name(SETTINGS), json.dumps(tokenizer.settings) + '\n')
    temporary = self.path / 'tokenizer.json.tmp'
    tokenizer.save(temporary)
    temporary.replace(file)
    self.check_fingerprints(_hashes(file))

  def check_fingerprints(self, fingerprints: Mapping[str, str]):
    """Compare hashes of the run's inputs with those stored before; store those that are new.

    Args:
      fingerprints: {name of an input, such as 'the split train': hash of its content}.

    Raises:
      ValueError: an input has changed.
    """
    self._compare_fingerprints(fingerprints)
    for name, value in fingerprints.items():
      self.remember(name, value)

  def remember(self, name: str, value: Any) -> Any:
    """Store a value in fingerprints.json; return the value before, or this one if none was."""
    file, stored = self.path / 'fingerprints.json', self._fingerprints()
    before = stored.get(name, value)
    if stored.get(name) != value:
      write(file, json.dumps({**stored, name: value}) + '\n')
    return before

  def _fingerprints(self) -> dict[str, Any]:
    file = self.path / 'fingerprints.json'
    if not file.exists():
      return {}
    with naming(file, 'restore it, or delete it to go on with what is there now'):
      fingerprints = json.loads(file.read_bytes() or b'{}')
      if not isinstance(fingerprints, dict):
        raise ValueError('it is no JSON object')
      return fingerprints

  def _compare_fingerprints(self, fingerprints: Mapping[str, str]):
    stored = self._fingerprints()
    changed = [name for name, value in fingerprints.items() if stored.get(name, value) != value]
    if changed:
      raise ValueError(
        f'{" and ".join(changed)} changed since {self} was trained, so that the run would not be '
        'reproducible. Restore the files, or use another --workdir; to continue with the changed '
        f'files, delete {self.path / "fingerprints.json"}'
      )

  def add_seconds(self, seconds: float) -> float:
    """Add the seconds of this process to those of the run, and return the sum."""
    file = self.path / 'seconds'
    try:
      seconds += float(file.read_text()) if file.exists() else 0.0
    except ValueError:
      logging.warning('%s is damaged: the time before this process is not counted', file)
    write(file, f'{seconds:.1f}\n')
    return seconds


def get_config(path: str) -> ConfigDict:
  """Return the config of a workdir; called by `--config=workdir.py:PATH`."""
  return from_values(Workdir(path).read_config())


def default_workdir(experiment: str) -> pathlib.Path:
  """Return the folder of an experiment's run without --workdir: runs/EXPERIMENT."""
  return pathlib.Path('runs') / file_name(experiment)


def write(file: pathlib.Path, content: str | bytes):
  """Write a file atomically; of several processes only process 0 writes."""
  if not processes.is_first():
    return
  file.parent.mkdir(parents=True, exist_ok=True)
  temporary = file.with_name(file.name + '.tmp')
  temporary.write_bytes(content.encode() if isinstance(content, str) else content)
  temporary.replace(file)


def file_name(name: str, suffix: str = '') -> str:
  """Return a name from the config or the data, such as that of a split, as a file name.

  Characters that would lead to another folder or hide the file are percent-encoded, so that
  different names have different files. A very long name is cut, and a hash of it appended.

  >>> file_name('train[90%:]'), file_name('../mine'), file_name('/data/mine')
  ('train[90%:]', '%2E.%2Fmine', '%2Fdata%2Fmine')

  Args:
    name: of a split, an experiment, an input or a member of an archive.
    suffix: appended, such as .txt.

  Raises:
    ValueError: the name is empty.
  """
  if not name:
    raise ValueError('an output needs a name: that of a split or of the experiment is empty')
  reserved = r'^\.|[/\\\x00-\x1f\x7f]|%(?=[0-9A-F]{2})'
  escaped = re.sub(reserved, lambda match: f'%{ord(match[0]):02X}', name)
  if len(os.fsencode(escaped + suffix)) > 200:  # most file systems allow 255 bytes
    escaped = escaped[:40] + '-' + hashlib.sha256(os.fsencode(name)).hexdigest()
  return escaped + suffix


def write_new(folder: pathlib.Path, content: bytes, suffix: str) -> pathlib.Path:
  """Write a file that is named by a hash of its content, and return its path."""
  file = folder / (hashlib.sha256(content).hexdigest()[:16] + suffix)
  write(file, content)
  return file


def as_line(answer: str | bytes, file: pathlib.Path) -> str:
  """Return an answer as one line: a text with its lines joined, or the path of a sound.

  Args:
    answer: a text, or the bytes of a sound.
    file: path that a sound is written to.
  """
  if isinstance(answer, str):
    return ' '.join(answer.splitlines())
  write(file, answer)
  return str(file)


def flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Return {key such as model.width: value} of a config."""
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


def _hashes(tokenizer: pathlib.Path) -> dict[str, str]:
  """Return the hashes of a tokenizer.json and of the settings beside it, by their names."""
  files = (tokenizer, tokenizer.with_name(SETTINGS))
  return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}


def is_run(folder: pathlib.Path) -> bool:
  """Return whether a folder is that of a run, not of a published model."""
  return any((folder / name).exists() for name in ('checkpoints', 'metrics.jsonl'))
