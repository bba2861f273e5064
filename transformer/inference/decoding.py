"""How outputs are searched for, as a config says: greedily, with beams, or drawn at random."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from transformer.functional import search
from transformer.inference.batching import in_batches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
  """The search, and the shapes that it is compiled for.

  Attributes:
    beams: W; 1 is greedy.
    alpha: exponent of the length penalty ((5 + L) / 6)^alpha; greedy search needs none.
    temperature: 0 takes the best; more draws at random, 1 from the model's own distribution.
    top_k, top_p, min_p: of which tokens; see search.filter_logits.
    seed: of what is drawn. A line is drawn the same whatever lines come with it.
    length: most tokens of an output, end token included.
    rows: lines decoded at once. Always so many: the same shape for every batch keeps a line's
      output independent of its neighbours to the last bit.
  """

  beams: int = 1
  alpha: float = 0.0
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  seed: int = 0
  length: int = 128
  rows: int = 32

  def __post_init__(self):
    for name in ('beams', 'length', 'rows'):
      if getattr(self, name) < 1:
        raise ValueError(f'decode.{name}={getattr(self, name)} must be at least 1')
    if not self.alpha >= 0:
      raise ValueError(f'decode.alpha={self.alpha} must be at least 0: more prefers longer outputs')
    if self.temperature and self.beams > 1:
      raise ValueError(
        f'decode.temperature={self.temperature} draws at random, decode.beams={self.beams} seeks '
        'the best: set beams to 1 or temperature to 0'
      )
    try:
      search.filter_logits(jnp.zeros(1), **self.filters)
    except ValueError as error:
      raise ValueError(f'decode: {error}') from error

  @property
  def filters(self) -> dict[str, Any]:
    """The arguments of search.filter_logits."""
    names = ('temperature', 'top_k', 'top_p', 'min_p')
    return {name: getattr(self, name) for name in names}


def generate(
  step: search.Step,
  cache: PyTree,
  first: Int[Array, ' B'],
  prompts: Shaped[Array, 'B S ...'],
  decoding: Decoding,
  *,
  eos: int,
  reorder: Callable[[PyTree, Int[Array, ' R']], PyTree],
) -> tuple[Int[Array, 'B W T'], Float[Array, 'B W']]:
  """The outputs of each row and their scores, best first; arguments otherwise as in `search`.

  Args:
    step, cache, first, eos, reorder: as there; the cache has W rows for each of first.
    prompts: what a row's random numbers depend on.
    decoding: which search.
  """
  pad = 0 if eos else -1  # some published models end with token 0
  how: dict[str, Any] = dict(steps=decoding.length, eos=eos, pad=pad)
  if decoding.beams > 1:
    how |= dict(beams=decoding.beams, alpha=decoding.alpha, reorder=reorder)
    return search.beam_search(step, cache, first, **how)
  if decoding.temperature:
    keys = row_keys(decoding.seed, prompts)
    tokens, scores = search.sample(step, cache, first, keys, **how, **decoding.filters)
  else:
    tokens, scores = search.greedy(step, cache, first, **how)
  return tokens[:, None], scores[:, None]


def row_keys(seed: int, prompts: Shaped[Array, 'B S ...']) -> Key[Array, ' B']:
  """A key for each row, made of its own tokens; padding on either side changes nothing."""
  if jnp.issubdtype(prompts.dtype, jnp.floating):  # padded with NaN
    prompts = jax.lax.bitcast_convert_type(jnp.nan_to_num(prompts), jnp.int32)
  prompts = prompts.reshape(len(prompts), -1)
  real = prompts > 0
  # a polynomial of the tokens, in a base whose powers modulo 2^32 are all odd
  index = jnp.cumsum(real, axis=1, dtype=jnp.uint32)
  power = jnp.uint32(0x01000193) ** index
  words = jnp.sum(jnp.where(real, prompts, 0).astype(jnp.uint32) * power, axis=1, dtype=jnp.uint32)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), words)


def best(
  find: Callable[[Shaped[np.ndarray, 'B S ...']], tuple[Array, Array]],
  prompts: Sequence[Sequence[int] | np.ndarray],
  *,
  eos: int,
  **how: Any,
) -> list[np.ndarray]:
  """The best output of each prompt up to its end token.

  Args:
    find: padded prompts to outputs [B, W, T] and scores [B, W], best first.
    prompts: of any lengths.
    eos: the end token, -1 for none.
    how: of `in_batches`.

  Raises:
    FloatingPointError: a score is NaN.
  """
  outputs = []
  for found, scores in in_batches(find, prompts, **how):
    if np.isnan(scores).any():
      raise FloatingPointError('the model computes NaN for these lines: its training diverged')
    ends = np.flatnonzero(found[0] == eos)
    outputs.append(found[0][: ends[0] + 1] if len(ends) else found[0])
  return outputs
