"""How parameters move: Optax optimisers and schedules, decay by parameter path."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

# Which parameters weight decay pulls to zero: the first pattern that fits a path decides.
# By path, not by number of axes: stacking layers gives a norm's scale two axes.
DECAY = (
  (r'(^|/)(scale|bias|first)$', False),
  (r'(^|/)(table|relative)$', False),
  (r'(^|/)kernel$', True),
  (r'/adapter/(down|up)$', False),
)


def build(
  *,
  name: str,
  learning_rate: float,
  schedule: str,
  warmup_steps: int,
  steps: int,
  width: int,
  b1: float,
  b2: float,
  epsilon: float,
  weight_decay: float,
  clip: float,
  rates: str = '',
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The optimiser, and its learning rate by step (for the log).

  Args:
    name: adamw (Adam where weight_decay is 0), muon (Jordan et al. 2024: the blocks' matrices move
      by the orthogonal part of their momentum, as far as Adam's would, https://arxiv.org/abs/2502.16982
      equation 4; the rest by Adam), adafactor, lion or sgd.
    learning_rate: the peak; for noam a factor, 1 in the paper.
    schedule: after a linear warm-up from 0: constant, cosine or linear to 0, rsqrt (peak times
      sqrt(warmup / step)), or noam: width^-0.5 min(step^-0.5, step warmup^-1.5), which is rsqrt
      with the paper's peak (Vaswani et al. 2017, equation 3).
    warmup_steps: steps until the peak.
    steps: when cosine and linear arrive at 0.
    width: D, for noam.
    b1, b2, epsilon: Adam's; b1 is also the momentum of the others.
    weight_decay: decoupled (Loshchilov & Hutter 2019), on the parameters that DECAY names.
    clip: global norm above which gradients are scaled down; 0 means never.
    rates: factors of the learning rate by parameter path, such as 'embed=0, blocks=0.1': the first
      pattern that a path fits (re.search) decides, and 0 freezes what it names; see `frozen`.

  Raises:
    ValueError: an unknown name or schedule, or a number out of range.
  """
  given = dict(learning_rate=learning_rate, warmup_steps=warmup_steps, epsilon=epsilon)
  for key, value in dict(given, weight_decay=weight_decay, clip=clip).items():
    if not value >= 0:
      raise ValueError(f'optimizer.{key}={value} must be at least 0')
  for key, value in dict(b1=b1, b2=b2).items():
    if not 0 <= value < 1:
      raise ValueError(f'optimizer.{key}={value} is a decay: give 0 <= {key} < 1, such as 0.9')
  _parsed(rates)  # raises what is wrong with it, before there are parameters
  peak = learning_rate
  if schedule == 'noam':
    peak, schedule = learning_rate * (width * max(warmup_steps, 1)) ** -0.5, 'rsqrt'
  after = {
    'constant': lambda step: jnp.ones(()),
    'cosine': lambda step: 0.5 * (1 + jnp.cos(jnp.pi * _progress(step, warmup_steps, steps))),
    'linear': lambda step: 1 - _progress(step, warmup_steps, steps),
    'rsqrt': lambda step: jnp.sqrt(max(warmup_steps, 1) / jnp.maximum(step, max(warmup_steps, 1))),
  }
  if schedule not in after:
    raise ValueError(f'optimizer.schedule={schedule!r} is none of {", ".join([*after, "noam"])}')

  def rate(step):
    step = step + 1.0  # the first update is step 1, as in the paper
    return peak * jnp.minimum(step / max(warmup_steps, 1), after[schedule](step))

  transforms = {
    'adamw': lambda: optax.scale_by_adam(b1, b2, epsilon),
    'muon': lambda: optax.contrib.muon(
      -1.0,  # the rate comes last, here as for the others
      beta=b1,
      adam_b1=b1,
      adam_b2=b2,
      eps=epsilon,
      consistent_rms=0.2,
      muon_weight_dimension_numbers=_matrices,
    ),
    'adafactor': lambda: optax.scale_by_factored_rms(),
    'lion': lambda: optax.scale_by_lion(b1, b2),
    'sgd': lambda: optax.trace(b1),
  }
  if name not in transforms:
    raise ValueError(f'optimizer.name={name!r} is none of {", ".join(transforms)}')
  chain = [optax.clip_by_global_norm(clip)] if clip else []
  chain += [transforms[name]()]
  if weight_decay:
    chain += [optax.add_decayed_weights(weight_decay, mask=decays)]
  chain += [optax.scale_by_learning_rate(rate)]
  if rates:
    # frozen parameters have no statistics, which are twice their memory
    moving = optax.masked(
      optax.chain(*chain), lambda params: jax.tree.map(bool, factors(params, rates))
    )
    chain = [
      moving,
      optax.stateless(
        lambda updates, _: jax.tree.map(jnp.multiply, updates, factors(updates, rates))
      ),
    ]
  return optax.chain(*chain), rate


def factors(params: Any, rates: str) -> Any:
  """For each parameter the factor of its learning rate; `rates` as of `build`.

  Raises:
    ValueError: an entry is no pattern=factor, or fits no parameter.
  """
  table = _parsed(rates)

  def factor_of(path, _):
    name = parameter_path(path)
    return next((factor for pattern, factor in table if pattern.search(name)), 1.0)

  names = [parameter_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  for unused in (pattern for pattern, _ in table if not any(map(pattern.search, names))):
    raise ValueError(
      f'optimizer.rates={rates!r}: {unused.pattern!r} fits no parameter; there are '
      f'{", ".join(names)}'
    )
  return jax.tree.map_with_path(factor_of, params)


def _parsed(rates: str) -> list[tuple[re.Pattern, float]]:
  table = []
  for entry in filter(None, (entry.strip() for entry in rates.split(','))):
    pattern, _, factor = entry.rpartition('=')
    try:
      table.append((re.compile(pattern), float(factor)))
    except (re.error, ValueError) as error:
      raise ValueError(
        f'optimizer.rates={rates!r}: {entry!r} is no pattern=factor ({error}); write embed=0.1'
      ) from error
  return table


def frozen(params: Any, rates: str) -> Any:
  """The parameters, with no gradient for those whose factor is 0: it need not be computed."""
  if not rates:
    return params
  return jax.tree.map(
    lambda x, factor: x if factor else jax.lax.stop_gradient(x), params, factors(params, rates)
  )


def _matrices(params: Any) -> Any:
  """For each parameter the axes of its matrices if it is of hidden layers, [L, in, out]."""
  axes = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
  return jax.tree.map_with_path(
    lambda path, _: axes if re.search(r'blocks/.*/kernel$', parameter_path(path)) else None, params
  )


def decays(params: Any) -> Any:
  """For each parameter, whether weight decay applies.

  Raises:
    ValueError: no pattern of DECAY fits a path.
  """

  def decides(path, _):
    name = parameter_path(path)
    for pattern, decay in DECAY:
      if re.search(pattern, name):
        return decay
    raise ValueError(
      f'optimizers.DECAY does not say whether parameter {name} decays: add a pattern'
    )

  return jax.tree.map_with_path(decides, params)


def parameter_path(path: tuple) -> str:
  """A leaf's path as text, such as encoder/blocks/attention/query/kernel."""
  return jax.tree_util.keystr(path, simple=True, separator='/').removesuffix('/value')


def _progress(step, warmup_steps, steps):
  """0 at the end of the warm-up, 1 at the end of training."""
  return jnp.clip((step - warmup_steps) / max(steps - warmup_steps, 1), 0, 1)
