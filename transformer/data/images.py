"""Images: decoding to a size, readers of the files that hold them, and drawn ones.

An example's 'inputs' is an image: the bytes of an encoded file, its path, or an array [H, W, C].
Files stand in an order that depends on their names alone and is as good as random, so that
'train[:90%]' and 'train[90%:]' make a split for choosing where there is none.
"""

import dataclasses
import gzip
import hashlib
import io
import lzma
import math
import pathlib
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import UInt8

from transformer.data.archives import BROKEN, members
from transformer.data.splits import sliced
from transformer.data.textfiles import find, tsv

Image = str | bytes | np.ndarray
ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp')


def read(image: Image, height: int, width: int, channels: int) -> UInt8[np.ndarray, 'H W C']:
  """The image, scaled until it covers height x width and cut to that around its centre.

  Args:
    image: a path, the bytes of an encoded file, or an array [H, W] or [H, W, C] of 0 to 255.
    height, width: of the result, in pixels.
    channels: 1 for grey, 3 for red, green and blue.

  Raises:
    ValueError: there is no such file, it is no image, or an array of another kind.
  """
  import PIL.Image
  import PIL.ImageOps

  if channels not in (1, 3):
    raise ValueError(f'channels={channels}: give 1 for grey or 3 for red, green and blue')
  if isinstance(image, np.ndarray):
    if (
      image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,))
    ):
      raise ValueError(
        f'an image is an array of uint8 [H, W], [H, W, 1] or [H, W, 3], not {image.dtype} '
        f'{list(image.shape)}: scale its values to 0 to 255'
      )
    if image.shape == (height, width, channels):
      return image
    opened = PIL.Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
  else:
    name = image if isinstance(image, str) else f'{len(image)} bytes'
    file = pathlib.Path(image).expanduser() if isinstance(image, str) else io.BytesIO(image)
    try:
      opened = PIL.Image.open(file)
      opened = PIL.ImageOps.exif_transpose(opened)  # as the camera was held
    except FileNotFoundError as error:
      raise ValueError(f'there is no file {name}: give the path of an image') from error
    except (OSError, SyntaxError) as error:  # the latter of a broken PNG
      raise ValueError(
        f'{name} cannot be read as an image ({error}): give a whole file that Pillow knows, '
        'such as jpg or png'
      ) from error
  opened = opened.convert('RGB' if channels == 3 else 'L')
  if opened.size != (width, height):
    opened = PIL.ImageOps.fit(opened, (width, height), PIL.Image.Resampling.BICUBIC)
  return np.asarray(opened).reshape(height, width, channels)


def idx(folder: pathlib.Path, split: str) -> list[dict[str, Any]]:
  """MNIST's files, `<split>-images-idx3-ubyte` and `<split>-labels-idx1-ubyte`, maybe .gz or .xz.

  Its training images stand in no order, so that any slice of them is as good as another.
  """
  name, part = sliced(split)
  images, labels = (
    _idx(find(folder, [f'{name}-{kind}-ubyte{end}' for end in ('', '.gz', '.xz')]))
    for kind in ('images-idx3', 'labels-idx1')
  )
  if len(images) != len(labels):
    raise ValueError(
      f'{folder}: {len(images)} images and {len(labels)} labels in {name}; give the files that '
      'belong together'
    )
  return [
    {'inputs': images[i][..., None], 'targets': str(labels[i]), 'name': f'{name}/{i}'}
    for i in range(len(images))[part(len(images))]
  ]


def labelled(folder: pathlib.Path, split: str) -> list[dict[str, Any]]:
  """`<split>/<class>/<file>` of a folder, or `<split>.tar` (.gz, .xz) of `<class>/<file>`."""
  files = _files(folder, split)
  for name, _ in files:
    if '/' not in name:
      raise ValueError(
        f'{folder}: {name} of {split} is in no folder; put it in one named as its class'
      )
  return [{'inputs': image, 'targets': name.split('/')[-2], 'name': name} for name, image in files]


def captioned(folder: pathlib.Path, split: str) -> list[dict[str, Any]]:
  """`<split>/<file>` or `<split>.tar` (.gz, .xz), and `<split>_captions.tsv`: image, caption.

  One example for each caption, those of an image one after the other; all of them are its
  'references', against which one caption made for the image is judged.
  """
  name, part = sliced(split)
  table = find(folder, [f'{name}_captions.tsv', f'{name}_captions.tsv.gz'])
  captions: dict[str, list[str]] = {}
  for file, caption in tsv(table, 'image', 'caption'):
    captions.setdefault(file, []).append(caption)
  files = _files(folder, name)
  if absent := captions.keys() - dict(files).keys():
    raise ValueError(
      f'{table}: there is no image {min(absent)} in {name}; add it, or take its lines out'
    )
  examples = []
  for file, image in files[part(len(files))]:
    if file not in captions:
      raise ValueError(f'{table}: {file} has no caption; add one, or take the image away')
    references = tuple(captions[file])
    examples += [
      {'inputs': image, 'targets': caption, 'name': file, 'references': references}
      for caption in references
    ]
  return examples


SHAPES = ('circle', 'square', 'triangle', 'cross')
COLORS = {'red': (220, 40, 40), 'green': (40, 180, 60), 'blue': (50, 70, 220), 'grey': (150,) * 3}


@dataclasses.dataclass(frozen=True)
class Drawn:
  """Shapes drawn on noise, 32 x 32 in colour: 'targets' is the shape's name, or a caption.

  Attributes:
    split: train, val or test; each has pictures of its own.
    targets: label or caption.
    size: number of pictures.
  """

  split: str
  targets: str = 'label'
  size: int = 500

  def __post_init__(self):
    if self.split not in ('train', 'val', 'test'):
      raise ValueError(f'split {self.split!r}: there are train, val and test')
    if self.targets not in ('label', 'caption'):
      raise ValueError(f'shapes have no {self.targets!r}: take label or caption as data.targets')

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
    i = range(self.size)[i]
    rng = np.random.default_rng((('train', 'val', 'test').index(self.split), i))
    shape, color = SHAPES[rng.integers(4)], list(COLORS)[rng.integers(4)]
    radius, (top, left) = rng.integers(4, 9), rng.integers(9, 23, 2)
    y, x = np.mgrid[:32, :32] - np.array([top, left])[:, None, None]
    inside = {
      'circle': x**2 + y**2 <= radius**2,
      'square': np.maximum(abs(x), abs(y)) <= 0.85 * radius,
      'triangle': (abs(y) <= radius) & (2 * abs(x) <= y + radius),
      'cross': (np.minimum(abs(x), abs(y)) <= radius / 4) & (np.maximum(abs(x), abs(y)) <= radius),
    }[shape]
    image = rng.integers(0, 80, (32, 32, 3))
    image[inside] = COLORS[color] + image[inside] // 3
    caption = f'a {"big" if radius > 6 else "small"} {color} {shape}'
    targets = shape if self.targets == 'label' else caption
    return {
      'inputs': image.clip(0, 255).astype(np.uint8),
      'targets': targets,
      'name': f'{self.split}/{i}',
    }


def _files(folder: pathlib.Path, split: str) -> list[tuple[str, Image]]:
  """The images of a split by their names below it, in an order as good as random."""
  name, part = sliced(split)
  found = members(folder, name, ENDINGS)
  order = sorted(found, key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest())
  return [(name, found[name]) for name in order[part(len(order))]]


def _idx(file: pathlib.Path) -> UInt8[np.ndarray, '...']:
  """An array in LeCun's format: two zeros, the type 8, the axes, their sizes, the bytes."""
  opener: Any = {'.gz': gzip.open, '.xz': lzma.open}.get(file.suffix, open)
  try:
    with opener(file, 'rb') as opened:
      data: bytes = opened.read()
  except BROKEN as error:
    raise ValueError(f'{file}: broken file ({error}); copy it anew') from error
  axes = data[3] if data[:3] == b'\0\0\x08' and len(data) > 3 else 0
  shape: Sequence[int] = np.frombuffer(data[4 : 4 + 4 * axes], '>i4').tolist()
  if not axes or len(data) != 4 + 4 * axes + math.prod(shape):
    raise ValueError(f'{file}: not a whole idx file of bytes; copy it anew')
  return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
