"""Sites: reading changes nothing, and the model continues with a value that was replaced."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parameters import drawn

from transformer.functional.attention import multi_head_attention_weights
from transformer.modules import sites
from transformer.modules.config import ModelConfig
from transformer.modules.model import Decoder, EncoderDecoder

TINY = dict(vocab=11, width=16, depth=2, heads=4, kv_heads=2, feedforward=24, prenorm=True)
TOKENS = jnp.array([[3, 7, 1, 9, 4], [5, 2, 8, 1, 6]])


@pytest.fixture(scope='module')
def model():
  return drawn(lambda: Decoder(ModelConfig(**TINY), nnx.Rngs(0)))


@jax.jit
def plain(model):
  """The logits, without looking."""
  return model(TOKENS)


def run(model, tokens=TOKENS, read=(), edit=None):
  return jax.jit(sites.observe(lambda model: model(tokens), read=read, edit=edit))(model)


@pytest.fixture(scope='module')
def everything(model):
  """(the logits, all values by their names)."""
  return run(model, read=['*'])


def test_every_site_can_be_read_and_reading_changes_nothing(model, everything, close):
  logits, values = everything
  close(logits, plain(model))
  B, T, H, G, K, D, F = 2, 5, 4, 2, 4, 16, 24
  shapes = {
    'attention.queries': (B, T, H, K),
    'attention.keys': (B, T, G, K),
    'attention.values': (B, T, G, K),
    'attention.weights': (B, H, T, T),
    'attention.heads': (B, T, H, K),
    'attention.output': (B, T, D),
    'feedforward.hidden': (B, T, F),
    'feedforward.output': (B, T, D),
    'output': (B, T, D),
  }
  want = {f'blocks.{i}.{name}': shape for i in range(2) for name, shape in shapes.items()}
  want |= {'embedding': (B, T, D), 'output': (B, T, D)}
  assert {name: value.shape for name, value in values.items()} == want
  close(jax.jit(model.lm_head.attend)(values['output']), logits)
  weights = jax.jit(multi_head_attention_weights)(
    *(values['blocks.1.attention.queries'], values['blocks.1.attention.keys']),
    mask=np.tri(5, dtype=bool)[None, None],
  )
  close(values['blocks.1.attention.weights'], weights)
  residual = sum(
    np.asarray(values[name])
    for name in ('blocks.0.output', 'blocks.1.attention.output', 'blocks.1.feedforward.output')
  )
  close(values['blocks.1.output'], residual)


def test_the_model_continues_with_a_replaced_value(model, close):
  want = plain(model)
  same, _ = run(model, edit={'blocks.*.attention.weights': lambda x: x})
  close(same, want)
  # without its attention and feed-forward a layer is nothing
  without, values = run(
    model,
    read=['blocks.*.output'],
    edit={f'blocks.1.{name}.output': jnp.zeros_like for name in ('attention', 'feedforward')},
  )
  np.testing.assert_array_equal(values['blocks.1.output'], values['blocks.0.output'])
  assert np.abs(without - want).max() > 1e-3


def test_a_head_that_is_ablated_is_one_whose_rows_of_the_output_are_zero(model, close):
  ablated, _ = run(model, edit=sites.zero_heads('blocks.1', [1]))
  model = jax.tree.map(lambda x: x, model)
  kernel = np.array(model.stack.blocks.attention.out.kernel[...])
  kernel[1, 4:8] = 0  # as the parameter layout says
  model.stack.blocks.attention.out.kernel = nnx.Param(jnp.asarray(kernel))
  close(ablated, plain(model))


def test_a_state_patched_from_another_run_gives_its_logits(model, everything, close):
  want, values = everything
  state = {'blocks.0.output': values['blocks.0.output']}
  patched, _ = run(model, tokens=TOKENS[::-1], edit=sites.patch(state))
  close(patched, want)


def test_some_positions_are_patched_and_steered(model, everything, close):
  values, vector = everything[1], jnp.arange(16.0)
  patch = values['blocks.0.output'] + vector  # a constant would be lost in the norm
  edit = sites.patch({'blocks.0.output': patch}, positions=[3])
  edit |= sites.steer('blocks.1.output', vector, positions=[0, 2])
  _, found = run(model, read=['blocks.*.output'], edit=edit)
  moved = np.asarray(found['blocks.0.output'] - values['blocks.0.output'])
  close(moved[:, 3], np.broadcast_to(vector, (2, 16)))
  assert not moved[:, [0, 1, 2, 4]].any()
  moved = np.asarray(found['blocks.1.output'] - values['blocks.1.output'])
  close(moved[:, [0, 2]], np.broadcast_to(vector, (2, 2, 16)))
  assert not moved[:, 1].any() and moved[:, 4].any()  # which sees the patched position


def test_replaced_weights_weigh_the_values(model, close):
  to_first = jnp.asarray(np.eye(5, dtype=np.float32)[np.zeros((2, 4, 5), int)])
  name = 'blocks.0.attention'
  _, values = run(
    model,
    read=[f'{name}.heads', f'{name}.values'],
    edit={f'{name}.weights': lambda _: to_first},
  )
  first = np.asarray(values[f'{name}.values'])[:, :1].repeat(2, axis=2)
  close(values[f'{name}.heads'], np.broadcast_to(first, values[f'{name}.heads'].shape))


def test_stacks_of_a_model_have_their_names_and_gradients_pass_through_remat(rng, close):
  config = ModelConfig(**TINY | dict(depth=1, remat='block'))
  model = drawn(lambda: EncoderDecoder(config, nnx.Rngs(0)), rng)

  def loss(model, observed):
    f = lambda model: jnp.sum(jnp.tanh(model(TOKENS, TOKENS)))  # noqa: E731
    if not observed:
      return f(model)
    value, values = sites.observe(f, read=['*.weights'])(model)
    assert {*values} == {
      'encoder.blocks.0.attention.weights',
      'decoder.blocks.0.attention.weights',
      'decoder.blocks.0.cross.weights',
    }
    return value

  found, want = (jax.jit(jax.grad(partial(loss, observed=o)))(model) for o in (True, False))
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
    close(a, b)


def test_capture_stacks_the_layers(model, everything, close):
  logits, layers = jax.jit(sites.capture(Decoder.__call__))(model, TOKENS)
  assert {*layers} == {''} and {*layers['']} == {'states', 'self'}
  assert layers['']['self'].shape == (2, 2, 4, 5, 5)
  _, values = everything
  for i, (kind, name) in itertools.product(
    range(2), {'states': 'output', 'self': 'attention.weights'}.items()
  ):
    close(layers[''][kind][i], values[f'blocks.{i}.{name}'])


def test_a_name_that_fits_no_site_is_an_error_that_lists_them(model):
  with pytest.raises(
    ValueError, match=r"'blocks.2.\*' matches no site: .* blocks.0.attention.keys"
  ):
    run(model, read=['blocks.2.*'])
  with pytest.raises(ValueError, match="'block.output' matches no site"):
    run(model, edit={'block.output': lambda x: x})


def test_a_compiled_function_is_refused_for_it_would_miss_the_sites(model):
  with pytest.raises(TypeError, match=r'write jax.jit\(observe\(f\)\)'):
    sites.observe(jax.jit(lambda model: model(TOKENS)), read=['*'])


def test_a_program_without_observer_holds_no_trace_of_the_sites(model):
  before = str(jax.make_jaxpr(lambda model: model(TOKENS))(model))
  run(model, read=['*'])
  assert str(jax.make_jaxpr(lambda model: model(TOKENS))(model)) == before


def test_a_capture_within_a_capture_is_seen_by_both():
  config = ModelConfig(vocab=7, width=8, depth=2, heads=2, feedforward=16, unroll=1)
  model, tokens = drawn(lambda: Decoder(config, nnx.Rngs(0))), jnp.array([[1, 2, 3]])

  def inner(tokens):
    return sites.capture(model)(tokens)[1]['']['self']

  found, layers = jax.jit(sites.capture(inner))(tokens)
  np.testing.assert_array_equal(found, layers['']['self'])
  assert found.shape == (2, 1, 2, 3, 3)
  assert jax.eval_shape(lambda: sites.within('a.', model)(tokens)[1]) == {}  # nobody looks
