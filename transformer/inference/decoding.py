"""Settings of inference, and the search for output tokens that they describe."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from transformer.functional import search


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batching:
  """Settings of a task that has nothing to search for.

  Attributes:
    batch_size: requests in a batch, filled up if there are fewer: with one shape for all batches,
      an answer does not depend on the other requests, to the last bit.
  """

  batch_size: int = 32

  def __post_init__(self):
    check_positive(self, 'batch_size')

  def fast(self) -> 'Batching':
    """Return the settings for validation during training: the same, or cheaper ones."""
    return self


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding(Batching):
  """Settings of a search for output tokens.

  Attributes:
    beams: W of beam search; 1 is greedy search.
    alpha: exponent of the length penalty ((5 + L) / 6)^alpha of beam search.
    temperature: 0 takes the most probable token; otherwise tokens are sampled, at 1 from the
      model's own distribution.
    top_k, top_p, min_p: filters of the sampled tokens; see search.filter_logits.
    seed: of sampling. A request gets the same sample whatever other requests come with it.
    max_new_tokens: most tokens of an output, end token included.
  """

  beams: int = 1
  alpha: float = 0.0
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  seed: int = 0
  max_new_tokens: int = 128

  def __post_init__(self):
    check_positive(self, 'beams', 'max_new_tokens', 'batch_size')
    if not self.alpha >= 0:
      raise ValueError(f'decode.alpha={self.alpha} must be at least 0: more prefers longer outputs')
    if self.temperature and self.beams > 1:
      raise ValueError(
        f'decode.temperature={self.temperature} samples, but decode.beams={self.beams} searches '
        'for the best: set beams to 1 or temperature to 0'
      )
    try:
      search.filter_logits(jnp.zeros(1), **self.filters)
    except ValueError as error:
      raise ValueError(f'decode: {error}') from error

  @property
  def filters(self) -> dict[str, Any]:
    """Return the arguments of search.filter_logits."""
    names = ('temperature', 'top_k', 'top_p', 'min_p')
    return {name: getattr(self, name) for name in names}

  def fast(self) -> 'Decoding':
    """Return the settings without beams."""
    return dataclasses.replace(self, beams=1)


def check_positive(settings: Any, *names: str):
  """Raise ValueError where one of these settings is below 1."""
  for name in names:
    if getattr(settings, name) < 1:
      raise ValueError(f'decode.{name}={getattr(settings, name)} must be at least 1')


def search_tokens(
  step: search.Step,
  cache: PyTree,
  first: Int[Array, ' B'],
  keys: Key[Array, ' B'],
  decoding: Decoding,
  *,
  eos: int,
  reorder: Callable[[PyTree, Int[Array, ' R']], PyTree],
) -> tuple[Int[Array, 'B W T'], Float[Array, 'B W']]:
  """Return the output tokens of each row and their scores, best first.

  Args:
    step, cache, first, eos, reorder: as of functional.search; the cache has W rows for each of
      first.
    keys: of sampling.
    decoding: which search.
  """
  settings: dict[str, Any] = dict(steps=decoding.max_new_tokens, eos=eos)
  if decoding.beams > 1:
    settings |= dict(beams=decoding.beams, alpha=decoding.alpha, reorder=reorder)
    return search.beam_search(step, cache, first, **settings)
  if decoding.temperature:
    tokens, scores = search.sample(step, cache, first, keys, **settings, **decoding.filters)
  else:
    tokens, scores = search.greedy(step, cache, first, **settings)
  return tokens[:, None], scores[:, None]


def row_keys(key: Key[Array, ''], prompts: Shaped[Array, 'B S ...']) -> Key[Array, ' B']:
  """Return a key for each row, a function of its own tokens but not of its padding."""
  if jnp.issubdtype(prompts.dtype, jnp.floating):  # padded with NaN
    prompts = jax.lax.bitcast_convert_type(jnp.nan_to_num(prompts), jnp.int32)
  prompts = prompts.reshape(len(prompts), -1)
  real = prompts > 0
  # a polynomial of the tokens, in a base whose powers modulo 2^32 are all odd
  index = jnp.cumsum(real, axis=1, dtype=jnp.uint32)
  power = jnp.uint32(0x01000193) ** index
  words = jnp.sum(jnp.where(real, prompts, 0).astype(jnp.uint32) * power, axis=1, dtype=jnp.uint32)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, words)
