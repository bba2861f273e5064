"""Checkpoints of the training state by Orbax: asynchronous, the last few and the best, on any mesh.

A checkpoint has plain arrays by parameter path, no types of Flax or Optax, and a checksum of each,
because Orbax does not detect a changed bit in a large array.
"""

import contextlib
import dataclasses
import hashlib
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from transformer.training.optimizers import parameter_path


@dataclasses.dataclass(frozen=True)
class Kept:
  """Keep the last `keep` checkpoints at multiples of `every`, and the newest in any case.

  The checkpoint of a run that was stopped at another step is deleted with the next one. So the same
  checkpoints are averaged as without the stop.
  """

  keep: int
  every: int

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """Return for each checkpoint, in the order of steps, whether it is kept; called by Orbax."""
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = [step for step in steps if step % self.every == 0 or step == steps[-1]][-self.keep :]
    return [step in kept for step in steps]


class Checkpoints(contextlib.AbstractContextManager):
  """The checkpoints of a workdir: the last `keep` in last/, and the best one in best/.

  It is a context manager, which waits at its end for a save in progress. An interrupted save does
  not change the checkpoints before it.

  Args:
    workdir: the folder of the run.
    keep: number of last checkpoints to keep; see Kept. Only needed to save.
    every: interval of saves, in steps. Only needed to save.
  """

  def __init__(self, workdir: pathlib.Path, *, keep: int = 1, every: int = 1):
    self.folder = (workdir / 'checkpoints').absolute()  # Orbax ignores relative ones
    self._last = self._manager('last', Kept(keep, every))
    self._best = self._manager('best', Kept(1, 1))

  def _manager(self, name: str, kept: Kept) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(preservation_policy=kept)
    handlers = {'state': ocp.StandardCheckpointHandler(), 'about': ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(self.folder / name, options=options, item_handlers=handlers)

  def __exit__(self, *_):
    """Wait for the save in progress; its errors are raised here."""
    with contextlib.closing(self._best), contextlib.closing(self._last):
      pass  # both, even if one save fails

  def save(self, state: Any, step: int):
    """Start to save the state, unless its step is saved; return before it is on disk."""
    self._best.wait_until_finished()  # or a run that is killed now would resume without its best
    if step not in self._last.all_steps():
      self._save(self._last, state, step, {})

  def save_best(self, state: Any, step: int, scores: Mapping[str, float]):
    """Start to save the state as the best one; replaces a best one of the same step."""
    if step in self._best.all_steps():
      self._best.delete(step)
    self._save(self._best, state, step, {'scores': dict(scores)})

  def _save(self, manager, state, step, about):
    flat = _flat(state)
    about = about | {'checksums': _checksums(flat)}
    items = ocp.args.Composite(state=ocp.args.StandardSave(flat), about=ocp.args.JsonSave(about))
    manager.save(step, args=items, force=True)

  @property
  def last_step(self) -> int | None:
    """The step of the newest complete checkpoint."""
    return self._last.latest_step()

  @property
  def best(self) -> tuple[int, dict[str, float]] | None:
    """(step, scores) of the best checkpoint; None if there is none."""
    step = self._best.latest_step()
    if step is None:
      return None
    with _damage_named(pathlib.Path(self._best.directory) / str(step)):
      return step, _about(self._best, step).get('scores', {})

  def restore(self, like: Any, *, which: str = 'last') -> Any:
    """Return the last or the best state.

    Args:
      like: its structure, as arrays or ShapeDtypeStructs with the shardings to restore to.
      which: last or best.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: it is damaged, or of another model; names the differences.
    """
    manager = {'last': self._last, 'best': self._best}[which]
    return self._restore(manager, manager.latest_step(), like)

  def average(self, like: Any, n: int) -> Any:
    """Return the mean of the last n checkpoints (Vaswani et al. 2017, section 6.1).

    Raises:
      FileNotFoundError, ValueError: as restore does.
    """
    self._last.wait_until_finished()
    steps = sorted(self._last.all_steps())[-n:]
    total = self._restore(self._last, steps[-1] if steps else None, like)
    for step in steps[:-1]:
      total = jax.tree.map(jnp.add, total, self._restore(self._last, step, like))
    return jax.tree.map(lambda x: (x / len(steps)).astype(x.dtype), total)

  def _restore(self, manager, step, like):
    if step is None:
      raise FileNotFoundError(f'there is no checkpoint in {manager.directory}: train first')
    target = _flat(like)
    where = pathlib.Path(manager.directory) / str(step)
    manager.wait_until_finished()
    with _damage_named(where):
      stored = {path: x.shape for path, x in manager.item_metadata(step)['state'].items()}
    _compare(stored, target, where)
    with _damage_named(where):
      args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
      restored = manager.restore(step, args=args)['state']
      sums, found = _about(manager, step).get('checksums', {}), _checksums(restored)
      damaged = [path for path, s in sums.items() if s != found[path]]
      if damaged:
        raise ValueError(f'the values of {", ".join(damaged[:5])} are not those that were saved')
    return jax.tree.unflatten(jax.tree.structure(like), [restored[path] for path in target])


def _about(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
  """Return what was saved beside the state."""
  return manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))['about'] or {}


@contextlib.contextmanager
def _damage_named(where: pathlib.Path):
  """Raise the errors of Orbax about a damaged checkpoint as a ValueError that says what to do."""
  try:
    yield
  except Exception as error:  # Orbax raises no narrower type for some
    reason = str(error).split('\n')[0].split(' [tensorstore_spec')[0][:300]
    raise ValueError(
      f'checkpoint {where} is damaged: {reason}. Delete that folder to resume from the one before'
    ) from error


def _flat(tree: Any) -> dict[str, Any]:
  """{path: leaf}, in the order of the leaves."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {parameter_path(path).replace('/', '.'): leaf for path, leaf in leaves}


def _compare(stored: Mapping[str, tuple], target: Mapping[str, Any], where: pathlib.Path):
  """Raises ValueError unless both have the same arrays of the same shapes."""
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


def _checksums(flat: Mapping[str, Any]) -> dict[str, int]:
  # one after the other: many collectives at once dead-lock virtual CPU devices
  return {path: int(_checksum(leaf)) for path, leaf in flat.items()}


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
  """Return the sum of bits times odd numbers, modulo 2^32: it changes if any one element changes.

  Integers add up to the same in any order, so it is the same on every mesh.
  """
  bits = jax.lax.bitcast_convert_type(x, f'uint{8 * x.dtype.itemsize}').astype(jnp.uint32)
  index = jnp.zeros(x.shape, jnp.uint32)
  for axis in range(x.ndim):
    places = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    index += places * jnp.uint32(math.prod(x.shape[axis + 1 :]) % 2**32)
  return jnp.sum(bits * (2 * index + 1), dtype=jnp.uint32)


def digest(tree: Any) -> str:
  """Return the SHA-256 of all arrays in the order of their paths."""
  sha = hashlib.sha256()
  for path, leaf in sorted(_flat(tree).items()):
    array = np.asarray(leaf)
    sha.update(f'{path} {array.dtype} {array.shape}\n'.encode())
    sha.update(array.tobytes())
  return sha.hexdigest()
