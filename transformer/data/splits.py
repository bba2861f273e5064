"""Which examples make a split: a slice of a larger one, or those whose text has a certain hash."""

import hashlib
import re
from typing import Any


def sliced(split: str) -> tuple[str, Any]:
  """The name of a split, and of a size the slice that is meant: 'train[:90%]', 'train[100:]'.

  Raises:
    ValueError: the slice is written in another way.
  """
  found = re.fullmatch(r'([^\[\]]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?', split)
  if not found:
    raise ValueError(f'split {split!r}: write train, train[:90%], train[90%:] or train[100:200]')
  name, *bounds = found.groups()

  def part(size: int) -> slice:
    def place(bound):
      return bound and (size * int(bound[:-1]) // 100 if bound.endswith('%') else int(bound))

    return slice(*map(place, bounds))

  return name, part


def split_of(text: str) -> str:
  """'train' (90 %), 'val' (5 %) or 'test' (5 %), by a hash: equal texts are in one split."""
  digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
  return {0: 'val', 1: 'test'}.get(int.from_bytes(digest) % 20, 'train')
