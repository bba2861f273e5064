"""What published folders say besides their weights comes with a model, is used, and goes back."""

import dataclasses
import functools
import json
import pickle
import re
import shutil
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers as library
from answers import GOLDEN, copied
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file

from experiments import dates
from transformer import Decoder, Encoder, ModelConfig
from transformer.data import processors, tokenizers
from transformer.data.processors import SoundProcessor
from transformer.inference import generate as generation
from transformer.inference.decoding import Decoding
from transformer.modules.embeddings import Tokens, TokenTypes
from transformer.modules.heads import Embedding, MaskedTokens
from transformer.tasks.classification import Classification
from transformer.tasks.language_model import PromptProcessor
from transformer.tasks.seq2seq import Seq2Seq
from transformer.tasks.span_corruption import SpanCorruption
from transformer.training import start
from transformer.training.checks import check
from transformer.training.exports import published_settings
from transformer.training.workdir import Workdir
from transformer.zoo import presets
from transformer.zoo.families import FAMILIES
from transformer.zoo.families.family import read_config, read_towers
from transformer.zoo.families.rows import leaves
from transformer.zoo.pretrained import load_pretrained, save_pretrained, sentencepiece
from transformer.zoo.pretrained.preprocessing import image_processor, sound_processor
from transformer.zoo.pretrained.published import Published
from transformer.zoo.pretrained.writing import family_of

DEFAULTS = json.loads((GOLDEN.parent / 'defaults.json').read_text())


@pytest.fixture
def copy(tmp_path):
  return functools.partial(copied, tmp_path)


def write(file, value):
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(value if isinstance(value, str) else json.dumps(value))


def load(folder, **settings):
  return load_pretrained(folder, **settings)[0]


@pytest.mark.parametrize('name', FAMILIES)
def test_a_field_that_is_left_out_has_the_default_of_the_familys_own_class(name):
  family, theirs = FAMILIES[name], DEFAULTS[name]
  kind = next(iter(family.architectures.values()))
  if family.towers:
    read = lambda theirs: read_towers(family, theirs, (), {})
  else:
    read = lambda theirs: read_config(family, theirs, (), kind)
    ModelConfig(**read(theirs))
  for key in theirs:
    rest = {k: v for k, v in theirs.items() if k != key}
    assert read(rest) == read(theirs), key
  fixed = family.towers or 'pad' in family.fixed or family.fixed.get('modality') == 'patches'
  if kind is not Decoder and not fixed:
    assert family.pad == theirs['pad_token_id']


def test_a_text_of_clip_ends_at_its_first_end_token(copy, close):
  model = load(copy('clip_text'))
  assert (model.config.end, model.config.pad, model.config.causal) == (98, -1, True)
  texts = jnp.array(
    [[5, 1, 98, 98, 98], [5, 1, 98, 7, 7]]
  )  # 1 is a word, whatever config.json says
  whole = model.encode_pooled(texts[:1, :3])
  for row in model.encode_pooled(texts):
    close(row, whole[0])  # products of other sizes round differently
  named = load(copy('clip_text', eos_token_id=7))
  assert named.config.end == 7


def test_a_text_without_an_end_has_no_class(copy):
  model = load(copy('bart_labels'))
  logits = model(jnp.array([[5, 6, 98, 4], [5, 6, 7, 4]]))
  np.testing.assert_array_equal(np.isnan(logits).all(-1), [False, True])


TWO_SIDED = [
  (name, ours)
  for name, family in FAMILIES.items()
  for ours, (keys, _) in family.fields.items()
  if len(keys.split()) > 1
]


@pytest.mark.parametrize('name, ours', TWO_SIDED)
def test_a_setting_that_is_there_for_one_side_only_is_not_taken_for_the_other(name, ours):
  family = FAMILIES[name]
  keys, default = family.fields[ours]
  kind = next(iter(family.architectures.values()))
  other = default + 0.25 if isinstance(default, float) else 2 * default
  for key in keys.split():
    theirs = {k: v for k, v in DEFAULTS[name].items() if k not in keys.split()} | {key: other}
    if 'dropout' in ours:  # may differ; the first counts
      first = key == keys.split()[0]
      assert read_config(family, theirs, (), kind)[ours] == (other if first else default)
      continue
    with pytest.raises(ValueError, match='differ, which is not supported') as error:
      read_config(family, theirs, (), kind)
    for side in keys.split():
      assert f"'{side}': {other if side == key else default}" in str(error.value)


SYNONYMS = [
  (name, ours)
  for name, family in FAMILIES.items()
  for ours, (keys, _) in family.fields.items()
  if '|' in keys
]


@pytest.mark.parametrize('name, ours', SYNONYMS)
def test_of_two_names_of_a_setting_the_one_that_is_written_counts(name, ours):
  family = FAMILIES[name]
  names, default = family.fields[ours]
  kind = next(iter(family.architectures.values()))
  rest = {k: v for k, v in DEFAULTS[name].items() if k not in names.split('|')}
  given = {key: default * (i + 2) for i, key in enumerate(names.split('|'))}
  for key, value in given.items():
    found = dict.fromkeys(names.split('|')) | {key: value}
    assert read_config(family, rest | found, (), kind)[ours] == value
  assert read_config(family, rest | given, (), kind)[ours] == default * 2


def test_a_setting_of_both_sides_that_is_there_for_one_has_its_default_on_the_other(copy):
  folder = copy('bart', encoder_attention_heads=None)
  with pytest.raises(ValueError, match="'encoder_attention_heads': 16, 'decoder_attention_heads'"):
    load(folder)


WRONG = [
  ('bert', dict(hidden_size='24'), "config.json: hidden_size='24' is not a whole number"),
  ('bert', dict(num_hidden_layers=True), 'num_hidden_layers=True is not a whole number'),
  ('bert', dict(layer_norm_eps='1e-12'), "layer_norm_eps='1e-12' is not a number"),
  ('bert', dict(architectures='BertModel'), "architectures='BertModel' is not a list"),
  ('bert', dict(tie_word_embeddings='no'), "tie_word_embeddings='no' is not true or false"),
  ('bert', dict(num_hidden_layers=10**6), 'num_hidden_layers=1000000, but the files hold'),
  ('bert_labels', dict(id2label=['a']), r"id2label=\['a'\] is not an object"),
  ('bert_labels', dict(id2label={'1': 'a', '2': 'b'}), 'id2label=.* does not name classes 0 to 1'),
  ('t5', dict(num_decoder_layers=10**6), 'num_decoder_layers=1000000, but the files hold'),
  ('llama', dict(rope_parameters=5), 'rope_parameters=5 is not an object'),
  ('vit', dict(image_size=[12, 8]), r'image_size=\[12, 8\] is not a whole number'),
  ('vit', dict(num_channels='3'), "num_channels='3' is not a whole number"),
]


@pytest.mark.parametrize('name, config, complaint', WRONG)
def test_a_wrong_value_of_config_json_is_named(copy, name, config, complaint):
  with pytest.raises(ValueError, match=complaint):
    load(copy(name, **config))


def test_damaged_json_names_its_file(copy):
  folder = copy('gpt2')
  (folder / 'model.safetensors').rename(folder / 'a.safetensors')
  for index in ('[]', '{"weight_map": []}', '{"weight_map": {"wte.weight": 5}}', '{', '[' * 99999):
    write(folder / 'model.safetensors.index.json', index)
    with pytest.raises(ValueError, match='model.safetensors.index.json'):
      load(folder)
  for name, text in (('generation_config.json', '5'), ('config.json', 'null')):
    write(folder / name, text)
    with pytest.raises(ValueError, match=f'{name} is not a JSON object'):
      load(folder)


def test_a_class_that_is_not_named_is_told_by_the_tensors(copy):
  kinds = {
    name: type(load(copy(name, architectures=None))).__name__
    for name in ('bert', 'bert_body', 'bert_spans', 'roberta_labels')
  }
  assert kinds == dict(
    bert='MaskedTokens', bert_body='Encoder', bert_spans='Spans', roberta_labels='Classifier'
  )


def test_what_is_left_over_is_listed_and_let_go_by_name_or_all(copy, caplog):
  more = {'v_head.weight': np.ones(3, np.float32), 'q_head.weight': np.ones(3, np.float32)}
  folder = copy('gpt2', lambda t: t | more)
  with pytest.raises(ValueError, match='(?s)over: q_head.weight\n.*v_head.weight\n *strict=False'):
    load(folder)
  with pytest.raises(ValueError, match='left over: v_head.weight'):
    load(folder, ignore=['q_head.'])
  load(folder, ignore=['q_head.', 'v_head'])
  assert 'does not use q_head.weight, v_head.weight' in caplog.text
  load(folder, strict=False)
  # a pooler, or the head of another task, never hinders
  rng = np.random.default_rng(0)
  pooler = {'roberta.pooler.dense.weight': rng.normal(size=(24, 24)).astype('f4')}
  pooler |= {'roberta.pooler.dense.bias': np.zeros(24, 'f4')}
  load(copy('roberta_labels', lambda t: t | pooler))
  assert 'does not use pooler.dense.bias, pooler.dense.weight' in caplog.text
  load(copy('bert', architectures=['BertModel']))


@pytest.mark.parametrize('name', ['bert', 'roberta', 'mpnet'])
def test_an_untied_decoder_is_a_table_of_its_own(copy, tmp_path, name):
  head = {'bert': 'cls.predictions'}.get(name, 'lm_head')
  table = np.full((99, 24), 0.5, 'f4')
  model = load(
    copy(name, lambda t: t | {f'{head}.decoder.weight': table}, tie_word_embeddings=False)
  )
  assert isinstance(model, MaskedTokens) and model.lm_head is model.output
  np.testing.assert_array_equal(model.lm_head.table, table)
  # its bias has two names
  renamed = lambda t: {k.replace(f'{head}.bias', f'{head}.decoder.bias'): x for k, x in t.items()}
  again = load(copy(name, renamed))
  np.testing.assert_array_equal(again.encoder.embed.bias, model.output.bias)
  save_pretrained(tmp_path / 'out', model)
  assert json.loads((tmp_path / 'out' / 'config.json').read_text())['tie_word_embeddings'] is False
  np.testing.assert_array_equal(load(tmp_path / 'out').output.table, table)
  # transformers 5 has two biases then, of which it uses that of the table
  other = {f'{head}.decoder.weight': table, f'{head}.decoder.bias': np.full(99, 0.25, 'f4')}
  model = load(copy(name, lambda t: t | other, tie_word_embeddings=False))
  np.testing.assert_array_equal(model.output.bias, other[f'{head}.decoder.bias'])
  save_pretrained(tmp_path / 'out', model)
  written = load_file(tmp_path / 'out' / 'model.safetensors')
  for bias in (f'{head}.bias', f'{head}.decoder.bias'):
    np.testing.assert_array_equal(written[bias], other[f'{head}.decoder.bias'])


OF_MASKED_TOKENS = [n for n, f in FAMILIES.items() if MaskedTokens in f.architectures.values()]


@pytest.mark.parametrize('tie', ['none', 'inputs', 'output', 'all'])
@pytest.mark.parametrize('name', OF_MASKED_TOKENS)
def test_what_is_said_of_tied_tables_is_of_another_setting_than_the_one_there_is(name, tie):
  """The model is written as it is, or the advice changes it, and then it is written."""
  family = FAMILIES[name]
  small = {'vocab_size': 9, 'pad_token_id': family.pad, 'hidden_size': 8, 'dim': 8}
  small |= {f'num_{x}': 1 for x in ('hidden_layers', 'attention_heads')} | dict(n_heads=1)
  small |= dict(intermediate_size=8, hidden_dim=8, n_layers=1, embedding_size=8, layer_types=None)
  theirs = DEFAULTS[name] | {k: v for k, v in small.items() if k in DEFAULTS[name]}
  config = ModelConfig(**read_config(family, theirs, (), MaskedTokens) | dict(tie=tie))

  def written(config):
    model = jax.eval_shape(lambda: MaskedTokens(config, nnx.Rngs(0)))
    given = {'model_type': name, 'pad_token_id': family.pad}
    return family_of(model, leaves(model), keys=given)[2]

  try:
    assert written(config).get('tie_word_embeddings', True) == (tie in ('output', 'all'))
  except ValueError as error:
    advice = re.search('tie=(.*?), not ', str(error))
    assert advice and advice[1].strip("'") != tie, str(error)
    written(dataclasses.replace(config, tie=advice[1].strip("'")))


def test_a_gpt2_body_has_no_logits_of_its_own(copy):
  model = load(copy('gpt2', architectures=['GPT2Model'], tie_word_embeddings=False))
  assert model.output is None


MODULES = [
  {'idx': 0, 'path': '', 'type': 'sentence_transformers.models.Transformer'},
  {'idx': 1, 'path': '1_Pooling', 'type': 'sentence_transformers.models.Pooling'},
]
NORMALIZE = {'idx': 2, 'path': '2_Normalize', 'type': 'sentence_transformers.models.Normalize'}
FLAGS = {'pooling_mode_cls_token': False, 'pooling_mode_mean_tokens': False}


@pytest.mark.parametrize(
  'pooling, ours',
  [
    (FLAGS | {'pooling_mode_cls_token': True}, 'first'),
    (FLAGS | {'pooling_mode_mean_tokens': True}, 'mean'),
    ({'embedding_dimension': 24, 'pooling_mode': 'mean', 'include_prompt': True}, 'mean'),
    ({'pooling_mode': 'cls'}, 'first'),
    ({'word_embedding_dimension': 24}, 'mean'),
  ],
)
def test_sentences_are_pooled_as_their_folder_says(copy, tmp_path, pooling, ours):
  folder = copy('bert_body')
  write(folder / 'modules.json', [*MODULES, NORMALIZE])
  write(folder / '1_Pooling' / 'config.json', pooling)
  write(folder / 'sentence_bert_config.json', {'max_seq_length': 20})
  model = load(folder)
  assert isinstance(model, Embedding) and model.config.pooling == ours
  save_pretrained(tmp_path / 'out', model)
  again = load(tmp_path / 'out')
  assert isinstance(again, Embedding) and again.config == model.config
  assert again.published.json('sentence_bert_config.json') == {'max_seq_length': 20}
  write(folder / 'modules.json', MODULES)
  assert type(load(folder)) is Encoder


@pytest.mark.parametrize(
  'modules, pooling, complaint',
  [
    (MODULES, {'pooling_mode': 'max'}, 'max is not supported'),
    (MODULES, {'pooling_mode': ['cls', 'mean']}, 'pooling_mode_cls, pooling_mode_mean is not'),
    (
      [*MODULES, {'type': 'x.Dense', 'path': '2_Dense'}],
      {},
      "modules.json: the module .*'x.Dense'",
    ),
    ([*MODULES, NORMALIZE, MODULES[1]], {}, 'modules.json: the module'),
    ({}, {}, 'modules.json is not a list of modules'),
  ],
)
def test_modules_that_are_not_understood_are_refused(copy, modules, pooling, complaint):
  folder = copy('bert_body')
  write(folder / 'modules.json', modules)
  write(folder / '1_Pooling' / 'config.json', pooling)
  with pytest.raises(ValueError, match=complaint):
    load(folder)


IDS = dict(pad_token_id=0, eos_token_id=9, decoder_start_token_id=0, forced_bos_token_id=4)


def test_what_came_with_a_model_goes_back(copy, tmp_path):
  folder = copy('t5', **IDS, bad_words_ids=[[0]], task_specific_params={'a': {'prefix': 'b: '}})
  write(folder / 'generation_config.json', {'eos_token_id': [9, 2], 'num_beams': 3})
  write(folder / 'chat_template.jinja', '{{ messages }}')
  save_pretrained(tmp_path / 'out', load(folder))
  for name in ('config.json', 'generation_config.json'):
    one, other = (json.loads((f / name).read_text()) for f in (folder, tmp_path / 'out'))
    assert one == other, name
  assert (tmp_path / 'out' / 'chat_template.jinja').read_text() == '{{ messages }}'


def test_files_of_another_model_are_said_where_a_model_is_saved(copy, tmp_path, caplog):
  model = load(copy('bert_body'))
  save_pretrained(tmp_path / 'out', model)
  save_pretrained(tmp_path / 'out', model)  # again
  assert 'does not come from' not in caplog.text
  for name, value in (('modules.json', MODULES), ('generation_config.json', {'eos_token_id': 7})):
    write(tmp_path / 'out' / name, value)
    save_pretrained(tmp_path / 'out', model)
    assert f'{name} does not come from this model' in caplog.text


def test_names_of_classes_survive_and_are_exported(copy, tmp_path):
  names = {str(i): name for i, name in enumerate('abcde')}
  model = load(copy('bert_labels', id2label=names, label2id={v: int(k) for k, v in names.items()}))
  assert model.published.labels == tuple('abcde')
  save_pretrained(tmp_path / 'out', model)
  assert json.loads((tmp_path / 'out' / 'config.json').read_text())['id2label'] == names
  bytes_ = tokenizers.train([], kind='bytes')
  task = Classification(
    tokenizer=bytes_, decoding=Decoding(), max_length=9, classes=('bad', 'good', 'so', 'x', 'y')
  )
  model.published = Published()
  save_pretrained(tmp_path / 'new', model, **published_settings(task))
  written = json.loads((tmp_path / 'new' / 'config.json').read_text())
  assert list(written['id2label'].values()) == list(task.classes)
  assert written['label2id']['good'] == 1


def test_the_start_token_of_a_task_is_exported():
  letters = tokenizers.train(['ab'], kind='characters')
  given = dict(tokenizer=letters, decoding=Decoding(), max_length=9, start='eos')
  for task in (Seq2Seq(**given), SpanCorruption(**given, objective='prefix')):
    assert published_settings(task) == {'decoder_start_token_id': letters.eos}


def test_ids_that_a_family_cannot_have_are_not_written(tmp_path):
  shape = presets.ROBERTA_BASE | dict(vocab=9, width=8, depth=1, heads=2, feedforward=8)
  model = jax.eval_shape(lambda: Encoder(ModelConfig(**shape), nnx.Rngs(0)))
  ours = tokenizers.train(['a cab'], kind='characters')
  with pytest.raises(ValueError, match='pad_token_id=0 is not supported, only 1'):
    save_pretrained(tmp_path / 'out', model, ours, model_type='roberta')
  assert not (tmp_path / 'out').exists()


def test_pictures_of_any_size_and_channels(copy, tmp_path):
  rng = np.random.default_rng(0)
  name = 'vit.embeddings.patch_embeddings.projection.weight'
  grey = {name: rng.normal(size=(24, 4, 4, 4)).astype('f4')}
  # 13 pixels: the last is in no patch
  folder = copy('vit', lambda t: t | grey, num_channels=4, image_size=[13, 13], patch_size=[4, 4])
  model = load(folder)
  assert model.config.features == 64
  save_pretrained(tmp_path / 'out', model)
  written = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert (written['num_channels'], written['image_size']) == (4, [13, 13])
  np.testing.assert_array_equal(
    load(tmp_path / 'out').encoder.embed.projection.kernel, model.encoder.embed.projection.kernel
  )


PICTURES = dict(
  image_processor_type='CLIPImageProcessor',
  size={'shortest_edge': 14},
  crop_size={'height': 12, 'width': 12},
  resample=3,
  image_mean=[0.4, 0.5, 0.6],
  image_std=[0.2, 0.3, 0.4],
)


@pytest.mark.parametrize(
  'changes, scaled, box, method',
  [
    ({}, (25, 14), (6, 1, 18, 13), 'BICUBIC'),
    ({'size': 14, 'crop_size': 12}, (25, 14), (6, 1, 18, 13), 'BICUBIC'),
    (
      {'image_processor_type': 'ViTImageProcessor', 'size': 12, 'resample': 2},
      (12, 12),
      (0, 0, 12, 12),
      'BILINEAR',
    ),
  ],
)
def test_images_are_prepared_as_their_folder_says(copy, changes, scaled, box, method):
  folder = copy('clip_vision')
  write(folder / 'preprocessor_config.json', PICTURES | changes)
  processor = image_processor(load(folder))
  pixels = np.random.default_rng(0).integers(0, 256, (11, 20, 3), np.uint8)
  expected = Image.fromarray(pixels).resize(scaled, Image.Resampling[method]).crop(box)
  rows = processor.encode_column([pixels])[[0]]
  np.testing.assert_array_equal(rows[0], expected)
  x, _ = processor.prepare_batch(jnp.asarray(rows), jnp.ones(1, jnp.int32), None)
  white = (np.asarray(expected) / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4]
  np.testing.assert_allclose(x[0, 4], white[4:8, 4:8].ravel(), atol=1e-5)  # the patch in the middle


@pytest.mark.parametrize(
  'changes, complaint',
  [
    ({'crop_pct': 0.9}, 'crop_pct is not supported'),
    ({'do_resize': False}, 'do_resize=False is not supported'),
    ({'size': {'longest_edge': 14}}, "'longest_edge': 14.* is not supported"),
    ({'do_center_crop': False}, 'gives images of several sizes'),
    ({'crop_size': 8}, 'have 4 patches, but the model has learned 9 positions'),
    ({'image_mean': 0.5}, 'image_mean=0.5 is not a list'),
  ],
)
def test_images_that_cannot_be_prepared_so_are_refused(copy, changes, complaint):
  folder = copy('clip_vision')
  write(folder / 'preprocessor_config.json', PICTURES | changes)
  model = load(folder)
  with pytest.raises(ValueError, match=complaint):
    image_processor(model)


SOUNDS = dict(
  feature_extractor_type='WhisperFeatureExtractor', feature_size=6, chunk_length=30, n_fft=400,
  hop_length=160, sampling_rate=16_000, padding_value=0.0, n_samples=480_000, dither=0.0,
)  # fmt: skip


def test_sounds_are_prepared_as_their_folder_says(copy):
  folder = copy('whisper')
  write(folder / 'preprocessor_config.json', SOUNDS)
  expected = SoundProcessor(scaling='whisper', max_length=20, bands=6, tempo=0.1)
  assert sound_processor(load(folder), max_length=20, tempo=0.1) == expected  # 20: its positions


@pytest.mark.parametrize(
  'changes, complaint',
  [
    ({'feature_extractor_type': 'SpeechT5FeatureExtractor'}, 'only WhisperFeatureExtractor is'),
    ({'do_normalize': True}, 'do_normalize=True is not supported'),
    ({'sampling_rate': 8000}, 'sampling_rate=8000 is not supported'),
    ({'max_length': 3000}, 'max_length is 3000, but the model reads 20: give max_length=20'),
    ({'feature_size': 80}, 'bands is 80, but the model reads 6: give bands=6'),
  ],
)
def test_sounds_that_cannot_be_prepared_so_are_refused(copy, changes, complaint):
  folder, max_length = copy('whisper'), changes.pop('max_length', 20)
  write(folder / 'preprocessor_config.json', SOUNDS | changes)
  with pytest.raises(ValueError, match=complaint):
    sound_processor(load(folder), max_length=max_length)


@pytest.mark.parametrize('stored, wanted', [('F32', 'bfloat16'), ('F16', 'auto'), ('F32', 'auto')])
def test_parameters_keep_their_type_or_are_converted(copy, stored, wanted):
  dtype = {'F32': np.float32, 'F16': np.float16}[stored]
  folder = copy('llama', lambda tensors: {k: x.astype(dtype) for k, x in tensors.items()})
  expected = jnp.dtype(dtype if wanted == 'auto' else wanted)
  model = load(folder, param_dtype=wanted)
  assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {expected}
  assert model.config.dtype == 'float32'


def test_a_name_is_looked_up_in_the_hubs_cache(tmp_path, monkeypatch):
  constants = pytest.importorskip('huggingface_hub.constants')
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
  home = tmp_path / 'models--me--tiny'
  write(home / 'refs' / 'main', 'a' * 40)
  write(home / 'refs' / 'v2', 'b' * 40)
  shutil.copytree(GOLDEN / 'bert_body', home / 'snapshots' / ('a' * 40))
  shutil.copytree(GOLDEN / 'bert_spans', home / 'snapshots' / ('b' * 40) / 'sub')
  assert type(load('me/tiny')) is Encoder
  assert type(load('me/tiny', revision='v2', subfolder='sub')).__name__ == 'Spans'
  with pytest.raises(ValueError, match='me/other is no folder here, and the Hugging Face hub'):
    load('me/other')
  with pytest.raises(ValueError, match='nowhere/config.json does not exist'):
    load('nowhere')


LETTERS = {c: 3 + i for i, c in enumerate('▁abcdefghijklmnopqrstuvwxyz.')}


def llama_tokenizer(template='<s> $A'):
  """A tokenizer of Llama's shape: a text begins as its template says."""
  ids = {'<unk>': 0, '<s>': 1, '</s>': 2} | LETTERS
  tokenizer = library.Tokenizer(library.models.BPE(ids, [], unk_token='<unk>'))
  tokenizer.normalizer = library.normalizers.Replace(' ', '▁')
  tokenizer.post_processor = library.processors.TemplateProcessing(
    template, None, [('<s>', 1), ('</s>', 2)]
  )
  tokenizer.add_special_tokens(['<unk>', '<s>', '</s>', '<|im_end|>'])
  return tokenizer


def test_special_tokens_ends_and_template_come_with_the_tokenizer(copy):
  folder = copy('llama', eos_token_id=2)
  llama_tokenizer().save(str(folder / 'tokenizer.json'))
  write(folder / 'generation_config.json', {'eos_token_id': [31, 2]})
  write(
    folder / 'tokenizer_config.json',
    {'eos_token': {'content': '<|im_end|>'}, 'bos_token': None, 'cls_token': '<s>'},
  )
  _, tokenizer = load_pretrained(folder)
  run = Workdir(folder / 'run')
  begun = start._new_tokenizer(
    check(dates.get_config().to_dict() | {'warm_start': str(folder)}), ()
  )
  run.save_tokenizer(begun)  # a run that is reopened has them, too
  plain = tokenizers.Tokenizer.load(folder / 'tokenizer.json')
  assert begun.fingerprint == run.tokenizer().fingerprint != plain.fingerprint
  for it in (tokenizer, pickle.loads(pickle.dumps(tokenizer)), run.tokenizer()):
    assert (it.eos, it.bos, it.ends, it.prefix) == (31, 1, (31, 2), [1])
    assert it.decode([4, 5, 31, 6]) == it.decode([4, 5, 2, 6]) == it.decode([4, 5])
  write(run.path / tokenizers.SETTINGS, {'template': False})
  with pytest.raises(ValueError, match='tokenizer_settings.json changed since'):
    run.tokenizer()
  assert tokenizer.encode('ab') == [4, 5]  # nothing is added unless it is asked for
  assert PromptProcessor(tokenizer, 9).encode_example('ab') == [1, 4, 5]
  assert PromptProcessor(tokenizer, 9, start=True).encode_example('ab') == [1, 4, 5]
  assert tokenizer.token_id('<|im_end|>') == 31
  with pytest.raises(ValueError, match="no '<|im_ends|>'; there is '<|im_end|>'"):
    tokenizer.token_id('<|im_ends|>')


def test_inputs_are_within_the_template():
  tokenizer = tokenizers.Tokenizer(llama_tokenizer('<s> $A </s>'), template=True)
  assert processors.TextProcessor(tokenizer, 9).encode_example('ab') == [1, 4, 5, 2]
  plain = tokenizers.Tokenizer(llama_tokenizer('<s> $A </s>'))
  assert processors.TextProcessor(plain, 9).encode_example('ab') == [4, 5, 2]


def buffer(number, value):
  """A field of a protocol buffer."""
  if isinstance(value, int):
    return bytes([number << 3, value])
  kind = 5 if isinstance(value, float) else 2
  body = struct.pack('<f', value) if kind == 5 else bytes([len(value)]) + value
  return bytes([number << 3 | kind]) + body


def spm(pieces, model_type=1):
  """A file of SentencePiece with these (piece, score, type)."""
  rows = (buffer(1, p.encode()) + buffer(2, score) + buffer(3, t) for p, score, t in pieces)
  return (
    b''.join(buffer(1, row) for row in rows) + buffer(2, buffer(3, model_type)) + buffer(3, b'')
  )


PIECES = [('<unk>', 0.0, 2), ('<s>', 0.0, 3), ('</s>', 0.0, 3), ('▁the', -1.0, 1), ('▁', -3.0, 1)]
PIECES += [('c', -4.0, 1), ('at', -2.0, 1), ('a', -4.0, 1), ('t', -4.0, 1)]


def test_marian_and_t5_have_tokenizers_of_sentencepiece(copy, caplog):
  folder = copy('marian', eos_token_id=0)
  (folder / 'source.spm').write_bytes(spm(PIECES))
  names = ['</s>', '<unk>', '▁the', '▁', 'c', 'at', 'zu', '>>de<<', '<pad>']
  write(folder / 'vocab.json', {name: i for i, name in enumerate(names)})
  _, tokenizer = load_pretrained(folder)
  ids = tokenizer.encode('the  cat')
  assert tokenizer.pieces(ids) == ['▁the', '▁', 'c', 'at'] and ids == [2, 3, 4, 5]
  assert tokenizer.encode('>>de<< the')[0] == 7 and tokenizer.decode([*ids, 0, 6]) == 'the cat'
  assert (tokenizer.eos, tokenizer.pad, tokenizer.unk) == (0, 8, 1) and not caplog.text

  folder = copy('t5', eos_token_id=2)
  made = sentencepiece.read_sentencepiece(folder)
  assert made is None
  (folder / 'spiece.model').write_bytes(spm(PIECES))
  tokenizer = tokenizers.Tokenizer(sentencepiece.read_sentencepiece(folder))
  assert tokenizer.encode('the cat') == [3, 4, 5, 6]
  assert tokenizer.sentinels[0] == 108 and tokenizer.sentinels[99] == 9
  for damaged in (spm(PIECES)[:-9], b'\xff' * 20, b''):
    (folder / 'spiece.model').write_bytes(damaged)
    with pytest.raises(ValueError, match='spiece.model is damaged'):
      load(folder)
  (folder / 'spiece.model').write_bytes(spm(PIECES, model_type=2))
  with pytest.raises(ValueError, match='spiece.model is no unigram model'):
    load(folder)


def test_a_vocabulary_may_have_holes():
  ids = {'<s>': 0, '<pad>': 1, '</s>': 2, '<unk>': 4, 'a': 5, 'c': 9}
  it = library.Tokenizer(library.models.WordLevel(ids, unk_token='<unk>'))
  it.pre_tokenizer = library.pre_tokenizers.Whitespace()
  tokenizer = tokenizers.Tokenizer(it)
  assert tokenizer.size == 10 and tokenizer.encode('a c') == [5, 9]
  assert tokenizer.pieces([9, 3]) == ['c', '<unused 3>']


def test_tokens_added_later_may_be_more_than_the_model_has_rows(copy, caplog):
  folder = copy('llama')
  it = tokenizers.train(['a cab'], kind='characters')
  library.Tokenizer.add_special_tokens(it._tokenizer, [f'<{i}>' for i in range(99)])
  it.save(folder / 'tokenizer.json')
  model, tokenizer = load_pretrained(folder)
  assert tokenizer.size > 99 and 'has no vectors for <' in caplog.text.replace('have', 'has')
  with pytest.raises(
    ValueError, match='token ids are from 99 to 99, but the model has ids 0 to 98'
  ):
    model(jnp.array([[99]]))


def test_an_id_beyond_the_table_is_an_error():
  config = ModelConfig(vocab=5, token_types=2, width=4, depth=1, heads=1, feedforward=4)
  embed = Tokens(config, nnx.Rngs(0))
  for wrong in (-1, 5, -100):
    with pytest.raises(ValueError, match='token ids are from .* but the model has ids 0 to 4'):
      embed(jnp.array([[1, wrong]]))
  with pytest.raises(ValueError, match='type ids are from 0 to 2, but the model has ids 0 to 1'):
    TokenTypes(config, nnx.Rngs(0))(jnp.array([[0, 2]]))
  found = jax.jit(lambda x: embed(x))(jnp.array([[1, -1, 5, -100, 4]]))
  unknown = np.isnan(np.asarray(found)).all(-1)
  np.testing.assert_array_equal(unknown, [[False, True, True, True, False]])
  known = jnp.array([[1, 4, 1]])
  _, slope = jax.jvp(lambda e: e(known), (embed,), (embed,))  # in forward and in reverse mode
  np.testing.assert_array_equal(slope, embed(known))
  gradient = jax.grad(lambda e: e(known).sum())(embed).table[...]
  np.testing.assert_allclose(gradient[:, 0], [0, 4, 0, 0, 2])  # times sqrt D


def test_half_a_surrogate_pair_is_named():
  tokenizer = tokenizers.train([], kind='bytes')
  texts = ['fine', 'ok \ud83d here']
  for call in (tokenizer.encode_batch, tokenizer.encode_spans, tokenizers.train):
    with pytest.raises(ValueError, match='half a surrogate pair at character 3'):
      call(texts)
  with pytest.raises(ValueError, match='half a surrogate pair'):
    tokenizer.encode(texts[1])


GENERATION = dict(
  eos_token_id=[2, 7],
  pad_token_id=0,
  decoder_start_token_id=3,
  forced_bos_token_id=5,
  suppress_tokens=[8],
  begin_suppress_tokens=[9],
  bad_words_ids=[[4, 4]],
  no_repeat_ngram_size=3,
  num_beams=4,
  max_new_tokens=6,
  length_penalty=2.0,
  guidance_scale=1.5,
  do_sample=True,
  temperature=0.5,
  top_p=0.9,
  transformers_version='5',
)


def test_generate_uses_what_came_with_the_model(monkeypatch, caplog):
  model = jax.eval_shape(lambda: Decoder(ModelConfig(vocab=9, **presets.GPT2), nnx.Rngs(0)))
  model.published = Published((('generation_config.json', json.dumps(GENERATION)),))
  seen = []
  monkeypatch.setattr(
    generation, 'continue_prompts', lambda *given, **_: seen.append(given) or 1 / 0
  )

  def settings(**given):
    with pytest.raises(ZeroDivisionError):
      generation.generate(model, [[1]], **given)
    *_, decoding, ends = seen[-1]
    return decoding, ends

  decoding, ends = settings()
  assert ends == (2, 7) and decoding.beams == 4 and decoding.temperature == 0
  assert decoding.bad_words == ((4, 4),) and decoding.begin_suppress == (9,)
  assert decoding.suppress == (0, 8) and decoding.prefix == (5,) and decoding.max_new_tokens == 6
  assert decoding.length_penalty == 2.0 and decoding.early_stopping is False
  assert 'no meaning here: guidance_scale' in caplog.text
  decoding, _ = settings(key=jax.random.key(0))
  assert (decoding.beams, decoding.temperature, decoding.top_p, decoding.top_k) == (1, 0.5, 0.9, 50)
  # older files have them in config.json
  older = {'bad_words_ids': [[6]], 'eos_token_id': 0, 'num_beams': 2, 'do_sample': False}
  assert Published((('config.json', json.dumps(older)),)).decoding(is_decoder=False) == (
    {'bad_words': ([6],), 'eos': 0, 'beams': 2, 'length_penalty': 1.0, 'early_stopping': False},
    [],
  )
  decoding, ends = settings(eos=-1, beams=2, max_new_tokens=9)
  assert (ends, decoding.beams, decoding.max_new_tokens) == (-1, 2, 9)


def test_the_same_prompt_several_times_has_several_samples():
  from transformer.inference.decoding import row_keys

  rows = jnp.array([[3, 4], [3, 4], [5, 4], [3, 4]])
  keys = np.asarray(jax.random.key_data(row_keys(jax.random.key(0), rows)))
  assert len({tuple(key) for key in keys}) == 4
  alone = jax.random.key_data(row_keys(jax.random.key(0), rows[2:3]))
  np.testing.assert_array_equal(keys[2], alone[0])
