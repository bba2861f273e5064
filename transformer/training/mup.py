"""Maximal update parametrization (muP): one learning rate for models of all widths.

The learning rate that is best for a narrow model is also best for a wide one if the rates of its
parameters shrink with the width as RULES say. The reason: Adam and Lion change every number by
about the learning rate, so that a sum over D numbers changes D times as much. Heads keep their
size; a wider model has more heads.

Yang et al. 2021, https://arxiv.org/abs/2203.03466, table 8. Its input and output weights are the
token tables here. They are initialized with 1 / sqrt D, multiplied by sqrt D as embeddings
(model.scale_embedding) and divided by it as logits (model.scale_logits), so that the rate that is
equivalent to the paper's is 1 / sqrt D.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import optax

# (pattern, exponent): the learning rate of a parameter is multiplied by (base / width)^exponent, by
# the first pattern that its path matches.
RULES = (
  (
    r'(embed/projection|conv1)/kernel$',
    0.0,
  ),  # from pixels or bands: independent of the width
  (r'/kernel$', 1.0),  # from D or F numbers: hidden layers, and the output of a classifier
  (r'(embed|output|token_types)/table$', 0.5),  # of tokens
  (r'', 0.0),  # scales, biases, the class token
)
OPTIMIZERS = ('adamw', 'lion')
POSITIONS = ('sinusoidal', 'sinusoidal_halves', 'sinusoidal_offset', 'rotary', 'alibi', 'none')


def scale_by_width(base: int, width: int) -> optax.GradientTransformation:
  """Return the transformation that scales updates by RULES.

  Args:
    base: the width for which the learning rate was chosen.
    width: D of the model.

  >>> updates = {'out': {'kernel': 1.0, 'bias': 1.0}, 'embed': {'table': 1.0}}
  >>> scale_by_width(64, 256).update(updates, optax.EmptyState())[0]
  {'embed': {'table': 0.5}, 'out': {'bias': 1.0, 'kernel': 0.25}}
  """

  def scaled(path, update):
    name = jax.tree_util.keystr(path, simple=True, separator='/').removesuffix('/value')
    exponent = next(x for pattern, x in RULES if re.search(pattern, name))
    return update * (base / width) ** exponent

  return optax.stateless(lambda updates, _: jax.tree.map_with_path(scaled, updates))


def check(optimizer: str, model: Mapping[str, Any]) -> None:
  """Raise ValueError if RULES do not apply to a model or an optimizer.

  Args:
    optimizer: the name of the optimizer.
    model: fields of ModelConfig.
  """
  if optimizer not in OPTIMIZERS:
    raise ValueError(
      f'optimizer.mup_base_width is for {" and ".join(OPTIMIZERS)}, not {optimizer}: set it to 0'
    )
  for name in ('scale_embedding', 'scale_logits'):
    if not model[name]:
      raise ValueError(
        f'optimizer.mup_base_width needs model.{name}=True: set it, or leave muP out'
      )
  if model['position'] not in POSITIONS:
    raise ValueError(
      f'optimizer.mup_base_width has no rule for model.position={model["position"]}: choose one of '
      f'{", ".join(POSITIONS)}'
    )
  if model['stem']:
    raise ValueError(
      f'optimizer.mup_base_width has no rule for the convolutions of model.stem={model["stem"]}: '
      'set it to 0'
    )
