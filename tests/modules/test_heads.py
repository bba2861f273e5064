"""Laws of the heads: what they are, written out, and that nothing of them reads padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parameters import drawn

from transformer.modules.config import ModelConfig
from transformer.modules.heads import Classifier, MaskedTokens, Spans

TINY = dict(
  vocab=11,
  width=16,
  depth=1,
  heads=4,
  feedforward=24,
  max_length=16,
  token_types=2,
  pad=0,
  bias_output=True,
  pooling='pooler',
  activation='gelu_erf',
)
TOKENS = jnp.array([[4, 5, 6, 7], [8, 9, 0, 0]])


@pytest.fixture
def build(rng):
  """build(make): a head with drawn parameters."""
  return lambda make: drawn(lambda: make(ModelConfig(**TINY), nnx.Rngs(0)), rng)


@jax.jit
def call(model, *args, **kwargs):
  return model(*args, **kwargs)


def test_masked_tokens_are_read_through_the_embedding(build, close):
  model = build(MaskedTokens)
  h = np.asarray(call(model.encoder, TOKENS) @ model.hidden.kernel[...] + model.hidden.bias[...])
  h = jax.nn.gelu(h, approximate=False)
  h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
  h = h * model.norm.scale[...] + model.norm.bias[...]
  table = model.encoder.embed
  close(call(model, TOKENS), h @ table.table[...].T + table.bias[...])


def test_heads_are_linear_in_states_and_summary(build, close):
  spans = build(Spans)
  states = call(spans.encoder, TOKENS)
  close(call(spans, TOKENS), states @ spans.out.kernel[...] + spans.out.bias[...])
  classes = build(lambda config, rngs: Classifier(config, 3, rngs))
  summary = jax.jit(classes.encoder.encode_pooled)(TOKENS)
  close(call(classes, TOKENS), summary @ classes.out.kernel[...] + classes.out.bias[...])


@pytest.mark.parametrize('make', [MaskedTokens, lambda c, r: Classifier(c, 3, r), Spans])
def test_padding_is_not_read(build, close, make):
  model = build(make)
  alone = call(model, TOKENS[1:, :2])
  beside = call(model, TOKENS)[1:]
  close(beside[:, :2] if alone.ndim == 3 else beside, alone)


def test_dropout_is_on_exactly_with_a_key(build, key):
  model = build(lambda config, rngs: Classifier(config, 3, rngs))
  assert (call(model, TOKENS) == call(model, TOKENS)).all()
  assert not np.allclose(call(model, TOKENS, key=key), call(model, TOKENS))
