"""Synthetic images: shapes on noise, to classify or to caption."""

import dataclasses
from typing import Any, SupportsIndex

import numpy as np

SPLITS = ('train', 'val', 'test')
SHAPES = ('circle', 'square', 'triangle', 'cross')
COLORS = {'red': (220, 40, 40), 'green': (40, 180, 60), 'blue': (50, 70, 220), 'grey': (150,) * 3}


@dataclasses.dataclass(frozen=True)
class Shapes:
  """Color images of 32 x 32 pixels with a shape on noise; 'targets' is its name or a caption.

  Attributes:
    split: train, val or test; each has different images.
    targets: label or caption.
    size: number of images.
  """

  split: str
  targets: str = 'label'
  size: int = 500

  def __post_init__(self):
    if self.split not in SPLITS:
      raise ValueError(f'split {self.split!r} of shapes: take one of {", ".join(SPLITS)}')
    if self.targets not in ('label', 'caption'):
      raise ValueError(f'shapes have no {self.targets!r}: take label or caption as data.target')

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
    i = range(self.size)[i]
    rng = np.random.default_rng((SPLITS.index(self.split), i))
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
    return {
      'inputs': image.clip(0, 255).astype(np.uint8),
      'targets': shape if self.targets == 'label' else caption,
      'name': f'{self.split}/{i}',
    }
