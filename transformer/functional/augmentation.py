"""Random augmentation of images, independent for each image of a batch.

Pixel values may have any scale. Shapes do not change. A strength of 0 changes nothing.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def flip(key: Key[Array, ''], images: Float[Array, 'B H W C']) -> Float[Array, 'B H W C']:
  """Mirror each image left to right with probability 1/2."""
  chosen = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
  return jnp.where(chosen, images[:, :, ::-1], images)


def shift(
  key: Key[Array, ''], images: Float[Array, 'B H W C'], most: int
) -> Float[Array, 'B H W C']:
  """Move each image by up to `most` pixels along each axis, repeating its edges.

  This is a random crop of the padded image (He et al. 2016, https://arxiv.org/abs/1512.03385,
  section 4.2).
  """
  if not most:
    return images
  padded = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode='edge')
  corners = jax.random.randint(key, (len(images), 2), 0, 2 * most + 1)

  def crop(image, corner):
    return jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])

  return jax.vmap(crop)(padded, corners)


def turn(
  key: Key[Array, ''], images: Float[Array, 'B H W C'], degrees: float, zoom: float
) -> Float[Array, 'B H W C']:
  """Rotate each image by up to `degrees` either way and scale it by 1 - zoom to 1 + zoom.

  Height and width are scaled independently. Values between pixels are interpolated linearly; beyond
  the edge the nearest pixel is used.
  """
  if not (degrees or zoom):
    return images
  B, H, W, _ = images.shape
  angle_key, scale_key = jax.random.split(key)
  angle = math.radians(degrees) * jax.random.uniform(angle_key, (B, 1, 1), minval=-1, maxval=1)
  scale = 1 + zoom * jax.random.uniform(scale_key, (2, B, 1, 1), minval=-1, maxval=1)
  y, x = (jnp.arange(n, dtype=jnp.float32) - (n - 1) / 2 for n in (H, W))
  y, x = y[None, :, None], x[None, None]
  # the coordinates in the image of each pixel of the result
  rows = (jnp.cos(angle) * y - jnp.sin(angle) * x) / scale[0] + (H - 1) / 2
  columns = (jnp.sin(angle) * y + jnp.cos(angle) * x) / scale[1] + (W - 1) / 2

  def sample(image, rows, columns):
    def values(channel):
      return jax.scipy.ndimage.map_coordinates(channel, [rows, columns], order=1, mode='nearest')

    return jax.vmap(values, in_axes=-1, out_axes=-1)(image)

  return jax.vmap(sample)(images, rows, columns)


def erase(
  key: Key[Array, ''], images: Float[Array, 'B H W C'], size: int
) -> Float[Array, 'B H W C']:
  """Replace a random square by the mean of the image (Cutout).

  The square is size x size pixels and may be partly outside. DeVries & Taylor 2017,
  https://arxiv.org/abs/1708.04552.
  """
  if not size:
    return images
  B, H, W, _ = images.shape
  row_key, column_key = jax.random.split(key)

  def interval(key, length):
    center = jax.random.randint(key, (B, 1), 0, length)
    start = center - size // 2
    index = jnp.arange(length)[None]
    return (index >= start) & (index < start + size)

  erased = interval(row_key, H)[:, :, None, None] & interval(column_key, W)[:, None, :, None]
  return jnp.where(erased, images.mean(axis=(1, 2), keepdims=True), images)


def recolor(
  key: Key[Array, ''], images: Float[Array, 'B H W C'], strength: float
) -> Float[Array, 'B H W C']:
  """Multiply brightness, contrast and saturation each by a factor in 1 - strength to 1 + strength.

  Contrast is the distance to the mean of the image, saturation the distance to the pixel's gray.
  Howard 2013, https://arxiv.org/abs/1312.5402, section 2.
  """
  if not strength:
    return images
  factors = 1 + strength * jax.random.uniform(key, (3, len(images), 1, 1, 1), minval=-1, maxval=1)
  images = images * factors[0]
  mean = images.mean(axis=(1, 2, 3), keepdims=True)
  images = mean + (images - mean) * factors[1]
  gray = images.mean(axis=3, keepdims=True)
  return gray + (images - gray) * factors[2]
