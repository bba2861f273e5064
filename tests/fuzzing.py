"""Deterministic damage to files, and the check that readers name what they cannot read."""

import json
import pathlib
import re
import resource
import time
import warnings

import numpy as np

SECONDS = 20  # for one input
MEMORY = 2 << 30  # bytes, for all
ODD = (None, True, -1, 1e308, 2**70, '', '\ud800', 'a\nb', [], [[]], {}, {'a': {}}, 'x' * 5000)


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
  """Return a damaged copy: cut, changed, repeated or, of JSON, with a value of another kind."""
  data = bytearray(content)
  for _ in range(rng.integers(1, 4)):
    start = int(rng.integers(len(data) + 1))
    if rng.random() < 0.5:  # most of what a parser believes is in the header
      start = min(start, int(rng.integers(64)))
    end = start + int(rng.integers(1, 1 + int(rng.choice([1, 4, 64]))))
    match rng.integers(7):
      case 0:
        del data[start:]
      case 1:
        del data[start:end]
      case 2:
        data[start:start] = data[start:end] * int(rng.choice([1, 2, 50]))
      case 3:
        data[start:end] = rng.bytes(end - start)
      case 4:
        data[start:end] = bytes([int(rng.choice([0, 1, 127, 255]))]) * (end - start)
      case 5 if start < len(data):
        data[start] ^= 1 << int(rng.integers(8))
      case 6 if values := [*re.finditer(rb'"[^"]*"|-?\d+|\[|\{', data)]:
        found = values[rng.integers(len(values))]
        odd = json.dumps(ODD[rng.integers(len(ODD))]).encode()
        data[found.start() : found.end()] = odd if rng.random() < 0.8 else b'[' * 50_000
  return bytes(data)


def check_refusals(read, path: pathlib.Path, contents, *, names=()):
  """Give a reader each content of a file: it must return, or raise an error that names the file.

  Args:
    read: a function without arguments.
    path: of the file.
    contents: its damaged contents.
    names: others that the error may name, such as those of members.
  """
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for number, content in enumerate(contents):
    path.write_bytes(content)
    began = time.perf_counter()
    try:
      with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of libraries: what follows matters
        read()
    except (ValueError, OSError) as error:
      named = any(name in str(error) for name in (path.name.partition('.')[0], *names))
      if not named or type(error).__name__ not in ('FileError', 'ValueError', 'FileNotFoundError'):
        raise AssertionError(f'input {number} of {path}: {error!r}') from error
    except BaseException as error:
      raise AssertionError(f'input {number} of {path}: {error!r}') from error
    seconds = time.perf_counter() - began
    assert seconds < SECONDS, f'input {number} of {path} took {seconds:.0f} s'
  grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
  assert grown < MEMORY, f'{path} took {grown:,} bytes'
