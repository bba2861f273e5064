"""Learning rates that do not depend on the width (muP).

A learning rate that is the best for a narrow model stays the best for a wide one, where the rates
of parameters shrink with the width as RULES say: with Adam and Lion every number moves by the
learning rate, so that a sum over D numbers moves D times as far. Heads keep their size: a wider
model has more.

Yang et al. 2021, https://arxiv.org/abs/2203.03466, table 8. Tables of tokens stand for its input
and output weights: they begin at 1 / sqrt D, are multiplied by sqrt D as embeddings
(model.scale_embedding) and divided by it as logits (model.scale_logits). The same functions with
the same updates then have the rate 1 / sqrt D.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import optax

# A parameter's rate is multiplied by (base / width)^exponent, of the first pattern in its path.
RULES = (
  (r'(embed/projection|conv1)/kernel$', 0.0),  # from pixels or bands, whose number stays
  (r'/kernel$', 1.0),  # from D or F numbers: hidden layers, and the output of a classifier
  (r'(embed|output|token_types)/table$', 0.5),  # of tokens
  (r'', 0.0),  # scales, biases, the class token
)
OPTIMIZERS = ('adamw', 'lion')
POSITIONS = ('sinusoidal', 'sinusoidal_halves', 'sinusoidal_offset', 'rotary', 'alibi', 'none')


def scale_by_width(base: int, width: int) -> optax.GradientTransformation:
  """Return the transformation of updates that makes a rate of the width `base` fit this width.

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
  """Raise ValueError where the rules are not those of a model or an optimizer.

  Args:
    optimizer: its name.
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
