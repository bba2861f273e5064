"""The platform that a program is compiled for, as a value.

A platform is a string: JAX's name, such as 'cpu' or 'tpu'; for GPUs 'rocm', 'cuda', or 'cuda:7.5'
with the compute capability. Functions with several implementations take it as an argument, so that
a program can be compiled on one machine for the devices of another.
"""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


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
  """Return the platform, or that of `jax.devices()[0]` if none is given.

  This and `several_devices` are the only places in `functional` and `modules` that look at the
  devices of the process.
  """
  return platform or of_device(jax.devices()[0])


def several_devices() -> bool:
  """Return whether the process has more than one device."""
  return len(jax.devices()) > 1


def compute_capability(platform: str) -> float:
  """Return the compute capability of a 'cuda' platform, and 0 of any other.

  It is infinity for 'cuda' without a number, as if every instruction were there.

  >>> compute_capability('cuda:9.0'), compute_capability('cuda'), compute_capability('tpu')
  (9.0, inf, 0.0)
  """
  kind, _, capability = platform.partition(':')
  return float(capability or 'inf') if kind == 'cuda' else 0.0


@functools.cache
def matmul_dtype(platform: str) -> str:
  """Return the faster dtype for operands of products that are summed in float32.

  TPUs, AMD's GPUs and NVIDIA's from compute capability 8.0 on have units for bfloat16. A CPU is
  measured, once in a process: some have instructions for bfloat16 (AMX, AVX512-BF16), others
  convert to float32 first.

  >>> matmul_dtype('cuda:9.0'), matmul_dtype('cuda:7.5'), matmul_dtype('tpu')
  ('bfloat16', 'float32', 'bfloat16')
  """
  if platform == 'cpu':
    return min(('float32', 'bfloat16'), key=_seconds_of_product)
  has_units = not platform.startswith('cuda') or compute_capability(platform) >= 8
  return 'bfloat16' if has_units else 'float32'


def _seconds_of_product(dtype: str) -> float:
  """Return the least seconds of a few products on this CPU, with operands rounded to dtype."""

  def product(a, b):
    return jnp.matmul(a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)

  a = b = np.ones((512, 512), np.float32)
  cpu = jax.sharding.SingleDeviceSharding(jax.devices('cpu')[0])
  shape = jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=cpu)
  compiled = jax.jit(product).lower(shape, shape).compile()  # runs even while a function is traced
  seconds = []
  for _ in range(5):
    began = time.perf_counter()
    compiled(a, b).block_until_ready()
    seconds.append(time.perf_counter() - began)
  return min(seconds[1:])
