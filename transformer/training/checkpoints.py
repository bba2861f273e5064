"""Checkpoints of the training state by Orbax: asynchronous, the last few and the best, on any mesh.

A checkpoint has plain arrays by parameter path, no types of Flax or Optax, and a checksum of each,
because Orbax does not detect a changed bit in a large array. Its file _CHECKPOINT_METADATA has its
format, the config and data of its run, and its metrics, as JSON.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import pathlib
import re
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from orbax.checkpoint import v1 as ocp

from transformer.training import processes
from transformer.training.optimizers import parameter_path

# The format of the metadata. Format 1 was written by version 0 of Orbax's API, into about/metadata.
FORMAT = 2
# {name in a parameter path: its name in older checkpoints}
RENAMED = {'token_types': 'types', 'class_token': 'first'}


class Damaged(ValueError):
  """Raised for a checkpoint whose files are damaged."""


@dataclasses.dataclass
class Kept:
  """A policy for Orbax: keep the last `keep` checkpoints.

  Those at the steps `extra`, which a run saved because it was stopped there, are deleted when the
  next one is saved, so that a stopped run averages the same checkpoints as an uninterrupted one.
  """

  keep: int
  extra: set[int] = dataclasses.field(default_factory=set)

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """Return for each checkpoint, in order of steps, whether to keep it; called by Orbax."""
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = [step for step in steps if step not in self.extra or step == steps[-1]][-self.keep :]
    return [step in kept for step in steps]


class Checkpoints(contextlib.AbstractContextManager):
  """The checkpoints of a workdir: the last `keep` in last/, and the best one in best/.

  It is a context manager, which waits at its end for a save in progress. An interrupted save does
  not change the checkpoints before it.

  Args:
    workdir: the folder of the run, or a URL such as gs://bucket/run.
    keep: number of last checkpoints to keep; see Kept. Only needed to save.
    about: metadata of the run to store in each checkpoint, such as its config; JSON types.
  """

  def __init__(
    self, workdir: epath.PathLike, *, keep: int = 1, about: Mapping[str, Any] | None = None
  ):
    self.folder = reachable(workdir) / 'checkpoints'
    self._link, folder = _plain(self.folder)
    self._kept, self._run = Kept(keep), dict(about or {})
    self._last = self._opened(folder / 'last', self._kept)
    self._best = self._opened(folder / 'best', Kept(1))
    self._saving: Any = None  # Orbax's handle of the save in progress
    self._known: set[int] = set()  # steps of last/ whose metadata need not be read for `extra`
    # (step, scores) of best/. Read once, because TensorStore's Spec.to_json keeps what it returns
    self._best_scores: tuple[int, dict[str, float]] | None = None

  def _opened(self, folder: epath.PathLike, kept: Kept) -> ocp.training.Checkpointer:
    """Return Orbax's object that saves and loads the checkpoints of a folder.

    Raises:
      Damaged: the metadata of a checkpoint cannot be read.
    """
    try:
      return ocp.training.Checkpointer(folder, preservation_policy=kept)
    except ValueError:  # its message does not name the checkpoint: find it
      for step in sorted(epath.Path(folder).iterdir()):
        with _damage_named(self.folder / step.parent.name / step.name):
          ocp.checkpointables_metadata(step)
      raise

  def __exit__(self, *_):
    """Wait for the save in progress; its errors are raised here."""
    # all are closed, even if one save fails
    with (
      _failed_save_named(self.folder),
      self._link,
      contextlib.closing(self._best),
      contextlib.closing(self._last),
    ):
      self._finish()

  def save(
    self,
    state: Any,
    step: int,
    *,
    extra: bool = False,
    scores: Mapping[str, float | int] | None = None,
  ):
    """Start to save the state, unless its step is saved already; return before it is on disk.

    Args:
      state: a tree of arrays.
      step: of the state.
      extra: whether the run saves at this step only because it is stopped; see `Kept`.
      scores: the last logged metrics, with their step.
    """
    self.wait()
    steps = _steps(self._last)
    if step not in steps:
      for earlier in {*steps} - self._known:  # reading metadata takes a tenth of a second
        with contextlib.suppress(ValueError):  # a damaged one is not extra
          self._kept.extra |= {earlier} if self._about(self._last, earlier).get('extra') else set()
      self._kept.extra = self._kept.extra - {step} | ({step} if extra else set())
      self._known |= {*steps, step}
      self._save(self._last, state, step, {'extra': extra, 'scores': dict(scores or {})})

  def save_best(self, state: Any, step: int, scores: Mapping[str, float]):
    """Save the state as the best one, in place of the best one before; wait until it is on disk."""
    self.wait()
    self._save(self._best, state, step, {'scores': dict(scores)})
    self.wait()
    self._best_scores = step, dict(scores)

  def _save(self, checkpointer, state, step, about):
    flat = _flat(state)
    about |= {'format': FORMAT, 'run': self._run, 'checksums': _checksums(flat)}
    with _failed_save_named(self.folder):
      self._saving = checkpointer.save_checkpointables_async(
        step, {'state': flat}, force=True, overwrite=True, custom_metadata=about
      )

  def wait(self):
    """Wait until the last save is on disk; its error is raised here."""
    with _failed_save_named(self.folder):
      self._finish()

  def _finish(self):
    saving, self._saving = self._saving, None
    if saving is not None:
      saving.result()

  @property
  def last_step(self) -> int | None:
    """The step of the newest complete checkpoint."""
    return max(_steps(self._last), default=None)

  @property
  def scores(self) -> dict[str, float]:
    """The scores of the newest checkpoint; {} if there is none, or an older version saved it."""
    step = self.last_step
    return {} if step is None else self._about(self._last, step).get('scores', {})

  def set_aside(self) -> bool:
    """Move the newest checkpoint to the folder damaged; return whether another one is left."""
    self.wait()
    step = self.last_step
    if step is None or len(_steps(self._last)) == 1 or '://' in str(self.folder):
      return False
    folder = self.folder / 'damaged'
    folder.mkdir(exist_ok=True)
    number = len([*folder.glob(f'{step}-*')]) + 1
    self._where(self._last, step).rename(folder / f'{step}-{number}')
    self._last.reload()
    return True

  @property
  def best(self) -> tuple[int, dict[str, float]] | None:
    """(step, scores) of the best checkpoint; None if there is none."""
    step = max(_steps(self._best), default=None)
    if step is None:
      return None
    if self._best_scores is None or self._best_scores[0] != step:
      self._best_scores = step, self._about(self._best, step).get('scores', {})
    return self._best_scores

  def restore(self, like: Any, *, which: str = 'last') -> Any:
    """Return the last or the best state.

    Args:
      like: a tree of the same structure, of arrays or ShapeDtypeStructs with the shardings to
        restore to.
      which: last or best.

    Raises:
      FileNotFoundError: there is no checkpoint.
      Damaged: the checkpoint is damaged.
      ValueError: the checkpoint is of another model; names the differences.
    """
    checkpointer = {'last': self._last, 'best': self._best}[which]
    return self._restore(checkpointer, max(_steps(checkpointer), default=None), like)

  def read(self, step: int | None = None, *, which: str = 'last') -> tuple[dict, dict]:
    """Return the arrays of a checkpoint by path, on one device, and its metadata.

    Args:
      step: the newest by default.
      which: last or best.

    Raises:
      FileNotFoundError, ValueError: as restore does.
    """
    checkpointer = {'last': self._last, 'best': self._best}[which]
    steps = _steps(checkpointer)
    step = max(steps, default=None) if step is None else step
    if step is None or step not in steps:
      where = self._where(checkpointer, step)
      raise FileNotFoundError(f'there is no checkpoint {where}: those of steps {steps} are there')
    arrays = self._read(checkpointer, step)
    return arrays, {'step': step} | self._about(checkpointer, step)

  def average(self, like: Any, n: int) -> Any:
    """Return the mean of the last n checkpoints (Vaswani et al. 2017, section 6.1).

    Raises:
      FileNotFoundError, ValueError: as restore does.
    """
    steps = self.averaged_steps(n)
    total = self._restore(self._last, steps[-1] if steps else None, like)
    for step in steps[:-1]:
      total = _add(total, self._restore(self._last, step, like))
    return _divide(total, len(steps))

  def averaged_steps(self, n: int) -> list[int]:
    """Return the steps of the last n checkpoints, or of as many as there are."""
    self.wait()
    return _steps(self._last)[-n:]

  def _where(self, checkpointer, step: int | None = None) -> epath.Path:
    return self.folder / checkpointer.directory.name / str('' if step is None else step)

  def _about(self, checkpointer, step: int) -> dict[str, Any]:
    """Return the metadata of a checkpoint."""
    return self._described(checkpointer, step)[0]

  def _described(self, checkpointer, step: int) -> tuple[dict[str, Any], Any]:
    """Return the metadata of a checkpoint, and shape and dtype by path, or None if damaged."""
    where = self._where(checkpointer, step)
    with _damage_named(where):
      metadata = checkpointer.checkpointables_metadata(step)
      arrays = metadata.metadata['state']
      older = checkpointer.directory / str(step) / 'about' / 'metadata'
      if older.exists():
        return json.loads(older.read_text()), arrays
      about = metadata.custom_metadata or {}
      number = int(about.get('format', FORMAT))
    if number > FORMAT:
      raise ValueError(
        f'checkpoint {where} has format {number}, and this version reads 1 to {FORMAT}: update '
        'this code'
      )
    return about, arrays

  def _restore(self, checkpointer, step, like):
    restored = self._read(checkpointer, step, _flat(like))
    return jax.tree.unflatten(jax.tree.structure(like), [*restored.values()])

  def _read(self, checkpointer, step, like=None) -> dict[str, jax.Array]:
    """Return the arrays of a checkpoint by path, in the order and with the shardings of `like`."""
    if step is None:
      more = '' if self.last_step is None else ', until the first validation chooses a best model'
      raise FileNotFoundError(
        f'there is no checkpoint in {self._where(checkpointer)}: train first{more}'
      )
    where = self._where(checkpointer, step)
    self.wait()
    about, arrays = self._described(checkpointer, step)
    sums = about.get('checksums', {})
    with _damage_named(where):
      if arrays is None:  # Orbax only logs why
        raise ValueError('the list of its arrays cannot be read')
      stored = {path: x.shape for path, x in arrays.items()}
    if like is None:
      one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
      like = {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one) for path, x in arrays.items()
      }
    target = {_name_in(stored, path): x for path, x in like.items()}
    _compare(stored, target, where)
    with _damage_named(where):
      if not sums:
        raise ValueError('_CHECKPOINT_METADATA, the file with the checksums, cannot be read')
      restored = checkpointer.load_checkpointables(step, {'state': target})['state']
      now = _checksums(restored)
      if damaged := [path for path in now if sums.get(path) != now[path]]:
        raise ValueError(f'the values of {", ".join(damaged[:5])} are not those that were saved')
    return {path: restored[path] for path in target}


def _steps(checkpointer: ocp.training.Checkpointer) -> list[int]:
  """Return the steps of the checkpoints on disk, in order."""
  return [checkpoint.step for checkpoint in checkpointer.checkpoints]


def reachable(folder: epath.PathLike) -> epath.Path:
  """Return an absolute path, which Orbax needs, or the path of a URL.

  Raises:
    ValueError: a library for such URLs is not installed.
  """
  path = epath.Path(folder)
  if '://' not in str(path):
    return epath.Path(pathlib.Path(path).expanduser().absolute())
  try:
    path.exists()
  except ImportError as error:
    raise ValueError(
      f'{path} cannot be reached ({error}): pip install gcsfs for gs://, s3fs for s3://'
    ) from error
  return path


def _plain(folder: epath.Path) -> tuple[contextlib.ExitStack, epath.PathLike]:
  """Return a path without special characters to a folder, and the context that removes it again.

  Orbax reads [, ], * and ? in a path as a pattern, and TensorStore a backslash as a slash, so that
  what they save under such a path is incomplete or elsewhere. They get a symbolic link to it.

  Raises:
    ValueError: there are several processes, which might not share the link.
  """
  stack = contextlib.ExitStack()
  if not re.search(r'[][*?\\]', str(folder)) or '://' in str(folder):
    return stack, folder
  if jax.process_count() > 1:
    raise ValueError(
      f'{folder} has one of []*?\\, with which several processes cannot save checkpoints: use a '
      '--workdir without'
    )
  folder.mkdir(parents=True, exist_ok=True)
  link = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) / 'checkpoints'
  link.symlink_to(folder, target_is_directory=True)
  return stack, link


@contextlib.contextmanager
def _damage_named(where: epath.Path):
  """Turn Orbax's errors about a damaged checkpoint into Damaged, with the cure in its message."""
  try:
    yield
  except Exception as error:  # Orbax raises no narrower type for some
    cause = _cause(error)
    intact = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)
    if isinstance(cause, intact) or not isinstance(cause, Exception):  # or Ctrl-C
      raise cause from None
    raise Damaged(
      f'checkpoint {where} is damaged: {_reason(error)}. Move that folder elsewhere to resume from '
      'the one before, or let --config.train.damaged_checkpoint=previous do so'
    ) from error


@contextlib.contextmanager
def _failed_save_named(folder: epath.Path):
  """Turn an error of Orbax while saving into an OSError of one line."""
  try:
    yield
  except Exception as error:
    raise OSError(
      f'no checkpoint could be saved in {folder}: {_reason(error)}. Those before it are whole, and '
      'the same command resumes from the last one'
    ) from error


def _cause(error: BaseException) -> BaseException:
  """Return the first error of those that were raised from each other."""
  return _cause(error.__cause__) if error.__cause__ else error


def _reason(error: Exception) -> str:
  return str(_cause(error)).split('\n')[0].split(' [tensorstore_spec')[0][:500]


def _flat(tree: Any) -> dict[str, Any]:
  """Return {path: leaf} of a tree, in the order of the leaves."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {parameter_path(path).replace('/', '.'): leaf for path, leaf in leaves}


def _name_in(stored: Mapping[str, Any], path: str) -> str:
  """Return the path of a parameter in a checkpoint that may have older names."""
  older = '.'.join(RENAMED.get(name, name) for name in path.split('.'))
  return older if older in stored and path not in stored else path


def _compare(stored: Mapping[str, tuple], target: Mapping[str, Any], where: epath.Path):
  """Raise ValueError unless both have arrays of the same paths and shapes."""
  missing = [f'{p} {x.shape} is missing' for p, x in target.items() if p not in stored]
  unknown = [f'{p} {s} is not of this model' for p, s in stored.items() if p not in target]
  shapes = [
    f'{p} has shape {tuple(stored[p])}, not {x.shape}'
    for p, x in target.items()
    if p in stored and tuple(stored[p]) != tuple(x.shape)
  ]
  if wrong := missing + unknown + shapes:
    more = f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''
    raise ValueError(
      f'checkpoint {where} is of another model: {"; ".join(wrong[:5])}{more}. Use the config it '
      'was trained with, or another --workdir'
    )


@jax.jit
def _add(a: Any, b: Any) -> Any:
  return jax.tree.map(jnp.add, a, b)


@jax.jit
def _divide(tree: Any, n: Any) -> Any:
  return jax.tree.map(lambda x: (x / n).astype(x.dtype), tree)


def _checksums(flat: Mapping[str, Any]) -> dict[str, int]:
  # one after the other: many collectives at once deadlock virtual CPU devices
  return {path: int(_checksum(leaf)) for path, leaf in flat.items()}


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
  """Return sum_i bits(x_i) (2 i + 1) modulo 2^32, which changes if any one element changes.

  A sum of integers does not depend on its order, so it is the same on every mesh.
  """
  bits = jax.lax.bitcast_convert_type(x, f'uint{8 * x.dtype.itemsize}').astype(jnp.uint32)
  index = jnp.zeros(x.shape, jnp.uint32)
  for axis in range(x.ndim):
    position = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    index += position * jnp.uint32(math.prod(x.shape[axis + 1 :]) % 2**32)
  return jnp.sum(bits * (2 * index + 1), dtype=jnp.uint32)


def digest(tree: Any) -> str:
  """Return the SHA-256 of all arrays of a tree, in the order of their paths."""
  sha = hashlib.sha256()
  for path, leaf in sorted(_flat(tree).items()):
    array = processes.on_host(leaf)
    sha.update(f'{path} {array.dtype} {array.shape}\n'.encode())
    sha.update(array.tobytes())
  return sha.hexdigest()
