"""Embeddings: from tokens, patches of an image or frames of a sound to float32[B, T, D]."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from transformer.functional.activations import ACTIVATIONS, soft_cap
from transformer.functional.losses import Mean, linear_cross_entropy
from transformer.functional.matmul import matmul, matmul_nt
from transformer.functional.meshes import with_auto_axes
from transformer.modules.config import ModelConfig
from transformer.modules.layers import Linear, Norm, along_last


class Tokens(nnx.Module):
  """A table of one vector for each token, which embeds tokens and gives logits.

  Args:
    config: of the model.
    rngs: for fresh parameters.
    lm_head: whether this table gives the logits, which may have a bias.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs, *, lm_head: bool = False):
    self.config = config
    self.table = _table(config.vocab, config.embedding_size or config.width, rngs)
    self.bias = nnx.Param(jnp.zeros(config.vocab)) if lm_head and config.bias_output else None

  def __call__(self, tokens: Int[Array, 'B T']) -> Float[Array, 'B T D']:
    """Return the tokens' vectors, times sqrt D if so configured (Vaswani et al. 2017, 3.4)."""
    scale = math.sqrt(self.config.width) if self.config.scale_embedding else 1.0
    return _rows(self.table[...], tokens, 'token') * scale

  @with_auto_axes
  def attend(self, x: Float[Array, 'B T D']) -> Float[Array, 'B T N']:
    """Return the logits x tableT + b; x may be divided by sqrt D (T5), the logits capped."""
    config = self.config
    logits = matmul_nt(self._scaled(x), self.table[...], config.dtype, platform=config.platform)
    logits = logits if self.bias is None else logits + along_last(self.bias[...], logits)
    return soft_cap(logits, config.soft_cap_logits)

  @with_auto_axes
  def cross_entropy(
    self, x: Float[Array, 'B T D'], targets, weights, **kwargs
  ) -> tuple[Mean, Mean]:
    """Return `losses.linear_cross_entropy` of the logits, which are never stored as a whole."""
    config, x, table = self.config, self._scaled(x), self.table[...]
    if self.bias is not None:  # the weight of one more input, which is always 1
      x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
      table = jnp.concatenate([table, self.bias[...][:, None]], axis=1)
    kwargs |= dict(dtype=config.dtype, soft_cap=config.soft_cap_logits, platform=config.platform)
    return linear_cross_entropy(x, table, targets, weights, **kwargs)

  def _scaled(self, x):
    return x / math.sqrt(self.config.width) if self.config.scale_logits else x


class TokenTypes(nnx.Module):
  """A vector for each type of token, such as BERT's sentences A and B (Devlin et al. 2019)."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.table = _table(config.token_types, config.embedding_size or config.width, rngs)

  def __call__(self, types: Int[Array, 'B T']) -> Float[Array, 'B T D']:
    """Return the vector of each token's type."""
    return _rows(self.table[...], types, 'type')


class Patches(nnx.Module):
  """Embedded patches of an image after learned vectors, mostly one, the class token.

  Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929, equation 1. With `config.stem` the
  patches, then small ones or pixels, first go through convolutions, each of which halves height and
  width, so that images are learned in a fraction of the epochs (Xiao et al. 2021,
  https://arxiv.org/abs/2106.14881; Hassani et al. 2021, https://arxiv.org/abs/2104.05704).
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.activation = ACTIVATIONS[config.activation]
    self.stem: Any = nnx.List([])
    features = config.features
    for left in reversed(range(config.stem)):  # the last is as wide as the model
      width = config.width >> left
      conv = Convolution(config, features, rngs, stride=2, axes=2, width=width)
      self.stem.append(nnx.List([conv, Norm(config, width)]))
      features = width
    self.projection = Linear(config, features, config.width, rngs)
    self.class_token, self.distillation_token = (
      nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.width,))) if has else None
      for has in (config.class_tokens > 0, config.class_tokens > 1)
    )

  def __call__(
    self, patches: Float[Array, 'B S X'], segments: Int[Array, 'B S'] | None = None
  ) -> tuple[Float[Array, 'B T D'], Int[Array, 'B T'] | None]:
    """Return the vectors, those before and those of the patches after the stem, and their segments.

    Args:
      patches: row by row; with a stem, of a square image.
      segments: 0 is padding; None if there is none. With a stem a row is all image or all padding.

    Raises:
      ValueError: a stem is given an image that is not square, or too small.
    """
    x = self._convolved(patches) if len(self.stem) else patches
    x = self.projection(x)
    first = [token for token in (self.class_token, self.distillation_token) if token is not None]
    if segments is not None:
      segments = jnp.pad(segments[:, : x.shape[1]], ((0, 0), (len(first), 0)), mode='edge')
    vectors = [jnp.broadcast_to(token[...], (x.shape[0], 1, x.shape[-1])) for token in first]
    return jnp.concatenate([*vectors, x], axis=1), segments

  def _convolved(self, patches):
    B, S, X = patches.shape
    if (side := math.isqrt(S)) ** 2 != S:
      raise ValueError(
        f'{S} patches are not those of a square image, which model.stem={len(self.stem)} needs: '
        'give square images, or set model.stem=0'
      )
    x = patches.reshape(B, side, side, X)
    for conv, norm in self.stem:
      x = self.activation(norm(conv(x)))
    return x.reshape(B, -1, x.shape[-1])


class Frames(nnx.Module):
  """Frames of a sound through two convolutions over time, the second of stride 2.

  Radford et al. 2022, https://arxiv.org/abs/2212.04356, section 2.2.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.activation = ACTIVATIONS[config.activation]
    self.conv1 = Convolution(config, config.features, rngs, stride=1)
    self.conv2 = Convolution(config, config.width, rngs, stride=2)

  def __call__(
    self, frames: Float[Array, 'B S X'], segments: Int[Array, 'B S'] | None = None
  ) -> tuple[Float[Array, 'B (S+1)//2 D'], Int[Array, 'B (S+1)//2'] | None]:
    """Return a vector for every two frames, and their segments. Padding counts as silence, 0."""

    def silent(x):
      return x if segments is None else jnp.where((segments != 0)[..., None], x, 0)

    x = self.activation(self.conv2(silent(self.activation(self.conv1(silent(frames))))))
    return x, None if segments is None else segments[:, ::2]


class Convolution(nnx.Module):
  """y_t = x_{t-1} W_0 + x_t W_1 + x_{t+1} W_2 + b, at every stride-th t.

  With `axes=2` the same over rows and columns, with nine W.
  """

  def __init__(
    self,
    config: ModelConfig,
    inputs: int,
    rngs: nnx.Rngs,
    *,
    stride: int,
    axes: int = 1,
    width: int = 0,
  ):
    self.dtype, self.platform = config.dtype, config.platform
    self.stride, self.axes = stride, axes
    shape = (*[3] * axes, inputs, width or config.width)
    self.kernel = nnx.Param(jax.nn.initializers.glorot_uniform()(rngs.params(), shape))
    self.bias = nnx.Param(jnp.zeros(shape[-1])) if config.bias else None

  def __call__(self, x: Float[Array, 'B *S I']) -> Float[Array, 'B *T D']:
    # one wide product: on a CPU faster than lax.conv, which has no fast bfloat16
    padded = jnp.pad(x, ((0, 0), *[(1, 1)] * self.axes, (0, 0)))
    shifts = itertools.product(range(3), repeat=self.axes)
    windows = [
      [slice(i, i + size, self.stride) for i, size in zip(shift, x.shape[1:-1], strict=True)]
      for shift in shifts
    ]
    near = jnp.concatenate([padded[:, *window] for window in windows], axis=-1)
    kernel = self.kernel[...].reshape(-1, self.kernel.shape[-1])
    y = matmul(near, kernel, self.dtype, platform=self.platform).astype(jnp.float32)
    return y if self.bias is None else y + along_last(self.bias[...], y)


def _rows(table, ids, what):
  """The rows of these ids; NaN for one that the table lacks, an error where ids are not traced."""
  concrete = not isinstance(ids, jax.core.Tracer) and getattr(ids, 'is_fully_addressable', True)
  if concrete and ids.size:
    known = np.asarray(jax.device_get(ids))
    if known.min() < 0 or known.max() >= len(table):
      raise ValueError(
        f'{what} ids are from {known.min()} to {known.max()}, but the model knows 0 to '
        f'{len(table) - 1}: pass those of its own tokenizer'
      )
  return _lookup(table, jnp.asarray(ids))


@jax.custom_jvp
def _lookup(table, ids):
  """table[ids], NaN for other ids, negative ones as well."""
  ids = jnp.where(ids < 0, len(table), ids.astype(jnp.int32))
  return jnp.take(table, ids, axis=0, mode='fill', fill_value=jnp.nan)


@_lookup.defjvp
def _lookup_derivative(primals, tangents):
  # Where it is differentiated JAX takes another row: NaN would change the rounding of every
  # training, because XLA then fuses other operations. A training's ids are its tokenizer's.
  (table, ids), (tangent, _) = primals, tangents
  return table[ids], tangent[ids]


def _table(rows, width, rngs):
  # with scale_embedding a token enters the residual stream at scale 1
  return nnx.Param(width**-0.5 * jax.random.normal(rngs.params(), (rows, width)))
