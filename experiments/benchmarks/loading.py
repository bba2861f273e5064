"""Loading published weights: GPT-2 (124 M, float32) from a folder, here and in `transformers`.

  python -m experiments.benchmarks.loading [--peer_python=PATH] [--rounds=5] [--save]

Each measurement is a process of its own, so that its peak memory is that of one load; the file is
in the page cache. The time is that of the call, without imports, and of one sum over every
parameter, because a file that is only mapped is not yet read. 'First call' is the whole process.
The peer needs `pip install torch transformers`.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from experiments.benchmarks import harness

_FOLDER = flags.DEFINE_string('folder', '', 'internal: the folder of the weights')
PARAMETERS = 124_439_808


def write(folder: str):
  """Write a GPT-2 with random weights, in the published format."""
  import jax
  from flax import nnx

  from transformer import Decoder, ModelConfig, save_pretrained
  from transformer.zoo import presets

  config = ModelConfig(vocab=presets.VOCABULARIES['GPT2'], **presets.GPT2)
  save_pretrained(folder, jax.jit(lambda: Decoder(config, nnx.Rngs(0)))())


def ours(folder: str):
  """Return a function that loads, sums, and returns the number of parameters."""
  import jax
  import numpy as np

  from transformer import load_pretrained

  jax.devices()

  def load():
    leaves = jax.tree.leaves(load_pretrained(folder)[0])
    assert all(np.isfinite(np.asarray(leaf).sum()) for leaf in leaves)
    return leaves, sum(leaf.size for leaf in leaves)

  return load


def hugging_face(folder: str):
  """Return a function that loads, sums, and returns the number of parameters."""
  import torch
  from transformers import GPT2LMHeadModel

  from experiments.benchmarks import peers

  torch.set_num_threads(peers.THREADS)

  def load():
    model = GPT2LMHeadModel.from_pretrained(folder)
    assert all(bool(torch.isfinite(value.sum())) for value in model.parameters())
    return model, model.num_parameters()

  return load


def work(name: str, folder: str):
  """Time one load."""
  load = (ours if name == 'ours' else hugging_face)(folder)
  # in kB on Linux
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  started = time.perf_counter()
  _, count = load()
  took = time.perf_counter() - started
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  assert count == PARAMETERS, count
  print(harness.MARK + json.dumps(dict(seconds=took, peak_mb=peak, before_mb=before)))


def main(argv):
  del argv
  if harness.WORKER.value:
    work(harness.WORKER.value, _FOLDER.value)
    return
  measured: dict[str, list[dict]] = {'ours': [], 'transformers': []}
  with tempfile.TemporaryDirectory() as folder:
    command = f'from experiments.benchmarks import loading; loading.write({folder!r})'
    subprocess.run([sys.executable, '-c', command], check=True)
    for _ in range(harness.ROUNDS.value):
      for name, found in measured.items():
        python = sys.executable if name == 'ours' else harness.PEER_PYTHON.value
        module = ['-m', 'experiments.benchmarks.loading']
        started = time.perf_counter()
        out = subprocess.run(
          [python, *module, f'--worker={name}', f'--folder={folder}'],
          stdout=subprocess.PIPE,
          text=True,
          check=True,
        ).stdout
        whole = time.perf_counter() - started
        said = next(line for line in out.splitlines() if line.startswith(harness.MARK))
        found.append(json.loads(said[len(harness.MARK) :]) | {'first_call_s': whole})
  size = PARAMETERS * 4 / 2**20
  variants = {}
  for name, found in measured.items():
    middle = {key: statistics.median(one[key] for one in found) for key in found[0]}
    seconds = [one['seconds'] for one in found]
    variants[name] = dict(
      median_s=middle.pop('seconds'),
      min_s=min(seconds),
      max_s=max(seconds),
      peak_by_size=middle['peak_mb'] / size,
      **middle,
    )
  harness.report(
    'loading',
    variants,
    work=size,
    unit='MB/s',
    module='loading',
    save=harness.SAVE.value,
  )


if __name__ == '__main__':
  app.run(main)
