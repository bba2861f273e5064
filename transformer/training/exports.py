"""Exports of a run: for the `transformers` library (hf), or to run without this code (stablehlo).

A stablehlo folder has functions, weights, tokenizer and predict.py. The functions are StableHLO by
`jax.export`, for any batch size and length, on CPU, GPU and TPU. Their first argument is a dict of
weights, so that one file of weights serves all of them.
"""

import dataclasses
import importlib.resources
import json
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export
from safetensors.numpy import save

from transformer.functional.quantization import Quantized, dequantize, quantize
from transformer.inference.checks import check_finite
from transformer.modules import adapters
from transformer.modules.cache import Cache
from transformer.modules.model import Memory
from transformer.tasks.classification import Classification
from transformer.tasks.language_model import LanguageModel
from transformer.tasks.seq2seq import Seq2Seq
from transformer.training.results import evaluate_split
from transformer.training.step import Model
from transformer.training.workdir import is_run
from transformer.zoo.pretrained import save_pretrained
from transformer.zoo.pretrained.published import CONFIG, Published

PLATFORMS = ('cpu', 'cuda', 'tpu')
# The parameters that get 8 bits: (end of the name, axis that the matrix product sums over).
IN_8_BITS = (('kernel', -2), ('embed.table', -1), ('output.table', -1))
log = logging.getLogger(__name__)

# Settings of the search, with the values that predict.py uses: greedy search.
GREEDY = dict(beams=1, num_return_sequences=1, temperature=0.0)
# Constraints that predict.py does not support, each with the value that has no effect.
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

Functions = dict[str, tuple[Callable, tuple[Any, ...]]]  # name to (function, abstract arguments)


def check_format(format: str, int8: bool) -> None:
  """Raise ValueError or ModuleNotFoundError unless runs can be exported in a format.

  Args:
    format: hf, stablehlo or onnx.
    int8: whether weights are to have 8 bits.
  """
  if format == 'onnx':
    raise ValueError(
      '--format=onnx is not written: jax2onnx, the kept converter, fails on these models (see '
      'docs/exports.md). Give --format=stablehlo, or hf and convert that folder by its own tools'
    )
  if int8 and format == 'hf':
    raise ValueError('--int8 is for --format=stablehlo: give both, or neither')
  if format == 'stablehlo':
    import flatbuffers  # noqa: F401  # jax.export needs it to write a function


def export_run(
  workdir: pathlib.Path, experiment: Any, model: Model, format: str, int8: bool = False
) -> dict[str, Any]:
  """Write a model to WORKDIR/export (hf) or WORKDIR/export-stablehlo.

  Args:
    workdir: the folder of the run.
    experiment: the Experiment of the run.
    model: its adapters, if it has some, are merged in place.
    format: hf or stablehlo.
    int8: whether weights get 8 bits (stablehlo).

  Returns:
    {'folder': path, 'bytes': size of its files}; with int8 also 'from_to': {metric of the
    validation split: [before, after] rounding to 8 bits}.

  Raises:
    FloatingPointError: a parameter is NaN.
    ValueError: the format does not support the model, task or settings.
  """
  task, facts = experiment.task, dict[str, Any]()
  adapters.merge(model)
  check_finite(model, 'a parameter is NaN')
  if format == 'hf':
    folder = workdir / 'export'
    _log_dropped(task.decoding, GREEDY | NOT_EXPORTED, 'pass them to `generate`')
    settings = published_settings(task, experiment.settings.warm_start)
    model.published = published_files(experiment.settings.warm_start)
    try:
      save_pretrained(folder, model, task.tokenizer, **settings)
    except ValueError as error:  # such as an id of the tokenizer that the family does not support
      if not (family := settings.pop('model_type', '')):
        raise
      log.warning('the model is not written as %s, from which it started: %s', family, error)
      save_pretrained(folder, model, task.tokenizer, **settings)
  else:
    folder = workdir / f'export-{format}'
    weights = weights_of(model)
    if int8:
      weights = in_8_bits(weights)
      val, rounded = experiment.settings.data.val, restored(task, model, weights)
      before, after = (evaluate_split(experiment, x, val).metrics for x in (model, rounded))
      facts['from_to'] = {name: [before[name], after[name]] for name in after if '/' not in name}
    write(folder, task, model, weights)
  return facts | {'folder': str(folder), 'bytes': sum(x.stat().st_size for x in folder.iterdir())}


def published_settings(task: Any, warm_start: str = '') -> dict[str, Any]:
  """Return the keys of config.json (hf) that depend on the run.

  Args:
    task: gives the class names and the start token of the decoder.
    warm_start: of the config; gives the model_type, if it is the folder of a published model.
  """
  settings: dict[str, Any] = {}
  if warm_start and (file := pathlib.Path(warm_start).expanduser() / 'config.json').is_file():
    family = json.loads(file.read_text(encoding='utf-8')).get('model_type')
    settings |= {'model_type': family} if family else {}
  if classes := getattr(task, 'classes', ()):
    settings['id2label'] = {str(i): name for i, name in enumerate(classes)}
  if (start := getattr(task, 'start_token', None)) is not None:
    settings['decoder_start_token_id'] = start
  return settings


def published_files(warm_start: str) -> Published:
  """Return the settings of generation, preprocessing and the tokenizer of a published model.

  Those of its config.json are left out, since the head and the classes may be others now.

  Args:
    warm_start: of the config: its folder, a run, or ''.
  """
  folder = pathlib.Path(warm_start).expanduser()
  if not warm_start or is_run(folder) or not (folder / CONFIG).is_file():
    return Published()
  return Published(tuple(file for file in Published.read(folder).files if file[0] != CONFIG))


def write(folder: pathlib.Path, task: Any, model: Model, weights: Mapping[str, Any]) -> None:
  """Write a stablehlo folder: functions, weights, tokenizer, config.json and predict.py.

  Args:
    folder: created if it does not exist.
    task: gives the functions and the tokenizer.
    model: gives the architecture of the functions.
    weights: from `weights_of` or `in_8_bits`.

  Raises:
    ValueError: predict.py does not support the task, or its settings of decoding.
  """
  functions, facts = _functions(task, model)
  shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
  restore = _restorer(task, model)
  folder.mkdir(parents=True, exist_ok=True)
  predict_py = folder / 'predict.py'
  predict_py.unlink(missing_ok=True)  # until all files are of this export
  for name, (function, arguments) in functions.items():

    def call(weights, *arguments, function=function):
      return function(restore(weights), *arguments)

    exported = export.export(jax.jit(call), platforms=PLATFORMS)(shapes, *arguments)
    (folder / f'{name}.stablehlo').write_bytes(exported.serialize())
  arrays = {name: np.asarray(x) for name, x in weights.items()}
  (folder / 'model.safetensors').write_bytes(save(arrays))
  task.tokenizer.save(folder / 'tokenizer.json')
  facts['functions'] = [*functions]
  text = json.dumps(facts, ensure_ascii=False, indent=1)
  (folder / 'config.json').write_text(text + '\n', encoding='utf-8')
  predict = importlib.resources.files('transformer.inference') / 'predict_exported.py'
  predict_py.write_text(predict.read_text('utf-8'), encoding='utf-8')


def weights_of(model: Model) -> dict[str, jax.Array]:
  """Return {name: parameter} of a model, with names such as stack.blocks.attention.out.kernel."""
  return dict(zip(*_named(nnx.to_pure_dict(nnx.state(model))), strict=True))


def in_8_bits(weights: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """Return the weights with kernels and token tables as int8, and their scales as NAME.scale."""
  quantized = dict(weights)
  for name, array in weights.items():
    for end, axis in IN_8_BITS:
      if f'.{name}'.endswith(f'.{end}'):
        quantized[name], quantized[name + SCALE] = quantize(array, axis)
  return quantized


def restored(task: Any, model: Model, weights: Mapping[str, jax.Array]) -> Model:
  """Return a model like `model` with these weights, dequantized where they have 8 bits."""
  return _restorer(task, model, model.config.platform)(weights)


def _restorer(task: Any, model: Model, platform: str | None = 'cpu') -> Callable:
  """Return a function from weights to a model like `model`.

  Args:
    task: makes the model.
    model: gives the config.
    platform: that the model chooses its kernels for; those for a CPU run everywhere.
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
  """Return the functions to export, with abstract arguments, and the content of config.json."""
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
    'accepts_empty': type(task) is LanguageModel and processor.start,
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
  """Return what the exports of decoders share.

  Returns:
    A function (batch, length) to the leaves of an abstract cache; a function from leaves to the
    cache; the keys of config.json about decoding.
  """
  tokenizer = task.tokenizer
  never_generated = (tokenizer.pad, start, *tokenizer.sentinels)
  decoding = task.decoding.for_model(model, never_generated, eos=tokenizer.ends)
  single = [word[0] for word in decoding.bad_words if len(word) == 1]
  longer = tuple(word for word in decoding.bad_words if len(word) > 1)
  decoding = dataclasses.replace(decoding, bad_words=longer)
  if changed := _changed(decoding, NOT_EXPORTED):
    raise ValueError(
      f'predict.py has no {", ".join(changed)}: change it by --config.decode, or use --format=hf'
    )
  _log_dropped(decoding, GREEDY, 'predict.py decodes greedily, and may answer otherwise')
  config = dataclasses.replace(getattr(model, 'decoder', model).config, platform='cpu')

  def cache_of_size(b, c):
    return jax.eval_shape(lambda: Cache.empty(config, b, c))

  shapes, tree = jax.tree.flatten(cache_of_size(*export.symbolic_shape('b, c')))
  facts = {
    'max_new_tokens': decoding.max_new_tokens,
    'ends': tokenizer.ends,
    'suppress': sorted({*decoding.suppress, *single}),
    'cache': [
      [[n if isinstance(n, int) else str(n) for n in x.shape], str(x.dtype)] for x in shapes
    ],
  }
  empty = lambda b, c: jax.tree.leaves(cache_of_size(b, c))  # noqa: E731
  return empty, lambda cache: jax.tree.unflatten(tree, cache), facts


def _changed(decoding: Any, defaults: Mapping[str, Any]) -> list[str]:
  """Return the settings that differ from these values, as text such as decode.beams=4."""
  values = {name: getattr(decoding, name, default) for name, default in defaults.items()}
  return [f'decode.{n}={values[n]!r}' for n, value in defaults.items() if values[n] != value]


def _log_dropped(decoding: Any, defaults: Mapping[str, Any], advice: str) -> None:
  if changed := _changed(decoding, defaults):
    log.warning('%s not exported: %s', ', '.join(changed), advice)
