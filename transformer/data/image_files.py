"""Files of images: MNIST's, folders by class, captioned images.

Files are sorted by a hash of their names, so that their order is random but always the same, and
'train[:90%]' and 'train[90%:]' are a training and a validation split.
"""

import math
import pathlib
from typing import Any

import numpy as np
from jaxtyping import UInt8

from transformer.data.files import files_of_split, find_file, is_undivided
from transformer.data.images import Image
from transformer.data.reading import naming, open_file
from transformer.data.splits import hash_of, parse_split, split_by_hash
from transformer.data.text_files import read_tsv

ENDINGS = (
  *('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.bmp', '.gif', '.webp', '.avif', '.tif', '.tiff'),
  *('.pbm', '.pgm', '.ppm', '.pnm', '.tga'),
)


def idx(folder: pathlib.Path, split: str) -> list[dict[str, Any]]:
  """Return MNIST's `<split>-images-idx3-ubyte` and `<split>-labels-idx1-ubyte`, maybe .gz or .xz.

  They are in the order of the file, because MNIST's training images are already in random order.
  """
  name, slice_of = parse_split(split)
  images, labels = (
    _read_idx(find_file(folder, [f'{name}-{kind}-ubyte']))
    for kind in ('images-idx3', 'labels-idx1')
  )
  if len(images) != len(labels) or images.ndim != 3 or labels.ndim != 1:
    raise ValueError(
      f'{folder}: {len(images)} images and {len(labels)} labels in {name}, of shapes '
      f'{list(images.shape)} and {list(labels.shape)}; give the files that belong together'
    )
  return [
    {'inputs': images[i][..., None], 'targets': str(labels[i]), 'name': f'{name}/{i}'}
    for i in range(len(images))[slice_of(len(images))]
  ]


def labelled(folder: pathlib.Path, split: str) -> list[dict[str, Any]]:
  """Return `<split>/<class>/<file>`, or `<class>/<file>` of `<split>.tar` (.gz, .xz).

  The folders of classes may also be in `folder` itself; the files are then divided into splits by a
  hash of their names.
  """
  files = _files(folder, split)
  for name, _ in files:
    if '/' not in name:
      raise ValueError(
        f'{folder}: {name} of {split} is in no folder; put it in one named as its class'
      )
  return [{'inputs': image, 'targets': name.split('/')[-2], 'name': name} for name, image in files]


def captioned(folder: pathlib.Path, split: str) -> list[dict[str, Any]]:
  """Return images of `<split>/` or `<split>.tar` (.gz, .xz) with `<split>_captions.tsv`.

  There is an example for each caption; those of an image are neighbors. 'references' are all
  captions of the image, with which a generated one is compared.
  """
  name, slice_of = parse_split(split)
  table = find_file(folder, [f'{name}_captions.tsv'])
  captions: dict[str, list[str]] = {}
  for file, caption in read_tsv(table, 'image', 'caption'):
    captions.setdefault(file, []).append(caption)
  files = _files(folder, name)
  if missing := captions.keys() - dict(files).keys():
    raise ValueError(
      f'{table}: there is no image {min(missing)} in {name}; add it, or remove its lines'
    )
  examples = []
  for file, image in files[slice_of(len(files))]:
    if file not in captions:
      raise ValueError(f'{table}: {file} has no caption; add one, or remove the image')
    references = tuple(captions[file])
    examples += [
      {'inputs': image, 'targets': caption, 'name': file, 'references': references}
      for caption in references
    ]
  return examples


def _files(folder: pathlib.Path, split: str) -> list[tuple[str, Image]]:
  """Return the (name, image) pairs of a split, sorted by a hash of the names."""
  name, slice_of = parse_split(split)
  undivided = is_undivided(folder, name)
  files = files_of_split(folder, '' if undivided else name, ENDINGS)
  order = [n for n in sorted(files, key=hash_of) if not undivided or split_by_hash(n) == name]
  if not order:
    raise ValueError(
      f'{folder}: none of its {len(files)} files is for {name!r}, 90/5/5 % by hash are for train, '
      'val and test: add more, or put them into folders of these names'
    )
  return [(name, files[name]) for name in order[slice_of(len(order))]]


def _read_idx(file: pathlib.Path) -> UInt8[np.ndarray, '...']:
  """Return the array in a file of MNIST's format: 0, 0, type 8, number of axes, sizes, bytes."""
  with naming(file), open_file(file) as opened:
    data = opened.read()
    axes = data[3] if data[:3] == b'\0\0\x08' and len(data) > 3 else 0
    shape = np.frombuffer(data[4 : 4 + 4 * axes], '>i4').tolist()
    if not axes or min(shape) < 0 or len(data) != 4 + 4 * axes + math.prod(shape):
      raise ValueError('not a whole idx file of bytes')
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
