"""One update: the same gradient however a batch is cut, and nothing but the step where it fails."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from parameters import drawn

from transformer.data import pipeline
from transformer.functional.losses import cross_entropy
from transformer.modules.config import ModelConfig
from transformer.modules.model import EncoderDecoder
from transformer.training.step import State, init_state, train_step, train_steps

CONFIG = ModelConfig(
  vocab=13, width=16, heads=2, depth=2, feedforward=32, dropout=0.0, prenorm=True, unroll=1
)
SIDES = ('inputs', 'targets')


def loss(model, batch, key):
  """Teacher forcing without a task."""
  targets, segments = batch['targets'], batch['targets_segments']
  first = segments != jnp.pad(segments[:, :-1], ((0, 0), (1, 0)))
  shifted = jnp.where(first, 1, jnp.pad(targets[:, :-1], ((0, 0), (1, 0))))
  logits = model(
    batch['inputs'],
    shifted,
    input_segments=batch['inputs_segments'],
    target_segments=segments,
    key=key,
  )
  mean = cross_entropy(logits, targets, (segments != 0).astype(jnp.float32), label_smoothing=0.1)
  return mean, {'nll': mean}


def identity() -> optax.GradientTransformation:
  """Updates are gradients, so that a step shows what it computed."""
  return optax.GradientTransformation(lambda params: (), lambda g, state, params: (g, state))


@pytest.fixture(scope='module')
def model():
  return drawn(lambda: EncoderDecoder(CONFIG, nnx.Rngs(0)))


@pytest.fixture(scope='module')
def examples():
  """Sequences of very unequal lengths."""
  rng = np.random.default_rng(0)
  lengths = np.array([[1, 9], [12, 2], [3, 3], [16, 16], [5, 1], [2, 14], [7, 7], [1, 1]])
  sequences = [[rng.integers(3, 13, n).tolist() for n in column] for column in lengths.T]
  return {side: pipeline.Ragged.from_sequences(s) for side, s in zip(SIDES, sequences, strict=True)}


def batch_of(rows, examples, width, size):
  """A batch with these rows of examples."""
  batch = {}
  for side in SIDES:
    tokens, segments = np.zeros((2, size, width), np.int32)
    for row, members in enumerate(rows):
      end = 0
      for segment, i in enumerate(members, start=1):
        start, end = end, end + len(examples[side][i])
        tokens[row, start:end], segments[row, start:end] = examples[side][i], segment
    batch[side], batch[f'{side}_segments'] = tokens, segments
  return batch


@pytest.fixture(scope='module')
def padded(examples):
  return batch_of([[i] for i in range(8)], examples, width=16, size=8)


@functools.partial(jax.jit, static_argnames='microbatches')
def gradient_of(model, batch, microbatches=1):
  step = functools.partial(train_step, loss=loss, optimizer=identity(), microbatches=microbatches)
  state = init_state(model, identity(), ema=0.0)
  # no dropout in CONFIG: the key does nothing
  new, metrics = step(state, batch, jax.random.key(0))
  return jax.tree.map(jnp.subtract, new.model, model), metrics


@pytest.fixture(scope='module')
def whole(model, padded):
  return gradient_of(model, padded)


def assert_same(actual, expected, tolerance=2e-6):
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, e, rtol=0, atol=tolerance)


def test_gradient_is_that_of_the_mean_over_tokens(model, padded, whole):
  def mean(model):
    total = loss(model, jax.tree.map(jnp.asarray, padded), None)[0]
    return total.sum / total.weight

  assert_same(whole[0], jax.jit(jax.grad(mean))(model))
  found = whole[1]
  assert float(found['loss'].weight) == (padded['targets_segments'] != 0).sum()
  assert float(found['gradient_norm']) == pytest.approx(float(optax.global_norm(whole[0])), 1e-4)
  assert bool(found['finite'])


def test_gradient_is_the_same_for_any_number_of_microbatches(model, padded, whole):
  """With rows of 1 to 16 tokens: the mean of the means of parts would be wrong."""
  found = gradient_of(model, padded, 4)  # and 2 below
  assert_same(found[0], whole[0])
  assert_same(found[1]['loss'], whole[1]['loss'], tolerance=1e-4)


def test_gradient_is_the_same_for_packed_rows(model, examples, whole):
  """Among them a row of three examples, two that are empty, and all wider than need be."""
  packed = batch_of([[0, 2, 7], [1, 5], [3], [4, 6], []], examples, width=24, size=6)
  assert_same(gradient_of(model, packed, 2)[0], whole[0])


def test_a_batch_of_padding_changes_nothing(model, padded):
  found, metrics = gradient_of(model, jax.tree.map(np.zeros_like, padded))
  assert bool(metrics['finite']) and float(metrics['loss'].value) == 0
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(found))


# the laws below are of the arithmetic around the model: a small one shows them


class Line(nnx.Module):
  def __init__(self, kernel):
    self.kernel = nnx.Param(jnp.asarray(kernel))


def squared(model, batch, key):
  """|x W|^2, with noise if there is a key, so that the result shows which key it was."""
  y = batch['x'] @ model.kernel[...]
  noise = jax.random.normal(key, y.shape)
  mean = cross_entropy(jnp.stack([y, noise], -1), jnp.zeros(y.shape, jnp.int32), batch['weight'])
  return mean, {}


ADAM = optax.adam(0.1)


@functools.cache
def line_step(ema=0.0, microbatches=1):
  return jax.jit(
    functools.partial(train_step, loss=squared, optimizer=ADAM, ema=ema, microbatches=microbatches),
    donate_argnums=0,
  )


def line_batch(step, poison=None):
  x = np.random.default_rng(step).normal(size=(4, 3)).astype(np.float32)
  if poison is not None:
    x[2, 1] = poison
  return {'x': x, 'weight': np.ones(4, np.float32)}


def fresh(ema=0.0):
  return init_state(Line([1.0, -2.0, 0.5]), ADAM, ema=ema)


def numpy(tree):
  return [np.array(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize('poison', [None, np.nan])
def test_several_steps_in_a_call_are_as_many_calls(poison, close):
  batches = [line_batch(0), line_batch(1, poison), line_batch(2)]
  together = jax.jit(functools.partial(train_steps, loss=squared, optimizer=ADAM, ema=0.5))
  stacked = jax.tree.map(lambda *x: np.stack(x), *batches)
  state, metrics = together(fresh(ema=0.5), stacked, jax.random.key(0))
  one, each = fresh(ema=0.5), []
  for batch in batches:
    one, found = line_step(ema=0.5)(one, batch, jax.random.key(0))
    each.append(found)
  assert int(state.step) == int(one.step) == 3
  for a, b in zip(jax.tree.leaves(state[1:]), jax.tree.leaves(one[1:]), strict=True):
    close(jnp.asarray(a, 'float32'), b)
  assert metrics['finite'].tolist() == [True, poison is None, True]
  close(metrics['loss'].sum[::2], np.array([float(m['loss'].sum) for m in each])[::2])


@pytest.mark.parametrize('poison', [np.nan, np.inf])
@pytest.mark.parametrize('microbatches', [1, 2])
def test_a_loss_that_is_not_finite_changes_only_the_step(poison, microbatches):
  step, key = line_step(ema=0.5, microbatches=microbatches), jax.random.key(0)
  state, _ = step(fresh(ema=0.5), line_batch(0), key)
  before = numpy(state._replace(step=0))
  state, metrics = step(state, line_batch(1, poison), key)
  assert not bool(metrics['finite'])
  assert int(state.step) == 2
  for a, b in zip(numpy(state._replace(step=0)), before, strict=True):
    np.testing.assert_array_equal(a, b)
  state, metrics = step(state, line_batch(2), key)
  assert bool(metrics['finite']) and int(state.step) == 3
  assert not np.array_equal(numpy(state.model)[0], before[1])


def test_the_average_of_parameters_starts_as_a_plain_mean():
  """decay = min(ema, t / (t + 1)): a plain mean of the first steps, then exponential."""
  step, state, key = line_step(ema=0.5), fresh(ema=0.5), jax.random.key(0)
  expected, seen = np.zeros(3), []
  for t in range(8):
    state, _ = step(state, line_batch(t), key)
    kernel = numpy(state.model)[0]
    seen.append(kernel)
    decay = min(0.5, t / (t + 1))
    expected = decay * expected + (1 - decay) * kernel
    np.testing.assert_allclose(numpy(state.average)[0], expected, rtol=1e-5, atol=1e-6)
    if t < 2:
      np.testing.assert_allclose(expected, np.mean(seen, axis=0), rtol=1e-5)


def test_without_ema_the_average_is_none():
  assert fresh().average is None
  assert line_step()(fresh(), line_batch(0), jax.random.key(0))[0].average is None


def test_the_average_is_no_alias():
  """Donating a state whose average is its model would fail."""
  state = fresh(ema=0.5)
  assert state.average.kernel[...] is not state.model.kernel[...]
  step = line_step(ema=0.5)
  state, _ = step(state, line_batch(0), jax.random.key(0))
  step(state, line_batch(1), jax.random.key(0))


def test_the_state_is_donated():
  state = fresh()
  old = jax.tree.leaves((state.model, state.optimizer))
  line_step()(state, line_batch(0), jax.random.key(0))
  assert all(leaf.is_deleted() for leaf in old)


def test_every_step_and_microbatch_has_its_own_key():
  """The same step has the same key: it is a pure function of (state, batch, key)."""
  zeros = {'x': np.zeros((4, 3), np.float32), 'weight': np.ones(4, np.float32)}

  def noise(step, seed=0, microbatches=1):
    state = fresh()._replace(step=jnp.asarray(step))
    _, metrics = line_step(microbatches=microbatches)(state, zeros, jax.random.key(seed))
    return float(metrics['loss'].value)

  assert noise(3) == noise(3)
  assert len({noise(step) for step in range(4)} | {noise(0, seed=1)}) == 5

  def seen(model, batch, key):
    mean = cross_entropy(jnp.zeros((2, 2)), jnp.zeros(2, jnp.int32), jnp.ones(2))
    return mean, {'noise': mean._replace(sum=jax.random.normal(key) ** 2)}

  step = functools.partial(train_step, loss=seen, optimizer=identity(), microbatches=2)
  state = init_state(Line([1.0]), identity(), ema=0.0)
  _, metrics = jax.jit(step)(state, zeros, jax.random.key(0))
  key = jax.random.fold_in(jax.random.key(0), 0)
  draws = [float(jax.random.normal(jax.random.fold_in(key, i)) ** 2) for i in range(2)]
  assert draws[0] != draws[1]
  assert float(metrics['noise'].sum) == pytest.approx(sum(draws), rel=1e-5)


def test_state_is_a_pytree_of_arrays():
  assert State._fields == ('step', 'model', 'optimizer', 'average')
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(fresh(ema=0.5)))
