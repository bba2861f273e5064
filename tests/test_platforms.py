"""The platform is a value: programs are compiled for devices that this machine does not have."""

import ast
import functools
import pathlib
import re
from typing import get_type_hints

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import transformer
from transformer.data import tokenizers
from transformer.functional import kernels, platforms
from transformer.modules.config import ModelConfig
from transformer.training.config import TASKS
from transformer.training.step import init_state, train_step

SIZES = dict(width=32, heads=2, depth=2, feedforward=32, max_length=64, dtype='bfloat16', unroll=1)
B, T = 4, 32
OWN = {  # what a task must be given
  'classification': dict(classes=('a', 'b')),
  'token_classification': dict(labels=('O', 'B-a', 'I-a')),
  'question_answering': dict(stride=8),
}


@pytest.fixture
def cudnn(monkeypatch):
  """Let cuDNN's call be traced where there is none: JAX asks the installed library its version."""
  from jax._src.cudnn import fused_attention_stablehlo as stablehlo

  monkeypatch.setattr(stablehlo, 'check_cudnn_version', lambda: 91_000)


@pytest.fixture(scope='module')
def tokenizer():
  return tokenizers.train(['abcdefghij klmnop'], kind='characters', vocab=40, sentinels=8)


def step_of(name, tokenizer, **model):
  """(the training step of a task, its abstract arguments); rows are padded and packed."""
  decoding = get_type_hints(TASKS[name])['decoding']()
  own = OWN.get(name, {})  # of a new task, add what it must be given, its columns and attentions
  task = TASKS[name](tokenizer=tokenizer, decoding=decoding, max_length=T, **own)
  config = ModelConfig(vocab=tokenizer.size, **SIZES | model)
  optimizer = optax.sgd(0.1)
  state = jax.eval_shape(
    lambda key: init_state(task.init(config, key), optimizer, ema=0.0), jax.random.key(0)
  )
  ids, row = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((B, T), (B,)))
  batch = dict.fromkeys(('inputs', 'inputs_segments', 'targets', 'targets_segments'), ids)
  if name == 'classification':
    batch |= dict(label=row, label_segments=row)
  if name == 'question_answering':
    batch |= dict(starts=jax.ShapeDtypeStruct((B, 3), jnp.int32))
    batch |= dict(ends=batch['starts'])
  if name == 'text_to_speech':
    size = task.frames_per_step * task.mels
    batch |= dict(targets=jax.ShapeDtypeStruct((B, T, size), jnp.float32))
  step = functools.partial(train_step, loss=task.loss, optimizer=optimizer)
  return step, (state, batch, jax.random.key(0))


def calls(step, arguments, platform):
  """(cuDNN's attention forward, backward): how often the program compiled for it calls them."""
  # as careful users set JAX: neither ranks nor types are promoted
  with jax.numpy_rank_promotion('raise'), jax.numpy_dtype_promotion('strict'):
    text = jax.jit(step).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
  found = re.findall(r'__cudnn\$fmha\w*', text)
  backward = sum('Backward' in name for name in found)
  return len(found) - backward, backward


ATTENTIONS = {  # of the layers that a scan's step holds
  'seq2seq': 3,
  'language_model': 1,
  'masked_lm': 1,
  'span_corruption': 3,
  'classification': 1,
  'ctc': 1,
  'joint_ctc': 3,
  'question_answering': 1,
  'retrieval': 2,
  'token_classification': 1,
  'text_to_speech': 6,  # its loss reads attention weights, so that its 2 layers run one by one
}


@pytest.mark.parametrize('name', TASKS)
def test_the_training_step_of_every_task_reaches_cudnn(name, tokenizer, cudnn):
  step, arguments = step_of(name, tokenizer, platform='cuda')
  count = ATTENTIONS[name]
  assert calls(step, arguments, 'cuda') == (count, count)


@pytest.mark.parametrize('model', [dict(window=8), dict(layers=(dict(window=8), {}))], ids=str)
def test_the_training_step_of_a_model_with_windows_reaches_cudnn(model, tokenizer, cudnn):
  step, arguments = step_of('language_model', tokenizer, platform='cuda', **model)
  count = len(model.get('layers', ' '))
  assert calls(step, arguments, 'cuda') == (count, count)


def test_a_model_without_segments_hands_cudnn_its_causal_mask_and_no_array(cudnn, monkeypatch):
  seen, attend = [], jax.nn.dot_product_attention

  def spy(q, k, v, mask=None, **kwargs):
    seen.append((mask, kwargs['is_causal'], kwargs.get('local_window_size')))
    return attend(q, k, v, mask=mask, **kwargs)

  monkeypatch.setattr(jax.nn, 'dot_product_attention', spy)
  for window, given in ((0, None), (8, (7, 0))):
    config = ModelConfig(vocab=40, **SIZES, window=window, platform='cuda')
    model = jax.eval_shape(lambda c=config: transformer.Decoder(c, nnx.Rngs(0)))
    tokens = jax.ShapeDtypeStruct((B, T), jnp.int32)
    jax.jit(lambda m, t: m(t)).trace(model, tokens).lower(lowering_platforms=('cuda',))
    assert seen == [(None, True, given)]
    seen.clear()


def test_a_step_compiled_for_another_platform_has_that_platforms_forms(tokenizer):
  step, arguments = step_of('seq2seq', tokenizer, platform='tpu')
  assert calls(step, arguments, 'tpu') == (0, 0)
  step, arguments = step_of('seq2seq', tokenizer, platform='cuda:7.5')
  assert calls(step, arguments, 'cuda') == (0, 0)


def test_only_one_function_asks_what_the_process_runs_on():
  root = pathlib.Path(transformer.__file__).parent
  asking = set()
  for part in ('functional', 'modules'):
    for file in (root / part).glob('*.py'):
      for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
        name = getattr(node, 'attr', None)
        if name in ('default_backend', 'devices', 'local_devices', 'device_count'):
          asking.add(file.name)
  assert asking == {'platforms.py'}


def test_the_log_says_what_computes_attention(tokenizer, cudnn, caplog):
  kernels._log_once.cache_clear()
  step, arguments = step_of('language_model', tokenizer, platform='cuda')
  with caplog.at_level('INFO', kernels.__name__):
    jax.jit(step).trace(*arguments)
  assert [record.message for record in caplog.records] == ['attention on cuda is computed by cudnn']


@pytest.mark.parametrize(
  'instructions, dtype', [('avx2 fma', 'float32'), ('amx_bf16', 'bfloat16'), ('', 'float32')]
)
def test_dtype_auto_is_what_the_platform_multiplies_faster(instructions, dtype, monkeypatch):
  monkeypatch.setattr(platforms, '_cpu_instructions', lambda: {*instructions.split()})
  if not platforms.cpu_multiplies_bfloat16():  # jax before 0.8.2
    dtype = 'float32'
  chosen = {
    platform: ModelConfig(vocab=9, dtype='auto', platform=platform).dtype
    for platform in ('cpu', 'tpu', 'rocm', 'cuda', 'cuda:8.0', 'cuda:7.5')
  }
  units = dict.fromkeys(('tpu', 'rocm', 'cuda', 'cuda:8.0'), 'bfloat16')
  assert chosen == {'cpu': dtype, 'cuda:7.5': 'float32', **units}
