"""Models, losses and searches under the settings of JAX that careful users choose.

test_platforms.py traces the training steps of all tasks under those of `strict`.
"""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameters import drawn

from transformer.data import tokenizers
from transformer.evaluation.evaluate import eval_step
from transformer.functional import search
from transformer.inference.decoding import Batching, Decoding, row_keys
from transformer.inference.generate import generate
from transformer.inference.predict import predict
from transformer.modules.config import ModelConfig
from transformer.tasks.classification import Classification
from transformer.tasks.language_model import LanguageModel
from transformer.tasks.seq2seq import Seq2Seq

SIZES = dict(width=8, depth=1, heads=2, feedforward=8, max_length=12, unroll=1, dropout=0.1)
TEXT = tokenizers.train(['abcdefgh'], kind='characters', vocab=16)
GIVEN = dict(tokenizer=TEXT, decoding=Decoding(max_new_tokens=3, batch_size=2), max_length=12)
TASKS = {
  'decoder': (LanguageModel(**GIVEN), dict(position='learned', tie='none')),
  'encoder-decoder': (Seq2Seq(**GIVEN), dict(position='relative', prenorm=True)),
  'encoder': (
    Classification(**GIVEN | dict(decoding=Batching(batch_size=2)), classes=('a', 'b')),
    dict(position='rotary', kv_heads=1, gated=True, norm='rms'),
  ),
}


@contextlib.contextmanager
def strict():
  """Neither ranks nor types are promoted."""
  with jax.numpy_rank_promotion('raise'), jax.numpy_dtype_promotion('strict'):
    yield


@contextlib.contextmanager
def others():
  """Three settings that do not touch each other."""
  with (
    jax.default_matmul_precision('highest'),
    jax.default_prng_impl('rbg'),
    jax.threefry_partitionable(False),
  ):
    yield


SETTINGS = {
  'strict': strict,
  'others': others,
  'leaks': jax.checking_leaks,
  '64 bits': lambda: (jax if hasattr(jax, 'enable_x64') else jax.experimental).enable_x64(True),
  'NaN': lambda: jax.debug_nans(True),
  'transfers': lambda: jax.transfer_guard('disallow'),
  'no jit': jax.disable_jit,
}


# what takes long, or is of JAX's own functions, is tried with one task
ONE = {'leaks': ['decoder'], 'no jit': ['encoder'], 'others': ['decoder']}


def model_of(name):
  task, settings = TASKS[name]
  config = ModelConfig(vocab=TEXT.size, **SIZES | settings)
  return drawn(lambda: task.init(config, jax.random.key(0)))


def batch_of():
  """Two rows, one with padding, and a row of padding."""
  tokens = np.array([[5, 6, 7, 2], [5, 2, 0, 0], [0, 0, 0, 0]], np.int32)
  batch = {side: tokens for side in ('inputs', 'targets')}
  batch |= {f'{side}_segments': np.sign(tokens) for side in ('inputs', 'targets')}
  batch |= dict(label=np.array([0, 1, 0], np.int32), label_segments=np.array([1, 1, 0], np.int32))
  return jax.device_put(batch)


def learn(task, model, batch, key):
  """Return the gradient of the loss, with dropout, and the metrics."""
  gradient = jax.grad(lambda model: task.loss(model, batch, key)[0].value)(model)
  return gradient, eval_step(task, model, batch)


def searches(name, model, key):
  """What predict and every search say."""
  task = TASKS[name][0]
  said = [predict(task, model, ['abc', 'd'])]
  if name != 'encoder':
    start = dict(start=1) if name == 'encoder-decoder' else {}
    for how in (dict(beams=2), dict(temperature=1.0, top_p=0.9, key=key)):
      found = generate(model, [[5, 6, 7], [8]], max_new_tokens=3, eos=2, pad=0, **start, **how)
      said.append(np.asarray(found).tolist())
  return said


@pytest.mark.parametrize(
  'setting', [*(pytest.param(x, marks=pytest.mark.slow) for x in ('strict', 'leaks')), '64 bits']
)
def test_a_loss_and_its_gradient_are_traced_under(setting):
  with SETTINGS[setting]():
    arguments = model_of('decoder'), batch_of(), jax.random.key(0)
    jax.eval_shape(partial(learn, TASKS['decoder'][0]), *arguments)


@pytest.mark.parametrize(
  'name', [x if x == 'encoder-decoder' else pytest.param(x, marks=pytest.mark.slow) for x in TASKS]
)
def test_a_batch_of_no_row_has_a_loss_and_a_gradient(name):
  rows = {column: x[:0] for column, x in batch_of().items()}
  task = TASKS[name][0]
  gradient, metrics = jax.eval_shape(partial(learn, task), model_of(name), rows, jax.random.key(0))
  assert all(mean.sum.shape == () for mean in metrics.values()) and jax.tree.leaves(gradient)


@pytest.mark.slow
@pytest.mark.parametrize(
  'setting, name',
  [
    (setting, name)
    for setting in SETTINGS
    for name in (ONE.get(setting, TASKS))
    if name != 'encoder' or setting in ('transfers', 'no jit')
  ],
)
def test_losses_and_searches_work_under(setting, name):
  model, batch, key = model_of(name), batch_of(), jax.random.key(0)
  with SETTINGS[setting]():
    gradient, metrics = jax.jit(partial(learn, TASKS[name][0]))(model, batch, key)
    searches(name, model, key)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((gradient, metrics)))


@pytest.mark.slow
@pytest.mark.parametrize(
  'dtype, name', [('float16', 'encoder-decoder'), *(('bfloat16', name) for name in TASKS)]
)
def test_losses_and_searches_work_with_parameters_of_16_bits(dtype, name):
  model, batch, key = model_of(name), batch_of(), jax.random.key(0)
  model = jax.tree.map(lambda x: x.astype(dtype), model)
  gradient, metrics = jax.jit(partial(learn, TASKS[name][0]))(model, batch, key)
  assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype(dtype)}
  searches(name, model, key)


@pytest.mark.parametrize('impl', ['rbg', 'unsafe_rbg'])
def test_a_sample_depends_on_the_key_of_its_row_alone(impl):
  key, logits = jax.random.key(0, impl=impl), jnp.zeros((4, 1000))
  rows = jnp.array([[5, 6, 7], [8, 0, 0], [9, 5, 0], [8, 0, 0]])

  @jax.jit
  def sample(rows, logits):
    return search.draw(row_keys(key, rows), logits, 3)

  together = sample(rows, logits).tolist()
  assert len({*together}) == 4
  assert [sample(rows[i : i + 1], logits[:1]).tolist()[0] for i in range(3)] == together[:3]
  # the first of two equal rows is the first in any order
  assert sample(rows[::-1], logits).tolist() == [together[i] for i in (1, 2, 3, 0)]
