"""Image files as arrays of pixels."""

import io

import numpy as np
from jaxtyping import UInt8


def read(
  image: str | bytes | np.ndarray, height: int, width: int, channels: int
) -> UInt8[np.ndarray, 'H W C']:
  """The pixels of an image, scaled to cover height x width, its middle kept.

  Args:
    image: a path, the content of a file, or pixels [h, w] or [h, w, c].
    height, width: of the result.
    channels: 1 is grey, 3 red, green and blue.

  Raises:
    ValueError: it is no image that Pillow can read.
  """
  from PIL import Image, ImageOps, UnidentifiedImageError

  try:
    if isinstance(image, np.ndarray):
      opened = Image.fromarray(image.squeeze(-1) if image.shape[2:] == (1,) else image)
    else:
      opened = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
    opened = opened.convert({1: 'L', 3: 'RGB'}[channels])
  except (OSError, UnidentifiedImageError) as error:
    name = 'the image' if isinstance(image, (bytes, np.ndarray)) else repr(image)
    raise ValueError(f'{name} cannot be read ({error}): give a PNG or JPEG file') from error
  if opened.size != (width, height):
    opened = ImageOps.fit(opened, (width, height), Image.Resampling.BICUBIC)
  return np.asarray(opened, np.uint8).reshape(height, width, channels)
