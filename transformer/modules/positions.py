"""Position schemes: how a model represents the order of tokens.

A scheme may add a vector to the embedding (`embed`), rotate queries and keys (`rotate`), or add a
bias to the scores of attention (`bias`). To add one, write its class here, and name it in SCHEMES
and in `ModelConfig.position`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from transformer.functional import positions as functional
from transformer.functional.masks import Size
from transformer.modules.config import Layer, ModelConfig


class Unordered(nnx.Module):
  """No positions: only the causal mask shows the order. Base class of the other schemes.

  Args:
    config: of the model.
    rngs: for fresh parameters.
    causal: whether targets attend only to themselves and earlier positions.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs, *, causal: bool):
    self.config, self.causal = config, causal

  def check(self, length: Size):
    """Raise ValueError if the scheme has fewer positions than `length`."""

  def embed(self, x: Float[Array, 'B T D'], positions: Int[Array, 'B T']) -> Float[Array, 'B T D']:
    """Return embeddings with the vectors of their positions added."""
    return x

  def rotate(
    self, x: Float[Array, 'B T H K'], positions: Int[Array, 'B T'], layer: Layer
  ) -> Float[Array, 'B T H K']:
    """Return queries or keys rotated by their positions, with the settings of the layer."""
    return x

  def bias(
    self, targets: Int[Array, 'B T'], sources: Int[Array, 'B S']
  ) -> Float[Array, 'B H T S'] | None:
    """Return the bias that is added to the scores of all layers, or None."""
    return None

  def of_layers(self) -> Any:
    """Return the parameters that differ between layers, with a leading layer axis, or None."""
    return None

  def bias_of_layer(
    self, parameters: Any, targets: Int[Array, 'B T'], sources: Int[Array, 'B S']
  ) -> Float[Array, 'B H T S']:
    """Return the bias that one layer adds to the scores, from its parameters (`of_layers`)."""
    raise NotImplementedError


class Sinusoidal(Unordered):
  """Sinusoids added to the embedding; Vaswani et al. 2017, section 3.5. In halves as in Marian."""

  def embed(self, x, positions):
    """Return embeddings plus sinusoids."""
    halves = self.config.position == 'sinusoidal_halves'
    return x + functional.sinusoidal(positions, x.shape[-1], halves=halves)


class OffsetSinusoidal(Unordered):
  """Sinusoids in halves for positions from 2 on (fairseq, M2M100)."""

  def embed(self, x, positions):
    """Return embeddings plus sinusoids."""
    return x + functional.sinusoidal(positions + 2, x.shape[-1], halves=True, inclusive=True)


class Learned(Unordered):
  """A learned vector for each position, added to the embedding.

  Gehring et al. 2017, Devlin et al. 2019.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs, *, causal: bool):
    super().__init__(config, rngs, causal=causal)
    width = config.embedding_size or config.width
    initial = width**-0.5 * jax.random.normal(rngs.params(), (config.max_length, width))
    self.table = nnx.Param(initial)

  def check(self, length):
    """Raise ValueError if there are more tokens than learned positions."""
    if isinstance(length, int) and length > len(self.table[...]):
      raise ValueError(
        f'{length} tokens are more than the {len(self.table[...])} learned positions of this model '
        '(model.max_length): truncate them, or pass segments if the rest is padding or examples'
      )

  def embed(self, x, positions):
    """Return embeddings plus the learned vectors of their positions."""
    # NaN beyond the table, because by default JAX would clamp the positions
    return x + jnp.take(self.table[...], positions, axis=0, mode='fill', fill_value=jnp.nan)


class Rotary(Unordered):
  """Rotary embeddings: queries and keys are rotated by their positions; Su et al. 2021."""

  def rotate(self, x, positions, layer):
    """Return queries or keys rotated by their positions, unless the layer has no rotation."""
    if not layer.rotary_base:
      return x
    kwargs = dict(size=self.config.rotary_size, scaling=dict(layer.rotary_scaling))
    return functional.rotary(x, positions, layer.rotary_base, **kwargs)


class Relative(Unordered):
  """A learned bias for each head and bucket of distances; Raffel et al. 2020, section 2.1."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs, *, causal: bool):
    super().__init__(config, rngs, causal=causal)
    layers = (config.depth,) if config.relative_per_layer else ()
    shape = (*layers, config.relative_buckets, config.heads)
    self.table = nnx.Param(config.width**-0.5 * jax.random.normal(rngs.params(), shape))

  def bias(self, targets, sources):
    """Return the learned bias of each distance, unless each layer has its own."""
    if self.config.relative_per_layer:
      return None
    return self.bias_of_layer(self.table[...], targets, sources)

  def of_layers(self):
    """Return the tables of the layers, if each has its own."""
    return self.table[...] if self.config.relative_per_layer else None

  def bias_of_layer(self, parameters, targets, sources):
    """Return the bias of each distance from a table of buckets."""
    buckets = functional.relative_buckets(
      *(targets, sources),
      causal=self.causal,
      buckets=self.config.relative_buckets,
      max_distance=self.config.relative_distance,
    )
    return parameters[buckets].transpose(0, 3, 1, 2)


class LearnedRelative(Learned):
  """Learned vectors, and a learned bias for each distance; Song et al. 2020 (MPNet)."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs, *, causal: bool):
    super().__init__(config, rngs, causal=causal)
    self.relative = Relative(config, rngs, causal=causal)

  def bias(self, targets, sources):
    """Return the learned bias of each distance."""
    return self.relative.bias(targets, sources)


class Alibi(Unordered):
  """A bias that falls linearly with the distance, at another slope in each head.

  Press et al. 2022.
  """

  def bias(self, targets, sources):
    """Return -slope |t - s| for each head."""
    return functional.alibi_bias(targets, sources, self.config.heads)


SCHEMES = {
  'sinusoidal': Sinusoidal,
  'sinusoidal_halves': Sinusoidal,
  'sinusoidal_offset': OffsetSinusoidal,
  'learned': Learned,
  'rotary': Rotary,
  'relative': Relative,
  'learned_relative': LearnedRelative,
  'alibi': Alibi,
  'none': Unordered,
}
