"""The settings in a published folder: kept with a loaded model, and written with it again."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from transformer.zoo.families.family import value
from transformer.zoo.pretrained.files import read_json

CONFIG, GENERATION = 'config.json', 'generation_config.json'
MODULES, TOKENIZER = 'modules.json', 'tokenizer_config.json'
PREPROCESSOR = 'preprocessor_config.json'
# files that are written again unchanged
OTHERS = (
  PREPROCESSOR,
  'special_tokens_map.json',
  'sentence_bert_config.json',
  'config_sentence_transformers.json',
  'chat_template.jinja',
)
# {key of generation_config.json: argument of `generate`}
SAMPLING = ('temperature', 'top_k', 'top_p', 'min_p')
DECODING = {
  'pad_token_id': 'pad',
  'decoder_start_token_id': 'start',
  'num_beams': 'beams',
  'no_repeat_ngram_size': 'no_repeated_ngrams',
  'bad_words_ids': 'bad_words',
  'suppress_tokens': 'suppress',
  'begin_suppress_tokens': 'begin_suppress',
}
SAME = ('max_new_tokens', 'min_new_tokens', 'repetition_penalty', *SAMPLING)
DECODING |= {name: name for name in SAME}
# values that have no effect on the generated tokens
UNCHANGED = {'diversity_penalty': 0.0, 'max_length': 20, 'use_cache': True}
UNCHANGED |= {'num_return_sequences': 1, 'num_beam_groups': 1, 'encoder_no_repeat_ngram_size': 0}
UNCHANGED |= {'min_length': 0, 'return_dict_in_generate': False}
UNCHANGED |= dict.fromkeys(('output_attentions', 'output_hidden_states', 'output_scores'), False)
BEAMS = {'length_penalty': 1.0, 'early_stopping': False}  # with transformers' defaults
IDS = ('pad', 'bos', 'eos', 'decoder_start', 'forced_bos', 'forced_eos')


@dataclasses.dataclass(frozen=True)
class Published:
  """The settings of a published folder; the attribute `published` of a model that was loaded.

  Attributes:
    files: (name, text) of its files.
  """

  files: tuple[tuple[str, str], ...] = dataclasses.field(default=(), repr=False)

  @classmethod
  def read(cls, folder: pathlib.Path) -> 'Published':
    """Return the settings of a folder.

    Raises:
      ValueError: config.json is missing, or a file is damaged.
    """
    texts = {CONFIG: _dumps(read_json(folder / CONFIG))}
    for name in (GENERATION, TOKENIZER, *OTHERS):
      if (file := folder / name).is_file():
        is_json = name.endswith('.json')
        texts[name] = _dumps(read_json(file)) if is_json else file.read_text(encoding='utf-8')
    return cls(tuple(texts.items()))

  def text(self, name: str) -> str:
    """Return the text of a file; '' if there is no such file."""
    return dict(self.files).get(name, '')

  def json(self, name: str) -> dict[str, Any]:
    """Return the object in a JSON file; {} if there is no such file."""
    return json.loads(self.text(name) or '{}')

  @functools.cached_property
  def generation(self) -> dict[str, Any]:
    """Settings of generation, such as eos_token_id (an id or a list of ids).

    They are those of config.json, where older models have them, updated with those of
    generation_config.json.
    """
    config, ids = self.json(CONFIG), [f'{name}_token_id' for name in IDS]
    names = (*ids, *DECODING, *BEAMS, 'do_sample', 'max_length', 'min_length')
    older = {key: config.get(key) for key in names}
    return {k: v for k, v in (older | self.json(GENERATION)).items() if v is not None}

  def ends(self) -> tuple[int, ...]:
    """Return the ids of the tokens that end an output, in the order of the file."""
    ids = self.generation.get('eos_token_id', [])
    return tuple(ids) if isinstance(ids, list) else (ids,)

  def decoding(self, *, is_decoder: bool) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments of `generate`, and the names of the settings that are not supported.

    Args:
      is_decoder: whether the model continues its prompt; otherwise it begins with a start token.
    """
    theirs = {k: v for k, v in self.generation.items() if v != UNCHANGED.get(k)}
    ends = self.ends()
    kwargs: dict[str, Any] = {
      ours: tuple(value) if isinstance(value, list) else value
      for key, ours in DECODING.items()
      if (value := theirs.pop(key, None)) is not None
    }
    kwargs |= {'eos': ends[0] if len(ends) == 1 else ends} if ends else {}
    if kwargs.get('pad') in ends:
      del kwargs['pad']
    beams = {name: theirs.pop(name, default) for name, default in BEAMS.items()}
    kwargs |= beams if kwargs.get('beams', 1) > 1 else {}
    if is_decoder:
      kwargs.pop('start', None)
    else:  # their lengths count the start token
      for name in ('max', 'min'):
        if (length := theirs.pop(f'{name}_length', 0)) > 1:
          kwargs.setdefault(f'{name}_new_tokens', length - 1)
    if (forced := theirs.pop('forced_bos_token_id', None)) is not None:
      kwargs['prefix'] = (forced,)
    if not theirs.pop('do_sample', False):
      for name in SAMPLING:
        kwargs.pop(name, None)
    else:
      kwargs = {'temperature': 1.0, 'top_k': 50} | kwargs  # transformers' defaults
    others = theirs.keys() - {'eos_token_id', 'bos_token_id', 'transformers_version'}
    return kwargs, sorted(name for name in others if not name.startswith('_'))

  @property
  def labels(self) -> tuple[str, ...]:
    """The names of the classes, in the order of their numbers; () if there are none."""
    return labels(self.json(CONFIG))

  @property
  def chat_template(self) -> str:
    """The Jinja template of conversations; '' if the folder has none."""
    template = self.json(TOKENIZER).get('chat_template') or ''
    if isinstance(template, list):  # several, with names
      template = {x.get('name'): x.get('template', '') for x in template}.get('default', '')
    return self.text('chat_template.jinja') or template

  def special_tokens(self) -> dict[str, str | None]:
    """Return {pad, bos, eos, unk or mask: special token} for those that the files name.

    [CLS] and [SEP] are bos and eos if there are no others.
    """
    config = self.json(TOKENIZER)
    named = {
      name: token['content'] if isinstance(token := config[key], dict) else token
      for name in ('pad', 'bos', 'eos', 'unk', 'mask', 'cls', 'sep')
      if (key := f'{name}_token') in config
    }
    for name, other in (('bos', 'cls'), ('eos', 'sep')):
      if (also := named.pop(other, None)) and not named.get(name):
        named[name] = also
    return named


def _dumps(values: dict[str, Any]) -> str:
  return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + '\n'


def labels(config: Mapping[str, Any]) -> tuple[str, ...]:
  """Return the names of the classes in a config.json, in the order of their numbers.

  Raises:
    ValueError: the classes are not numbered from 0.
  """
  id2label = value(config, 'id2label', {})
  names = tuple(id2label.get(str(i)) for i in range(len(id2label)))
  if None in names or not all(isinstance(name, str) for name in names):
    raise ValueError(
      f'config.json: id2label={id2label} does not name classes 0 to {len(id2label) - 1}'
    )
  return names


def read_modules(folder: pathlib.Path) -> tuple[str | None, bool]:
  """Return the pooling of sentence-transformers (None without one), and whether it normalizes.

  Raises:
    ValueError: a module is not supported; names it.
  """
  modules = [{'path': '1_Pooling', 'type': 'Pooling'}] * (folder / '1_Pooling').is_dir()
  if (folder / MODULES).is_file():
    modules = read_modules_json(folder / MODULES)
  pooling, normalize = None, False
  for module in modules:
    kind = str(module.get('type')).rpartition('.')[2]
    if kind == 'Pooling' and not normalize:
      pooling = _pooling(folder / str(module.get('path', '1_Pooling')) / CONFIG)
    elif kind == 'Normalize' and pooling:
      normalize = True
    elif kind != 'Transformer' or module.get('path'):
      raise ValueError(
        f'{folder / MODULES}: the module {module} is not supported, only Transformer, Pooling and '
        'Normalize are, in this order'
      )
  return pooling, normalize


def read_modules_json(file: pathlib.Path) -> list[dict[str, Any]]:
  """Return the list of modules in a modules.json."""
  try:
    modules = json.loads(file.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{file} is not JSON ({error}): fetch it again') from error
  if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
    raise ValueError(f'{file} is not a list of modules: fetch it again')
  return modules


def _pooling(file: pathlib.Path) -> str:
  """Return our name of the pooling in the config.json of a module Pooling."""
  config = read_json(file)  # with a flag for each mode, or with the name of the mode
  named = config.get('pooling_mode')
  modes = {k.removeprefix('pooling_mode_') for k, v in config.items() if 'pooling_mode_' in k and v}
  modes |= set(named if isinstance(named, list) else [named]) - {None}
  modes = modes or {'mean_tokens'}  # sentence-transformers' default
  ours = {'mean_tokens': 'mean', 'mean': 'mean', 'cls_token': 'first', 'cls': 'first'}
  ours |= {'lasttoken': 'last'}
  if len(modes) > 1 or not modes <= ours.keys():
    names = ', '.join(f'pooling_mode_{mode}' for mode in sorted(map(str, modes - {'mean_tokens'})))
    raise ValueError(
      f'{file}: {names} is not supported, only mean_tokens, cls_token or lasttoken is'
    )
  return ours[modes.pop()]
