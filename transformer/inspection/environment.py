"""Versions of packages, devices, precision of matrix products, and advice about them."""

import contextlib
import importlib.metadata
import pathlib
import platform
import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'grain',
  'tensorflow-datasets',
  'tokenizers',
  'jaxtyping',
  'ml_collections',
  'numpy',
  'functional-transformer',
)
PLUGINS = re.compile(r'jax[-_].*(plugin|pjrt)|libtpu')


def why_not_compiled(dtype: str) -> str:
  """Return why the default device cannot convert a dtype to float32, in one line; '' if it can.

  XLA has no conversion of float16 for a CPU without F16C instructions (x86 before 2012).
  """
  try:
    jax.jit(lambda x: x.astype('float32') @ x.astype('float32'))(jnp.zeros((1, 1), dtype))
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).splitlines()[0]
    return f'{dtype} cannot be compiled for this device: use another dtype ({reason})'
  return ''


def matmul_precision() -> dict[str, Any]:
  """Measure the error of a float32 matrix product.

  Returns:
    'default_matmul_precision': JAX's setting. 'product_error': the largest error, relative to the
    largest entry, with that setting ('default') and with full precision ('float32'). 'reduced':
    whether the first error is more than ten times the second.
  """
  a, b = np.random.default_rng(0).normal(size=(2, 256, 256)).astype(np.float32)
  exact = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
  errors = {}
  for name in ('default', 'float32'):
    full = jax.default_matmul_precision(name)
    with contextlib.nullcontext() if name == 'default' else full:
      product = np.asarray(jnp.matmul(jnp.asarray(a), jnp.asarray(b)), np.float64)
    errors[name] = float(np.abs(product - exact).max() / np.abs(exact).max())
  return {
    'default_matmul_precision': jax.config.values['jax_default_matmul_precision'] or 'default',
    'product_error': errors,
    'reduced': errors['default'] > 10 * errors['float32'],
  }


def advice_for(precision: dict[str, Any]) -> list[str]:
  """Return advice about reduced precision, and about a GPU or TPU that JAX does not use.

  Args:
    precision: from `matmul_precision`.
  """
  advice = []
  if precision['reduced']:
    default, full = (precision['product_error'][name] for name in ('default', 'float32'))
    advice.append(
      f'float32 products have a relative error of {default:.0e} instead of {full:.0e}: with this '
      'setting the device multiplies in fewer bits (TF32 or bfloat16), which is faster. For full '
      'precision set JAX_DEFAULT_MATMUL_PRECISION=float32; training rarely needs it'
    )
  if jax.default_backend() == 'cpu':
    for device, extra in (('/dev/nvidia0', 'cuda12'), ('/dev/accel0', 'tpu')):
      if pathlib.Path(device).exists():
        advice.append(
          f'there is an accelerator ({device}) that JAX does not use: pip install "jax[{extra}]", '
          'and check that JAX_PLATFORMS is not set to cpu'
        )
  return advice


def versions() -> dict[str, str]:
  """Return {name: version} of Python, PACKAGES and the plugins of JAX."""
  plugins = {d.name for d in importlib.metadata.distributions() if PLUGINS.fullmatch(d.name)}
  result = {'python': platform.python_version()}
  for name in (*PACKAGES, *sorted(plugins)):
    try:
      result[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      result[name] = 'not installed'
  return result


def devices() -> list[dict[str, Any]]:
  """Return platform, kind, count and memory_limit_gib of each kind of device.

  The last is what JAX may allocate on each, in GiB; None if it is unknown.
  """

  def memory_limit_gib(device):
    limit = (device.memory_stats() or {}).get('bytes_limit')
    return limit and round(limit / 2**30, 1)

  kinds = Counter((d.platform, d.device_kind, memory_limit_gib(d)) for d in jax.local_devices())
  return [
    {'platform': name, 'kind': kind, 'count': count, 'memory_limit_gib': memory}
    for (name, kind, memory), count in kinds.items()
  ]
