"""Why scores are divided by sqrt(d_k): gradients of attention with and without it.

  python -m experiments.studies.gradients

Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.1: "for large values of d_k, the
dot products grow large in magnitude, pushing the softmax function into regions where it has
extremely small gradients".

The equation: p = softmax(s), s = scale q k over 64 keys, q and k of independent standard normal
numbers. A gradient is multiplied by its Jacobian, diag(p) - p pT.

The model: one encoder and one decoder layer of width 256 = heads x d_k, so that all models have the
same number of parameters and products; pre-norm (the inputs of attention have unit scale); Adam;
the task is to reverse digits. The models of a pair differ in `ModelConfig.scale_attention` only.

Result (results/gradients.png): with the scale nothing depends on d_k. Without it the softmax falls
to 0.3 of 4.2 nats of entropy at d_k = 256, and 42 % of the queries have a Jacobian below 0.01. The
gradient of W_q and W_k does not vanish at the start, it is three times as large, because the scale
is missing from the derivative of the scores, too. But the model learns more and more slowly: the
loss after 300 steps is at most 0.06 nats with the scale, and without it 0.06, 0.29, 0.72 and 1.06
for d_k = 4, 16, 64 and 256.
"""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies.study import RESULTS, curves, keep
from transformer import ModelConfig, attention_weights
from transformer.data import algorithmic, pipeline, tokenizers
from transformer.inference.decoding import Decoding
from transformer.tasks.seq2seq import Seq2Seq
from transformer.training import optimizers
from transformer.training.step import init_state, train_step

SIZES = (4, 8, 16, 32, 64, 128, 256)  # d_k
WIDTH, LENGTH = 256, 10
PART = 10  # steps that a loss is averaged over
SCALES = {'1 / sqrt(d_k)': True, 'no scale': False}


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def of_softmax(key: jax.Array, size: int, scaled: bool, keys: int = 64) -> dict[str, jax.Array]:
  """Return statistics of softmax(scale q kT) for 256 queries."""
  q, k = jax.random.normal(key, (2, 256, size))
  p = attention_weights(q, k[:keys], scale=None if scaled else 1.0)
  # the Frobenius norm of diag(p) - p pT, squared: sum p^2 - 2 sum p^3 + (sum p^2)^2
  square = jnp.sum(p**2, axis=1)
  jacobian = jnp.sqrt(jnp.maximum(square - 2 * jnp.sum(p**3, axis=1) + square**2, 0))
  entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0), axis=1)
  return {
    'entropy': jnp.mean(entropy),
    'jacobian_mean': jnp.mean(jacobian),
    'jacobian_median': jnp.median(jacobian),
    'vanished': jnp.mean(jacobian < 0.01),
  }


def of_model(size: int, scaled: bool, *, steps: int, rows: int = 64) -> dict[str, list | float]:
  """Return the norm of the first gradient, and the mean loss of every PART steps."""
  tokenizer = tokenizers.train(algorithmic.SYMBOLS[:10] + ' ', kind='characters')
  task = Seq2Seq(
    tokenizer=tokenizer,
    decoding=Decoding(max_new_tokens=2 * LENGTH, batch_size=1),
    max_length=2 * LENGTH,
  )
  config = ModelConfig(
    vocab=tokenizer.size,
    width=WIDTH,
    depth=1,
    heads=WIDTH // size,
    feedforward=WIDTH,
    max_length=2 * LENGTH,
    prenorm=True,
    tie='none',
    dropout=0.0,
    scale_attention=scaled,
  )
  source = algorithmic.Algorithmic('reverse', 'train', lengths=(1, LENGTH), size=10_000)
  fields = task.columns(source)
  lengths = np.stack([field.lengths for field in fields.values()], axis=1)
  batches = pipeline.Batches(
    fields, pipeline.bucket(lengths, buckets=1), tokens=rows * 2 * LENGTH + 4 * rows
  )
  optimizer, _ = optimizers.build(
    learning_rate=1e-3, schedule='constant', warmup_steps=20, clip=0.0, steps=steps, width=WIDTH
  )
  key = jax.random.key(0)
  state = jax.jit(lambda key: init_state(task.init(config, key), optimizer, ema=0.0))(key)

  def mean(model, batch):
    return task.loss(model, batch, None)[0].value

  gradient = jax.jit(jax.grad(mean))(state.model, batches[0])
  squares = {'query_key': 0.0, 'all': 0.0}
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
    square, name = float(jnp.sum(leaf**2)), optimizers.parameter_path(path)
    squares['all'] += square
    if name.endswith(('query/kernel', 'key/kernel')):
      squares['query_key'] += square
  update = jax.jit(functools.partial(train_step, loss=task.loss, optimizer=optimizer))
  losses = []
  for step in range(steps):
    state, metrics = update(state, batches[step], key)
    losses.append(metrics['loss'].value)
  return {
    **{f'gradient_norm_{name}': value**0.5 for name, value in squares.items()},
    'losses': np.asarray(losses).reshape(-1, PART).mean(axis=1).tolist(),
  }


def main(sizes=SIZES, steps: int = 300, learnt=(4, 16, 64, 256), folder=RESULTS):
  began = time.perf_counter()
  softmax: dict[str, list] = {}
  model: dict[str, list] = {}
  for name, scaled in SCALES.items():
    for size in sizes:
      found = of_softmax(jax.random.key(1), size, scaled)
      softmax.setdefault(name, []).append({'d_k': size, **{k: float(v) for k, v in found.items()}})
      found = of_model(size, scaled, steps=steps if size in learnt else 0)
      model.setdefault(name, []).append({'d_k': size, **found})

  numbers = {'keys': 64, 'steps': steps, 'softmax': softmax, 'model': model}
  keep('gradients', began, numbers, drawn(numbers), folder)


def drawn(numbers: dict[str, Any]) -> Any:
  """Return the figure of the results."""
  from matplotlib.figure import Figure

  softmax, model = numbers['softmax'], numbers['model']
  figure = Figure(figsize=(12, 6.5), layout='constrained')
  axes = figure.subplots(2, 3)

  def over_sizes(points, figure_of):
    return {n: ([p['d_k'] for p in ps], [figure_of(p) for p in ps]) for n, ps in points.items()}

  plots = (
    (axes[0, 0], softmax, 'entropy', 'entropy of softmax(s), nats', 'x'),
    (axes[0, 1], softmax, 'jacobian_median', "median norm of softmax's Jacobian", 'xy'),
    (axes[0, 2], softmax, 'vanished', 'share of queries whose norm is < 0.01', 'x'),
    (axes[1, 0], model, 'gradient_norm_query_key', 'gradient norm of W_q, W_k at step 0', 'x'),
  )
  for at, points, name, label, log in plots:
    curves(at, over_sizes(points, lambda p, n=name: p[n]), x='d_k', y=label, log=log)
  learnt = {n: [p for p in ps if p['losses']] for n, ps in model.items()}
  after = f'loss after {numbers["steps"]} steps, nats per token'
  curves(axes[1, 1], over_sizes(learnt, lambda p: p['losses'][-1]), x='d_k', y=after, log='x')
  for (name, ps), style in zip(learnt.items(), ('-', '--'), strict=False):
    for i, p in enumerate(ps):
      steps = [PART * (k + 0.5) for k in range(len(p['losses']))]
      axes[1, 2].plot(steps, p['losses'], style, color=f'C{i}', label=f'd_k {p["d_k"]}, {name}')
  axes[1, 2].set(xlabel='step', ylabel='loss, nats per token')
  axes[1, 2].spines[['top', 'right']].set_visible(False)
  axes[1, 2].legend(frameon=False, fontsize=7, loc='center left', bbox_to_anchor=(1, 0.5))
  return figure


if __name__ == '__main__':
  main()
