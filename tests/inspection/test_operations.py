"""Operations are those that one counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from experiments.benchmarks import gpu
from transformer.inspection import operations
from transformer.modules.config import ModelConfig
from transformer.modules.model import Decoder

x = jax.ShapeDtypeStruct((4, 8), 'float32')


@pytest.mark.parametrize(
  'f, expected',
  [
    (lambda x: x @ x.T, 2 * 4 * 4 * 8),
    (lambda x: jnp.einsum('ij,kj->ijk', x, x), 0),  # an outer product sums nothing
    (lambda x: jax.lax.scan(lambda c, _: (c @ x.T @ x, None), x, None, length=7)[0], 7 * 512),
    (lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x.T, lambda: jnp.zeros((4, 4))), 256),
    (jax.jit(lambda x: jax.vmap(lambda y: x @ y)(x)), 256),
    (lambda x: x + 1, 0),
  ],
)
def test_matrix_products_are_counted(f, expected):
  found = operations.count(f, x)
  assert found == expected or (expected == 0 and found <= 2 * 4 * 8 * 4)


def test_a_gpt_has_six_operations_a_weight_and_token_and_those_of_its_scores():
  sizes = dict(vocab=48, width=32, depth=3, feedforward=64, max_length=16)
  config = ModelConfig(
    **sizes, heads=4, dropout=0.0, prenorm=True, tie='output', position='learned', unroll=1
  )
  model = jax.eval_shape(lambda: Decoder(config, nnx.Rngs(0)))
  tokens = jax.ShapeDtypeStruct((2, 16), 'int32')
  forward = operations.count(lambda m, t: m(t), model, tokens)
  assert 3 * forward == 2 * 16 * gpu.operations_per_token(**sizes, causal=False)
