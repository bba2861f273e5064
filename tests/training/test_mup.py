"""Learning rates that do not depend on the width."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from transformer.modules.config import ModelConfig
from transformer.modules.heads import Classifier
from transformer.modules.model import Decoder, EncoderDecoder
from transformer.training import mup
from transformer.training.optimizers import build, parameter_path

GIVEN = dict(learning_rate=1e-2, schedule='constant', warmup_steps=0, clip=0.0, steps=10)


def config(width, **settings):
  sizes = dict(vocab=19, width=width, heads=width // 8, feedforward=2 * width, depth=2)
  return ModelConfig(**sizes | dict(prenorm=True, position='rotary', unroll=1) | settings)


@pytest.mark.parametrize(
  'make',
  [
    lambda: EncoderDecoder(config(64, tie='none'), nnx.Rngs(0)),
    lambda: Classifier(config(64, modality='patches', features=6, tie='none'), 3, nnx.Rngs(0)),
    lambda: Classifier(config(64, modality='frames', features=6, tie='none'), 3, nnx.Rngs(0)),
  ],
)
def test_every_parameter_moves_by_its_rule(make):
  """Between widths of 16 and 64: hidden kernels by a quarter, tables by half, vectors the same."""
  params = nnx.to_pure_dict(nnx.state(jax.eval_shape(make)))
  ones = jax.tree.map(lambda x: np.ones(x.shape), params)
  updates, _ = mup.scale_by_width(16, 64).update(ones, optax.EmptyState())
  for path, update in jax.tree_util.tree_leaves_with_path(updates):
    name = parameter_path(path)
    from_features = re.search('conv1/kernel|embed/projection/kernel', name)
    kind = name.rpartition('/')[2]
    expected = {'kernel': 1 if from_features else 0.25, 'table': 0.5}.get(kind, 1)
    assert np.all(update == expected), name


def test_without_a_base_width_nothing_changes():
  params = {'out': {'kernel': jnp.ones((4, 4))}}
  optimizer, _ = build(**GIVEN, width=64)
  same, _ = build(**GIVEN, width=64, mup_base_width=64)
  for one in (optimizer, same):
    updates, _ = one.update(params, one.init(params), params)
    np.testing.assert_allclose(updates['out']['kernel'], -1e-2, rtol=1e-5)


@pytest.mark.slow
def test_a_step_changes_the_logits_alike_at_any_width():
  """The coordinate check of Yang et al. 2021, appendix D.1: without muP it grows with the width."""
  tokens = jnp.arange(12).reshape(2, 6) + 1

  def change(width, base):
    model = Decoder(config(width, scale_logits=bool(base), depth=1), nnx.Rngs(0))
    optimizer, _ = build(**GIVEN, width=width, mup_base_width=base)

    def loss(model):
      return -jnp.mean(jax.nn.log_softmax(model(tokens))[:, :-1, 3])

    @jax.jit
    def logits_of_two(model):
      gradients = jax.grad(loss)(model)
      updates, _ = optimizer.update(gradients, optimizer.init(model), model)
      return model(tokens), optax.apply_updates(model, updates)(tokens)

    before, after = logits_of_two(model)
    return float(jnp.sqrt(jnp.mean((after - before) ** 2)))

  with_mup = change(128, 16) / change(16, 16)
  without = change(128, 0) / change(16, 0)
  assert 0.5 < with_mup < 2 < 3 < without, (with_mup, without)


@pytest.mark.parametrize(
  'optimizer, changed, word',
  [
    ('muon', {}, 'adamw and lion, not muon'),
    ('adamw', {'scale_logits': False}, 'model.scale_logits=True'),
    ('lion', {'position': 'learned'}, 'model.position=learned'),
    ('adamw', {'stem': 2}, 'model.stem=2'),
  ],
)
def test_what_has_no_rules_is_refused(optimizer, changed, word):
  model = dict(scale_embedding=True, scale_logits=True, position='rotary', stem=0) | changed
  with pytest.raises(ValueError, match=word):
    mup.check(optimizer, model)
