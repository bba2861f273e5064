"""Memory and collectives of training steps on TPUs, from the TPU compiler, without a TPU.

  pip install -e '.[train,tpu-compile]'
  python -m experiments.benchmarks.tpu_plans [--plans=gpt2,bert] [--save]

Only one process can run at a time, because the compiler holds a lock file. A plan takes one to
three minutes on a core. Sizes are those of presets, the step is that of `run.py`: AdamW, float32
parameters and moments, bfloat16 products, a scan over layers that is not unrolled, rows without
padding. There is no dropout on attention weights (no kernel has it), and none at all for GPT.
"""

import logging
import sys
import time
from typing import Any

from absl import app, flags

from experiments.benchmarks import harness

GPT2 = dict(task='language_model', preset='GPT2', length=1024, dropout=0.0)
BERT = dict(task='masked_lm', preset='BERT_BASE', length=512)
# Llama 3 8B: its sizes are in its published config.json
LLAMA_8B = dict(kv_heads=8, feedforward=14336, max_length=8192, rotary_base=500_000.0)
LLAMA = dict(GPT2, preset='LLAMA_7B', length=2048, vocab=128_256, model=LLAMA_8B)
XL = dict(GPT2, preset='GPT2_XL')
LONG = dict(max_length=16_384, remat='block')
CASES: dict[str, dict[str, Any]] = {
  'gpt2-8-auto': dict(GPT2, rows=8),
  'gpt2-8-plain': dict(GPT2, rows=8, implementation='reference'),
  'gpt2-16-auto': dict(GPT2, rows=16),
  'gpt2-16-plain': dict(GPT2, rows=16, implementation='reference'),
  'gpt2-16-block': dict(GPT2, rows=16, model=dict(remat='block')),
  'bert-32-auto': dict(BERT, rows=32),
  'bert-32-plain': dict(BERT, rows=32, implementation='reference'),
  'gpt2-medium-8-auto': dict(GPT2, preset='GPT2_MEDIUM', rows=8),
  'gpt2-medium-8-block': dict(GPT2, preset='GPT2_MEDIUM', rows=8, model=dict(remat='block')),
  'gpt2-v5e-4': dict(GPT2, rows=32, topology='v5e:2x2x1'),
  'gpt2-v5e-4-fsdp': dict(GPT2, rows=32, topology='v5e:2x2x1', mesh=dict(fsdp=4)),
  'xl-v5e-16': dict(
    XL, rows=64, topology='v5e:4x4x1', mesh=dict(fsdp=16), model=dict(remat='block')
  ),
  'gpt2-long': dict(GPT2 | dict(length=16_384), rows=1, model=LONG),
  'gpt2-long-sequence': dict(
    GPT2 | dict(length=16_384), rows=1, model=LONG, topology='v5e:2x2x1', mesh=dict(sequence=4)
  ),
  'llama-8b-v5e-16': dict(
    LLAMA,
    rows=16,
    topology='v5e:4x4x1',
    mesh=dict(fsdp=16),
    model=LLAMA_8B | dict(remat='block'),
  ),
  'llama-8b-v5p-32': dict(
    LLAMA,
    rows=64,
    topology='v5p:4x4x2',
    mesh=dict(fsdp=32),
    model=LLAMA_8B | dict(remat='block'),
  ),
}
_PLANS = flags.DEFINE_list('plans', [], 'only those whose names contain one of these')


def plan(
  *,
  task: str,
  preset: str,
  rows: int,
  length: int,
  vocab: int = 0,
  dropout: float = 0.1,
  model: dict | None = None,
  mesh: dict | None = None,
  topology: str = 'v5e:1x1x1',
  implementation: str = 'auto',
):
  """Return the training.plan.Plan of a training step; the arguments are those in CASES."""
  import numpy as np

  from transformer.data import tokenizers
  from transformer.functional import kernels
  from transformer.modules.config import ModelConfig
  from transformer.training import checks, config, experiment, sharding
  from transformer.training import plan as plans
  from transformer.training.programs import make_programs
  from transformer.zoo import presets

  settings = config.for_task(task)
  settings.experiment, settings.data.name, settings.data.max_length = 'plan', 'text', length
  settings.data.update(dir='.', packing=True)
  settings.model.update(getattr(presets, preset), dtype='bfloat16', unroll=1)
  settings.model.update(dropout=dropout, attention_dropout=0.0)
  settings.model.update(model or {})
  settings.train.steps, settings.optimizer.learning_rate = 1, 1e-3
  settings.mesh.update(mesh or {})
  checked = checks.check(settings)
  vocab = vocab or presets.VOCABULARIES[preset.partition('_')[0]]
  tokenizer = tokenizers.train([], kind='bytes', sentinels=1)
  objective = config.find_task(task)(
    tokenizer=tokenizer, decoding=checked.decode, max_length=length, **checked.loss
  )
  devices = plans.topology_devices(topology)
  sizes = ModelConfig(vocab=vocab, **checked.model)
  run = experiment.Experiment(checked, objective, sizes, sharding.make_mesh(over=devices))
  run = plans.on(run, devices)
  columns = ('inputs', 'inputs_segments', 'targets', 'targets_segments')
  batch = {name: np.zeros((rows, length), np.int32) for name in columns}
  if implementation != 'auto':
    kernels.IMPLEMENTATIONS = {implementation: kernels.IMPLEMENTATIONS[implementation]}
  return plans.of_step(make_programs(run), batch)


def main(argv):
  del argv
  logging.basicConfig(level=logging.WARNING)
  logging.getLogger('transformer').setLevel(logging.INFO)  # names the attention kernel
  names = [name for name in CASES if not _PLANS.value or any(c in name for c in _PLANS.value)]
  plans = []
  for name in names:
    started = time.perf_counter()
    result = plan(**CASES[name])
    about = dict(name=name, compile_s=round(time.perf_counter() - started, 1))
    print(f'{name}: {result}; compiled in {about["compile_s"]} s', file=sys.stderr, flush=True)
    plans.append(about | dict(settings=CASES[name]) | result.as_dict())
  result = {'case': 'tpu_plans', 'plans': plans, **harness.machine('tpu_plans')}
  harness.write(result, save=harness.SAVE.value, folder='tpu-compiler')


if __name__ == '__main__':
  app.run(main)
