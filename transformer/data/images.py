"""Decoding images and scaling them to a size.

An image is the bytes of an encoded file, its path, or an array [H, W, C].
"""

import contextlib
import io
import pathlib
from typing import Any

import numpy as np
from jaxtyping import UInt8

from transformer.data.reading import as_file_or_array, naming

Image = str | bytes | np.ndarray
MAX_PIXELS = 1 << 26  # 8192 x 8192; to decode them takes half a gigabyte of memory


def read(
  image: Image,
  height: int,
  width: int,
  channels: int,
  *,
  scale: tuple[int, ...] = (),
  resample: str = 'bicubic',
) -> UInt8[np.ndarray, 'H W C']:
  """Return the image, scaled so that it just covers height x width, and center-cropped to that.

  It is rotated by its EXIF orientation, put on white where it is transparent, and scaled from 16 to
  8 bits. Of an animation or a multi-page file the first image is used.

  Args:
    image: a path, the bytes of an encoded file, or an array [H, W] or [H, W, C] of uint8, uint16
      (white is 65,535) or bool.
    height, width: of the result, in pixels.
    channels: 1 for gray, 3 for red, green and blue.
    scale: size in pixels to scale to before the center-crop: (shorter side,), or (height, width)
      without keeping the ratio; (): so that the image just covers height x width.
    resample: Pillow's filter: nearest, box, bilinear, hamming, bicubic or lanczos.

  Raises:
    ValueError: the file does not exist, is no image that Pillow can decode, or has more pixels than
      MAX_PIXELS; or the array has another shape or dtype.
  """
  import PIL.Image
  import PIL.ImageOps

  if channels not in (1, 3):
    raise ValueError(f'channels={channels}: give 1 for gray or 3 for red, green and blue')
  image = as_file_or_array(image)
  if isinstance(image, np.ndarray):
    if not scale and image.shape == (height, width, channels) and image.dtype == np.uint8:
      return image
    name, opened = 'an array', _from_array(image)
  else:
    name = image if isinstance(image, str) else f'an image of {len(image)} bytes'
    name = getattr(image, 'name', name)  # of archives.Content
    opened = _decode(image, name)
  with naming(name):
    opened = opened.convert('RGB' if channels == 3 else 'L')
    method = PIL.Image.Resampling[resample.upper()]
    if scale:
      opened = _scaled_and_cut(opened, height, width, scale, method)
    elif opened.size != (width, height):
      opened = PIL.ImageOps.fit(opened, (width, height), method)
    return np.asarray(opened).reshape(height, width, channels)


def _scaled_and_cut(image, height, width, scale, method):
  """Return a Pillow image scaled and center-cropped, with the rounding of `transformers`."""
  if len(scale) == 1:
    shorter, longer = sorted(image.size)
    scale = tuple(scale[0] if x == shorter else scale[0] * longer // shorter for x in image.size)
  else:
    scale = scale[::-1]
  image = image.resize(scale, method)
  left, top = (scale[0] - width) // 2, (scale[1] - height) // 2
  return image.crop((left, top, left + width, top + height))


def _from_array(image: np.ndarray):
  import PIL.Image

  flat = image.ndim == 2 or image.shape[2:] == (1,)
  scales = {'u1': 1, 'u2': 257, 'b1': 1 / 255}  # by dtype: kind and bytes
  scale = scales.get(image.dtype.str[1:])
  if not scale or not (flat or image.ndim == 3 and image.shape[2] == 3) or not image.size:
    raise ValueError(
      f'an image is an array of uint8, uint16 or bool, [H, W], [H, W, 1] or [H, W, 3], not '
      f'{image.dtype} {list(image.shape)}: scale its values to 0 to 255'
    )
  if scale != 1:
    image = (image / scale).round().astype(np.uint8)
  return PIL.Image.fromarray(image.reshape(image.shape[:2]) if flat else image)


def _decode(image: str | bytes, name: str) -> Any:
  """Return a Pillow image that converts to 'RGB' and 'L'."""
  import PIL.Image

  cure = 'give a whole file that Pillow knows, such as jpg or png'
  try:
    with naming(f'{name} cannot be read as an image', cure):
      file = pathlib.Path(image).expanduser() if isinstance(image, str) else io.BytesIO(image)
      with PIL.Image.open(file) as opened:
        if opened.width * opened.height > MAX_PIXELS:
          raise ValueError(
            f'{opened.width} x {opened.height} pixels are more than {MAX_PIXELS:,}: scale it down'
          )
        opened.load()
        return _opaque(_upright(opened))
  except FileNotFoundError as error:
    raise ValueError(f'there is no file {name}: give the path of an image') from error


def _upright(image: Any) -> Any:
  """Return the image rotated by its EXIF orientation.

  PIL.ImageOps.exif_transpose does this, too, but writes the EXIF block again and fails at malformed
  fields.
  """
  from PIL.Image import Transpose

  turned = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
  }
  method = None
  with contextlib.suppress(Exception):  # ignore a malformed EXIF block, as viewers do
    method = turned.get(image.getexif().get(0x0112))
  return image if method is None else image.transpose(method)


def _opaque(image: Any) -> Any:
  """Return the image with 8 bits a channel, on white where it is transparent."""
  import PIL.Image

  if image.mode.startswith('I;16') or image.mode == 'I' and image.getextrema()[1] > 255:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65_535:
      raise ValueError(f'its values, {values.min()} to {values.max()}, have more than 16 bits')
    return _from_array(values.astype(np.uint16))
  if image.mode in ('I', 'F'):
    raise ValueError(f'the range of its values is unknown (mode {image.mode})')
  if image.has_transparency_data:
    white = PIL.Image.new('RGBA', image.size, 'white')
    return PIL.Image.alpha_composite(white, image.convert('RGBA'))
  return image.convert('RGB') if image.mode == 'LAB' else image
