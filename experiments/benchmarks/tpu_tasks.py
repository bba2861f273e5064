"""Memory of every task's training step and answers on TPUs, from the TPU's compiler, without a TPU.

  pip install -e '.[train,audio,retrieval,chat,tpu-compile]'
  python -m experiments.benchmarks.tpu_tasks [--experiments=multi30k_en_de,an4] [--save]

Each experiment is compiled as it is shipped, in bfloat16, for one v5e, and for four v5e and four
v5p among which its parameters are divided (mesh.fsdp=4): the training step on its largest batch,
and the program that answers decode.batch_size requests of the largest length. It needs the data of
the experiments (TRANSFORMER_DATA). As in tpu_plans, only one process can run at a time.
"""

import importlib
import json
import logging
import pathlib
import sys
import tempfile
import time
from typing import Any

from absl import app, flags

from experiments.benchmarks import harness

# an experiment of each task and modality
EXPERIMENTS = (
  'dates',
  'multi30k_en_de',
  'tinyshakespeare',
  'wikitext2',
  'squad:pretrain',
  'trec',
  'wnut17',
  'squad',
  'retrieval_cranfield',
  'cifar10',
  'flickr8k',
  'an4:ctc',
  'an4:attention',
  'fsdd_tts',
)
TOPOLOGIES = {'v5e:1x1x1': 1, 'v5e:2x2x1': 4, 'v5p:2x2x1': 4}  # {name: mesh.fsdp}
_TOPOLOGIES = flags.DEFINE_list('topologies', list(TOPOLOGIES), 'compile for these')
_EXPERIMENTS = flags.DEFINE_list('experiments', [], 'only those whose names contain one of these')


def answer_program(experiment: Any, model: Any, inputs: tuple[int, ...], dtype: Any) -> Any:
  """Return the compiled program that answers a batch of requests.

  Args:
    experiment: whose task answers.
    model: its ShapeDtypeStructs, which have shardings.
    inputs, dtype: of one request, padded.
  """
  import jax
  from jax.sharding import NamedSharding, PartitionSpec

  from transformer.inference.generate import continue_prompts
  from transformer.training.programs import entered

  task, everywhere = experiment.task, NamedSharding(experiment.mesh, PartitionSpec())
  shape = (task.decoding.batch_size, *inputs)
  rows = jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)
  key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=everywhere)
  with entered(experiment.mesh):
    if hasattr(task, 'search'):
      return jax.jit(lambda model, rows: task.search(model, rows)).lower(model, rows).compile()
    if hasattr(task, 'forward'):
      return jax.jit(lambda model, rows: task.forward(model, rows)).lower(model, rows).compile()
    steps = min(task.decoding.max_new_tokens, inputs[0] // 2)  # as LanguageModel.answer
    ends = task.tokenizer.ends
    decoding = task.decoding.for_model(model, (task.tokenizer.pad,), eos=ends).after(0, steps)
    prompts = jax.ShapeDtypeStruct((shape[0], inputs[0] - steps), dtype, sharding=everywhere)
    return continue_prompts.lower(model, prompts, key, decoding, ends).compile()


def plan(name: str, topology: str) -> dict[str, Any]:
  """Return the memory of an experiment's training step and answers on each device, in bytes."""
  from transformer.inspection import compiled
  from transformer.training import plan as plans
  from transformer.training.programs import make_programs
  from transformer.training.start import draft_run
  from transformer.training.workdir import Workdir

  module, _, variant = name.partition(':')
  get_config = importlib.import_module(f'experiments.{module}').get_config
  config = get_config(variant) if variant else get_config()
  config.model.dtype, config.mesh.fsdp, config.mesh.data = 'bfloat16', TOPOLOGIES[topology], 1
  config.warm_start = ''  # the memory is that of fresh parameters
  with tempfile.TemporaryDirectory() as folder:
    devices = plans.topology_devices(topology)
    experiment = draft_run(config.to_dict(), Workdir(pathlib.Path(folder)), devices)
    batch = plans.largest_batch(experiment)
  programs = make_programs(experiment)
  step = plans.of_step(programs, batch)
  name_of_inputs = next(k for k in ('inputs', 'queries', 'tokens') if k in batch)
  inputs = batch[name_of_inputs]
  answers = compiled.memory(
    answer_program(experiment, programs.like.model, inputs.shape[1:], inputs.dtype)
  )
  return dict(
    task=config.task,
    batch={k: v.shape for k, v in batch.items()},
    step=step.as_dict(),
    answers=dict(answers, fits=not step.capacity or answers['total'] <= step.capacity),
  )


def main(argv):
  del argv
  logging.basicConfig(level=logging.WARNING)
  wanted = _EXPERIMENTS.value
  names = [name for name in EXPERIMENTS if not wanted or any(part in name for part in wanted)]
  found = []
  for name in names:
    for topology in _TOPOLOGIES.value:
      started = time.perf_counter()
      about = dict(name=name, topology=topology, **plan(name, topology))
      about['compile_s'] = round(time.perf_counter() - started, 1)
      print(json.dumps(about), file=sys.stderr, flush=True)
      found.append(about)
  where = dict(save=harness.SAVE.value, folder='tpu-compiler')
  harness.write_entries('tpu_tasks', 'tasks', found, by=['name', 'topology'], **where)


if __name__ == '__main__':
  app.run(main)
