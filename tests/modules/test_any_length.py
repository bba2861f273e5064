"""Models as programs for any batch and length (`jax.export`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from transformer.modules.cache import Cache
from transformer.modules.config import ModelConfig
from transformer.modules.model import Decoder, Encoder, EncoderDecoder, functionalize
from transformer.zoo import presets

SMALL = dict(vocab=50, width=16, depth=2, heads=2, feedforward=24, max_length=16, platform='cpu')
X, Y = jnp.array([[5, 6, 7, 0], [3, 4, 0, 0]]), jnp.array([[1, 6, 7], [1, 4, 0]])


def ints(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.int32)


def slow(*values):
  return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
  'cls, preset, inputs',
  [
    (Decoder, dict(position='learned', prenorm=True), (X,)),
    slow(EncoderDecoder, presets.T5_SMALL | dict(head_size=0), (X, Y)),
    slow(Encoder, presets.BERT_BASE, (X,)),
    slow(Decoder, presets.LLAMA_7B, (X,)),
    slow(Decoder, dict(position='alibi', window=3), (X,)),
  ],
)
def test_a_model_is_exported_for_any_batch_and_length(cls, preset, inputs, close):
  model = cls(ModelConfig(**preset | SMALL), nnx.Rngs(0))
  apply, params = functionalize(model)
  sizes = export.symbolic_shape('b, s, t')
  shapes = [ints(sizes[0], size) for size, _ in zip(sizes[1:], inputs, strict=False)]
  program = export.export(jax.jit(apply))(jax.eval_shape(lambda: params), *shapes)
  program = export.deserialize(program.serialize())
  close(program.call(params, *inputs), model(*inputs))


@pytest.mark.slow
def test_a_step_with_a_cache_is_exported_for_any_size(close):
  model = Decoder(ModelConfig(**presets.LLAMA_7B | SMALL | dict(kv_heads=1)), nnx.Rngs(0))
  apply, params = functionalize(model)
  b, t, c = export.symbolic_shape('b, t, c', constraints=['c >= t'])
  empty = jax.eval_shape(lambda: Cache.empty(model.config, b, c))
  step = jax.jit(lambda params, x, cache: apply(params, x, cache=cache))
  program = export.export(step)(jax.eval_shape(lambda: params), ints(b, t), empty)
  program = export.deserialize(program.serialize())
  cache, expected = model.init_cache(2, 7), model(X)
  _, cache = program.call(params, X[:, :3], cache)
  logits, cache = program.call(params, X[:, 3:], cache)
  close(logits[:, 0], expected[:, 3])
  assert isinstance(cache, Cache) and int(cache.length) == 4


def test_more_tokens_than_learned_positions_are_not_a_number():
  """Their number is known only when the program runs."""
  config = ModelConfig(**SMALL, position='learned', prenorm=True)
  apply, params = functionalize(Encoder(config, nnx.Rngs(0)))
  b, s = export.symbolic_shape('b, s')
  program = export.export(jax.jit(apply))(params, ints(b, s))
  found = program.call(params, jnp.ones((1, 17), jnp.int32))
  assert np.isnan(found[0, 16]).all()
