"""Optimizers and schedules; weight decay and learning rates by parameter path."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from transformer.data.lookup import lookup
from transformer.training import mup

# (pattern, whether weight decay applies): the first pattern that a path matches decides. By path,
# not by number of axes, because stacked layers give the scale of a norm two axes.
DECAY = (
  (r'(^|/)(scale|bias|class_token)$', False),
  (r'(^|/)table$', False),
  (r'(^|/)kernel$', True),
  (r'/adapter/(down|up)$', False),
)


def adamw(
  *, b1: float = 0.9, b2: float = 0.98, epsilon: float = 1e-9
) -> optax.GradientTransformation:
  """Adam (Kingma & Ba 2015), with the decays of Vaswani et al. 2017, section 5.3.

  Args:
    b1: decay of the mean of gradients.
    b2: decay of the mean of squared gradients.
    epsilon: added to the square root of that mean.
  """
  _check_decays(b1=b1, b2=b2)
  return optax.scale_by_adam(b1, b2, epsilon)


def muon(
  *, b1: float = 0.95, b2: float = 0.98, epsilon: float = 1e-9
) -> optax.GradientTransformation:
  """Muon (Jordan et al. 2024): the update of a matrix in a block is its orthogonalized momentum.

  Updates are scaled to the size of Adam's (https://arxiv.org/abs/2502.16982, equation 4); all other
  parameters are updated by Adam. It needs fewer steps than Adam: 0.4 nats less after 500 steps of a
  small language model.

  Args:
    b1: decay of the momentum, and of Adam's mean of gradients.
    b2: decay of Adam's mean of squared gradients.
    epsilon: added to denominators.
  """
  _check_decays(b1=b1, b2=b2)
  return optax.contrib.muon(
    -1.0,  # `build` applies the learning rate
    beta=b1,
    adam_b1=b1,
    adam_b2=b2,
    eps=epsilon,
    consistent_rms=0.2,
    muon_weight_dimension_numbers=_matrices,
  )


def adafactor(*, decay_rate: float = 0.8) -> optax.GradientTransformation:
  """Adafactor (Shazeer & Stern 2018): factored second moments.

  Args:
    decay_rate: the second moment's decay at step t is 1 - t^-decay_rate.
  """
  return optax.scale_by_factored_rms(decay_rate=decay_rate)


def lion(*, b1: float = 0.9, b2: float = 0.99) -> optax.GradientTransformation:
  """Lion (Chen et al. 2023): the sign of the momentum.

  Args:
    b1: weight of the momentum in the update.
    b2: decay of the momentum.
  """
  _check_decays(b1=b1, b2=b2)
  return optax.scale_by_lion(b1, b2)


def sgd(*, momentum: float = 0.9) -> optax.GradientTransformation:
  """Gradient descent with momentum.

  Args:
    momentum: decay of the sum of gradients.
  """
  _check_decays(momentum=momentum)
  return optax.trace(momentum)


# To add an optimizer, add its function here: its keyword arguments become keys of the config.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
  'adamw': adamw,
  'muon': muon,
  'adafactor': adafactor,
  'lion': lion,
  'sgd': sgd,
}


def constant(step: ArrayLike, *, warmup_steps: int) -> jax.Array:
  """Return 1 after a linear warm-up; `step` counts from 1 in all schedules."""
  return _warmup(step, warmup_steps, jnp.ones(()))


def cosine(step: ArrayLike, *, warmup_steps: int, steps: int) -> jax.Array:
  """Return half a cosine from 1 to 0, after a linear warm-up (Loshchilov & Hutter 2017)."""
  after = 0.5 * (1 + jnp.cos(jnp.pi * _progress(step, warmup_steps, steps)))
  return _warmup(step, warmup_steps, after)


def linear(step: ArrayLike, *, warmup_steps: int, steps: int) -> jax.Array:
  """Return a linear decay from 1 to 0, after a linear warm-up."""
  return _warmup(step, warmup_steps, 1 - _progress(step, warmup_steps, steps))


def trapezoid(
  step: ArrayLike, *, warmup_steps: int, steps: int, decay_share: float = 0.2
) -> jax.Array:
  """Return 1 after a linear warm-up, with a linear decay to 0 at the end (Hu et al. 2024).

  Args:
    decay_share: the share of all steps in which the rate decays.
  """
  start = steps - round(decay_share * steps)
  return _warmup(step, warmup_steps, 1 - _progress(step, start, steps))


def rsqrt(step: ArrayLike, *, warmup_steps: int) -> jax.Array:
  """Return sqrt(warmup_steps / step), after a linear warm-up."""
  warmup = max(warmup_steps, 1)
  return _warmup(step, warmup_steps, jnp.sqrt(warmup / jnp.maximum(step, warmup)))


def noam(step: ArrayLike, *, warmup_steps: int, width: int) -> jax.Array:
  """Return width^-0.5 min(step^-0.5, step warmup_steps^-1.5): Vaswani et al. 2017, equation 3."""
  return (width * max(warmup_steps, 1)) ** -0.5 * rsqrt(step, warmup_steps=warmup_steps)


# Functions from a step, which counts from 1, to a factor of the learning rate. To add a schedule,
# add its function here. Its keyword arguments with a default become keys of the config; it may also
# have the arguments warmup_steps, steps (of the whole training) and width (of the model).
SCHEDULES: dict[str, Callable[..., jax.Array]] = {
  'constant': constant,
  'cosine': cosine,
  'linear': linear,
  'trapezoid': trapezoid,
  'rsqrt': rsqrt,
  'noam': noam,
}


def build(
  *,
  name: str = 'adamw',
  learning_rate: float,
  schedule: str = 'cosine',
  warmup_steps: int = 100,
  weight_decay: float = 0.0,
  clip: float = 1.0,
  lr_multipliers: tuple[tuple[str, float], ...] = (),
  mup_base_width: int = 0,
  steps: int,
  width: int,
  **options: float | None,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Return the optimizer, and its learning rate as a function of the step, from 0 (for the log).

  Args:
    name: of OPTIMIZERS, or module:name of a function of your own; the arguments of the latter keep
      their defaults.
    learning_rate: the peak; for noam a factor, 1 in the paper.
    schedule: of SCHEDULES, or module:name of a function of your own, with the same limit.
    warmup_steps: steps in which the rate grows linearly from 0 to its peak.
    weight_decay: decoupled (Loshchilov & Hutter 2019), for the parameters that DECAY selects.
    clip: global norm above which gradients are scaled down; 0 for never.
    lr_multipliers: (pattern, factor) pairs: the learning rate of a parameter is multiplied by the
      factor of the first pattern that its path matches (re.search). 0 freezes; see `freeze`.
    mup_base_width: D of the model for which the learning rate was chosen, to use it for this
      model's D; see `mup`. 0 for the same rate for all parameters.
    steps: of the whole training.
    width: D, for noam and mup_base_width.
    options: keyword arguments of the optimizer and of the schedule; None for their defaults.

  Raises:
    ValueError: an unknown name or schedule, an unknown option, or a number out of range.
  """
  numbers = dict(learning_rate=learning_rate, warmup_steps=warmup_steps, clip=clip)
  numbers |= dict(mup_base_width=mup_base_width, weight_decay=weight_decay)
  for key, value in numbers.items():
    if not value >= 0:
      raise ValueError(f'optimizer.{key}={value} must be at least 0')
  optimizer, factor = _find(name, schedule)
  kwargs = _with_defaults(name, schedule, options)
  kwargs |= dict(warmup_steps=warmup_steps, steps=steps, width=width)

  def rate(step):
    return learning_rate * factor(step + 1.0, **_arguments(factor, kwargs))

  chain = [optax.clip_by_global_norm(clip)] if clip else []
  chain += [optimizer(**_arguments(optimizer, kwargs))]
  if weight_decay:
    chain += [optax.add_decayed_weights(weight_decay, mask=decays)]
  chain += [optax.scale_by_learning_rate(rate)]
  if mup_base_width:
    chain += [mup.scale_by_width(mup_base_width, width)]
  return _scaled(optax.chain(*chain), lr_multipliers), rate


def defaults(name: str, schedule: str) -> dict[str, float]:
  """Return the options of an optimizer and a schedule with their defaults.

  Raises:
    ValueError: one of the names is unknown.
  """
  signatures = map(inspect.signature, _find(name, schedule))
  parameters = [p for signature in signatures for p in signature.parameters.values()]
  return {p.name: p.default for p in parameters if p.default is not p.empty}


def _with_defaults(name: str, schedule: str, options: Mapping[str, Any]) -> dict[str, Any]:
  """Return `options` with the defaults of an optimizer and a schedule in place of None.

  Raises:
    ValueError: neither of them has an option of this name.
  """
  known = defaults(name, schedule)
  options = {key: value for key, value in options.items() if value is not None}
  for key, value in options.items():
    if key not in known:
      raise ValueError(
        f'optimizer.{key}={value} is read neither by optimizer.name={name} nor by '
        f'optimizer.schedule={schedule}: leave it out'
      )
  return known | options


def _find(name: str, schedule: str) -> tuple[Callable, Callable]:
  """Return the functions of an optimizer and a schedule, from the tables or the user's module."""
  optimizer = lookup('optimizer.name', name, OPTIMIZERS)
  return optimizer, lookup('optimizer.schedule', schedule, SCHEDULES)


def _arguments(function: Callable, values: Mapping[str, Any]) -> dict[str, Any]:
  """Return the values that are arguments of a function."""
  names = inspect.signature(function).parameters
  return {name: value for name, value in values.items() if name in names}


def _scaled(
  optimizer: optax.GradientTransformation, lr_multipliers: tuple[tuple[str, float], ...]
) -> optax.GradientTransformation:
  """Return the optimizer with learning rates by path; frozen parameters have no state."""
  if not lr_multipliers:
    return optimizer

  def scale(updates, _):
    return jax.tree.map(jnp.multiply, updates, factors(updates, lr_multipliers))

  trained = optax.masked(optimizer, lambda x: jax.tree.map(bool, factors(x, lr_multipliers)))
  return optax.chain(trained, optax.stateless(scale))


def factors(params: Any, lr_multipliers: tuple[tuple[str, float], ...]) -> Any:
  """Return a tree with the learning rate multiplier of each parameter; see `build`.

  Raises:
    ValueError: a pattern matches no parameter.
  """
  names = [parameter_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  for pattern, _ in lr_multipliers:
    if not any(re.search(pattern, name) for name in names):
      raise ValueError(
        f'optimizer.lr_multipliers={lr_multipliers!r}: {pattern!r} matches no parameter; there are '
        f'{", ".join(names)}'
      )
  return jax.tree.map_with_path(lambda path, _: first_match(path, lr_multipliers, 1.0), params)


def freeze(params: Any, lr_multipliers: tuple[tuple[str, float], ...]) -> Any:
  """Return the parameters with stop_gradient on those whose factor is 0."""
  if not lr_multipliers:
    return params
  return jax.tree.map(
    lambda x, factor: x if factor else jax.lax.stop_gradient(x),
    params,
    factors(params, lr_multipliers),
  )


def _matrices(params: Any) -> Any:
  """Return a tree with Muon's axes for kernels in blocks [L, in, out], None for the others."""
  axes = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
  return jax.tree.map_with_path(
    lambda path, _: axes if re.search(r'blocks/.*/kernel$', parameter_path(path)) else None, params
  )


def decays(params: Any) -> Any:
  """Return a tree with True for the parameters that weight decay applies to.

  Raises:
    ValueError: no pattern of DECAY matches a path.
  """

  def decay_of(path, _):
    decay = first_match(path, DECAY)
    if decay is None:
      name = parameter_path(path)
      raise ValueError(
        f'optimizers.DECAY does not say whether parameter {name} decays: add a pattern'
      )
    return decay

  return jax.tree.map_with_path(decay_of, params)


def parameter_path(path: tuple) -> str:
  """Return a leaf's path as text, such as encoder/blocks/attention/query/kernel."""
  return jax.tree_util.keystr(path, simple=True, separator='/').removesuffix('/value')


def first_match(path: tuple, table: Iterable[tuple[str, Any]], default: Any = None) -> Any:
  """Return the value of the first (pattern, value) in a table whose pattern matches a path."""
  name = parameter_path(path)
  return next((value for pattern, value in table if re.search(pattern, name)), default)


def _warmup(step, warmup_steps, after):
  return jnp.minimum(step / max(warmup_steps, 1), after)


def _progress(step, start, end):
  """Return 0 until `start`, 1 from `end` on, and linear interpolation between them."""
  return jnp.clip((step - start) / max(end - start, 1), 0, 1)


def _check_decays(**decays: float):
  for name, value in decays.items():
    if not 0 <= value < 1:
      raise ValueError(f'optimizer.{name}={value} is a decay: give 0 <= {name} < 1, such as 0.9')
