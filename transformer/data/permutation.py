"""A random permutation of any size that is computed instead of stored, to shuffle large corpora."""

import numpy as np
from jaxtyping import Int

ROUNDS = 8


def permute(i: Int[np.ndarray, ' n'], size: int, seed: tuple[int, ...]) -> Int[np.ndarray, ' n']:
  """Return the images of the indices `i` under a random permutation of range(size).

  An alternating Feistel network permutes all numbers with as many bits as `size`. It is applied
  again to a result that is not below `size`, until it is (cycle walking). Black and Rogaway 2002,
  https://doi.org/10.1007/3-540-45760-7_9, sections 5 and 6.

  >>> permute(np.arange(7), 7, (0, 1))
  array([1, 2, 0, 6, 3, 5, 4])

  Args:
    i: indices in range(size).
    size: of the permutation, at least 1.
    seed: of the permutation.
  """
  bits = int(size - 1).bit_length()
  half = np.uint64(bits // 2)
  low_mask, high_mask = (np.uint64((1 << n) - 1) for n in (bits // 2, bits - bits // 2))
  keys = np.random.SeedSequence(seed).generate_state(ROUNDS, np.uint64)

  def once(x):
    low, high = x & low_mask, x >> half
    for even, odd in zip(keys[::2], keys[1::2], strict=True):
      high ^= _mixed(low ^ even) & high_mask
      low ^= _mixed(high ^ odd) & low_mask
    return low | high << half

  x = once(i.astype(np.uint64))
  while (outside := x >= size).any():
    x[outside] = once(x[outside])
  return x.astype(np.int64)


def _mixed(x: np.ndarray) -> np.ndarray:
  """Return a hash of each number: the mixing function of SplitMix64 (Steele et al. 2014)."""
  x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
  return x ^ x >> np.uint64(31)
