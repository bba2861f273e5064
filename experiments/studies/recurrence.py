"""Attention against recurrence: copying long sequences, and tokens per second, by length.

  python -m experiments.studies.recurrence

Our Transformer (two layers a side, width 128, rotary positions) and an LSTM of as many parameters
(two layers a side, width 144), whose decoder gets the encoder's last state and nothing else, after
a source read backwards: Sutskever et al. 2014, https://arxiv.org/abs/1409.3215, sections 2 and 3.3.
Both learn to copy sequences of 1 to 60 symbols, from the same batches with the same optimiser for
the same number of updates. Then both are timed, in turns, on batches of 2,048 positions a side.

One CPU core, 14 minutes (results/recurrence.png): the Transformer copies 98.0 % of sequences of 60
symbols without a mistake, the LSTM none (of 10: 99.6 and 74.6 %, of 20: 99.2 and 3.9 %). On one
core, where nothing is gained by doing all places at once, the LSTM trains 1.2 to 1.3 times as fast;
it decodes as fast at 8 symbols and 10 times as fast at 256, for its state does not grow.
"""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.studies.study import RESULTS, curves, keep
from transformer import EncoderDecoder, ModelConfig, greedy
from transformer.modules.embeddings import Tokens
from transformer.modules.layers import Linear
from transformer.tasks.seq2seq import shift_right
from transformer.training import optimizers
from transformer.training.step import init_state, train_step

PAD, BOS, EOS, FIRST, SYMBOLS = 0, 1, 2, 3, 16
LONGEST = 60
SIZES = dict(
  vocab=FIRST + SYMBOLS, depth=2, dropout=0.0, tie='none', max_length=512, dtype='bfloat16'
)


class Recurrent(nnx.Module):
  """c = f c + i g, h = o tanh(c); (i, f, g, o) = W [x, h] + b: a layer of LSTM.

  Hochreiter & Schmidhuber 1997; the forget gate's bias starts at 1 (Jozefowicz et al. 2015).
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.gates = Linear(config, 2 * config.width, 4 * config.width, rngs)
    self.gates.bias[...] = self.gates.bias[...].at[config.width : 2 * config.width].set(1.0)

  def __call__(self, carry, x):
    """Return the next (c, h), and h, of an input [B, D]."""
    c, h = carry
    i, f, g, o = jnp.split(self.gates(jnp.concatenate([x, h], axis=-1)), 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (c, h), h


class LSTM(nnx.Module):
  """Sequence to sequence by two stacks of LSTMs, with the methods of an EncoderDecoder."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    self.embed, self.lm_head = Tokens(config, rngs), Tokens(config, rngs, lm_head=True)
    self.encoder = nnx.List([Recurrent(config, rngs) for _ in range(config.depth)])
    self.decoder = nnx.List([Recurrent(config, rngs) for _ in range(config.depth)])

  def encode(self, inputs):
    """Return the last state of every layer; padding, on the right, changes none."""
    x, zeros = self.embed(inputs), jnp.zeros((len(inputs), self.config.width))
    carries = []
    for layer in self.encoder:

      def step(carry, xs, layer=layer):
        x, real = xs
        new, h = layer(carry, x)
        return jax.tree.map(lambda a, b: jnp.where(real[:, None], a, b), new, carry), h

      # backwards: the first symbols of the source stand next to the first of the target
      xs = (x.swapaxes(0, 1), (inputs != PAD).swapaxes(0, 1))
      carry, x = jax.lax.scan(step, (zeros, zeros), xs, reverse=True)
      x, carries = x.swapaxes(0, 1), [*carries, carry]
    return carries

  def states(self, inputs, targets):
    """Return the states before the logits, by teacher forcing."""
    x = self.embed(targets).swapaxes(0, 1)
    for layer, carry in zip(self.decoder, self.encode(inputs), strict=True):
      _, x = jax.lax.scan(layer, carry, x)
    return x.swapaxes(0, 1)

  def step(self, tokens, carries):
    """Return the logits and the new states after one token of each row."""
    x, new = self.embed(tokens[:, None])[:, 0], []
    for layer, carry in zip(self.decoder, carries, strict=True):
      carry, x = layer(carry, x)
      new.append(carry)
    return self.lm_head.attend(x[:, None])[:, 0], new


MODELS = {
  'Transformer': (
    EncoderDecoder,
    ModelConfig(
      **SIZES,
      width=128,
      heads=4,
      feedforward=256,
      prenorm=True,
      position='rotary',
      norm='rms',
      pad=PAD,
    ),
  ),
  'LSTM': (LSTM, ModelConfig(**SIZES, width=144)),
}


def batch_of(random: np.random.Generator, rows: int, length: int, *, exact: bool = False):
  """Return sequences of 1 to `length` random symbols, or exactly so many, with end tokens."""
  lengths = np.full(rows, length) if exact else random.integers(1, length, rows, endpoint=True)
  at = np.arange(length + 1)
  symbols = random.integers(FIRST, FIRST + SYMBOLS, (rows, length + 1))
  ended = np.where(at < lengths[:, None], symbols, np.where(at == lengths[:, None], EOS, PAD))
  return {'tokens': ended.astype(np.int32)}


def loss(model, batch, key=None):
  """Return the nats per token of the copy, by teacher forcing."""
  tokens = batch['tokens']
  real = (tokens != PAD).astype(jnp.int32)
  states = model.states(tokens, shift_right(tokens, real, BOS))
  return model.lm_head.cross_entropy(states, tokens, real.astype(jnp.float32))[0], {}


@functools.partial(jax.jit, static_argnums=(2, 3))
def copies(model, inputs, steps: int, eos: int = EOS):
  """The best output of each row, `steps` tokens at most; eos=-1 makes it as many."""
  first, ends = jnp.full(len(inputs), BOS, jnp.int32), dict(steps=steps, eos=eos, pad=PAD)
  if isinstance(model, LSTM):
    return greedy(model.step, model.encode(inputs), first, **ends)[0]
  memory = model.decoder.prepare(model.encode(inputs))

  def step(tokens, cache):
    ones = jnp.ones((len(tokens), 1), jnp.int32)
    logits, cache = model.decode(tokens[:, None], memory, segments=ones, cache=cache)
    return logits[:, 0], cache

  return greedy(step, model.init_cache(len(inputs), steps), first, **ends)[0]


def start(name: str, *, steps: int):
  """The state before the first update, and the update."""
  build, config = MODELS[name]
  optimizer, _ = optimizers.build(
    learning_rate=2e-3, warmup_steps=min(100, steps), steps=steps, width=config.width
  )
  state = jax.jit(lambda key: init_state(build(config, nnx.Rngs(key)), optimizer, ema=0.0))
  update = jax.jit(functools.partial(train_step, loss=loss, optimizer=optimizer))
  return state(jax.random.key(0)), update


def trained(name: str, *, steps: int, rows: int, longest: int):
  """The model after so many updates, and the mean loss of each tenth of them."""
  (state, update), random = start(name, steps=steps), np.random.default_rng(0)
  losses = []
  for _ in range(steps):
    state, metrics = update(state, batch_of(random, rows, longest), jax.random.key(0))
    losses.append(metrics['loss'].value)
  parts = np.array_split(np.asarray(losses), 10)
  return state.model, [float(part.mean()) for part in parts if len(part)]


def exact_match(model, length: int, *, rows: int = 256) -> float:
  """Percent of sequences of this length that are copied without a mistake."""
  tokens = batch_of(np.random.default_rng(length), rows, length, exact=True)['tokens']
  return 100 * float(np.mean(np.all(copies(model, tokens, length + 1) == tokens, axis=1)))


def speeds(length: int, *, positions: int, turns: int) -> dict[str, dict[str, float]]:
  """Target tokens a second of untrained models in training and in decoding 32 rows."""
  batch = batch_of(np.random.default_rng(0), max(positions // (length + 1), 1), length, exact=True)
  some = batch['tokens'][np.arange(32) % len(batch['tokens'])]
  calls, sizes, seconds = {}, {}, {}
  for name in MODELS:
    state, update = start(name, steps=1)
    calls[name, 'training'] = functools.partial(update, state, batch, jax.random.key(0))
    calls[name, 'decoding'] = functools.partial(copies, state.model, some, length + 1, -1)
    sizes[name, 'training'], sizes[name, 'decoding'] = batch['tokens'].size, some.size
  for turn in range(turns + 1):
    for of, call in calls.items():
      began = time.perf_counter()
      jax.block_until_ready(call())
      if turn:  # the first one compiles
        seconds.setdefault(of, []).append(time.perf_counter() - began)
  found: dict[str, dict[str, float]] = {}
  for (name, work), took in seconds.items():
    found.setdefault(name, {})[work] = sizes[name, work] / statistics.median(took)
  return found


def main(
  steps: int = 1500,
  rows: int = 32,
  longest: int = LONGEST,
  lengths=(5, 10, 20, 30, 40, 50, 60),
  timed=(8, 16, 32, 64, 128, 256),
  positions: int = 2048,
  turns: int = 5,
  folder=RESULTS,
):
  from matplotlib.figure import Figure

  began, models = time.perf_counter(), {}
  for name in MODELS:
    model, losses = trained(name, steps=steps, rows=rows, longest=longest)
    models[name] = {
      'parameters': sum(x.size for x in jax.tree.leaves(model)),
      'loss_by_tenth': losses,
      'exact_match': [exact_match(model, length) for length in lengths],
      'training_tokens_per_s': [],
      'decoding_tokens_per_s': [],
    }
  for length in timed:
    for name, found in speeds(length, positions=positions, turns=turns).items():
      for work, speed in found.items():
        models[name][f'{work}_tokens_per_s'].append(speed)

  figure = Figure(figsize=(12, 3.6), layout='constrained')
  plots = (
    (lengths, 'exact_match', 'copied without a mistake, %', ''),
    (timed, 'training_tokens_per_s', 'training, target tokens/s', 'xy'),
    (timed, 'decoding_tokens_per_s', 'decoding 32 rows, tokens/s', 'xy'),
  )
  for axes, (at, figure_of, label, log) in zip(figure.subplots(1, 3), plots, strict=True):
    series = {name: (at, found[figure_of]) for name, found in models.items()}
    curves(axes, series, x='symbols in a sequence', y=label, log=log)
  sizes = {'lengths': lengths, 'timed_lengths': timed, 'steps': steps, 'rows': rows}
  keep('recurrence', began, {**sizes, 'models': models}, figure, folder)


if __name__ == '__main__':
  main()
