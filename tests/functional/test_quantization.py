"""Laws of weights in 8 bits."""

import jax.numpy as jnp
import numpy as np
import pytest

from transformer.functional.quantization import LARGEST, dequantize, quantize


@pytest.mark.parametrize('axis', [-1, -2])
def test_the_error_of_a_weight_is_half_its_scale(rng, axis):
  weights = rng.normal(size=(2, 5, 7)).astype(np.float32) * 10.0 ** rng.integers(-4, 4, (2, 1, 7))
  weights[0, 2] = 0
  weights[:, :, 3] = 0
  values, scale = quantized = quantize(jnp.asarray(weights), axis)
  assert values.dtype == jnp.int8 and scale.shape == weights.max(axis, keepdims=True).shape
  error = np.abs(np.asarray(dequantize(quantized)) - weights)
  assert (error <= 0.5001 * np.asarray(scale)).all() and error[:, :, 3].max() == 0
  largest = np.abs(np.asarray(values)).max(axis)
  assert set(largest.ravel()) <= {0, LARGEST}  # the whole range is used


def test_weights_are_rounded_once():
  """What was rounded before is kept as it is."""
  once = dequantize(quantize(jnp.asarray([[0.3, -7.0], [2.0, 0.01]]), -2))
  np.testing.assert_array_equal(dequantize(quantize(once, -2)), once)
