"""Time to load GPT-2 124 M or Llama 3.2 1B, random weights, with this library and `transformers`.

  python -m experiments.benchmarks.loading [--size=1b] [--dtype=bfloat16] [--peer_python=PATH]

Each measurement is in a new process, so that its peak memory is that of one load; the file is in
the page cache. The time is that of the call, without imports, and of one sum of each array, which
forces a memory-mapped file to be read (ours of its bits, because NumPy adds bfloat16 slowly).
first_call_s is the time of the whole process. MB are MiB. The peer needs `pip install torch
transformers`.
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
_SIZE = flags.DEFINE_enum('size', '124m', ['124m', '1b'], 'GPT-2 or Llama 3.2')
PARAMETERS = {'124m': 124_439_808, '1b': 1_235_814_400}
_DTYPE = flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'of the file, and loaded')


def write(folder: str):
  """Write a model with random weights, in the published format."""
  import jax
  import jax.numpy as jnp
  from flax import nnx
  from safetensors.numpy import load_file, save_file

  from experiments.benchmarks import tpu_plans
  from transformer import Decoder, ModelConfig, save_pretrained
  from transformer.zoo import presets

  sizes = presets.GPT2 | dict(vocab=presets.VOCABULARIES['GPT2'])
  if _SIZE.value == '1b':
    sizes = presets.LLAMA_7B | tpu_plans.LLAMA_1B | dict(vocab=tpu_plans.LLAMA3['vocab'])
  save_pretrained(folder, jax.jit(lambda: Decoder(ModelConfig(**sizes), nnx.Rngs(0)))())
  if _DTYPE.value == 'bfloat16':
    file = f'{folder}/model.safetensors'
    tensors = {name: x.astype(jnp.bfloat16) for name, x in load_file(file).items()}
    save_file(tensors, file, {'format': 'pt'})


def ours(folder: str):
  """Return a function that loads, sums each array, and returns (arrays, number of parameters)."""
  import jax
  import numpy as np

  from transformer import load_pretrained

  jax.devices()  # initializes the backend before the clock starts

  def load():
    leaves = jax.tree.leaves(load_pretrained(folder, param_dtype=_DTYPE.value)[0])
    assert sum(int(np.asarray(x).view(f'int{8 * x.itemsize}').sum()) for x in leaves)
    return leaves, sum(x.size for x in leaves)

  return load


def hugging_face(folder: str):
  """Return a function that loads, sums each array, and returns (model, number of parameters)."""
  import torch
  from transformers import GPT2LMHeadModel, LlamaForCausalLM

  from experiments.benchmarks import peers

  torch.set_num_threads(peers.THREADS)
  kind = {'124m': GPT2LMHeadModel, '1b': LlamaForCausalLM}[_SIZE.value]

  def load():
    model = kind.from_pretrained(folder, dtype=getattr(torch, _DTYPE.value))
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
  assert count == PARAMETERS[_SIZE.value], count
  values = dict(seconds=seconds, peak_mb=harness.process_memory(), peak_before_mb=before)
  print(harness.MARK + json.dumps(values))


def start_worker(name: str, folder: str) -> dict[str, float]:
  """Run a worker in a new process; return its report, and its whole time as first_call_s."""
  python = harness.PEER_PYTHON.value if name == 'transformers' else sys.executable
  module = ['-m', 'experiments.benchmarks.loading']
  started = time.perf_counter()
  out = subprocess.run(
    [
      *(python, *module, f'--worker={name}', f'--folder={folder}'),
      *(f'--size={_SIZE.value}', f'--dtype={_DTYPE.value}'),
    ],
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
  size = PARAMETERS[_SIZE.value] * {'float32': 4, 'bfloat16': 2}[_DTYPE.value] / 2**20
  harness.report(
    f'loading-{_SIZE.value}-{_DTYPE.value}',
    {name: summary(reports, size) for name, reports in runs.items()},
    work=size,
    unit='MiB/s',
    module='loading',
    save=harness.SAVE.value,
  )


if __name__ == '__main__':
  app.run(main)
