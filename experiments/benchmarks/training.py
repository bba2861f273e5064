"""Training speed of this codebase with its default settings, PyTorch and Hugging Face.

  python -m experiments.benchmarks.training --case=tiny [--peer_python=PATH] [--rounds=5] [--save]

Cases are the tiny and the base encoder-decoder, and nanoGPT's two settings for characters. The
peers need `pip install torch transformers`, here or in the environment of --peer_python.
"""

import sys

from absl import app, flags

from experiments.benchmarks import harness
from experiments.benchmarks.ours import BASE, NANO_CPU, NANO_GPU, TINY, decoder, encoder_decoder

CASES = {  # {name: (rows of a batch, sizes of the model)}
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
_ROWS = flags.DEFINE_integer('rows', 0, 'rows of a batch; 0 for those of the case')


def shape_of(case: str) -> tuple[int, dict]:
  """Return (rows, sizes of the model) of a case."""
  rows, model = CASES[case]
  return _ROWS.value or rows, model


def ours(case: str, dtype: str, steps: int):
  """Return a function that makes our training steps, `steps` in a call."""
  from transformer.training.machine import keep_freed_memory

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
  case, worker = _CASE.value, harness.WORKER.value
  rows, shape = shape_of(case)
  if worker.startswith('ours'):
    _, dtype, steps = worker.split('-')
    harness.serve(ours(case, dtype, int(steps)), seconds=2.0, steps=int(steps))
  elif worker:
    from experiments.benchmarks import peers

    model, dtype, mode = worker.split('-')
    call = peers.training(model, dtype, mode=mode, sizes=shape, batch_size=rows)
    harness.serve(call, seconds=2.0)
  else:
    steps = 16 if case == 'nanogpt_cpu' else 1
    names = [f'ours-{dtype}-{steps}' for dtype in ('bfloat16', 'float32')]
    for model in PEERS['decoder' if case.startswith('nanogpt') else 'encoder_decoder']:
      names += [f'{model}-{dtype}-eager' for dtype in ('float32', 'bfloat16')]
      if model in ('torch', 'gpt'):
        names += [f'{model}-{dtype}-compiled' for dtype in ('float32', 'bfloat16')]
    if harness.VARIANTS.value:
      names = [name for name in names if any(part in name for part in harness.VARIANTS.value)]
    commands = {
      name: [
        sys.executable if name.startswith('ours') else harness.PEER_PYTHON.value,
        *('-m', 'experiments.benchmarks.training', f'--case={case}', f'--worker={name}'),
        f'--rows={_ROWS.value}',
      ]
      for name in names
    }
    results = harness.compare(commands, rounds=harness.ROUNDS.value)
    for values in results.values():  # per step, not per call
      for key in ('median_s', 'min_s', 'max_s'):
        values[key] /= values.get('steps', 1)
    work = rows * shape['max_length']
    harness.report(
      f'training_{case}',
      results,
      work=work,
      unit='tokens/s',
      module='training',
      save=harness.SAVE.value,
    )


if __name__ == '__main__':
  app.run(main)
