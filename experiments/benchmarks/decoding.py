"""Decoding speed of this codebase, Hugging Face's generate and CTranslate2, for equal model sizes.

  python -m experiments.benchmarks.decoding --case=tiny_32_greedy [--peer_python=PATH] [--save]

Random weights, inputs of 32 tokens, and exactly 32 (tiny) or 48 (base) generated tokens.
The peers need `pip install torch transformers ctranslate2`.
"""

import sys
import tempfile

from absl import app, flags

from experiments.benchmarks import harness
from experiments.benchmarks.ours import BASE, TINY

INPUTS = 32
OUTPUTS = {'tiny': 32, 'base': 48}
SHAPES = {'tiny': TINY, 'base': BASE}
SEARCHES = {'1_greedy': (1, 1), '32_greedy': (32, 1), '8_beam4': (8, 4)}
PEERS = ('hf-float32', 'hf-bfloat16', 'ct2-float32', 'ct2-int8')
CASES = [f'{model}_{search}' for model in SHAPES for search in SEARCHES]
_CASE = flags.DEFINE_enum('case', 'tiny_32_greedy', CASES, 'model, rows and search')


def inputs_of(rows: int, vocab: int):
  """Return random tokens int[rows, INPUTS], without 0, 1 and 2: padding, start and end."""
  import numpy as np

  return np.random.default_rng(0).integers(3, vocab, (rows, INPUTS))


def ours(shape: dict, rows: int, beams: int, outputs: int, dtype: str):
  """Return a function that runs our search, as `predict` does."""
  from transformer.training.machine import keep_freed_memory

  keep_freed_memory()
  import jax
  import jax.numpy as jnp
  from flax import nnx

  from transformer import EncoderDecoder, ModelConfig
  from transformer.data import tokenizers
  from transformer.inference.decoding import Decoding
  from transformer.tasks.seq2seq import Seq2Seq

  config = ModelConfig(**dict(shape, max_length=128), prenorm=True, dtype=dtype)
  model = EncoderDecoder(config, nnx.Rngs(0))
  tokenizer = tokenizers.train(['a'], kind='characters', vocab=10)
  tokenizer.ends = ()  # an output never ends
  task = Seq2Seq(
    tokenizer=tokenizer,
    decoding=Decoding(beams=beams, alpha=0.0, max_new_tokens=outputs, batch_size=rows),
    max_length=INPUTS,
    label_smoothing=0.0,
    z_loss=0.0,
    start='bos',
  )
  inputs = jnp.asarray(inputs_of(rows, config.vocab), jnp.int32)
  return lambda: jax.block_until_ready(task.search(model, inputs))


def hugging_face(shape: dict, rows: int, beams: int, outputs: int, dtype: str, device: str = 'cpu'):
  """Return a function that runs generate() of a Marian model."""
  import torch

  from experiments.benchmarks import peers

  torch.set_num_threads(peers.THREADS)
  torch.manual_seed(0)
  model = peers.marian(**shape).eval().to(device, getattr(torch, dtype))
  inputs = torch.from_numpy(inputs_of(rows, shape['vocab'])).to(device)
  mask = torch.ones_like(inputs)

  def call():
    with torch.inference_mode():
      generated = model.generate(
        input_ids=inputs,
        attention_mask=mask,
        num_beams=beams,
        do_sample=False,
        max_new_tokens=outputs,
        min_new_tokens=outputs,
        use_cache=True,
      )
    # .cpu() waits for a GPU
    assert generated.cpu().shape[1] == outputs + 1

  return call


def ctranslate2(shape: dict, rows: int, beams: int, outputs: int, dtype: str):
  """Return a function that runs CTranslate2 on the same Marian model, converted."""
  import ctranslate2
  import torch
  from ctranslate2.converters import transformers as converters

  from experiments.benchmarks import peers

  torch.manual_seed(0)
  loader = converters._MODEL_LOADERS['MarianConfig']  # the converter needs files of a tokenizer
  spec = loader.get_model_spec(peers.marian(**shape).eval())
  tokens = ['<pad>', '<s>', '</s>', *(f't{i}' for i in range(3, shape['vocab'] - 1))]
  spec.register_source_vocabulary(tokens)
  spec.register_target_vocabulary(tokens)
  spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = '<s>', '</s>', '<pad>'
  spec.config.decoder_start_token = '<s>'
  spec.validate()
  spec.optimize()
  with tempfile.TemporaryDirectory() as folder:
    spec.save(folder)
    translator = ctranslate2.Translator(
      folder, device='cpu', compute_type=dtype, inter_threads=1, intra_threads=peers.THREADS
    )
  lines = [[tokens[i] for i in row] for row in inputs_of(rows, shape['vocab'] - 1)]

  def call():
    results = translator.translate_batch(
      lines,
      beam_size=beams,
      max_decoding_length=outputs,
      min_decoding_length=outputs,
      max_batch_size=0,
    )
    assert len(results[0].hypotheses[0]) == outputs

  return call


def main(argv):
  del argv
  case = _CASE.value
  model, search = case.split('_', 1)
  (rows, beams), shape, outputs = SEARCHES[search], SHAPES[model], OUTPUTS[model]
  if harness.WORKER.value:
    kind, dtype = harness.WORKER.value.split('-')
    start = {'ours': ours, 'hf': hugging_face, 'ct2': ctranslate2}[kind]
    harness.serve(start(shape, rows, beams, outputs, dtype), seconds=1.0)
    return
  names = ['ours-float32', 'ours-bfloat16', *PEERS]
  if harness.VARIANTS.value:
    names = [name for name in names if any(part in name for part in harness.VARIANTS.value)]
  commands = {
    name: [
      sys.executable if name.startswith('ours') else harness.PEER_PYTHON.value,
      *('-m', 'experiments.benchmarks.decoding', f'--case={case}', f'--worker={name}'),
    ]
    for name in names
  }
  results = harness.compare(commands, rounds=harness.ROUNDS.value)
  harness.report(
    f'decoding_{case}',
    results,
    work=rows * outputs,
    unit='tokens/s',
    module='decoding',
    save=harness.SAVE.value,
  )


if __name__ == '__main__':
  app.run(main)
