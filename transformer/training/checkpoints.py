"""The training state on disk, by Orbax: asynchronous, last few and best, on any mesh.

On disk are plain arrays under their parameter paths, no types of Flax or Optax.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from transformer.training.optimizers import parameter_path


class Checkpoints:
  """The checkpoints of a workdir: the last `keep` in last/, and the best one in best/.

  Use it as a context: leaving it waits for the save under way. A save that is cut off leaves the
  checkpoints before it untouched.
  """

  def __init__(self, workdir: pathlib.Path, *, keep: int):
    self.folder = (workdir / 'checkpoints').absolute()  # Orbax drops relative ones without a word
    self._last = self._manager('last', keep)
    self._best = self._manager('best', 1)

  def _manager(self, name: str, keep: int) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(preservation_policy=policies.LatestN(keep))
    handlers = {'state': ocp.StandardCheckpointHandler(), 'about': ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(self.folder / name, options=options, item_handlers=handlers)

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *_):
    self.close()

  def close(self):
    """Waits for the save under way; an error of it is raised here."""
    for manager in (self._last, self._best):
      manager.wait_until_finished()
      manager.close()

  def save(self, state: Any, step: int):
    """Starts to save the state; returns before it is on disk. Saving a step again does nothing."""
    self._save(self._last, state, step, {})

  def save_best(self, state: Any, step: int, score: float):
    """The same, as the best so far."""
    self._save(self._best, state, step, {'score': score})

  def _save(self, manager, state, step, extra):
    if step in manager.all_steps():
      return
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(_flat(state)), about=ocp.args.JsonSave(extra)
    )
    manager.save(step, args=items, force=True)

  @property
  def last_step(self) -> int | None:
    """The step of the newest complete checkpoint."""
    return self._last.latest_step()

  @property
  def best(self) -> tuple[int, float] | None:
    """(step, score) of the best checkpoint."""
    step = self._best.latest_step()
    if step is None:
      return None
    about = self._best.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))['about']
    return step, about['score']

  def restore(self, like: Any, *, which: str = 'last') -> Any:
    """The last or best state.

    Args:
      like: its structure: arrays or ShapeDtypeStructs, with the shardings it is to have here.
      which: last or best.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: it is damaged, or of another model; says where they differ.
    """
    manager = {'last': self._last, 'best': self._best}[which]
    return self._restore(manager, manager.latest_step(), like)

  def average(self, like: Any, n: int) -> Any:
    """The mean of the last n checkpoints (Vaswani et al. 2017, section 6.1, average 5 or 20)."""
    steps = sorted(self._last.all_steps())[-n:]
    total = self._restore(self._last, steps[-1] if steps else None, like)
    for step in steps[:-1]:
      total = jax.tree.map(jnp.add, total, self._restore(self._last, step, like))
    return jax.tree.map(lambda x: (x / len(steps)).astype(x.dtype), total)

  def _restore(self, manager, step, like):
    if step is None:
      raise FileNotFoundError(f'there is no checkpoint in {manager.directory}: train first')
    target = _flat(like)
    where = manager.directory / str(step)
    try:
      stored = manager.item_metadata(step)['state']
      _compare({path: x.shape for path, x in stored.items()}, target, where)
      args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
      restored = manager.restore(step, args=args)['state']
    except ValueError as error:
      if str(where) in str(error):
        raise
      reason = str(error).split('\n')[0][:300]
      raise ValueError(
        f'checkpoint {where} cannot be read: {reason}. Delete that folder to go on from the one before'
      ) from error
    return jax.tree.unflatten(jax.tree.structure(like), [restored[path] for path in target])


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
  wrong = missing + unknown + shapes
  if wrong:
    more = f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''
    raise ValueError(
      f'checkpoint {where} is of another model: {"; ".join(wrong[:5])}{more}. Use the config it was '
      'trained with, or another --workdir'
    )


def digest(tree: Any) -> str:
  """SHA-256 of all arrays in the order of their paths: the same exactly for the same bits."""
  import hashlib

  sha = hashlib.sha256()
  for path, leaf in sorted(_flat(tree).items()):
    array = np.asarray(leaf)
    sha.update(f'{path} {array.dtype} {array.shape}\n'.encode())
    sha.update(array.tobytes())
  return sha.hexdigest()
