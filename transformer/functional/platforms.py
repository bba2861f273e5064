"""The platform that a program is compiled for, as a value.

A platform is a string: JAX's name, such as 'cpu' or 'tpu'; for GPUs 'rocm', 'cuda', or 'cuda:7.5'
with the compute capability. Functions with several implementations take it as an argument, so that
a program can be compiled on one machine for the devices of another.
"""

import pathlib
from typing import Any

import jax


def of_device(device: Any) -> str:
  """Return the platform of a device.

  >>> of_device(jax.devices('cpu')[0])
  'cpu'
  """
  if device.platform != 'gpu':
    return device.platform
  capability = str(getattr(device, 'compute_capability', ''))
  is_cuda = capability.replace('.', '', 1).isdigit()  # AMD's are names, such as gfx90a
  return f'cuda:{capability}' if is_cuda else 'rocm'


def resolve(platform: str | None) -> str:
  """Return the platform, or that of `jax.devices()[0]` if it is None or ''.

  Only this function and `several_devices` look at the devices of the process; nothing else in
  `functional` and `modules` does.
  """
  return platform or of_device(jax.devices()[0])


def several_devices() -> bool:
  """Return whether the process has more than one device."""
  return len(jax.devices()) > 1


def compute_capability(platform: str) -> float:
  """Return the compute capability of a 'cuda' platform, and 0 for any other.

  It is infinity for 'cuda' without a number, which is taken to have every instruction.

  >>> compute_capability('cuda:9.0'), compute_capability('cuda'), compute_capability('tpu')
  (9.0, inf, 0.0)
  """
  kind, _, capability = platform.partition(':')
  return float(capability or 'inf') if kind == 'cuda' else 0.0


def matmul_dtype(platform: str) -> str:
  """Return the dtype, 'bfloat16' or 'float32', in which the platform multiplies matrices faster.

  TPUs, AMD's GPUs and NVIDIA's from compute capability 8.0 on have units for bfloat16, and so have
  CPUs with AMX or AVX512-BF16 (a quarter of the time of float32, measured with AMX; from jax 0.8.2
  on). Other CPUs
  convert to float32 first (twice the time, measured on Zen 3). The choice for a CPU follows its
  instructions, not a timing, so that the load of the machine cannot change a run's numbers.

  >>> matmul_dtype('cuda:9.0'), matmul_dtype('cuda:7.5'), matmul_dtype('tpu')
  ('bfloat16', 'float32', 'bfloat16')
  """
  if platform == 'cpu':
    has_units = _cpu_has_units() and cpu_multiplies_bfloat16()
  else:
    has_units = not platform.startswith('cuda') or compute_capability(platform) >= 8
  return 'bfloat16' if has_units else 'float32'


def cpu_multiplies_bfloat16() -> bool:
  """Return whether this CPU can run every product of bfloat16 that XLA compiles.

  For CPUs with units for it, jax before 0.8.2 compiles a batch of matrices times one matrix to what
  cannot be run: "Unsupported element type for DotThunk".
  """
  return jax.__version_info__ >= (0, 8, 2) or not _cpu_has_units()


def _cpu_has_units() -> bool:
  return bool({'amx_bf16', 'avx512_bf16'} & _cpu_instructions())


def _cpu_instructions() -> set[str]:
  """Return the words of /proc/cpuinfo, among them the CPU's instruction sets; none if not Linux."""
  try:
    return set(pathlib.Path('/proc/cpuinfo').read_text().split())
  except OSError:
    return set()
