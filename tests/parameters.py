"""Models for tests that need parameters and not good ones."""

import jax
import jax.numpy as jnp
import numpy as np


def drawn(make, seed=0, scale=0.4):
  """Return the module that make() builds, with every parameter drawn by NumPy.

  Initializers would be compiled one by one, for every shape; and they make biases 0 and scales 1,
  so that a test would not notice where these are left out.

  Args:
    make: builds a module; it is traced and never computed.
    seed: of the draws, or a NumPy generator.
    scale: standard deviation of every parameter.
  """
  rng, shapes = np.random.default_rng(seed), jax.eval_shape(make)
  return jax.tree.map(lambda x: jnp.asarray(scale * rng.normal(size=x.shape), x.dtype), shapes)
