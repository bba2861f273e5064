"""Optimizers and schedules: formulas, weight decay by path, and a problem that each learns."""

import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from transformer.modules.config import ModelConfig
from transformer.modules.model import Decoder, Encoder, EncoderDecoder
from transformer.training import optimizers
from transformer.training.optimizers import DECAY, OPTIMIZERS, build, decays, parameter_path
from transformer.zoo import presets

GIVEN = dict(
  name='adamw',
  learning_rate=0.5,
  schedule='constant',
  warmup_steps=10,
  steps=100,
  width=64,
  weight_decay=0.0,
  clip=0.0,
)


def given(**changed):
  return build(**dict(GIVEN, **changed))


def rates(steps=range(1, 131), **changed):
  """Return the learning rate of these steps, the first being step 1."""
  _, rate = given(**changed)
  return np.asarray(jax.vmap(rate)(jnp.asarray(steps) - 1), np.float64)


FORMULAS = {
  'constant': lambda s, w, n: 0.5 * min(s / w, 1),
  'cosine': lambda s, w, n: (
    0.5 * (s / w if s <= w else 0.5 * (1 + math.cos(math.pi * min((s - w) / (n - w), 1))))
  ),
  'linear': lambda s, w, n: 0.5 * (s / w if s <= w else max(0, (n - s) / (n - w))),
  'rsqrt': lambda s, w, n: 0.5 * (s / w if s <= w else math.sqrt(w / s)),
  'trapezoid': lambda s, w, n: 0.5 * (s / w if s <= w else min(1, max(0, n - s) / (0.2 * n))),
  'noam': lambda s, w, n: 0.5 * 64**-0.5 * min(s**-0.5, s * w**-1.5),
}


@pytest.mark.parametrize('schedule', FORMULAS)
@pytest.mark.parametrize('warmup', [1, 7, 10])
def test_schedules_are_their_formulas(schedule, warmup, close):
  expected = [FORMULAS[schedule](s, warmup, 100) for s in range(1, 131)]
  found = rates(schedule=schedule, warmup_steps=warmup)
  close(jnp.asarray(found, jnp.float32), expected)


@pytest.mark.parametrize('schedule', FORMULAS)
def test_no_warmup_starts_at_the_peak(schedule):
  found = rates(schedule=schedule, warmup_steps=0)
  assert np.isfinite(found).all() and found.max() == found[0] > 0


def test_noam_has_the_peak_of_the_paper():
  """Base model, 4,000 steps of warm-up: the peak is 6.99e-4, at step 4,000."""
  found = rates(
    [3999, 4000, 4001], schedule='noam', learning_rate=1.0, width=512, warmup_steps=4000
  )
  assert found.argmax() == 1 and found[1] == pytest.approx(6.987712e-4, rel=1e-5)


@pytest.mark.parametrize('schedule', ['cosine', 'linear', 'trapezoid'])
@pytest.mark.parametrize('warmup', [0, 10, 100, 200])
def test_schedules_end_at_0_and_are_never_negative(schedule, warmup):
  """Also after the last step, as a run may be continued, and with more warm-up than steps."""
  found = rates(schedule=schedule, warmup_steps=warmup)
  assert (found >= 0).all() and (found <= 0.5).all() and np.isfinite(found).all()
  if warmup < 100:
    assert found[98] > 0
    assert (found[99:] == 0).all()


def test_every_schedule_has_a_formula_here():
  assert FORMULAS.keys() == optimizers.SCHEDULES.keys()


def test_updates_have_the_learning_rate_of_the_schedule():
  """Update number s of a constant gradient under plain SGD is rate(s - 1) times it."""
  optimizer, rate = given(name='sgd', momentum=0.0, schedule='cosine')
  params = {'kernel': jnp.ones(())}
  state = optimizer.init(params)
  for step in range(15):
    updates, state = optimizer.update({'kernel': jnp.ones(())}, state, params)
    assert float(updates['kernel']) == pytest.approx(-float(rate(step)), abs=1e-7)


VARIANTS = [
  dict(tie=tie, norm=norm, position=position, gated=gated, prenorm=prenorm, bias=bias)
  for tie, norm, position, gated, prenorm, bias in itertools.product(
    ('none', 'output', 'all'),
    ('layer', 'rms'),
    ('sinusoidal', 'learned', 'relative'),
    (False, True),
    (False, True),
    (False, True),
  )
]


def abstract(model, **changed):
  sizes = dict(vocab=11, width=16, heads=2, depth=2, feedforward=32, max_length=8)
  config = ModelConfig(**dict(sizes, **changed))
  return jax.eval_shape(lambda key: model(config, nnx.Rngs(key)), jax.random.key(0))


def paths(model):
  return [parameter_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(model)]


@pytest.mark.parametrize('model', [Encoder, Decoder, EncoderDecoder])
def test_only_kernels_decay(model):
  """In every variant, whatever the number of axes: stacked norm scales have two."""
  for variant in VARIANTS[::11]:
    parameters = abstract(model, **variant)
    decided = dict(zip(paths(parameters), jax.tree.leaves(decays(parameters)), strict=True))
    assert any(decided.values())
    for path, decay in decided.items():
      assert decay == path.endswith('/kernel'), path
      assert any(re.search(pattern, path) for pattern, _ in DECAY)
    scales = [p for p in decided if p.endswith('blocks/feedforward_norm/scale')]
    assert scales and not any(decided[p] for p in scales)


@pytest.mark.slow
def test_decay_covers_every_preset():
  for name, preset in vars(presets).items():
    if isinstance(preset, dict) and 'feedforward' in preset:
      decided = decays(abstract(EncoderDecoder, **dict(preset, depth=2)))
      assert sum(jax.tree.leaves(decided)) > 10, name


def test_a_parameter_without_a_rule_of_decay_is_an_error():
  with pytest.raises(ValueError, match='whether parameter blocks/novel decays: add a pattern'):
    decays({'blocks': {'novel': jnp.ones(2)}})


def test_weight_decay_is_decoupled():
  """With a gradient of 0, a kernel shrinks by rate x decay and nothing else moves."""
  optimizer, rate = given(weight_decay=0.1, warmup_steps=0)
  params = {'kernel': jnp.full(3, 2.0), 'scale': jnp.ones((2, 3)), 'bias': jnp.ones(3)}
  updates, _ = optimizer.update(
    jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
  )
  np.testing.assert_allclose(updates['kernel'], -float(rate(0)) * 0.1 * 2.0, rtol=1e-6)
  assert not updates['scale'].any() and not updates['bias'].any()


def test_clip_scales_the_whole_gradient_down():
  gradient = {'kernel': jnp.array([3.0, 0.0]), 'bias': jnp.array([4.0])}
  params = jax.tree.map(jnp.zeros_like, gradient)

  def moved(clip):
    optimizer, rate = given(name='sgd', momentum=0.0, warmup_steps=0, clip=clip)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    return jax.tree.map(lambda u: -u / rate(0), updates)

  for clip, expected in ((0.0, 5.0), (10.0, 5.0), (2.0, 2.0)):
    assert float(optax.global_norm(moved(clip))) == pytest.approx(expected, rel=1e-6)
  np.testing.assert_allclose(moved(2.0)['kernel'], [1.2, 0.0], rtol=1e-6)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_every_optimizer_learns(name, seed, bounded):
  """A least-squares problem with a large stacked kernel, which adafactor factors."""
  rng = np.random.default_rng(seed)
  x = jnp.asarray(rng.normal(size=(64, 128)), jnp.float32)
  y = x @ jnp.asarray(rng.normal(size=(128, 128)), jnp.float32)
  loss = lambda p: jnp.mean((x @ p['kernel'][0] + p['bias'] - y) ** 2)
  params = {'kernel': jnp.zeros((1, 128, 128)), 'bias': jnp.zeros(128)}
  optimizer, _ = given(name=name, learning_rate=0.05, weight_decay=1e-4, clip=10.0)

  @jax.jit
  def step(params, state):
    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value

  state, values = optimizer.init(params), []
  for _ in range(20):
    params, state, value = step(params, state)
    values.append(float(value))
  assert np.isfinite(values).all()
  bounded('loss, of its start', values[-1] / values[0], below=0.9)


def test_adam_is_adam(rng):
  """The first steps against the equations of Kingma & Ba 2015, algorithm 1, in float64."""
  optimizer, rate = given(b1=0.8, b2=0.95, epsilon=1e-3)
  params = {'kernel': jnp.zeros(5)}
  state, m, v = optimizer.init(params), 0.0, 0.0
  for t in range(1, 6):
    g = rng.normal(size=5)
    updates, state = optimizer.update({'kernel': jnp.asarray(g, jnp.float32)}, state, params)
    m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
    expected = -float(rate(t - 1)) * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-3)
    np.testing.assert_allclose(updates['kernel'], expected, rtol=1e-4, atol=1e-7)


def test_muon_updates_by_the_orthogonal_part(rng):
  """The first update of a hidden matrix has all its singular values near one another."""
  model = Decoder(ModelConfig(vocab=9, width=16, depth=2, heads=2, feedforward=32), nnx.Rngs(0))
  grads = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), model)
  optimizer, _ = given(name='muon', warmup_steps=0)
  updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(model), model)
  for layer in range(2):
    kernel = updates.stack.blocks.feedforward.hidden.kernel[...][layer]
    gradient = grads.stack.blocks.feedforward.hidden.kernel[...][layer]
    u, s, v = jnp.linalg.svd(kernel, full_matrices=False)
    assert s.max() < 2 * s.min() and 0.5 < s.mean() / (0.5 * 0.2 * math.sqrt(32)) < 1.3
    U, _, V = jnp.linalg.svd(gradient, full_matrices=False)
    np.testing.assert_allclose(u @ v, -U @ V, atol=1e-3)
  adam, _ = given(name='adamw', warmup_steps=0)
  others, _ = adam.update(grads, adam.init(model), model)
  table = lambda tree: np.sign(tree.embed.table[...])
  np.testing.assert_array_equal(table(updates), table(others))


def test_unknown_names_list_the_choices():
  with pytest.raises(ValueError, match="'adam' is none of adamw, muon, adafactor, lion, sgd"):
    given(name='adam')
  with pytest.raises(ValueError, match="'cosin' is none of constant, .*: did you mean 'cosine'"):
    given(schedule='cosin')


@pytest.mark.parametrize(
  'key, value',
  [
    ('learning_rate', -1.0),
    ('learning_rate', math.nan),
    ('warmup_steps', -1),
    ('weight_decay', -0.1),
    ('clip', -1.0),
    ('b1', 1.0),
    ('b2', -0.1),
  ],
)
def test_numbers_out_of_range_are_named(key, value):
  with pytest.raises(ValueError, match=f'optimizer.{key}={value}'):
    given(**{key: value})


def test_an_option_that_is_not_read_is_named():
  with pytest.raises(ValueError, match='optimizer.momentum=0.5 is read neither by .*name=adamw'):
    given(momentum=0.5)
  with pytest.raises(ValueError, match='optimizer.decay_share=0.1 .*schedule=constant'):
    given(decay_share=0.1)


def test_options_have_the_defaults_of_the_chosen_optimizer_and_schedule():
  assert optimizers.defaults('muon', 'cosine') == dict(b1=0.95, b2=0.98, epsilon=1e-9)
  assert optimizers.defaults('sgd', 'trapezoid') == dict(momentum=0.9, decay_share=0.2)
  found = rates(schedule='trapezoid', decay_share=None)
  np.testing.assert_array_equal(found, rates(schedule='trapezoid', decay_share=0.2))
  assert (found != rates(schedule='trapezoid', decay_share=0.5)).any()


def test_parameter_paths_are_names_separated_by_slashes():
  model = abstract(EncoderDecoder)
  assert 'encoder/blocks/attention/query/kernel' in paths(model)
  state = jax.eval_shape(given()[0].init, model)
  assert any(p.endswith('mu/encoder/blocks/attention/query/kernel') for p in paths(state))
  assert optimizers.parameter_path(()) == ''
