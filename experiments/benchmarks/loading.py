"""Time to load a GPT-2 (124 M, float32, random weights) with this library and `transformers`.

  python -m experiments.benchmarks.loading [--peer_python=PATH] [--rounds=5] [--save]

Each measurement is in a new process, so that its peak memory is that of one load; the file is in
the page cache. The time is that of the call, without imports, and of one sum of each array, which
forces a memory-mapped file to be read. first_call_s is the time of the whole process. MB are MiB.
The peer needs `pip install torch transformers`.
"""

import json
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
  """Return a function that loads, sums each array, and returns (arrays, number of parameters)."""
  import jax
  import numpy as np

  from transformer import load_pretrained

  jax.devices()  # initializes the backend before the clock starts

  def load():
    leaves = jax.tree.leaves(load_pretrained(folder)[0])
    assert all(np.isfinite(np.asarray(leaf).sum()) for leaf in leaves)
    return leaves, sum(leaf.size for leaf in leaves)

  return load


def hugging_face(folder: str):
  """Return a function that loads, sums each array, and returns (model, number of parameters)."""
  import torch
  from transformers import GPT2LMHeadModel

  from experiments.benchmarks import peers

  torch.set_num_threads(peers.THREADS)

  def load():
    model = GPT2LMHeadModel.from_pretrained(folder)
    assert all(bool(torch.isfinite(value.sum())) for value in model.parameters())
    return model, model.num_parameters()

  return load


def run_worker(name: str, folder: str):
  """Write the weights, or time one load and print it."""
  if name == 'write':
    write(folder)
    return
  load = {'ours': ours, 'transformers': hugging_face}[name](folder)
  before = harness.process_memory()
  started = time.perf_counter()
  _, count = load()
  seconds = time.perf_counter() - started
  assert count == PARAMETERS, count
  values = dict(seconds=seconds, peak_mb=harness.process_memory(), peak_before_mb=before)
  print(harness.MARK + json.dumps(values))


def start_worker(name: str, folder: str) -> dict[str, float]:
  """Run a worker in a new process; return its report, and its whole time as first_call_s."""
  python = harness.PEER_PYTHON.value if name == 'transformers' else sys.executable
  module = ['-m', 'experiments.benchmarks.loading']
  started = time.perf_counter()
  out = subprocess.run(
    [python, *module, f'--worker={name}', f'--folder={folder}'],
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  ).stdout
  whole = time.perf_counter() - started
  line = next((line for line in out.splitlines() if line.startswith(harness.MARK)), '@@{}')
  return json.loads(line.removeprefix(harness.MARK)) | {'first_call_s': whole}


def summary(runs: list[dict[str, float]], size: float) -> dict[str, float]:
  """Return the medians of the runs of a side, and its peak memory relative to the file size."""
  medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
  seconds = [run['seconds'] for run in runs]
  return dict(
    median_s=medians.pop('seconds'),
    min_s=min(seconds),
    max_s=max(seconds),
    peak_over_file_size=medians['peak_mb'] / size,
    **medians,
  )


def main(argv):
  del argv
  if harness.WORKER.value:
    run_worker(harness.WORKER.value, _FOLDER.value)
    return
  runs: dict[str, list[dict[str, float]]] = {
    name: []
    for name in ('ours', 'transformers')
    if not harness.VARIANTS.value or any(part in name for part in harness.VARIANTS.value)
  }
  with tempfile.TemporaryDirectory() as folder:
    start_worker('write', folder)
    for _ in range(harness.ROUNDS.value):
      for name, reports in runs.items():
        reports.append(start_worker(name, folder))
  size = PARAMETERS * 4 / 2**20
  harness.report(
    'loading',
    {name: summary(reports, size) for name, reports in runs.items()},
    work=size,
    unit='MiB/s',
    module='loading',
    save=harness.SAVE.value,
  )


if __name__ == '__main__':
  app.run(main)
