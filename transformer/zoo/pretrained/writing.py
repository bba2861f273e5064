"""Writing folders as models are published."""

import json
import os
import pathlib
from typing import Any

import numpy as np
from flax import nnx

from transformer.modules.config import ModelConfig
from transformer.modules.heads import Classifier
from transformer.modules.model import Decoder, Encoder, EncoderDecoder
from transformer.zoo.families import FAMILIES
from transformer.zoo.families.family import in_full, read_config, rows_of, write_config
from transformer.zoo.families.rows import Row, leaves, named
from transformer.zoo.pretrained.reading import OURS, WEIGHTS

# prefixes of names of heads, which have no family prefix in any file
HEADS = ('cls.', 'classifier.', 'qa_outputs.', 'lm_head.', 'proj_out.', 'final_logits_bias')


def save_pretrained(
  folder: str | os.PathLike, model: nnx.Module, tokenizer: Any = None, **config: Any
) -> None:
  """Write a folder that `load_pretrained` and the `transformers` library can read.

  Args:
    folder: created if it does not exist.
    model: one that a family of `zoo.families` can express.
    tokenizer: a `data.tokenizers.Tokenizer`, if there is one.
    config: further keys of config.json, such as decoder_start_token_id; model_type where several
      families have the same shape (a RoBERTa is written as bert unless model_type is roberta).

  Raises:
    ValueError: no family can express the model; says what the nearest would need.
  """
  parameters, kind = leaves(model), type(model)
  model_type, ours, rows = family_of(model, parameters, config.get('model_type'))
  family = FAMILIES[model_type]
  architectures = [
    name
    for name, cls in family.architectures.items()
    if cls is kind and ('next_sentence/kernel' in parameters or 'PreTraining' not in name)
  ]
  written: dict[str, Any] = {'architectures': architectures[:1], 'model_type': model_type}
  written |= write_config(family, ours)
  if ours.pad >= 0:
    written['pad_token_id'] = ours.pad
  if kind is Classifier:
    labels = {i: f'LABEL_{i}' for i in range(parameters['out/bias'].size)}
    written |= {'id2label': labels, 'label2id': {label: i for i, label in labels.items()}}
  for name in ('pad', 'bos', 'eos'):
    if getattr(tokenizer, name, None) is not None:
      written[f'{name}_token_id'] = getattr(tokenizer, name)

  tensors = {}
  for row in rows:
    arrays = [np.asarray(parameters[path], np.float32) for path in row.ours]
    for name, layer in named(row, parameters):
      prefix = '' if kind is Encoder or name.startswith(HEADS) else family.prefix
      value = row.write(*(x if layer is None else x[layer] for x in arrays))
      tensors[prefix + name] = np.ascontiguousarray(value)

  from safetensors.numpy import save_file

  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  partial = folder / f'{WEIGHTS}.partial'
  save_file(tensors, partial, metadata={'format': 'pt'})
  partial.replace(folder / WEIGHTS)
  _dump(folder / 'config.json', written | {'dtype': 'float32'} | config)
  if kind is Encoder and ours.pooling == 'mean':
    modules = [
      {'idx': i, 'name': str(i), 'path': path, 'type': f'sentence_transformers.models.{name}'}
      for i, (name, path) in enumerate({'Transformer': '', 'Pooling': '1_Pooling'}.items())
    ]
    _dump(folder / 'modules.json', modules)
    (folder / '1_Pooling').mkdir(exist_ok=True)
    pooling = {'word_embedding_dimension': ours.width, 'pooling_mode_mean_tokens': True}
    _dump(folder / '1_Pooling' / 'config.json', pooling)
  if tokenizer is not None:
    tokenizer.save(folder / 'tokenizer.json')
    ids = {name: getattr(tokenizer, name) for name in ('pad', 'bos', 'eos', 'unk', 'mask')}
    about = {'tokenizer_class': 'PreTrainedTokenizerFast'} | {
      f'{name}_token': tokenizer.pieces([i])[0] for name, i in ids.items() if i is not None
    }
    _dump(folder / 'tokenizer_config.json', about)


def family_of(
  model: Any, parameters: dict[str, Any], wanted: str | None
) -> tuple[str, ModelConfig, list[Row]]:
  """Return (model_type, config, rows) of the family that can express a model.

  Args:
    model: any module.
    parameters: its `leaves`.
    wanted: the model_type; any if None.

  Raises:
    ValueError: there is none; says what the nearest would need.
  """
  kind = type(model)
  if not any(kind in family.architectures.values() for family in FAMILIES.values()):
    raise ValueError(f'no published family has the shape of a {kind.__name__}')
  config, differences = model.config, {}
  for model_type, family in FAMILIES.items():
    if kind not in family.architectures.values() or wanted not in (None, model_type):
      continue
    try:
      rows = rows_of(family, config, kind, parameters)
      theirs = {name for row in rows for name, _ in named(row, parameters)}
      said = ModelConfig(**read_config(family, write_config(family, config), theirs, kind))
    except ValueError as error:
      differences[model_type] = [str(error)]
      continue
    one, other = _essence(config, kind), _essence(said, kind)
    if config.pooling == 'mean' and kind is Encoder:
      other['pooling'] = 'mean'  # which stands in a file of its own
    if one == other:
      return model_type, config, rows
    differences[model_type] = [
      f'{k}={other[k]!r}, not {one[k]!r}' for k in one if one[k] != other[k]
    ]
  if not differences:
    raise ValueError(
      f'model_type={wanted!r} has no {kind.__name__}; there are {", ".join(FAMILIES)}'
    )
  nearest = min(differences, key=lambda name: len(differences[name]))
  raise ValueError(
    f'no published family has the shape of this {kind.__name__}; the nearest, {nearest}, needs '
    + ', '.join(differences[nearest])
  )


def _essence(config: ModelConfig, kind: type) -> dict[str, Any]:
  """Return the fields that matter to a model of this kind, in one form."""
  values, nothing = in_full(config), set(OURS)
  if config.bias:
    nothing.add('bias_qkv')
  if config.position != 'rotary':
    nothing.add('rotary_base')
  if kind is not EncoderDecoder:
    nothing |= {'decoder_depth', 'max_source_length', 'pooling' if kind is Decoder else 'tie'}
    values['tie'] = config.tie in ('output', 'all')
    if config.modality != 'tokens':
      nothing.add('vocab')
  return {name: value for name, value in values.items() if name not in nothing}


def _dump(file: pathlib.Path, value: Any) -> None:
  file.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')
