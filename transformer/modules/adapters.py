"""Low-rank adapters: fine-tune a large model by few new parameters, W + A B, with W as it was."""

import math
import re

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from transformer.modules.layers import Linear


class LowRank(nnx.Module):
  """A B of rank r, which is 0 before training because B is."""

  def __init__(self, shape: tuple[int, ...], rank: int, rngs: nnx.Rngs):
    *layers, inputs, outputs = shape
    self.down = nnx.Param(
      jax.random.normal(rngs.params(), (*layers, inputs, rank)) / math.sqrt(inputs)
    )
    self.up = nnx.Param(jnp.zeros((*layers, rank, outputs)))

  def __call__(self) -> Float[Array, '*L I O']:
    """What is added to the kernel."""
    return self.down[...] @ self.up[...]


def adapt(model: nnx.Module, paths: str, rank: int, key: Key[Array, '']):
  """Gives every Linear of the model whose path fits an adapter; changes the model in place.

  Hu et al. 2021, https://arxiv.org/abs/2106.09685, equation 3, with alpha = r.

  Args:
    model: of any family, its layers stacked or not.
    paths: a pattern (re.search) of paths such as decoder/blocks/attention/query.
    rank: r.
    key: of what A begins with.

  Raises:
    ValueError: no path fits, or the rank is no positive number.
  """
  if rank < 1:
    raise ValueError(f'an adapter of rank {rank} does nothing: give 1 or more')
  linear = _linears(model)
  chosen = [path for path in linear if re.search(paths, path)]
  if not chosen:
    raise ValueError(f'no layer fits the pattern {paths!r}: there are {", ".join(linear)}')
  rngs = nnx.Rngs(key)
  for path in chosen:
    layer = linear[path]
    layer.adapter = nnx.data(LowRank(layer.kernel.shape, rank, rngs))


def merge(model: nnx.Module):
  """Adds every adapter to its kernel and takes it away, in place: the same model, as it was."""
  for layer in _linears(model).values():
    if layer.adapter is not None:
      layer.kernel[...] = layer.weight
      layer.adapter = nnx.data(None)


def _linears(model: nnx.Module) -> dict[str, Linear]:
  return {
    '/'.join(map(str, path)): module
    for path, module in nnx.iter_modules(model)
    if isinstance(module, Linear)
  }
