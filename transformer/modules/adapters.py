"""Low-rank adapters (LoRA): fine-tune few new parameters A and B of W + A B, with W fixed."""

import math
import re

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from transformer.modules.layers import Linear


class LowRank(nnx.Module):
  """A product A B of rank r, which is 0 before training because B is 0.

  Args:
    shape: of the kernel that A B is added to, [..., inputs, outputs].
    rank: r.
    rngs: for the initial A.
  """

  def __init__(self, shape: tuple[int, ...], rank: int, rngs: nnx.Rngs):
    *layers, inputs, outputs = shape
    self.down = nnx.Param(
      jax.random.normal(rngs.params(), (*layers, inputs, rank)) / math.sqrt(inputs)
    )
    self.up = nnx.Param(jnp.zeros((*layers, rank, outputs)))

  def __call__(self) -> Float[Array, '*L I O']:
    """Return A B."""
    return self.down[...] @ self.up[...]


def adapt(model: nnx.Module, paths: str, rank: int, key: Key[Array, '']):
  """Add an adapter to every Linear whose path matches a pattern; changes the model in place.

  Hu et al. 2021, https://arxiv.org/abs/2106.09685, equation 3, with alpha = r.

  Args:
    model: any module.
    paths: a regular expression, searched in paths such as decoder/blocks/attention/query.
    rank: r.
    key: for the initial A.

  Raises:
    ValueError: no path matches, or the rank is not positive.
  """
  if rank < 1:
    raise ValueError(f'an adapter of rank {rank} does nothing: give 1 or more')
  linear = _linears(model)
  chosen = [path for path in linear if re.search(paths, path)]
  if not chosen:
    raise ValueError(f'no layer matches the pattern {paths!r}: there are {", ".join(linear)}')
  rngs = nnx.Rngs(key)
  for path in chosen:
    layer = linear[path]
    layer.adapter = nnx.data(LowRank(layer.kernel.shape, rank, rngs))


def merge(model: nnx.Module):
  """Add every adapter to its kernel and remove it; changes the model in place."""
  for layer in _linears(model).values():
    if layer.adapter is not None:
      layer.kernel[...] = layer.weight
      layer.adapter = nnx.data(None)


def _linears(model: nnx.Module) -> dict[str, Linear]:
  return {
    '/'.join(map(str, path)): module
    for path, module in nnx.iter_graph(model)
    if isinstance(module, Linear)
  }
