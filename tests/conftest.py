"""JAX made strict, tolerances by dtype, and the real data where there is some."""

import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# before jax is imported; compiling is what most tests take their time for
os.environ['XLA_FLAGS'] = (
  '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'
)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

collect_ignore = ['zoo/make_golden.py']  # needs torch

# Relative to the largest magnitude expected. No test loosens its own.
TOLERANCE = {'float32': 2e-5, 'bfloat16': 2e-2, 'float16': 4e-3}

DATA = pathlib.Path(
  os.environ.get('TRANSFORMER_DATA', pathlib.Path(__file__).parents[2] / 'shared' / 'data')
)


@pytest.fixture(scope='module', autouse=True)
def forget():
  """What a file has compiled is of no use to the next, and takes gigabytes in the end."""
  yield
  jax.clear_caches()


@pytest.fixture
def key():
  return jax.random.key(0)


@pytest.fixture
def rng():
  return np.random.default_rng(0)


@pytest.fixture(scope='session')
def close():
  """close(actual, expected): equal within the tolerance of actual's dtype, NaN and Inf included."""

  def check(actual, expected, dtype=None):
    actual = jnp.asarray(actual)
    tolerance = TOLERANCE[str(dtype or actual.dtype)]
    expected = np.asarray(expected, np.float64)
    scale = max(np.abs(expected[np.isfinite(expected)]).max(initial=0), 1e-3)
    np.testing.assert_allclose(
      np.asarray(actual, np.float64), expected, rtol=0, atol=tolerance * scale
    )

  return check


@pytest.fixture(scope='session')
def real_data():
  """real_data(name): the folder of a real data set; skips the test where there is none."""

  def folder(name):
    if not (DATA / name).is_dir():
      pytest.skip(
        f'needs the data set {DATA / name}: set TRANSFORMER_DATA to the folder that has it'
      )
    return DATA / name

  return folder
