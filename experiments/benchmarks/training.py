"""Training steps: ours, in the configuration we ship, against PyTorch and Hugging Face.

  python -m experiments.benchmarks.training --case=tiny [--peer_python=PATH] [--rounds=5] [--save]

Cases are the tiny and the base encoder-decoder, and nanoGPT's two character settings. The peers
need `pip install torch transformers`, here or in the environment of --peer_python.
"""

import functools
import sys

from absl import app, flags

from experiments.benchmarks import harness

TINY = dict(vocab=10240, width=128, heads=4, depth=4, feedforward=256, dropout=0.1, length=32)
BASE = dict(vocab=16384, width=512, heads=8, depth=6, feedforward=2048, dropout=0.1, length=32)
NANO_CPU = dict(vocab=65, width=128, heads=4, depth=4, feedforward=512, dropout=0.0, length=64)
NANO_GPU = dict(vocab=65, width=384, heads=6, depth=6, feedforward=1536, dropout=0.2, length=256)
CASES = {  # rows of a batch, and the model
  'tiny': (128, TINY),
  'base': (32, BASE),
  'nanogpt_cpu': (12, NANO_CPU),
  'nanogpt_gpu': (64, NANO_GPU),
}
PEERS = {
  'encoder_decoder': ('torch', 'marian'),
  'decoder': ('gpt', 'gpt2'),
}
_CASE = flags.DEFINE_enum('case', 'tiny', list(CASES), 'what to train')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'turns of each variant', lower_bound=1)
_ROWS = flags.DEFINE_integer('rows', 0, 'rows of a batch; 0 for those of the case')
_PEER_PYTHON = flags.DEFINE_string('peer_python', sys.executable, 'interpreter that has torch')
_VARIANTS = flags.DEFINE_list('variants', [], 'only those whose names contain one of these')
_SAVE = flags.DEFINE_bool('save', False, 'write results/training_<case>.json')
_WORKER = flags.DEFINE_string('worker', '', 'for the driver itself: be this variant')


def shape_of(case: str) -> tuple[int, dict]:
  """(rows, sizes of the model) of a case."""
  rows, model = CASES[case]
  return _ROWS.value or rows, model


def adam(width: int):
  """The optimiser of all cases."""
  from transformer.training import optimizers

  optimizer, _ = optimizers.build(
    name='adamw',
    learning_rate=1e-3,
    schedule='constant',
    warmup_steps=0,
    steps=1,
    width=width,
    b1=0.9,
    b2=0.98,
    epsilon=1e-9,
    weight_decay=0.0,
    clip=0.0,
  )
  return optimizer


def prepared(build, loss, width: int, batch: dict, steps: int):
  """(state, update, batches): our training step, `steps` of them in a call, with donated state."""
  import jax
  import jax.numpy as jnp

  from transformer.training.step import init, train_steps

  optimizer = adam(width)
  state = jax.jit(lambda key: init(build(key), optimizer, ema=0.0))(jax.random.key(0))
  update = jax.jit(functools.partial(train_steps, loss=loss, optimizer=optimizer), donate_argnums=0)
  return state, update, jax.tree.map(lambda x: jnp.stack([x] * steps), batch)


def encoder_decoder(shape: dict, *, rows: int, dtype: str, steps: int = 1):
  """Teacher forcing with label smoothing, as the experiments do it."""
  import numpy as np

  from transformer import ModelConfig
  from transformer.tasks.sequence import SequenceToSequence

  config = ModelConfig(**dict(prenorm=True, tie='output', dtype=dtype) | shape)
  tokens = np.random.default_rng(0).integers(2, config.vocab, (2, rows, config.length), np.int32)
  ones = np.ones_like(tokens[0])
  batch = dict(inputs=tokens[0], inputs_segments=ones, targets=tokens[1], targets_segments=ones)
  task = SequenceToSequence(
    tokenizer=type('Tokenizer', (), dict(bos=1)),
    decoding=None,
    length=config.length,
    label_smoothing=0.1,
    z_loss=0.0,
  )
  return prepared(functools.partial(task.init, config), task.loss, config.width, batch, steps)


def decoder(shape: dict, *, rows: int, dtype: str, steps: int = 1):
  """Next-token prediction, GPT-shaped."""
  import jax.numpy as jnp
  import numpy as np
  from flax import nnx

  from transformer import Decoder, ModelConfig

  gpt = dict(prenorm=True, tie='output', position='learned', activation='gelu_erf', bias=False)
  config = ModelConfig(**gpt, **shape, dtype=dtype)
  tokens = np.random.default_rng(0).integers(0, config.vocab, (rows, config.length), np.int32)
  batch = dict(tokens=tokens, targets=np.roll(tokens, -1, 1))

  def loss(model, batch, key):
    ones = jnp.ones_like(batch['tokens'])
    states = model.states(batch['tokens'], segments=ones, key=key)
    weights = jnp.ones(ones.shape)
    loss, nll = model.readout.cross_entropy(states, batch['targets'], weights)
    return loss, {'nll_per_token': nll}

  return prepared(lambda key: Decoder(config, nnx.Rngs(key)), loss, config.width, batch, steps)


def ours(case: str, dtype: str, steps: int):
  """One call of our training step."""
  from transformer.training.process import keep_freed_memory

  keep_freed_memory()
  import jax

  rows, shape = shape_of(case)
  make = decoder if case.startswith('nanogpt') else encoder_decoder
  state, update, batches = make(shape, rows=rows, dtype=dtype, steps=steps)

  def call():
    nonlocal state
    state, metrics = update(state, batches, jax.random.key(1))
    return jax.block_until_ready(metrics)

  return call


def main(argv):
  del argv
  case, worker = _CASE.value, _WORKER.value
  rows, shape = shape_of(case)
  if worker.startswith('ours'):
    _, dtype, steps = worker.split('-')
    harness.serve(ours(case, dtype, int(steps)), seconds=2.0, steps=int(steps))
  elif worker:
    from experiments.benchmarks import peers

    model, dtype, mode = worker.split('-')
    call = peers.training(model, dtype, compiled=mode == 'compiled', shape=shape, rows=rows)
    harness.serve(call, seconds=2.0)
  else:
    steps = 16 if case == 'nanogpt_cpu' else 1
    names = [f'ours-{dtype}-{steps}' for dtype in ('bfloat16', 'float32')]
    for model in PEERS['decoder' if case.startswith('nanogpt') else 'encoder_decoder']:
      names += [f'{model}-{dtype}-eager' for dtype in ('float32', 'bfloat16')]
      if model in ('torch', 'gpt'):
        names += [f'{model}-{dtype}-compiled' for dtype in ('float32', 'bfloat16')]
    if _VARIANTS.value:
      names = [name for name in names if any(part in name for part in _VARIANTS.value)]
    commands = {
      name: [
        sys.executable if name.startswith('ours') else _PEER_PYTHON.value,
        *('-m', 'experiments.benchmarks.training', f'--case={case}', f'--worker={name}'),
        f'--rows={_ROWS.value}',
      ]
      for name in names
    }
    found = harness.compare(commands, rounds=_ROUNDS.value)
    for values in found.values():  # several steps in a call
      for key in ('median_s', 'min_s', 'max_s'):
        values[key] /= values.get('steps', 1)
    work = rows * shape['length']
    harness.report(
      f'training_{case}', found, work=work, unit='tokens/s', module='training', save=_SAVE.value
    )


if __name__ == '__main__':
  app.run(main)
