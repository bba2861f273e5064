"""Splits of a corpus: slices such as train[:90%], and division by a hash of the text."""

import hashlib
import re
from typing import Any


def parse_split(split: str) -> tuple[str, Any]:
  """Return the name in a split such as 'train[:90%]' or 'train[100:200]', and its slice.

  The slice is a function from the number of examples to a `slice`.

  Raises:
    ValueError: the split has another form.
  """
  match = re.fullmatch(r'([^\[\]]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?', split)
  if not match:
    raise ValueError(f'split {split!r}: write train, train[:90%], train[90%:] or train[100:200]')
  name, *bounds = match.groups()

  def slice_of(size: int) -> slice:
    def index(bound):
      return bound and (size * int(bound[:-1]) // 100 if bound.endswith('%') else int(bound))

    return slice(*map(index, bounds))

  return name, slice_of


def take(examples: list[Any], split: str, corpus: str) -> list[Any]:
  """Return the slice of the examples that is in the name of a split, such as train[:90%].

  Args:
    examples: of the whole split.
    split: name, maybe with a slice.
    corpus: for the error.

  Raises:
    ValueError: the slice is empty.
  """
  _, slice_of = parse_split(split)
  if not (part := examples[slice_of(len(examples))]):
    raise ValueError(f'split {split!r} of {corpus} has no example: take another part')
  return part


def split_by_hash(text: str) -> str:
  """Return 'train' (90 %), 'val' (5 %) or 'test' (5 %), depending only on the text."""
  return {0: 'val', 1: 'test'}.get(hash_of(text) % 20, 'train')


def hash_of(text: str) -> int:
  """Return a hash of 64 bits that is the same on every machine, unlike that of `hash`."""
  return int.from_bytes(
    hashlib.blake2b(text.encode(errors='surrogatepass'), digest_size=8).digest()
  )
