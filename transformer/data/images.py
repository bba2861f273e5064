"""Images: decoding and scaling to a size.

An image is the bytes of an encoded file, its path, or an array [H, W, C].
"""

import io
import pathlib

import numpy as np
from jaxtyping import UInt8

Image = str | bytes | np.ndarray


def read(image: Image, height: int, width: int, channels: int) -> UInt8[np.ndarray, 'H W C']:
  """Return the image, scaled until it covers height x width, and cropped to that at its centre.

  Args:
    image: a path, the bytes of an encoded file, or an array [H, W] or [H, W, C] of 0 to 255.
    height, width: of the result, in pixels.
    channels: 1 for grey, 3 for red, green and blue.

  Raises:
    ValueError: the file does not exist or is no image, or the array has another shape or type.
  """
  import PIL.Image
  import PIL.ImageOps

  if channels not in (1, 3):
    raise ValueError(f'channels={channels}: give 1 for grey or 3 for red, green and blue')
  if isinstance(image, np.ndarray):
    flat = image.ndim == 2 or image.shape[2:] == (1,)
    if image.dtype != np.uint8 or not (flat or image.ndim == 3 and image.shape[2] == 3):
      raise ValueError(
        f'an image is an array of uint8 [H, W], [H, W, 1] or [H, W, 3], not {image.dtype} '
        f'{list(image.shape)}: scale its values to 0 to 255'
      )
    if image.shape == (height, width, channels):
      return image
    opened = PIL.Image.fromarray(image.reshape(image.shape[:2]) if flat else image)
  else:
    opened = _decode(image)
  opened = opened.convert('RGB' if channels == 3 else 'L')
  if opened.size != (width, height):
    opened = PIL.ImageOps.fit(opened, (width, height), PIL.Image.Resampling.BICUBIC)
  return np.asarray(opened).reshape(height, width, channels)


def _decode(image: str | bytes):
  import PIL.Image
  import PIL.ImageOps

  name = image if isinstance(image, str) else f'{len(image)} bytes'
  file = pathlib.Path(image).expanduser() if isinstance(image, str) else io.BytesIO(image)
  try:
    return PIL.ImageOps.exif_transpose(PIL.Image.open(file))  # upright, whatever the camera did
  except FileNotFoundError as error:
    raise ValueError(f'there is no file {name}: give the path of an image') from error
  except (OSError, SyntaxError) as error:  # Pillow raises the latter for a broken PNG
    raise ValueError(
      f'{name} cannot be read as an image ({error}): give a whole file that Pillow knows, such as '
      'jpg or png'
    ) from error
