"""Memory and collectives of training steps on TPUs, from the TPU's compiler, without a TPU.

  pip install -e '.[train,tpu-compile]'
  python -m experiments.benchmarks.tpu_plans [--plans=gpt2,bert] [--save]

Only one process can run at a time, because the compiler holds a lock file. A plan takes one to
three minutes on a core. Sizes are those of presets, the step is that of `run.py`: AdamW, float32
parameters and moments, bfloat16 products, a scan over layers that is not unrolled, rows without
padding. There is no dropout on attention weights (no kernel has it), and none at all for decoders.
A plan with `new` is of generation: prompts are read, and `new` tokens are written for each. With
--save, plans of other names stay in the file.
"""

import functools
import logging
import sys
import time
from typing import Any
from unittest import mock

from absl import app, flags

from experiments.benchmarks import harness

GPT2 = dict(task='language_model', preset='GPT2', length=1024, dropout=0.0)
BERT = dict(task='masked_lm', preset='BERT_BASE', length=512)
# Llama 3 8B: its sizes are in its published config.json
LLAMA_8B = dict(kv_heads=8, feedforward=14336, max_length=8192, rotary_base=500_000.0)
LLAMA = dict(GPT2, preset='LLAMA_7B', length=2048, vocab=128_256, model=LLAMA_8B)
XL = dict(GPT2, preset='GPT2_XL')
LONG = dict(max_length=16_384, remat='block')
# encoder-decoders and images; a recording of 30 s has 3,000 frames
T5 = dict(task='seq2seq', preset='T5_BASE', length=512)
VIT = dict(task='classification', preset='VIT_B16', rows=64, length=224)
WHISPER = dict(task='seq2seq', preset='WHISPER_SMALL', length=3000, outputs=448)
# Qwen3 0.6B and Llama 3.2 1B: sizes of their published config.json
QWEN3_06B = dict(width=1024, depth=28, heads=16, kv_heads=8, head_size=128, feedforward=3072)
QWEN3_06B |= dict(bias_qkv=False, qk_norm='head', max_length=40_960, norm_epsilon=1e-6)
QWEN3 = dict(GPT2, preset='QWEN2_0_5B', model=QWEN3_06B, rows=4)
LLAMA_1B = dict(width=2048, depth=16, heads=32, kv_heads=8, feedforward=8192, tie='output')
LLAMA_1B |= dict(max_length=131_072, rotary_base=500_000.0)
LLAMA3 = dict(GPT2, preset='LLAMA_7B', vocab=128_256, model=LLAMA_1B, rows=4)
LORA = dict(adapters=(('query|key|value|out', 16),))
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
  't5-16-plain': dict(T5, rows=16),
  't5-16-block': dict(T5, rows=16, model=dict(remat='block')),
  'vit-64': VIT,
  'whisper-8': dict(WHISPER, rows=8),
  'whisper-8-block': dict(WHISPER, rows=8, model=dict(remat='block')),
  'qwen3-0.6b-full': QWEN3 | dict(model=QWEN3_06B | dict(remat='block')),
  'qwen3-0.6b-lora': QWEN3 | dict(model=QWEN3_06B | dict(remat='block'), train=LORA),
  'llama-1b-full': LLAMA3 | dict(model=LLAMA_1B | dict(remat='block')),
  'llama-1b-adafactor': LLAMA3
  | dict(model=LLAMA_1B | dict(remat='block'), optimizer=dict(name='adafactor')),
  'llama-1b-lora': LLAMA3 | dict(model=LLAMA_1B | dict(remat='block'), train=LORA),
  'gpt2-decode': dict(preset='GPT2', rows=8, length=512, new=512),
  'llama-1b-decode': dict(LLAMA3, rows=8, length=512, new=512, param_dtype='bfloat16'),
}
_PLANS = flags.DEFINE_list('plans', [], 'only those whose names contain one of these')


def plan(
  *,
  task: str,
  preset: str,
  rows: int,
  length: int,
  outputs: int = 0,
  vocab: int = 0,
  dropout: float = 0.1,
  model: dict | None = None,
  mesh: dict | None = None,
  train: dict | None = None,
  optimizer: dict | None = None,
  topology: str = 'v5e:1x1x1',
  implementation: str = 'auto',
):
  """Return the plan of a training step.

  Args:
    task, preset, model, mesh, train, optimizer: of the config.
    rows: of a batch.
    length: of an input, in tokens, frames, or pixels of a side.
    outputs: length of the targets, of sounds.
    vocab: 0 for that of the preset.
    dropout: but for attention weights.
    topology: of the devices.
    implementation: of attention.
  """
  import numpy as np

  from transformer.data import tokenizers
  from transformer.functional import kernels
  from transformer.modules.config import ModelConfig
  from transformer.training import checks, config, experiment, sharding
  from transformer.training import plan as plans
  from transformer.training.programs import make_programs
  from transformer.zoo import presets

  sizes = getattr(presets, preset)
  settings = config.for_task(task, modality=sizes.get('modality', 'tokens'))
  settings.experiment, settings.data.name, settings.data.max_length = 'plan', 'text', length
  settings.data.dir = '.'
  settings.model.update(sizes, dtype='bfloat16', unroll=1)
  settings.model.update(dropout=dropout, attention_dropout=0.0)
  settings.model.update(model or {})
  settings.train.steps, settings.optimizer.learning_rate = 1, 1e-3
  settings.mesh.update(mesh or {})
  settings.train.update(train or {})
  settings.optimizer.update(optimizer or {})
  if task == 'classification':
    settings.processor.update(height=length, width=length, channels=3, patch=16)
    settings.loss.classes = tuple(map(str, range(1000)))
  checked = checks.check(settings)
  vocab = vocab or presets.VOCABULARIES[preset.partition('_')[0]]
  tokenizer = tokenizers.train([], kind='bytes', sentinels=1)
  given = dict(tokenizer=tokenizer, decoding=checked.decode, max_length=length, **checked.loss)
  processor = checks.processor_of(checked)
  objective = config.find_task(task)(
    **given, **dict(input_processor=processor) if processor else {}
  )
  devices = plans.topology_devices(topology)
  run = experiment.Experiment(
    checked, objective, ModelConfig(vocab=vocab, **checked.model), sharding.make_mesh(over=devices)
  )
  run = plans.on(run, devices)
  tokens = np.zeros((rows, outputs or length), np.int32)
  if task == 'classification':
    ones = np.ones(rows, np.int32)
    images = np.zeros((rows, length, length, 3), np.uint8)
    batch = dict(inputs=images, inputs_segments=ones, label=ones, label_segments=ones)
  else:
    batch = dict(inputs=tokens, inputs_segments=tokens, targets=tokens, targets_segments=tokens)
  if outputs:
    frames = np.zeros((rows, length, processor.features), np.float32)
    batch |= dict(inputs=frames, inputs_segments=np.zeros((rows, length), np.int32))
  table = kernels.IMPLEMENTATIONS
  if implementation != 'auto':
    table = {implementation: table[implementation]}
  with mock.patch.object(kernels, 'IMPLEMENTATIONS', table):
    return plans.of_step(make_programs(run), batch)


def plan_generation(
  *,
  preset: str,
  rows: int,
  length: int,
  new: int,
  vocab: int = 0,
  model: dict | None = None,
  param_dtype: str = 'float32',
  topology: str = 'v5e:1x1x1',
  **unused: Any,
) -> dict[str, Any]:
  """Return the memory of a program that reads prompts and writes `new` tokens for each, greedily.

  Its cache is among the temporaries.
  """
  import jax
  from flax import nnx

  from transformer.functional import platforms
  from transformer.inference.decoding import Decoding
  from transformer.inference.generate import continue_prompts
  from transformer.inspection import compiled
  from transformer.modules.config import ModelConfig
  from transformer.modules.model import Decoder
  from transformer.training import plan as plans
  from transformer.zoo import presets

  (device,) = plans.topology_devices(topology)
  sizes = getattr(presets, preset) | dict(dtype='bfloat16', unroll=1) | (model or {})
  vocab = vocab or presets.VOCABULARIES[preset.partition('_')[0]]
  config = ModelConfig(vocab=vocab, platform=platforms.of_device(device), **sizes)
  shapes = jax.eval_shape(lambda: Decoder(config, nnx.Rngs(0)))
  place = jax.sharding.SingleDeviceSharding(device)
  like = functools.partial(jax.ShapeDtypeStruct, sharding=place)
  shapes = jax.tree.map(lambda x: like(x.shape, param_dtype), shapes)
  prompts, key = like((rows, length), 'int32'), like((), jax.random.key(0).dtype)
  decoding = Decoding(batch_size=rows, seed=0, max_new_tokens=new)
  program = continue_prompts.lower(shapes, prompts, key, decoding, -1).compile()
  found = compiled.memory(program)
  there = compiled.capacity(device)
  parameters = compiled.bytes_a_device(shapes)
  return dict(parameters=parameters, fits=found['total'] <= there, capacity=there, **found)


def main(argv):
  del argv
  logging.basicConfig(level=logging.WARNING)
  logging.getLogger('transformer').setLevel(logging.INFO)  # what computes attention
  names = [name for name in CASES if not _PLANS.value or any(c in name for c in _PLANS.value)]
  plans = []
  for name in names:
    started = time.perf_counter()
    of_generation = 'new' in CASES[name]
    found = plan_generation(**CASES[name]) if of_generation else plan(**CASES[name])
    about = dict(name=name, compile_s=round(time.perf_counter() - started, 1))
    print(f'{name}: {found}; compiled in {about["compile_s"]} s', file=sys.stderr, flush=True)
    found = found if of_generation else found.as_dict()
    plans.append(about | dict(settings=CASES[name]) | found)
  where = dict(save=harness.SAVE.value, folder='tpu-compiler')
  harness.write_entries('tpu_plans', 'plans', plans, by=['name'], **where)


if __name__ == '__main__':
  app.run(main)
