"""Losses as (sum, weight): parts of a batch are added, and the total is divided once."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from transformer.functional import platforms
from transformer.functional.activations import soft_cap as soft_capped
from transformer.functional.matmul import matmul, matmul_nt, matmul_tn
from transformer.functional.meshes import vary_alike, with_auto_axes

# Rows of logits that linear_cross_entropy holds at once. On a CPU they fit its caches. On other
# platforms a chunk is so large that reading and writing the table's gradient [N, D] once for each
# takes little of the time; with N = 50,000 it takes 2.5 GB.
CHUNK, CHUNK_ELSEWHERE = 1024, 8192


class Mean(NamedTuple):
  """A weighted mean before its division, so that microbatches and devices can be added."""

  sum: Float[Array, '']
  weight: Float[Array, '']

  @property
  def value(self) -> Float[Array, '']:
    """sum / weight, or 0 if the weight is 0."""
    return self.sum / jnp.where(self.weight == 0, 1, self.weight)


@with_auto_axes
def cross_entropy(
  logits: Float[Array, '*B N'],
  targets: Int[Array, '*B'],
  weights: Float[Array, '*B'],
  *,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
) -> Mean:
  """Return -sum_n p(n) log softmax(logits)(n), where p = (1 - a) onehot(target) + a / N.

  Args:
    logits: of any dtype; computed in float32.
    targets: the true classes.
    weights: weight of each position, 0 for padding.
    label_smoothing: a; 0 gives the negative log-likelihood, in nats.
    z_loss: adds z_loss log(Z)^2, which keeps the softmax's normalizer Z near 1.

  Returns:
    The weighted sum and the sum of weights.

  Szegedy et al. 2016, section 7 (smoothing over all N classes, the target included);
  Chowdhery et al. 2022, section 5 (z-loss).

  >>> cross_entropy(jnp.zeros((2, 4)), jnp.array([1, 0]), jnp.array([1., 0.])).value.round(3)
  Array(1.386, dtype=float32)
  """
  # positions of weight 0 may have any values (Inf, NaN, a target of -100), and have no gradient
  logits = jnp.where((weights == 0)[..., None], 0, logits.astype(jnp.float32))
  targets = jnp.where(weights == 0, 0, targets)
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  if label_smoothing or z_loss:
    log_z = jax.nn.logsumexp(logits, axis=-1)
    uniform = log_z - jnp.mean(logits, axis=-1)  # cross-entropy with 1/N on every class
    loss = (1 - label_smoothing) * loss + label_smoothing * uniform + z_loss * log_z**2
  return Mean(jnp.sum(loss * weights), jnp.sum(weights))


@with_auto_axes
def consistency(logits: Float[Array, 'B *T N'], weights: Float[Array, 'B *T']) -> Float[Array, '']:
  """Return the weighted sum of KL(p || q) + KL(q || p), in nats, of two predictions p and q.

  R-Drop (Liang et al. 2021, https://arxiv.org/abs/2106.14448, equation 2): p and q are predictions
  for one row with different dropout.

  Args:
    logits: those of p in rows 2i, those of q in rows 2i + 1.
    weights: weight of each position, 0 for padding; equal in both rows.

  >>> consistency(jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.ones(2)).round(3)
  Array(0.924, dtype=float32)
  """
  log_p = jax.nn.log_softmax(jnp.where((weights == 0)[..., None], 0, logits.astype(jnp.float32)))
  log_p, log_q = log_p[::2], log_p[1::2]
  divergence = jnp.sum((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q), axis=-1)
  return jnp.sum(divergence * weights[::2])


@with_auto_axes
def linear_cross_entropy(
  x: Float[Array, '*B D'],
  table: Float[Array, 'N D'],
  targets: Int[Array, '*B'],
  weights: Float[Array, '*B'],
  *,
  dtype: DTypeLike | None = None,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
  soft_cap: float = 0.0,
  consistency: float = 0.0,
  platform: str | None = None,
) -> tuple[Mean, Mean]:
  """Return the `cross_entropy` of the logits x @ table.T, which are never stored as a whole.

  For one chunk of rows at a time it computes logits, loss and gradient, with one softmax for both.
  This needs the memory of a chunk instead of four arrays [*B, N], and takes half the time.

  Args:
    x: the states before the output layer.
    table: the output embeddings.
    targets, weights, label_smoothing, z_loss: as in `cross_entropy`.
    dtype: dtype of the operands of all products; x's own if None.
    soft_cap: bound of the logits, see `activations.soft_cap`; 0 for none.
    consistency: adds this factor / 2 of the divergence between rows 2i and 2i + 1, which are two
      passes with different dropout; see the function `consistency`.
    platform: the one that the program is compiled for; see `platforms`.

  Returns:
    (the loss, the negative log-likelihood without a gradient).

  Raises:
    ValueError: with consistency, the number of rows is odd.

  >>> x, table = jnp.eye(2), jnp.zeros((4, 2))
  >>> linear_cross_entropy(x, table, jnp.array([1, 0]), jnp.ones(2))[0].value.round(3)
  Array(1.386, dtype=float32)
  """
  settings = _Settings(
    jnp.dtype(dtype or x.dtype),
    label_smoothing,
    z_loss,
    soft_cap,
    consistency,
    on_cpu=platforms.resolve(platform) == 'cpu',
  )
  if consistency:  # two passes of a position become neighbors, and stay so in a chunk
    if len(targets) % 2:
      raise ValueError(
        f'{len(targets)} rows are no pairs: for consistency={consistency} give each row twice'
      )
    axis = targets.ndim
    x, targets, weights = (
      jnp.moveaxis(a.reshape(-1, 2, *a.shape[1:]), 1, axis) for a in (x, targets, weights)
    )
  x, targets, weights = x.reshape(-1, x.shape[-1]), targets.reshape(-1), weights.reshape(-1)
  # positions of weight 0 may have any values, and have no gradient
  x, targets = jnp.where((weights == 0)[:, None], 0, x), jnp.where(weights == 0, 0, targets)
  loss, nll = _linear_cross_entropy(x, table, targets, weights, settings)
  total = jnp.sum(weights)
  return Mean(loss, total), Mean(jax.lax.stop_gradient(nll), total)


class _Settings(NamedTuple):
  """The arguments of `linear_cross_entropy` that are no arrays."""

  dtype: jnp.dtype
  label_smoothing: float
  z_loss: float
  soft_cap: float
  consistency: float
  on_cpu: bool

  @property
  def together(self) -> int:
    """Return the number of neighboring rows that one chunk must have."""
    return 2 if self.consistency else 1

  def split(self, *arrays: Array) -> list[Array]:
    """Return the arrays [rows, ...] as [chunks, rows of a chunk, ...], padded with 0.

    The rows of a chunk are strided, so that every chunk has rows on every device.
    """
    chunks = max(-(-len(arrays[0]) // (CHUNK if self.on_cpu else CHUNK_ELSEWHERE)), 1)

    def split(a):
      a = jnp.pad(a, [(0, -len(a) % (chunks * self.together))] + [(0, 0)] * (a.ndim - 1))
      a = a.reshape(-1, chunks, self.together, *a.shape[1:]).swapaxes(0, 1)
      return a.reshape(chunks, -1, *a.shape[3:])

    return [split(a) for a in arrays]

  def join(self, a: Array, rows: int) -> Array:
    """Return the first rows of an array that `split` made."""
    a = a.reshape(len(a), -1, self.together, *a.shape[2:]).swapaxes(0, 1)
    return a.reshape(-1, *a.shape[3:])[:rows]


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _linear_cross_entropy(x, table, targets, weights, settings):
  return _loss_and_gradient(x, table, targets, weights, settings)[0]


@_linear_cross_entropy.defjvp
def _linear_cross_entropy_derivative(settings, primals, tangents):
  (loss, nll), gradients = _loss_and_gradient(*primals, settings)
  x_gradient, table_gradient = gradients
  slope = jnp.sum(x_gradient * tangents[0]) + jnp.sum(table_gradient * tangents[1])
  return (loss, nll), (slope.astype(loss.dtype), jnp.zeros_like(nll))


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _loss_and_gradient(x, table, targets, weights, settings):
  """Return ((loss, nll), (gradient of the loss by x, by the table)), weighted and summed."""
  return _by_chunks(x, table, targets, weights, settings, _round)


@_loss_and_gradient.defjvp
def _second_derivative(settings, primals, tangents):
  # The bit operations of `_round` have no derivative. A custom rule for it would have no effect:
  # JAX drops the rule of a function inside a scan inside another rule.
  by_chunks = functools.partial(
    _by_chunks, settings=settings, rounded=lambda x, dtype: x.astype(dtype)
  )
  return jax.jvp(by_chunks, primals, tangents)


def _by_chunks(x, table, targets, weights, settings, rounded):
  """Return `_loss_and_gradient`; rounded(x, dtype) converts x to the dtype of the products."""
  if settings.soft_cap or settings.consistency:
    return _by_differentiation(x, table, targets, weights, settings, rounded)
  dtype, smoothing, z_loss = settings.dtype, settings.label_smoothing, settings.z_loss
  (R, D), N = x.shape, len(table)
  narrow = table.astype(dtype)
  table_sum = jnp.sum(table, axis=0)

  def chunk(table_gradient, rows):
    x, targets, weights = rows
    logits = matmul_nt(x, narrow, dtype).astype(jnp.float32)
    peak = jnp.max(logits, axis=-1, keepdims=True)
    true = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    # the only array [rows, N] that is read twice: computed once, and stored in the narrow dtype
    e = jax.lax.optimization_barrier(rounded(jnp.exp(logits - peak), dtype))
    z = jnp.sum(e.astype(jnp.float32), axis=-1)
    log_z = peak[:, 0] + jnp.log(z)
    nll = log_z - true
    uniform = log_z - x @ table_sum / N
    loss = (1 - smoothing) * nll + smoothing * uniform + z_loss * log_z**2
    # d loss / d logits = (1 + 2 z_loss log Z) e / Z - p
    scale = (weights * (1 + 2 * z_loss * log_z) / z)[:, None]
    x_gradient = matmul(e, narrow, dtype) * scale
    table_gradient += matmul_tn((x * scale).astype(dtype), e)
    return table_gradient, (jnp.sum(loss * weights), jnp.sum(nll * weights), x_gradient)

  zeros, *_ = vary_alike(jnp.zeros((D, N), jnp.float32), x, table, targets, weights)
  rows = settings.split(x, targets, weights)
  table_gradient, (loss, nll, x_gradient) = jax.lax.scan(chunk, zeros, rows)
  x_gradient = settings.join(x_gradient, R)

  # the rest of the gradient, from p = (1 - smoothing) onehot(target) + smoothing / N
  on_target, on_all = (1 - smoothing) * weights[:, None], smoothing / N * weights[:, None]
  x_gradient -= on_target * table[targets] + on_all * table_sum[None]
  table_gradient = jax.lax.optimization_barrier(table_gradient).T
  table_gradient = table_gradient.at[targets].add((-on_target * x).astype(jnp.float32))
  table_gradient -= jnp.sum(on_all * x, axis=0, keepdims=True)
  return (jnp.sum(loss), jnp.sum(nll)), (x_gradient.astype(x.dtype), table_gradient)


def _by_differentiation(x, table, targets, weights, settings, rounded):
  """Return `_by_chunks` of any loss, whose gradient by a chunk's logits JAX computes."""
  dtype, narrow = settings.dtype, table.astype(settings.dtype)

  def sums(logits, targets, weights):
    logits = soft_capped(logits, settings.soft_cap)
    smoothing = dict(label_smoothing=settings.label_smoothing, z_loss=settings.z_loss)
    loss = cross_entropy(logits, targets, weights, **smoothing).sum
    if settings.consistency:
      loss += settings.consistency / 2 * consistency(logits, weights)
    return loss, cross_entropy(logits, targets, weights).sum

  def chunk(table_gradient, rows):
    x, targets, weights = rows
    logits = matmul_nt(x, narrow, dtype).astype(jnp.float32)
    (loss, nll), gradient = jax.value_and_grad(sums, has_aux=True)(logits, targets, weights)
    gradient = jax.lax.optimization_barrier(rounded(gradient, dtype))
    table_gradient += matmul_tn(x.astype(dtype), gradient)
    return table_gradient, (loss, nll, matmul(gradient, narrow, dtype))

  zeros, *_ = vary_alike(jnp.zeros(table.T.shape, jnp.float32), x, table, targets, weights)
  rows = settings.split(x, targets, weights)
  table_gradient, (loss, nll, x_gradient) = jax.lax.scan(chunk, zeros, rows)
  x_gradient = settings.join(x_gradient, len(x)).astype(x.dtype)
  return (jnp.sum(loss), jnp.sum(nll)), (x_gradient, table_gradient.T)


def _round(x, dtype):
  """Return x.astype(dtype), to bfloat16 by integers, which XLA's CPU backend vectorizes."""
  if dtype != jnp.bfloat16:
    return x.astype(dtype)
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
  return jax.lax.bitcast_convert_type(bits.astype(jnp.uint16), dtype)


@with_auto_axes
def ctc(
  logits: Float[Array, 'B S N'],
  real: Bool[Array, 'B S'],
  targets: Int[Array, 'B T'],
  weights: Float[Array, 'B T'],
  *,
  blank: int,
) -> Mean:
  """Return the CTC loss, -log sum_a prod_s softmax(logits_s)(a_s) over all alignments a.

  An alignment has a token or the blank at every real position. Merging repeated tokens and then
  removing blanks gives the targets.

  Args:
    logits: of any dtype; computed in float32.
    real: which positions are not padding.
    targets: without blanks, padding last.
    weights: 1, or 0 for padding.
    blank: id of the blank.

  Returns:
    The sum over rows, and their number of target tokens. Rows without an alignment are left out:
    those with fewer positions than tokens plus the blanks between equal neighbors.

  Graves et al. 2006, https://doi.org/10.1145/1143844.1143891, equations 2-8; optax sums.

  >>> targets, ones = jnp.array([[1]]), jnp.ones((1, 1))
  >>> ctc(jnp.zeros((1, 2, 2)), jnp.ones((1, 2), bool), targets, ones, blank=0).value  # 3 of 4
  Array(0.2876821, dtype=float32)
  """
  padding = weights == 0
  repeats = (targets[:, 1:] == targets[:, :-1]) & ~padding[:, 1:]
  tokens = jnp.sum(~padding, axis=1)
  aligned = tokens + jnp.sum(repeats, axis=1) <= jnp.sum(real, axis=1)
  # optax writes log 0 as -1e5, which would give rows without an alignment a gradient, and a NaN in
  # the padding would reach the loss
  real, logits = real & aligned[:, None], logits.astype(jnp.float32)
  logits = jnp.where(real[..., None], logits, 0)
  padding |= ~aligned[:, None]
  loss = optax.ctc_loss(
    logits, (~real).astype(jnp.float32), targets, padding.astype(jnp.float32), blank_id=blank
  )
  return Mean(jnp.sum(loss), jnp.sum(jnp.where(aligned, tokens, 0)).astype(jnp.float32))


@with_auto_axes
def accuracy(
  logits: Float[Array, '*B N'], targets: Int[Array, '*B'], weights: Float[Array, '*B']
) -> Mean:
  """Return the accuracy: the weighted share of positions whose most probable class is the target.

  >>> accuracy(jnp.eye(3), jnp.array([0, 1, 2]), jnp.ones(3)).value
  Array(1., dtype=float32)
  """
  right = jnp.argmax(logits, axis=-1) == targets
  return Mean(jnp.sum(right.astype(weights.dtype) * weights), jnp.sum(weights))
