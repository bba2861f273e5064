"""The process's memory allocator, told to keep what it has."""

import ctypes

from absl import logging

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h of glibc


def keep_freed_memory():
  """Stops glibc from giving every large buffer back to the system and asking for it anew.

  XLA on a CPU allocates the same buffers every step; by default each is mapped, zeroed page by page
  and unmapped again, which costs a third of a training step. Does nothing where there is no glibc.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    logging.debug('no glibc: the allocator stays as it is')
    return
  mallopt(M_MMAP_MAX, 0)
  mallopt(M_TRIM_THRESHOLD, -1)
  mallopt(M_ARENA_MAX, 1)
