"""Padding of requests to batches of a few fixed shapes, so that few programs are compiled."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

PAD = -1  # padding of tokens; no id >= 0, which may be a real token. Frames are padded with NaN
Row = Sequence[int] | np.ndarray


def bucket_length(length: int, max_length: int) -> int:
  """Return the padded length of a row: 8, 16, 32, ..., at most `max_length`, at least `length`."""
  return min(max(8, 1 << (length - 1).bit_length()), max(max_length, length))


def pad_rows(
  rows: Sequence[Row], length: int, *, left: bool = False, pad: int = PAD
) -> Shaped[np.ndarray, 'B length ...']:
  """Return the rows as one array, padded on the right or left: tokens with `pad`, frames with NaN.

  Integer images are padded with 0.
  """
  first = np.asarray(rows[0])
  if first.ndim == 1:
    array = np.full((len(rows), length), pad, np.int32)
  else:
    fill = np.nan if first.dtype.kind == 'f' else 0
    array = np.full((len(rows), length, *first.shape[1:]), fill, first.dtype)
  for padded, row in zip(array, rows, strict=True):
    padded[slice(length - len(row), None) if left else slice(len(row))] = row
  return array


@jax.jit
def split_padding(
  rows: Shaped[Array, 'B S ...'],
) -> tuple[Shaped[Array, 'B S ...'], Int[Array, 'B ...']]:
  """Return the rows with 0 in place of the padding of `pad_rows`, and segments 1, or 0 for padding.

  Segments are [B, S]; images (uint8), which are never padded, have segments [B].
  """
  if rows.dtype == jnp.uint8:  # images are never padded
    return rows, jnp.ones(len(rows), jnp.int32)
  tokens = jnp.issubdtype(rows.dtype, jnp.integer)
  real = rows != PAD if tokens else ~jnp.isnan(rows[..., 0])
  rows = jnp.where(real, rows, 0) if tokens else jnp.where(real[..., None], rows, 0)
  return rows, real.astype(jnp.int32)
