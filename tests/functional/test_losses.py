"""Laws of losses: float64 sums that add over any split, and positions that do not count."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.functional import losses
from transformer.functional.losses import Mean, accuracy, ctc, linear_cross_entropy

cross_entropy = jax.jit(losses.cross_entropy, static_argnames=('label_smoothing', 'z_loss'))

SETTINGS = [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-2), (0.3, 1e-2)]


def oracle(logits, targets, weights, label_smoothing, z_loss):
  """(sum, weight, gradient) in float64, from the smoothed one-hot distribution itself."""
  total, gradient = 0.0, np.zeros(logits.shape)
  for index in np.ndindex(targets.shape):
    x, weight = np.asarray(logits[index], np.float64), float(weights[index])
    if weight == 0:
      continue
    log_z = x.max() + np.log(np.exp(x - x.max()).sum())
    p = (1 - label_smoothing) * np.eye(len(x))[targets[index]] + label_smoothing / len(x)
    total += weight * (-(p * (x - log_z)).sum() + z_loss * log_z**2)
    softmax = np.exp(x - log_z)
    gradient[index] = weight * (softmax - p + 2 * z_loss * log_z * softmax)
  return total, weights.sum(), gradient


def draw(rng, shape=(3, 4), N=7, dtype='float32'):
  logits = jnp.asarray(3 * rng.normal(size=(*shape, N)), dtype)
  weights = np.where(rng.random(shape) < 0.3, 0, rng.random(shape))
  return logits, jnp.asarray(rng.integers(0, N, shape)), jnp.asarray(weights, 'float32')


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('label_smoothing, z_loss', SETTINGS)
def test_cross_entropy_and_its_gradient_are_the_formula(label_smoothing, z_loss, dtype, rng, close):
  logits, targets, weights = draw(rng, dtype=dtype)
  settings = dict(label_smoothing=label_smoothing, z_loss=z_loss)

  @jax.jit
  def run(x):
    mean, pullback = jax.vjp(lambda x: cross_entropy(x, targets, weights, **settings), x)
    return mean, mean.value, pullback(Mean(jnp.ones(()), jnp.zeros(())))[0]

  mean, value, gradient = run(logits)
  want_sum, want_weight, want_gradient = oracle(logits, targets, weights, *settings.values())
  assert mean.sum.dtype == mean.weight.dtype == jnp.float32
  close(mean.sum, want_sum)
  close(mean.weight, want_weight)
  close(value, want_sum / want_weight)
  close(gradient, want_gradient)


def test_no_row_has_a_loss_and_a_gradient_of_0():
  """As of an empty part of a batch."""
  x, table = jnp.zeros((0, 3)), jnp.ones((5, 3))
  targets, weights = jnp.zeros(0, int), jnp.zeros(0)

  @jax.jit
  @jax.value_and_grad
  def run(table):
    logits = x @ table.T
    plain = losses.cross_entropy(logits, targets, weights), accuracy(logits, targets, weights)
    fused = linear_cross_entropy(x, table, targets, weights, label_smoothing=0.1)
    capped = linear_cross_entropy(x, table, targets, weights, soft_cap=3.0)
    return sum(mean.value for mean in (*plain, *fused, *capped))

  value, gradient = run(table)
  assert value == 0 and not gradient.any()


@pytest.mark.parametrize('label_smoothing, z_loss', SETTINGS)
def test_positions_of_weight_0_may_hold_anything(label_smoothing, z_loss, rng):
  logits, targets, weights = map(np.array, draw(rng))
  weights[1, 2] = 0
  targets, weights = jnp.asarray(targets), jnp.asarray(weights)

  @jax.jit
  @jax.value_and_grad
  def loss(x):
    mean = cross_entropy(x, targets, weights, label_smoothing=label_smoothing, z_loss=z_loss)
    return mean.value

  want, gradient = loss(logits)
  np.testing.assert_array_equal(gradient[1, 2], 0)
  for bad in (np.nan, np.inf, -np.inf):
    logits[1, 2, 1:4] = bad
    found, spoilt_gradient = loss(logits)
    assert found == want
    np.testing.assert_array_equal(spoilt_gradient, gradient)


@pytest.mark.parametrize('label_smoothing, z_loss', SETTINGS[::3])
def test_a_fused_loss_may_cap_its_logits(label_smoothing, z_loss, rng, close, monkeypatch):
  monkeypatch.setattr(losses, 'CHUNK', 4)
  logits, targets, weights = draw(rng, shape=(10,))
  x, table = jnp.eye(10), logits.T
  settings = dict(label_smoothing=label_smoothing, z_loss=z_loss)

  @jax.jit
  def fused(table):
    loss, nll = linear_cross_entropy(x, table, targets, weights, soft_cap=2.0, **settings)
    return loss.sum, nll.sum

  (loss, nll), pullback = jax.vjp(fused, table)
  capped = 2 * np.tanh(np.asarray(logits, np.float64) / 2)
  want, _, gradient = oracle(capped, targets, weights, **settings)
  close(loss, want)
  close(nll, oracle(capped, targets, weights, 0.0, 0.0)[0])
  close(pullback((1.0, 1.0))[0].T, gradient * (1 - (capped / 2) ** 2))


def test_labels_of_minus_100_without_weight_change_nothing(rng):
  logits, targets, weights = draw(rng)
  ignored = jnp.where(weights == 0, -100, targets)

  @jax.jit
  @jax.value_and_grad
  def loss(logits, targets):
    plain = cross_entropy(logits, targets, weights).sum
    fused, _ = linear_cross_entropy(logits, jnp.eye(7), targets, weights)
    return plain + fused.sum

  for found, want in zip(loss(logits, ignored), loss(logits, targets), strict=True):
    np.testing.assert_array_equal(found, want)


def test_consistency_is_the_divergence_both_ways(rng, close):
  """Liang et al. 2021, equation 2, as loops; positions without weight may hold anything."""
  logits, _, weights = draw(rng, (2, 3))
  weights = jnp.repeat(weights.at[0, 0].set(0).at[1, 0].set(0.5), 2, axis=0)
  rows = jnp.concatenate([logits, logits[::-1]]).at[:2, 0].set(jnp.nan)
  p = np.asarray(jax.nn.softmax(rows), np.float64)
  expected = 0.0
  for row, position in np.ndindex(2, 3):
    if float(weight := weights[2 * row, position]):
      a, b = p[2 * row, position], p[2 * row + 1, position]
      expected += float(weight) * (np.sum(a * np.log(a / b)) + np.sum(b * np.log(b / a)))
  found, gradient = jax.jit(jax.value_and_grad(losses.consistency))(rows, weights)
  close(found, expected)
  assert np.isfinite(gradient).all() and not gradient[:2, 0].any()


@pytest.mark.parametrize('rows', [4, 6, 1000])
def test_a_fused_loss_may_compare_two_passes(rows, rng, close, monkeypatch):
  """With pairs in one chunk, in several, and with rows left over; one position has no weight."""
  monkeypatch.setattr(losses, 'CHUNK', rows)
  _, targets, weights = draw(rng, (4, 5))
  targets, weights = (jnp.repeat(a[:2], 2, axis=0) for a in (targets, weights.at[1, 2].set(0)))
  x, table = (jnp.asarray(rng.normal(size=size), 'float32') for size in ((4, 5, 6), (7, 6)))
  smoothing = dict(label_smoothing=0.1, z_loss=1e-2)

  def plain(x, table):
    logits = x @ table.T
    divergence = losses.consistency(logits, weights)
    loss = cross_entropy(logits, targets, weights, **smoothing).sum + 5 / 2 * divergence
    return loss, cross_entropy(logits, targets, weights).sum

  def fused(x, table):
    compared = dict(smoothing, consistency=5.0)
    loss, nll = linear_cross_entropy(x, table, targets, weights, **compared)
    return loss.sum, nll.sum

  found, want = (
    jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(x, table) for f in (fused, plain)
  )
  jax.tree.map(close, found, want)
  with pytest.raises(ValueError, match='3 rows are no pairs'):
    linear_cross_entropy(x[:3], table, targets[:3], weights[:3], consistency=5.0)


def test_sums_add_over_any_split(rng, close):
  batch = [np.asarray(x) for x in draw(rng, shape=(10,))]
  for f in (cross_entropy, jax.jit(accuracy)):
    whole = f(*(jnp.asarray(x) for x in batch))
    for pieces in (2, 5):
      parts = zip(*(np.split(x, pieces) for x in batch), strict=True)
      split = [f(*map(jnp.asarray, part)) for part in parts]
      split = Mean(sum(m.sum for m in split), sum(m.weight for m in split))
      for a, b in zip((*split, split.value), (*whole, whole.value), strict=True):
        close(a, b)


def test_the_mean_of_nothing_is_0():
  logits, targets = jnp.full((2, 3), np.nan), jnp.zeros(2, int)
  loss, gradient = jax.value_and_grad(lambda x: cross_entropy(x, targets, jnp.zeros(2)).value)(
    logits
  )
  assert loss == 0
  np.testing.assert_array_equal(gradient, 0)


def test_accuracy_counts_the_weight_of_right_answers(rng, close):
  logits, targets, weights = draw(rng)
  right = sum(
    float(weights[i]) for i in np.ndindex(3, 4) if int(np.argmax(logits[i])) == int(targets[i])
  )
  mean = accuracy(logits, targets, weights)
  close(mean.sum, right)
  close(mean.weight, np.asarray(weights, np.float64).sum())


@pytest.mark.parametrize(
  'rows, label_smoothing, z_loss',
  [*((5, *settings) for settings in SETTINGS), (12, *SETTINGS[-1]), (1000, *SETTINGS[-1])],
)
def test_linear_cross_entropy_is_that_of_the_logits(
  rows, label_smoothing, z_loss, rng, close, monkeypatch
):
  """Loss, plain likelihood and gradients, in one chunk, in equal ones, and with rows left over."""
  monkeypatch.setattr(losses, 'CHUNK', rows)
  _, targets, weights = draw(rng)
  x = jnp.asarray(rng.normal(size=(3, 4, 6)), 'float32')
  table = jnp.asarray(rng.normal(size=(7, 6)), 'float32')
  settings = dict(label_smoothing=label_smoothing, z_loss=z_loss)

  @jax.jit
  def run(x, table):
    return jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(x, table)

  def objective(x, table):
    loss, nll = linear_cross_entropy(x, table, targets, weights, **settings)
    return 3 * loss.sum, (loss, nll)

  (_, (loss, nll)), (dx, dtable) = run(x, table)
  logits = np.asarray(x, np.float64) @ np.asarray(table, np.float64).T
  want, weight, gradient = oracle(logits, targets, weights, label_smoothing, z_loss)
  close(loss.sum, want)
  close(nll.sum, oracle(logits, targets, weights, 0, 0)[0])
  close(loss.weight, weight)
  close(nll.weight, weight)
  close(dx, 3 * gradient @ np.asarray(table, np.float64))
  close(dtable, 3 * np.einsum('btn,btd->nd', gradient, np.asarray(x, np.float64)))


def test_linear_cross_entropy_in_16_bits_is_near_that_in_32(rng):
  x, table = (jnp.asarray(rng.normal(size=s), 'float32') for s in [(64, 32), (50, 32)])
  targets, weights = jnp.asarray(rng.integers(0, 50, 64)), jnp.ones(64)

  def run(dtype):
    f = lambda x, table: linear_cross_entropy(x, table, targets, weights, dtype=dtype)[0].value
    loss, gradients = jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(x, table)
    return loss, *gradients

  for narrow, exact in zip(run('bfloat16'), run('float32'), strict=True):
    assert narrow.dtype == exact.dtype == jnp.float32
    assert np.linalg.norm(narrow - exact) < 0.01 * np.linalg.norm(exact)


def test_linear_cross_entropy_ignores_what_has_no_weight(rng):
  x, table = (jnp.asarray(rng.normal(size=s), 'float32') for s in [(4, 3), (5, 3)])
  targets, weights = jnp.array([0, 4, 2, 1]), jnp.array([1.0, 0.0, 2.0, 1.0])

  @jax.jit
  @jax.value_and_grad
  def loss(x):
    return linear_cross_entropy(x, table, targets, weights)[0].value

  want, gradient = loss(x)
  np.testing.assert_array_equal(gradient[1], 0)
  for bad in (np.nan, np.inf):
    spoilt = np.array(x)
    spoilt[1] = bad
    found, spoilt_gradient = loss(spoilt)
    assert found == want
    np.testing.assert_array_equal(spoilt_gradient, gradient)


def brute_ctc(logits, targets, blank):
  """-log of the sum over every alignment there is, in float64."""
  log_p = np.asarray(logits, np.float64)
  log_p -= np.log(np.exp(log_p).sum(axis=-1, keepdims=True))
  total = 0.0
  for alignment in itertools.product(range(log_p.shape[1]), repeat=len(log_p)):
    read = [token for token, _ in itertools.groupby(alignment) if token != blank]
    if read == list(targets):
      total += np.exp(sum(log_p[s, a] for s, a in enumerate(alignment)))
  return -np.log(total) if total else None


@pytest.mark.parametrize('blank', [0, 2])
def test_ctc_is_the_sum_over_all_alignments(blank, rng):
  N, S, T = 4, 5, 3
  tokens = [n for n in range(N) if n != blank]
  rows = [([], 4), ([1], 1), ([1, 3], 5), ([1, 1], 5), ([1, 1], 3), ([1, 1], 2), ([3, 1, 3], 5)]
  rows += [
    (rng.choice(tokens, rng.integers(0, T + 1)).tolist(), rng.integers(1, S + 1)) for _ in range(6)
  ]
  logits = rng.normal(size=(len(rows), S, N)).astype(np.float32) * 3
  real, targets = np.zeros((len(rows), S), bool), np.zeros((len(rows), T), np.int32)
  weights = np.zeros((len(rows), T), np.float32)
  expected, count, impossible = 0.0, 0, []
  for i, (said, length) in enumerate(rows):
    real[i, :length], targets[i, : len(said)], weights[i, : len(said)] = True, said, 1
    loss = brute_ctc(logits[i, :length], said, blank)
    if loss is None:
      impossible.append(i)
    expected, count = (expected, count) if loss is None else (expected + loss, count + len(said))
  logits[~real] = np.nan  # padding may hold anything

  def summed(logits):
    return ctc(logits, jnp.asarray(real), jnp.asarray(targets), jnp.asarray(weights), blank=blank)

  mean = jax.jit(summed)(jnp.asarray(logits))
  np.testing.assert_allclose(mean.sum, expected, rtol=1e-5)
  assert mean.weight == count
  gradient = np.asarray(jax.jit(jax.grad(lambda x: summed(x).sum))(jnp.asarray(logits)))
  assert np.isfinite(gradient).all() and not gradient[~real].any()
  assert 5 in impossible and not gradient[impossible].any()  # [1, 1] at two positions
  # of logits that are real and aligned the gradient is softmax minus expected counts: its sum is 0
  np.testing.assert_allclose(gradient[real].sum(axis=-1), 0, atol=1e-5)
  assert np.abs(gradient[2]).max() > 0.01


def test_the_second_derivative_in_16_bits_is_that_of_32(rng):
  x, table, v = (
    jnp.asarray(rng.normal(size=shape), 'float32') for shape in ((6, 8), (12, 8), (12, 8))
  )
  targets, ones = jnp.asarray(rng.integers(0, 12, 6)), jnp.ones(6)

  def product(dtype):
    """The Hessian in the table, times v."""

    def slope(table):
      loss = lambda table: linear_cross_entropy(x, table, targets, ones, dtype=dtype)[0].sum
      return jnp.vdot(jax.grad(loss)(table), v)

    return np.ravel(jax.jit(jax.grad(slope))(table))

  wide, narrow = product('float32'), product('bfloat16')
  assert np.linalg.norm(wide - narrow) < 0.03 * np.linalg.norm(wide) > 0.1
