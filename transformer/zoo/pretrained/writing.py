"""Save a model as a folder of the `transformers` library."""

import dataclasses
import json
import logging
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from transformer.modules.config import DualConfig, Layer, ModelConfig
from transformer.modules.heads import (
  Classifier,
  DualEncoder,
  Embedding,
  MaskedTokens,
  ReplacedTokens,
  TargetClassifier,
  TokenClassifier,
)
from transformer.modules.model import Decoder, Encoder, EncoderDecoder
from transformer.zoo.families import FAMILIES
from transformer.zoo.families.family import (
  Family,
  in_full,
  read_config,
  read_towers,
  rows_of,
  write_config,
)
from transformer.zoo.families.rows import Row, leaves, named
from transformer.zoo.pretrained.files import WEIGHTS
from transformer.zoo.pretrained.published import (
  CONFIG,
  GENERATION,
  MODULES,
  OTHERS,
  PREPROCESSOR,
  TOKENIZER,
  Published,
)
from transformer.zoo.pretrained.reading import OURS

NOTHING = Published()
# prefixes of the names of tensors that never have the prefix of the family: those of heads
HEADS = (
  'cls.',
  'classifier.',
  'qa_outputs.',
  'lm_head.',
  'proj_out.',
  'embed_out.',
  'final_logits_bias',
  'vocab_',
  'score.',
  'head.',
  'pre_classifier.',
  'classification_head.',
  'text_projection.',
  'visual_projection.',
  'decoder.weight',
  'decoder.bias',
  'generator_',
  'discriminator_',
)


def save_pretrained(
  folder: str | os.PathLike, model: nnx.Module, tokenizer: Any = None, **config: Any
) -> None:
  """Write a folder that `load_pretrained` and the `transformers` library can read.

  The settings that were loaded with a model (start and end tokens, names of classes, a chat
  template, ...) are written again. Weights are written as float32. The file of weights is replaced
  atomically.

  Args:
    folder: created if it does not exist.
    model: of an architecture that a family of `zoo.families` has.
    tokenizer: a `data.tokenizers.Tokenizer`, or None.
    config: further keys of config.json, such as decoder_start_token_id or id2label, which replace
      those of the model without a check; model_type if several families have the architecture (a
      RoBERTa that was not loaded is written as bert unless model_type is roberta).

  Raises:
    ValueError: no family, or not that of model_type, has the architecture; names the fields that
      differ from the nearest one.
  """
  published = getattr(model, 'published', NOTHING)
  normalize = isinstance(model, Embedding)
  model = getattr(model, 'encoder') if normalize else model  # noqa: B009
  parameters, kind = leaves(model), type(model)
  ids = _special_ids(tokenizer)
  model_type, ours, theirs, rows = family_of(model, parameters, published, ids | config)
  family = FAMILIES[model_type]
  config_json: dict[str, Any] = {'architectures': [_architecture(family, model, parameters)]}
  config_json |= {'model_type': model_type} | theirs
  if kind in (Classifier, TokenClassifier, TargetClassifier):
    classes = parameters['out/kernel'].shape[-1]
    if len(config_json.get('id2label', ())) != classes:
      config_json['id2label'] = {str(i): f'LABEL_{i}' for i in range(classes)}
    config_json['label2id'] = {label: int(i) for i, label in config_json['id2label'].items()}
    if 'out/bias' not in parameters:  # write 0 if the family has a bias
      biases = [row for row in family.rows(ours, kind, theirs) if row.ours == ('out/bias',)]
      rows, parameters = rows + biases, parameters | {'out/bias': np.zeros(classes)}
  if isinstance(model, TargetClassifier):
    config_json |= {'decoder_start_token_id': model.start, 'eos_token_id': model.end}

  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  without_head = kind is Encoder and 'Projection' not in config_json['architectures'][0]
  _save_tensors(folder, family, rows, parameters, '' if without_head else family.prefix)
  _dump(
    folder / CONFIG,
    {k: v for k, v in config_json.items() if k != 'torch_dtype'} | {'dtype': 'float32'},
  )
  pooled = kind is Encoder and (ours.pooling == 'mean' or normalize or published.text(MODULES))
  if pooled:
    _save_modules(folder, ours, normalize)
  _save_settings(folder, published, ids, [] if pooled else [MODULES])
  if tokenizer is not None:
    _save_tokenizer(folder, tokenizer, published)


def _save_settings(
  folder: pathlib.Path, published: Published, ids: dict[str, Any], unwritten: list[str]
):
  """Write the settings that were loaded with a model; warn of files of another model.

  Args:
    folder: of the model.
    published: the settings.
    ids: of special tokens, which replace those in generation_config.json.
    unwritten: further files of settings that this model does not have.
  """
  if generation := published.json(GENERATION):
    _dump(folder / GENERATION, generation | ids)
  for name in OTHERS:
    if text := published.text(name):
      (folder / name).write_text(text, encoding='utf-8')
  for name in (GENERATION, PREPROCESSOR, *unwritten):
    if (folder / name).is_file() and not published.text(name):
      text = '%s does not come from this model, and is read with it: delete it if it is of another'
      logging.getLogger(__name__).warning(text, folder / name)


def _special_ids(tokenizer: Any) -> dict[str, Any]:
  """Return the keys of config.json for a tokenizer's pad, bos and eos; {} for None."""
  ids = {f'{name}_token_id': getattr(tokenizer, name, None) for name in ('pad', 'bos', 'eos')}
  ids = {name: i for name, i in ids.items() if i is not None}
  if len(ends := getattr(tokenizer, 'ends', ())) > 1:
    ids['eos_token_id'] = list(ends)
  return ids


def _save_tokenizer(folder: pathlib.Path, tokenizer: Any, published: Published):
  tokenizer.save(folder / 'tokenizer.json')
  special = {name: getattr(tokenizer, name) for name in ('pad', 'bos', 'eos', 'unk', 'mask')}
  config = {'tokenizer_class': 'PreTrainedTokenizerFast'} | {
    f'{name}_token': tokenizer.pieces([i])[0] for name, i in special.items() if i is not None
  }
  _dump(folder / TOKENIZER, config | published.json(TOKENIZER))


def _architecture(family: Family, model: Any, parameters: Mapping[str, Any]) -> str:
  """Return the name of their class for a model; of several, the one with its optional parts."""
  names = [name for name, cls in family.architectures.items() if cls is type(model)]
  parts = {'PreTraining': 'next_sentence/kernel' in parameters}
  parts |= {'WithProjection': 'projection/kernel' in parameters}
  if isinstance(model, MaskedTokens):  # BERT as a decoder
    parts |= {'CausalLM|LMHead': model.config.causal}

  def fits(name):
    return all(bool(re.search(words, name)) == exists for words, exists in parts.items())

  return next(filter(fits, names), names[0])


def _save_tensors(folder, family: Family, rows: list[Row], parameters, prefix: str):
  from safetensors.numpy import save_file

  tensors = {}
  for row in rows:
    arrays = [np.asarray(parameters[path], np.float32) for path in row.ours]
    for name, index in named(row, parameters):
      value = row.write(*(x[index] for x in arrays))
      name = name if name.startswith(HEADS) else prefix + name
      tensors[name] = np.asarray(value, np.float32, order='C')
  for copy, original in family.aliases.items():  # transformers 4 has such a bias under one name
    if copy in tensors and copy.endswith('.bias'):
      tensors[original] = tensors[copy]
  partial = folder / f'{WEIGHTS}.partial'
  save_file(tensors, partial, metadata={'format': 'pt'})
  partial.replace(folder / WEIGHTS)


def _save_modules(folder: pathlib.Path, config: ModelConfig, normalize: bool):
  """Write the files that tell sentence-transformers the pooling and normalization."""
  modules = {'Transformer': '', 'Pooling': '1_Pooling'}
  modules |= {'Normalize': '2_Normalize'} if normalize else {}
  _dump(
    folder / MODULES,
    [
      {'idx': i, 'name': str(i), 'path': path, 'type': f'sentence_transformers.models.{name}'}
      for i, (name, path) in enumerate(modules.items())
    ],
  )
  (folder / '1_Pooling').mkdir(exist_ok=True)
  pooling = {'word_embedding_dimension': config.width}
  pooling |= {'pooling_mode_mean_tokens': config.pooling == 'mean'}
  pooling |= {'pooling_mode_cls_token': config.pooling == 'first'}
  pooling |= {'pooling_mode_lasttoken': True} if config.pooling == 'last' else {}
  _dump(folder / '1_Pooling' / CONFIG, pooling)


def family_of(
  model: Any,
  parameters: Mapping[str, Any],
  published: Published = NOTHING,
  keys: Mapping[str, Any] = {},
) -> tuple[str, Any, dict[str, Any], list[Row]]:
  """Return (model_type, config, config.json, rows) of the family that has a model's architecture.

  A config.json that the model was loaded with is returned unchanged, if it still describes it.

  Args:
    model: any module.
    parameters: its `leaves`.
    published: the settings that it was loaded with.
    keys: further keys of config.json, such as model_type.

  Raises:
    ValueError: there is no such family; names the fields that differ from the nearest one.
  """
  kind, loaded = type(model), published.json(CONFIG)
  wanted = keys.get('model_type', loaded.get('model_type'))
  if not any(kind in family.architectures.values() for family in FAMILIES.values()):
    raise ValueError(f'no published family has the architecture of a {kind.__name__}')
  config = model.config
  differences: dict[str, list[str]] = {}
  errors: dict[str, list[str]] = {}
  for model_type, family in FAMILIES.items():
    if kind not in family.architectures.values() or wanted not in (None, model_type):
      continue
    ours = _essence(config, kind)
    try:
      candidates = [loaded] if loaded.get('model_type') == model_type else []
      for theirs in (*candidates, _new_config(family, config, kind)):
        theirs = theirs | dict(keys)
        rows = rows_of(family, config, kind, theirs, parameters)
        read = _read_again(family, config, kind, theirs, rows, parameters)
        if ours == read:
          return model_type, config, theirs, rows
    except ValueError as error:
      errors[model_type] = [f'another model, for {error}']
      continue
    differences[model_type] = [
      f'{k}={read[k]!r}, not {ours[k]!r}' for k in ours if k in read and ours[k] != read[k]
    ]
  differences = differences or errors
  if not differences:
    able = [name for name, each in FAMILIES.items() if kind in each.architectures.values()]
    raise ValueError(
      f'model_type={wanted!r} has no {kind.__name__}: choose one of {", ".join(able)}'
    )
  nearest = min(differences, key=lambda name: len(differences[name]))
  raise ValueError(
    f'no published family has the architecture of this {kind.__name__}; the nearest, {nearest}, '
    f'needs {", ".join(differences[nearest])}'
  )


def _new_config(family: Family, config: Any, kind: type) -> dict[str, Any]:
  """Return a config.json of a family for our config."""
  theirs = write_config(family, config)
  text = kind not in (Decoder, DualEncoder) and config.modality == 'tokens'
  if text and 'pad_token_id' not in theirs:
    theirs['pad_token_id'] = config.pad if config.pad >= 0 else None
  return theirs


def _read_again(family, config, kind, theirs, rows, parameters) -> dict[str, Any]:
  """Return the `_essence` of the config that would be read from these rows and config.json."""
  names = {name for row in rows for name, _ in named(row, parameters)}
  names |= {family.aliases[name] for name in names & family.aliases.keys()}
  if family.towers:
    read = _essence(read_towers(family, theirs, names, {}), kind)
  else:
    read = _essence(ModelConfig(**read_config(family, theirs, names, kind)), kind)
  if kind is Encoder and config.pooling == 'mean':
    read['pooling'] = 'mean'  # stored in 1_Pooling/config.json
  return read


def _essence(config: ModelConfig | DualConfig, kind: type) -> dict[str, Any]:
  """Return the fields that have an effect in a model of our class `kind`, for comparison."""
  if isinstance(config, DualConfig):
    sides = {'text': config.text, 'image': config.image}
    each = {f'{s}.{k}': v for s, x in sides.items() for k, v in _essence(x, Encoder).items()}
    return each | {'bias': config.bias}
  values, unused = in_full(config), set(OURS)
  unused |= {field.name for field in dataclasses.fields(Layer)}  # they are in `layers`
  if config.bias:
    unused |= {'bias_qkv', 'bias_attention', 'bias_feedforward', 'bias_norm'}
  if config.norm == 'rms':
    unused.add('bias_norm')
  if config.position != 'rotary':
    unused.add('rotary_size')
    values['layers'] = [layer['window'] for layer in values['layers']]
  if 'relative' not in config.position:
    unused |= {'relative_buckets', 'relative_distance'}
  if config.pooling not in ('pooler', 'mean_pooler'):
    unused |= {'pooler_activation', 'pooler_norm'}
  if kind not in (EncoderDecoder, TargetClassifier):
    unused |= {'decoder_depth', 'max_source_length'}
    unused |= {'pooling', 'causal'} if kind is Decoder else set()
    unused |= set() if kind in (Decoder, MaskedTokens) else {'tie'}
    unused |= {'pooling'} if kind in (TokenClassifier, ReplacedTokens) else set()
    values['tie'] = config.tie in ('output', 'all')
    if config.modality != 'tokens':
      unused.add('vocab')
  return {name: value for name, value in values.items() if name not in unused}


def _dump(file: pathlib.Path, value: Any) -> None:
  file.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')
