"""Embeddings of tokens, patches of an image or frames of a sound: float32[B, T, D]."""

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
  """A table with one vector for each token, which embeds tokens and computes logits.

  Args:
    config: of the model.
    rngs: for fresh parameters.
    lm_head: whether this table computes the logits, which may have a bias.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs, *, lm_head: bool = False):
    self.config = config
    self.table = _table(config.vocab, config.embedding_size or config.width, rngs)
    self.bias = nnx.Param(jnp.zeros(config.vocab)) if lm_head and config.bias_output else None

  def __call__(self, tokens: Int[Array, 'B T']) -> Float[Array, 'B T D']:
    """Return the vectors of the tokens, times sqrt D with `config.scale_embedding`.

    Vaswani et al. 2017, section 3.4. An id outside the table gives NaN, or a ValueError outside
    `jax.jit`.
    """
    scale = math.sqrt(self.config.width) if self.config.scale_embedding else 1.0
    return _rows(self.table[...], tokens, 'token') * scale

  @with_auto_axes
  def attend(self, x: Float[Array, 'B T D']) -> Float[Array, 'B T N']:
    """Return the logits x @ table.T + b.

    With `config.scale_logits` x is divided by sqrt D (T5), with `config.soft_cap_logits` the logits
    are bounded.
    """
    config = self.config
    logits = matmul_nt(self._scaled(x), self.table[...], config.dtype, platform=config.platform)
    logits = logits if self.bias is None else logits + along_last(self.bias[...], logits)
    return soft_cap(logits, config.soft_cap_logits)

  @with_auto_axes
  def cross_entropy(
    self, x: Float[Array, 'B T D'], targets, weights, **kwargs
  ) -> tuple[Mean, Mean]:
    """Return the cross-entropy of the logits and their negative log-likelihood.

    The arguments are those of `losses.linear_cross_entropy`, which does not store the logits.
    """
    config, x, table = self.config, self._scaled(x), self.table[...]
    if self.bias is not None:  # the bias is the weight of one more input that is always 1
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
  """Learned vectors such as the class token, followed by the embedded patches of an image.

  Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929, equation 1. With `config.stem` small
  patches or pixels first go through convolutions, each of which halves height and width. This
  shortens training to a fraction of the epochs (Xiao et al. 2021, https://arxiv.org/abs/2106.14881;
  Hassani et al. 2021, https://arxiv.org/abs/2104.05704).

  Args:
    config: of the model.
    rngs: for fresh parameters.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.activation = ACTIVATIONS[config.activation]
    self.stem: Any = nnx.List([])
    features = config.features
    for halvings in reversed(range(config.stem)):  # the last is as wide as the model
      width = config.width >> halvings
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
    """Return the learned vectors followed by the embedded patches, and their segments.

    Args:
      patches: row by row; with a stem, of a square image.
      segments: 0 for padding; None if there is none. With a stem a row is all image or all padding.

    Raises:
      ValueError: with a stem, the image is not square.
    """
    x = self._convolved(patches) if len(self.stem) else patches
    x = self.projection(x)
    learned = [token for token in (self.class_token, self.distillation_token) if token is not None]
    if segments is not None:
      segments = jnp.pad(segments[:, : x.shape[1]], ((0, 0), (len(learned), 0)), mode='edge')
    vectors = [jnp.broadcast_to(token[...], (x.shape[0], 1, x.shape[-1])) for token in learned]
    return jnp.concatenate([*vectors, x], axis=1), segments

  def _convolved(self, patches):
    B, S, X = patches.shape
    if (side := math.isqrt(S)) ** 2 != S:
      raise ValueError(
        f'{S} patches are not those of a square image, which model.stem={len(self.stem)} needs: '
        'pass square images, or set model.stem=0'
      )
    x = patches.reshape(B, side, side, X)
    for conv, norm in self.stem:
      x = self.activation(norm(conv(x)))
    return x.reshape(B, -1, x.shape[-1])


class Frames(nnx.Module):
  """Two convolutions over the frames of a sound, the second with stride 2.

  Radford et al. 2022, https://arxiv.org/abs/2212.04356, section 2.2.

  Args:
    config: of the model.
    rngs: for fresh parameters.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.activation = ACTIVATIONS[config.activation]
    self.conv1 = Convolution(config, config.features, rngs, stride=1)
    self.conv2 = Convolution(config, config.width, rngs, stride=2)

  def __call__(
    self, frames: Float[Array, 'B S X'], segments: Int[Array, 'B S'] | None = None
  ) -> tuple[Float[Array, 'B (S+1)//2 D'], Int[Array, 'B (S+1)//2'] | None]:
    """Return a vector for every two frames, and their segments; frames of padding are read as 0."""

    def without_padding(x):
      return x if segments is None else jnp.where((segments != 0)[..., None], x, 0)

    x = self.activation(self.conv1(without_padding(frames)))
    x = self.activation(self.conv2(without_padding(x)))
    return x, None if segments is None else segments[:, ::2]


class Convolution(nnx.Module):
  """y_t = x_{t-1} W_0 + x_t W_1 + x_{t+1} W_2 + b, for t = 0, stride, 2 stride, ...

  Args:
    config: of the model.
    inputs: I, size of x.
    rngs: for fresh parameters.
    stride: distance between two results.
    axes: 1, or 2 for a convolution over rows and columns, with nine W.
    width: size of y; 0 for `config.width`.
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
    # one wide product is faster than lax.conv on a CPU, which has no fast bfloat16
    padded = jnp.pad(x, ((0, 0), *[(1, 1)] * self.axes, (0, 0)))
    shifts = itertools.product(range(3), repeat=self.axes)
    windows = [
      [slice(i, i + size, self.stride) for i, size in zip(shift, x.shape[1:-1], strict=True)]
      for shift in shifts
    ]
    neighbors = jnp.concatenate([padded[:, *window] for window in windows], axis=-1)
    kernel = self.kernel[...].reshape(-1, self.kernel.shape[-1])
    y = matmul(neighbors, kernel, self.dtype, platform=self.platform).astype(jnp.float32)
    return y if self.bias is None else y + along_last(self.bias[...], y)


def _rows(table, ids, kind):
  """Return the rows of a table; for ids outside it NaN, or an error if ids are not traced."""
  concrete = not isinstance(ids, jax.core.Tracer) and getattr(ids, 'is_fully_addressable', True)
  if concrete and ids.size:
    values = np.asarray(jax.device_get(ids))
    if values.min() < 0 or values.max() >= len(table):
      raise ValueError(
        f'{kind} ids are from {values.min()} to {values.max()}, but the model has ids 0 to '
        f'{len(table) - 1}: pass those of its own tokenizer'
      )
  return _lookup(table, jnp.asarray(ids))


@jax.custom_jvp
def _lookup(table, ids):
  """Return table[ids], NaN for negative ids and those beyond the table."""
  ids = jnp.where(ids < 0, len(table), ids.astype(jnp.int32))
  return jnp.take(table, ids, axis=0, mode='fill', fill_value=jnp.nan)


@_lookup.defjvp
def _lookup_derivative(primals, tangents):
  # In training ids outside the table read a wrong row instead of NaN: with the NaN XLA fuses other
  # operations, and the rounding of stored runs would change. The ids come from the tokenizer.
  (table, ids), (tangent, _) = primals, tangents
  return table[ids], tangent[ids]


def _table(rows, width, rngs):
  # with scale_embedding the elements of an embedding have variance 1
  return nnx.Param(width**-0.5 * jax.random.normal(rngs.params(), (rows, width)))
