"""Models, losses and gradients on meshes as JAX makes them by default: explicit axes, shard_map."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from parameters import drawn

from transformer.functional import losses
from transformer.modules.config import ModelConfig
from transformer.modules.heads import Classifier
from transformer.modules.model import Decoder, EncoderDecoder

TINY = dict(vocab=11, width=16, depth=1, heads=4, feedforward=24, max_length=16, kv_heads=2)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(1, 11, (4, 6)))
SEGMENTS = jnp.asarray([[1, 1, 1, 2, 2, 0]] * 4)


def states_loss(model, tokens, segments):
  """The loss of a language model, by its states."""
  states = model.states(tokens, segments=segments)
  return model.lm_head.cross_entropy(states, tokens, (segments != 0).astype('float32'))[0].sum


def logits_loss(model, tokens, segments):
  """The loss of a language model, by its logits."""
  logits = model(tokens, segments=segments)
  return losses.cross_entropy(logits, tokens, (segments != 0).astype('float32')).sum


def seq2seq_loss(model, tokens, segments):
  states = model.states(tokens, tokens, input_segments=segments, target_segments=segments)
  return model.lm_head.cross_entropy(states, tokens, (segments != 0).astype('float32'))[0].sum


def classifier_loss(model, tokens, segments):
  logits = model(tokens, segments=segments)
  ones = jnp.ones_like(tokens[:, 0], 'float32')
  return losses.cross_entropy(logits, tokens[:, 0] % 3, ones).sum


CASES = {
  'decoder': (Decoder, states_loss, dict(position='learned', unroll=1, remat='products')),
  'decoder 16 bits': (Decoder, logits_loss, dict(position='alibi', dtype='bfloat16')),
  'encoder-decoder': (EncoderDecoder, seq2seq_loss, dict(position='relative')),
  'classifier': (
    lambda config, rngs: Classifier(config, 3, rngs),
    classifier_loss,
    dict(position='rotary', window=3),
  ),
}


# of the other two a plain pytest sees that they are traced, where wrong axes are an error
COMPUTED = [
  name if name in ('decoder', 'encoder-decoder') else pytest.param(name, marks=pytest.mark.slow)
  for name in CASES
]


def model_of(name):
  make, _, settings = CASES[name]
  return drawn(lambda: make(ModelConfig(**TINY | settings), nnx.Rngs(0)))


@pytest.fixture(scope='module', params=COMPUTED)
def case(request):
  """(model, loss, its value and gradient on one device)."""
  loss, model = CASES[request.param][1], model_of(request.param)
  return model, loss, jax.jit(jax.value_and_grad(loss))(model, TOKENS, SEGMENTS)


@pytest.fixture(scope='module')
def mesh():
  """Two devices along 'data', as `jax.make_mesh` makes it."""
  return jax.make_mesh((2,), ('data',), devices=jax.devices()[:2])


def placed(mesh, model):
  """The model on all devices of the mesh, and the batch divided among them."""
  rows = NamedSharding(mesh, P('data'))
  whole = jax.device_put(model, NamedSharding(mesh, P()))
  return whole, jax.device_put(TOKENS, rows), jax.device_put(SEGMENTS, rows)


def assert_same(found, want, close, dtype):
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
    close(a, np.asarray(b), dtype)


def test_a_mesh_with_explicit_axes_gives_the_same_loss_and_gradient(case, mesh, close):
  model, loss, want = case
  inputs = placed(mesh, model)
  program = jax.jit(jax.value_and_grad(loss)).lower(*inputs)
  assert_same(program.compile()(*inputs), want, close, model.config.dtype)
  with jax.set_mesh(mesh):
    again = jax.jit(jax.value_and_grad(loss)).lower(*inputs)
    if again.as_text() != program.as_text():  # else it is the same program
      assert_same(again.compile()(*inputs), want, close, model.config.dtype)


def test_logits_are_sharded_as_the_tokens_are(mesh, rng):
  model = drawn(lambda: Decoder(ModelConfig(**TINY), nnx.Rngs(0)), rng)
  whole, tokens, _ = placed(mesh, model)
  logits = jax.jit(lambda model, tokens: model(tokens))(whole, tokens)
  assert logits.sharding.spec[:1] == ('data',) and not any(logits.sharding.spec[1:])


def mapped(loss, mesh):
  """The loss by jax.shard_map, whose checks are on."""

  @partial(jax.shard_map, mesh=mesh, in_specs=(P(), P('data'), P('data')), out_specs=P())
  def of_part(model, tokens, segments):
    return jax.lax.psum(loss(model, tokens, segments), 'data')

  return of_part


def test_shard_map_with_its_checks_gives_the_same_loss_and_gradient(case, mesh, close):
  model, loss, want = case
  found = jax.jit(jax.value_and_grad(mapped(loss, mesh)))(*placed(mesh, model))
  assert_same(found, want, close, model.config.dtype)


@pytest.mark.parametrize('name', ['decoder 16 bits', 'classifier'])
def test_the_axes_of_all_cases_agree(name, mesh):
  loss, inputs = CASES[name][1], placed(mesh, model_of(name))
  for f in (loss, mapped(loss, mesh)):
    with jax.set_mesh(mesh):
      value, gradient = jax.eval_shape(jax.value_and_grad(f), *inputs)
    assert value.shape == () and jax.tree.structure(gradient) == jax.tree.structure(inputs[0])
