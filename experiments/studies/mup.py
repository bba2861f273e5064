r"""Learning rates of narrow and wide models, with muP and without.

  python -m experiments.studies.mup        # results/mup.json and .png

Decoders of three widths, with heads of one size, read dates and their ISO forms as characters. Each
is trained with learning rates a factor of 2 apart; all rates of a width are one `jax.vmap`. Yang et
al. 2021, https://arxiv.org/abs/2203.03466, figure 1: without muP the best rate falls with the
width; with it, as `optimizer.mup_base_width=32` sets it, it stays.

Result (seed 0, 80 steps of 8 x 48 characters, on 2 shared CPU cores): without muP the best rates at
widths of 32, 64 and 128 are 2^-5, 2^-6 and 2^-7, half at each doubling; with it 2^-4, 2^-5 and
2^-5. The rate that is the best at 32 costs 0.35 nats at 128 without muP (2.03, and 1.67 at the
best), and with it 0.06 (1.75 and 1.70).
"""

import functools
import math
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from experiments.studies.study import RESULTS, curves, keep
from transformer.data.dates import Dates
from transformer.functional.losses import cross_entropy
from transformer.modules.config import ModelConfig
from transformer.modules.model import Decoder, functionalize
from transformer.training import optimizers

BASE, HEAD, LENGTH, LAST = 32, 16, 48, 10
CHARACTERS = 128


def batches(steps: int, rows: int) -> np.ndarray:
  """Return [steps, rows, LENGTH] characters of dates, each row some of them after another."""
  text = '\n'.join(f'{x["inputs"]} = {x["targets"]}' for x in Dates('train', size=8000))
  ids = np.minimum(np.frombuffer(text.encode('latin-1', 'replace'), np.uint8), CHARACTERS - 1)
  random = np.random.default_rng(0)
  starts = random.integers(0, len(ids) - LENGTH, (steps, rows))
  return ids[starts[..., None] + np.arange(LENGTH)].astype(np.int32)


def losses(width: int, rates: list[float], data: np.ndarray, mup: bool) -> list[float]:
  """Return the loss at the end of training with each learning rate, in nats a character."""
  sizes = dict(width=width, heads=width // HEAD, feedforward=2 * width, depth=2)
  config = ModelConfig(
    **sizes, vocab=CHARACTERS, prenorm=True, position='rotary', scale_logits=mup, unroll=1
  )
  apply, params = functionalize(Decoder(config, nnx.Rngs(0)))
  settings = dict(learning_rate=1.0, warmup_steps=len(data) // 10, clip=0.0)
  settings |= dict(steps=len(data), width=width, mup_base_width=BASE if mup else 0)
  optimizer, _ = optimizers.build(**settings)

  def loss(params, tokens):
    logits, targets = apply(params, tokens[:, :-1]), tokens[:, 1:]
    mean = cross_entropy(logits, targets, jnp.ones(targets.shape))
    return mean.sum / mean.weight

  def step(rate, state, tokens):
    params, moments = state
    value, gradients = jax.value_and_grad(loss)(params, tokens)
    updates, moments = optimizer.update(gradients, moments, params)
    return (optax.apply_updates(params, jax.tree.map(lambda u: rate * u, updates)), moments), value

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(0, None))
  def train(rate, data):
    return jax.lax.scan(functools.partial(step, rate), (params, optimizer.init(params)), data)[1]

  found = np.asarray(train(jnp.asarray(rates), jnp.asarray(data)))
  return [round(float(x), 4) for x in found[:, -LAST:].mean(axis=1)]


def main(
  widths: tuple[int, ...] = (32, 64, 128),
  exponents: tuple[int, ...] = tuple(range(-8, -2)),
  steps: int = 80,
  rows: int = 8,
  folder: pathlib.Path = RESULTS,
):
  """Run the study."""
  began, data = time.perf_counter(), batches(steps, rows)
  rates = [2.0**x for x in exponents]
  found: dict[str, dict[str, list[float]]] = {}
  for name, mup in (('one rate for all', False), ('muP', True)):
    found[name] = {str(width): losses(width, rates, data, mup) for width in widths}
  best = {
    name: {w: rates[int(np.nanargmin(values))] for w, values in by_width.items()}
    for name, by_width in found.items()
  }
  figure = Figure(figsize=(9, 3.6), layout='constrained')
  for axes, (name, by_width) in zip(figure.subplots(1, 2, sharey=True), found.items(), strict=True):
    series = {f'width {w}': (rates, values) for w, values in by_width.items()}
    curves(axes, series, x='learning rate', y='loss, nats a character', log='x')
    axes.set_title(name)
    axes.set_ylim(top=math.log(CHARACTERS) / 2)
  numbers = {'steps': steps, 'rates': rates, 'losses': found, 'best_rates': best}
  keep('mup', began, numbers, figure, folder)


if __name__ == '__main__':
  main()
