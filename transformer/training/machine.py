"""Settings of JAX and of the memory allocator, which `run.py` makes before it computes."""

import ctypes
import importlib.metadata
import importlib.util
import os
import pathlib

import jax
from absl import logging

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h of glibc


def tune():
  """Call `keep_freed_memory` and `keep_compiled`, unless TRANSFORMER_TUNE=0 is set."""
  if os.environ.get('TRANSFORMER_TUNE') != '0':
    keep_freed_memory()
    keep_compiled()


def keep_freed_memory():
  """Let glibc keep large buffers after they are freed; without glibc do nothing.

  XLA on a CPU allocates the same buffers every step. By default each is mapped, zeroed page by page
  and unmapped again, which takes a third of a training step. Only the main arena keeps buffers
  larger than 64 MiB, so this allows no other arena: a step with convolutions is 1.7 times faster,
  although the tokenizer's threads wait for each other (2.4 times slower, for seconds). If JAX has
  an accelerator, two arenas per core are allowed.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    logging.debug('no glibc: the allocator stays as it is')
    return
  mallopt(M_MMAP_MAX, 0)
  mallopt(M_TRIM_THRESHOLD, -1)
  # not jax.devices(), which starts threads; arenas must be set before
  accelerated = importlib.metadata.entry_points(group='jax_plugins') or importlib.util.find_spec(
    'libtpu'
  )
  mallopt(M_ARENA_MAX, 2 * cores() if accelerated else 1)


def keep_compiled():
  """Let JAX keep compiled programs on disk, so that the same command starts faster the next time.

  The folder is $JAX_COMPILATION_CACHE_DIR (no cache if that is empty), or ~/.cache/transformer.
  """
  if 'JAX_COMPILATION_CACHE_DIR' in os.environ or jax.config.jax_compilation_cache_dir:
    return
  try:
    cache = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  except RuntimeError:  # a user without HOME and without an entry in /etc/passwd
    return
  jax.config.update('jax_compilation_cache_dir', str(pathlib.Path(cache) / 'transformer'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


def start_devices():
  """Start JAX's devices.

  Raises:
    ValueError: there are no devices of the platform in JAX_PLATFORMS.
  """
  try:
    jax.devices()
  except (AssertionError, RuntimeError) as error:  # the first where a plugin is missing
    platforms, reason = os.environ.get('JAX_PLATFORMS', ''), str(error).partition('\n')[0]
    raise ValueError(
      f'JAX_PLATFORMS={platforms} cannot be used here{reason and f" ({reason})"}: set '
      'JAX_PLATFORMS=cpu, or install what JAX needs for these devices, such as "jax[cuda12]"'
    ) from error


def cores() -> int:
  """Return the number of processor cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):  # Linux
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
