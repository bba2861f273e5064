"""A run as one folder that runs without this package: functions, weights, tokenizer, predict.py.

The functions are StableHLO by `jax.export`, for any batch and length, on CPU, GPU and TPU. Weights
are their first argument, a dict, so that one file of weights serves all of them.
"""

import dataclasses
import importlib.resources
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flatbuffers  # noqa: F401  # by which jax.export writes a function
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export
from safetensors.numpy import save

from transformer.functional.quantization import Quantized, dequantize, quantize
from transformer.modules.cache import Cache
from transformer.modules.model import Memory
from transformer.tasks.classification import Classification
from transformer.tasks.language_model import LanguageModel
from transformer.tasks.seq2seq import Seq2Seq
from transformer.training.step import Model

PLATFORMS = ('cpu', 'cuda', 'tpu')
# What is kept in 8 bits: the end of a name, and the axis over which a product sums.
IN_8_BITS = (('kernel', -2), ('embed.table', -1), ('output.table', -1))
# Settings of decoding that predict.py does not have, each with the value that changes nothing.
NOT_EXPORTED = dict(
  repetition_penalty=1.0,
  no_repeated_ngrams=0,
  bad_words=(),
  begin_suppress=(),
  min_new_tokens=0,
  prefix=(),
  choices=(),
)
SCALE = '.scale'

Functions = dict[str, tuple[Callable, tuple[Any, ...]]]


def write(folder: pathlib.Path, task: Any, model: Model, weights: Mapping[str, Any]) -> None:
  """Write the functions, the weights, the tokenizer, config.json and predict.py.

  Args:
    folder: created if it does not exist.
    task: of the run.
    model: whose config and kind the functions have.
    weights: of `weights_of`, or the same in 8 bits.

  Raises:
    ValueError: predict.py cannot answer the requests of the task, or not with these settings.
  """
  functions, facts = _functions(task, model)
  shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
  restore = _restorer(task, model)
  folder.mkdir(parents=True, exist_ok=True)
  for name, (function, arguments) in functions.items():

    def call(weights, *arguments, function=function):
      return function(restore(weights), *arguments)

    exported = export.export(jax.jit(call), platforms=PLATFORMS)(shapes, *arguments)
    (folder / f'{name}.stablehlo').write_bytes(exported.serialize())
  arrays = {name: np.asarray(x) for name, x in weights.items()}
  (folder / 'model.safetensors').write_bytes(save(arrays))
  task.tokenizer.save(folder / 'tokenizer.json')
  text = json.dumps(facts, ensure_ascii=False, indent=1)
  (folder / 'config.json').write_text(text + '\n', encoding='utf-8')
  predict = importlib.resources.files('transformer.inference') / 'predict_exported.py'
  (folder / 'predict.py').write_text(predict.read_text('utf-8'), encoding='utf-8')


def weights_of(model: Model) -> dict[str, jax.Array]:
  """Return the parameters of a model by their names, such as stack.blocks.attention.out.kernel."""
  return dict(zip(*_named(nnx.to_pure_dict(nnx.state(model))), strict=True))


def in_8_bits(weights: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """Return weights whose kernels and tables of tokens have 8 bits, each with its scales."""
  found = dict(weights)
  for name, array in weights.items():
    for end, axis in IN_8_BITS:
      if f'.{name}'.endswith(f'.{end}'):
        found[name], found[name + SCALE] = quantize(array, axis)
  return found


def restored(task: Any, model: Model, weights: Mapping[str, jax.Array]) -> Model:
  """Return the model that weights in 8 bits stand for, for its metrics."""
  return _restorer(task, model, model.config.platform)(weights)


def _restorer(task: Any, model: Model, platform: str | None = 'cpu') -> Callable:
  """Return a function of weights that makes the model, as compiled for a platform.

  The forms of programs that are chosen for a CPU are those that run everywhere.
  """
  config = dataclasses.replace(model.config, platform=platform)
  graph, state = nnx.split(jax.eval_shape(lambda: task.init(config, jax.random.key(0))))
  names, shapes = _named(nnx.to_pure_dict(state))
  tree = jax.tree.structure(nnx.to_pure_dict(state))

  def restore(weights):
    leaves = [
      dequantize(Quantized(weights[name], weights[name + SCALE]), shape.dtype)
      if name + SCALE in weights
      else weights[name]
      for name, shape in zip(names, shapes, strict=True)
    ]
    return nnx.merge(graph, nnx.State(jax.tree.unflatten(tree, leaves)))

  return restore


def _named(tree: Any) -> tuple[list[str], list[Any]]:
  """Return the names and the values of the leaves of nested dicts, in JAX's order."""
  pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
  return ['.'.join(str(key.key) for key in path) for path, _ in pairs], [x for _, x in pairs]


def _functions(task: Any, model: Model) -> tuple[Functions, dict[str, Any]]:
  """Return the functions of a model with their arguments, and the content of config.json."""
  makers = {
    Classification: ('classification', _classifier),
    LanguageModel: ('language_model', _decoder),
    Seq2Seq: ('seq2seq', _encoder_decoder),
  }
  if type(task) not in makers or getattr(task, 'input_processor', None):
    kind = ' of images or sounds' if type(task) in makers else ''
    raise ValueError(
      f'--format=stablehlo exports seq2seq, language_model and classification of texts, not '
      f'{type(task).__name__}{kind}: use --format=hf, or export its functions by jax.export'
    )
  name, make = makers[type(task)]
  tokenizer, processor = task.tokenizer, task.processor
  facts = {
    'task': name,
    'max_length': task.max_length,
    'prefix': [tokenizer.bos] if processor.start else tokenizer.prefix,
    'suffix': [] if type(task) is LanguageModel else tokenizer.suffix or [tokenizer.eos],
  }
  functions, more = make(task, model)
  return functions, facts | more


def _ints(*shape: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.int32)


def _classifier(task, model):
  def classify(model, tokens, segments):
    tokens, segments = task.processor.prepare_batch(tokens, segments, None)
    return task.coarse_logits(model(tokens, segments=segments))

  inputs = _ints(*export.symbolic_shape('b, s'))
  return {'classify': (classify, (inputs, inputs))}, {'classes': task.coarse}


def _decoder(task, model):
  empty, cache_of, facts = _searched(task, model, task.tokenizer.bos)

  def step(model, tokens, segments, cache, memory):
    logits, cache = model(tokens, segments=segments, cache=cache_of(cache))
    return logits[:, -1], jax.tree.leaves(cache)

  b, t, c = export.symbolic_shape('b, t, c', constraints=['c >= t'])
  functions = {'prefill': (step, (_ints(b, t), _ints(b, t), empty(b, c), ()))}
  b, c = export.symbolic_shape('b, c')
  return functions | {'step': (step, (_ints(b, 1), _ints(b, 1), empty(b, c), ()))}, facts


def _encoder_decoder(task, model):
  empty, cache_of, facts = _searched(task, model, task.start_token)

  def encode(model, tokens, segments):
    tokens, segments = task.processor.prepare_batch(tokens, segments, None)
    return jax.tree.leaves(model.decoder.prepare(model.encode(tokens, segments=segments)))

  def step(model, tokens, segments, cache, memory):
    states, real, k, v = memory
    memory = Memory(states, real, (k, v))
    logits, cache = model.decode(tokens, memory, segments=segments, cache=cache_of(cache))
    return logits[:, -1], jax.tree.leaves(cache)

  b, s, c = export.symbolic_shape('b, s, c')
  memory = jax.eval_shape(encode, model, _ints(b, s), _ints(b, s))
  functions = {'step': (step, (_ints(b, 1), _ints(b, 1), empty(b, c), memory))}
  inputs = _ints(*export.symbolic_shape('b, s'))
  return functions | {'encode': (encode, (inputs, inputs))}, {'start': task.start_token, **facts}


def _searched(task, model, start):
  """Return the shapes of an empty cache as a list, a function from that list, and the facts."""
  decoding, tokenizer = task.decoding, task.tokenizer
  if changed := [name for name, value in NOT_EXPORTED.items() if getattr(decoding, name) != value]:
    raise ValueError(
      f'predict.py decodes greedily and has no {", ".join(f"decode.{x}" for x in changed)}: export '
      f'with --config.decode.{changed[0]}={NOT_EXPORTED[changed[0]]!r}, or use --format=hf'
    )
  config = dataclasses.replace(getattr(model, 'decoder', model).config, platform='cpu')

  def cache_of_size(b, c):
    return jax.eval_shape(lambda: Cache.empty(config, b, c))

  shapes, tree = jax.tree.flatten(cache_of_size(*export.symbolic_shape('b, c')))
  never = (tokenizer.pad, start, *tokenizer.sentinels)
  facts = {
    'max_new_tokens': decoding.max_new_tokens,
    'ends': tokenizer.ends,
    'suppress': decoding.for_model(model, never, eos=tokenizer.ends).suppress,
    'cache': [
      [[n if isinstance(n, int) else str(n) for n in x.shape], str(x.dtype)] for x in shapes
    ],
  }
  empty = lambda b, c: jax.tree.leaves(cache_of_size(b, c))  # noqa: E731
  return empty, lambda cache: jax.tree.unflatten(tree, cache), facts
