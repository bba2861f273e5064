"""Configs: defaults from signatures, and an error for every wrong key before anything is built."""

import copy
import importlib.util
import json
import pathlib
import re

import pytest

from transformer.training import checks
from transformer.training import config as module
from transformer.training.checks import check, without_effect
from transformer.training.config import SECTIONS, TOP, for_task, keys

EXPERIMENTS = sorted((pathlib.Path(__file__).parents[2] / 'experiments').glob('*.py'))


def module_of(file):
  spec = importlib.util.spec_from_file_location(file.stem, file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


WITH_CONFIG = [file for file in EXPERIMENTS if hasattr(module_of(file), 'get_config')]


@pytest.fixture(scope='module')
def dates():
  (file,) = [file for file in WITH_CONFIG if file.stem == 'dates']
  return module_of(file).get_config().to_dict()


@pytest.fixture
def config(dates):
  return copy.deepcopy(dates)


def every_key():
  return [(section, key) for section in SECTIONS for key in keys(section, 'seq2seq')]


def refusal(config):
  with pytest.raises(ValueError) as error:
    check(config)
  return str(error.value)


@pytest.mark.parametrize('file', WITH_CONFIG, ids=lambda file: file.stem)
def test_every_experiment_is_valid(file):
  """It has every key and no other."""
  config = module_of(file).get_config().to_dict()
  checked = check(config)
  for section in SECTIONS:
    assert sorted(config[section]) == sorted(
      keys(section, config['task'], config['model']['modality'])
    ), section
    for key, value in checked.as_dict()[section].items():
      # what the file leaves to other keys is filled in
      assert value == config[section][key] or config[section][key] in (None, '')


@pytest.mark.parametrize('file', WITH_CONFIG, ids=lambda file: file.stem)
def test_every_variant_of_a_sweep_is_valid(file):
  module = module_of(file)
  variants = []
  getattr(module, 'sweep', lambda add: None)(variants.append)
  for variant in variants:
    config = module.get_config()
    config.update_from_flattened_dict(variant)
    check(config.to_dict())


@pytest.mark.parametrize('section, key', every_key(), ids=lambda name: name)
def test_a_misspelled_key_is_named_with_the_nearest(config, section, key):
  config[section][key + 'x'] = config[section].pop(key)
  text = refusal(config)
  assert f'config.{section}.{key}x is unknown' in text
  assert f'did you mean config.{section}.{key}?' in text


@pytest.mark.parametrize('section, key', every_key(), ids=lambda name: name)
def test_a_missing_key_is_named(config, section, key):
  del config[section][key]
  assert refusal(config).startswith(f'config.{section}.{key} is missing')


@pytest.mark.parametrize('section', [*TOP, *SECTIONS])
def test_a_section_misspelled_or_missing_is_named(config, section):
  other = copy.deepcopy(config)
  other[section + 's'] = other.pop(section)
  assert f'config.{section}s is unknown: did you mean config.{section}?' in refusal(other)
  del config[section]
  assert f'config.{section} is missing' in refusal(config)


@pytest.mark.parametrize('section, key', every_key(), ids=lambda name: name)
def test_a_value_of_another_type_is_named(config, section, key):
  """A text instead of a number, or a number instead of a text."""
  value = config[section][key]
  config[section][key] = 7 if isinstance(value, str | tuple) else 'seven'
  assert f'{section}.{key}=' in refusal(config)


def test_an_integer_is_a_valid_float_and_a_bool_no_valid_integer(config):
  config['optimizer']['learning_rate'] = 1
  check(config)
  config['train']['steps'] = True
  assert 'train.steps=True must be of type int' in refusal(config)


WRONG = [
  ('seed', None, -1, 'config.seed=-1'),
  ('seed', None, 0.5, 'config.seed=0.5'),
  ('task', None, 'sequences', "config.task='sequences' is none of .*'seq2seq'"),
  ('model', None, 3, 'config.model=3 must be a section'),
  ('data', 'limit', -1, 'data.limit=-1 must be at least 0'),
  ('data', 'max_length', 0, 'data.max_length=0 must be at least 1'),
  ('data', 'batch_tokens', 0, 'data.batch_tokens=0 must be at least 1'),
  ('data', 'buckets', 0, 'data.buckets=0 must be at least 1'),
  ('model', 'heads', 3, 'model.heads=3 does not divide model.width'),
  ('model', 'kv_heads', 3, 'model.kv_heads=3 does not divide model.heads'),
  ('model', 'dropout', 1.0, 'model.dropout=1.0 is a rate'),
  (
    'model',
    'position',
    'rotatory',
    "model.position='rotatory' is none of .* did you mean 'rotary'",
  ),
  ('model', 'dtype', 'int8', "model.dtype='int8' is none of"),
  ('loss', 'label_smoothing', 1.0, "'label_smoothing': 1.0.*: give 0 <= label_smoothing < 1"),
  ('loss', 'z_loss', -1.0, "'z_loss': -1.0.*z_loss >= 0"),
  ('optimizer', 'name', 'adam', "optimizer.name='adam' is none of adamw"),
  ('optimizer', 'schedule', 'flat', "optimizer.schedule='flat' is none of constant"),
  ('optimizer', 'warmup_steps', -5, 'optimizer.warmup_steps=-5'),
  ('optimizer', 'b2', 1.0, 'optimizer.b2=1.0 is a decay'),
  ('train', 'steps', 0, 'train.steps=0 must be at least 1'),
  ('train', 'steps_per_call', 7, r'every_steps=\d+ is no multiple of train.steps_per_call=7'),
  ('train', 'microbatches', 0, 'train.microbatches=0 must be at least 1'),
  ('train', 'log_every_steps', 0, 'train.log_every_steps=0 must be at least 1'),
  ('train', 'save_every_steps', 0, 'train.save_every_steps=0 must be at least 1'),
  ('train', 'keep_checkpoints', 0, 'train.keep_checkpoints=0 must be at least 1'),
  ('train', 'ema', 1.0, 'train.ema=1.0 is a decay'),
  (
    'train',
    'average_checkpoints',
    9,
    'train.average_checkpoints=9 needs as many checkpoints: set train.keep_checkpoints=9',
  ),
  ('eval', 'every_steps', 0, 'eval.every_steps=0 must be at least 1'),
  ('eval', 'samples', -1, 'eval.samples=-1 must be at least 0'),
  (
    'eval',
    'metrics',
    ('bleu', 'exact_mach'),
    "'exact_mach' is none of .* did you mean 'exact_match'",
  ),
  ('eval', 'best', 'nll_per_tokn', "eval.best=.* did you mean 'nll_per_token'"),
  ('eval', 'best', 'bleu', "eval.best='bleu' is none of .*exact_match"),
  ('decode', 'beams', 0, 'decode.beams=0 must be at least 1'),
  ('decode', 'max_new_tokens', 0, 'decode.max_new_tokens=0 must be at least 1'),
]


@pytest.mark.parametrize('section, key, value, message', WRONG, ids=lambda v: str(v)[:24])
def test_a_value_out_of_range_is_named(config, section, key, value, message):
  if key is None:
    config[section] = value
  else:
    config[section][key] = value
  assert re.search(message, refusal(config))


def test_several_processes_draw_no_attention(config, monkeypatch):
  config['eval']['attention'] = 1
  check(config)
  monkeypatch.setattr('transformer.training.processes.several', lambda: True)
  assert 'eval.attention=1: the pictures are drawn in one process only' in refusal(config)


def test_contradictions_are_named(config):
  def refused(**sections):
    other = copy.deepcopy(config)
    for section, values in sections.items():
      other[section].update(values)
    return refusal(other)

  text = refused(train=dict(average_checkpoints=2, keep_checkpoints=2, ema=0.9))
  assert 'train.average_checkpoints and train.ema' in text and 'set one' in text
  text = refused(model=dict(position='learned', max_length=16), data=dict(max_length=64))
  assert 'model.max_length=16' in text and 'at least 64' in text
  text = refused(
    model=dict(position='learned', max_length=16),
    data=dict(max_length=16),
    decode=dict(max_new_tokens=99),
  )
  assert 'decode.max_new_tokens' in text and 'at least 99' in text
  assert 'even model.width' in refused(model=dict(position='sinusoidal', width=15, heads=5))


REQUIRED = ('experiment', 'data.name', 'data.max_length', 'optimizer.learning_rate', 'train.steps')


def test_a_config_of_a_task_needs_its_required_keys_alone():
  config = for_task('seq2seq')
  for key, value in zip(REQUIRED, ('mine', 'reverse', 16, 1e-3, 10), strict=True):
    with pytest.raises(ValueError, match=f'^config.{key} is missing: give it a value$'):
      check(config.to_dict())
    config.update_from_flattened_dict({key: value})
  settings = check(config.to_dict())
  assert settings.train.steps == 10 and settings.eval.best == 'nll_per_token'


@pytest.mark.parametrize('task', module.TASKS)
@pytest.mark.parametrize('modality', module.PROCESSORS)
def test_every_key_has_a_meaning_and_a_default_of_its_type(task, modality):
  """Defaults come from signatures, meanings from docstrings; a default is valid by itself."""
  for section in ('', *SECTIONS):
    for name, key in keys(section, task, modality).items():
      assert key.meaning, f'{section}.{name}: the docstring of its reader does not describe it'
      if key.default not in (module.REQUIRED, None):
        assert checks._typed(name, key.default, key) == key.default


def test_a_config_is_locked():
  config = for_task('classification', modality='frames')
  with pytest.raises((AttributeError, KeyError), match='did you mean|Did you mean'):
    config.model.widht = 3
  with pytest.raises((AttributeError, KeyError)):
    config.processor.update(height=3)  # of images
  with pytest.raises(TypeError):
    config.train.steps = 'many'


def test_a_new_optimizer_and_schedule_are_keys_of_the_config(config, monkeypatch):
  """Only their functions need to be written: signature and docstring give the keys."""

  def averaged(*, horizon: float = 3.0):
    """Momentum.

    Args:
      horizon: in steps.
    """
    return module.optimizers.sgd(momentum=1 - 1 / horizon)

  def wave(step, *, steps: int, period: float = 0.5):
    """A wave.

    Args:
      period: as a part of all steps.
    """
    return 1 + step % (period * steps)

  monkeypatch.setitem(module.optimizers.OPTIMIZERS, 'averaged', averaged)
  monkeypatch.setitem(module.optimizers.SCHEDULES, 'wave', wave)
  found = keys('optimizer', 'seq2seq')
  assert (
    found['horizon'].type is float and 'averaged, 3.0 by default: in' in found['horizon'].meaning
  )
  assert 'as a part of all steps' in found['period'].meaning
  config['optimizer'] |= dict(horizon=None, period=None)
  assert check(config).optimizer['horizon'] is None
  config['optimizer'] |= dict(name='averaged', schedule='wave', horizon=2)
  optimizer = check(config).optimizer
  assert optimizer['horizon'] == 2.0 and optimizer['period'] == 0.5 and optimizer['b1'] is None
  config['optimizer']['name'] = 'adamw'
  assert 'optimizer.horizon=2.0 is read neither by optimizer.name=adamw' in refusal(config)


@pytest.mark.parametrize(
  'value, message',
  [
    (('embed',), "'embed' is no pair"),
    (('(=1',), r"'\(=1' is no pair"),
    ((('embed', 'much'),), "'much'"),
    ((('embed', 1, 2),), 'is no pair'),
    ('embed=1', r"must be a tuple: give \('embed=1',\)"),
  ],
)
@pytest.mark.parametrize('section, key', [('optimizer', 'lr_multipliers'), ('train', 'adapters')])
def test_wrong_pairs_are_named(config, section, key, value, message):
  config[section][key] = value
  text = refusal(config)
  assert text.startswith(f'{section}.{key}') and re.search(message, text)


def test_pairs_and_lists_as_on_the_command_line_and_in_json(config):
  config['optimizer']['lr_multipliers'] = ['embed=0', ['a=b', 0.5]]
  config['train']['adapters'] = ('query|value=8',)
  config['eval']['metrics'] = ['bleu', 'exact_match']
  settings = check(config)
  assert settings.optimizer['lr_multipliers'] == (('embed', 0.0), ('a=b', 0.5))
  assert settings.train.adapters == (('query|value', 8),)
  assert settings.eval.metrics == ('bleu', 'exact_match')


def test_a_config_survives_json(config):
  """As it is stored beside a run, patterns of layers included."""
  config['model']['decoder_depth'] = 0
  config['model']['layers'] = ({'window': 4, 'rotary_base': None}, {'window': 0})
  config['optimizer']['lr_multipliers'] = (('embed', 0.5),)
  config['model']['rotary_scaling'] = (('kind', 'linear'), ('factor', 2.0))
  settings = check(config)
  stored = json.loads(json.dumps(settings.as_dict()))
  assert check(module.upgrade(stored | {'format': module.FORMAT})) == settings


PAIRS = [
  (
    dict(model=dict(position='learned', max_length=64, max_source_length=16)),
    'max_source_length=16',
  ),
  (
    dict(train=dict(steps_per_call=10), eval=dict(every_steps=15)),
    'every_steps=15 is no multiple',
  ),
  (dict(decode=dict(max_new_tokens=4, min_new_tokens=5)), 'max_new_tokens=4 is fewer'),
  (dict(decode=dict(max_new_tokens=2, choices=((5, 6, 7),))), 'cuts one of decode.choices'),
  (dict(decode=dict(beams=2, num_return_sequences=3)), 'num_return_sequences=3 is more'),
  (dict(model=dict(kv_heads=3)), 'kv_heads=3 does not divide'),
  (
    dict(data=dict(packing=True, batch_tokens=63)),
    'data.batch_tokens=63 is less than data.max_length=64, the length of a packed row',
  ),
  (dict(model=dict(position='rotary', rotary_size=64)), 'rotary_size=64 must be even, and at most'),
  (dict(model=dict(experts=2, experts_per_token=3, bias=False)), 'experts_per_token=3'),
  (dict(model=dict(layers=(dict(window=4),) * 4)), 'does not divide model.depth'),
  (dict(train=dict(average_checkpoints=3, keep_checkpoints=2)), 'average_checkpoints=3 needs'),
]


@pytest.mark.parametrize('changes, message', PAIRS, ids=lambda v: str(v)[:30])
def test_limits_that_contradict_each_other_are_refused(config, changes, message):
  for section, values in changes.items():
    config[section].update(values)
  assert message in refusal(config)


IDLE = [
  (dict(optimizer=dict(warmup_steps=500), train=dict(steps=100)), 'warmup_steps=500 are more than'),
  (
    dict(train=dict(steps=100, save_every_steps=60, average_checkpoints=5, keep_checkpoints=5)),
    'makes 2 in train.steps=100',
  ),
  (dict(eval=dict(by='locale', metrics=(), best='')), 'eval.by=locale'),
  (dict(decode=dict(top_p=0.9, temperature=0.0)), "{'top_p': 0.9} filter samples"),
  (dict(decode=dict(beams=1, alpha=0.6)), 'decode.alpha=0.6'),
  (
    dict(data=dict(batch_tokens=63)),
    'data.batch_tokens=63 is less than data.max_length=64',
  ),
  (
    dict(model=dict(kv_heads=2), mesh=dict(tensor=4)),
    'tensor=4 does not divide model.kv_heads=2',
  ),
  (dict(model=dict(feedforward=30), mesh=dict(tensor=4)), 'does not divide model.feedforward=30'),
  (dict(mesh=dict(fsdp=3)), 'mesh.fsdp=3 does not divide model.width='),
]


@pytest.mark.parametrize('changes, message', IDLE, ids=lambda v: str(v)[:30])
def test_limits_that_others_leave_without_effect_are_said(config, changes, message):
  assert not [text for idle, text in without_effect(check(config)) if idle]
  for section, values in changes.items():
    config[section].update(values)
  (text,) = [text for idle, text in without_effect(check(config)) if idle]
  assert message in text


def test_a_source_with_positions_of_its_own_leaves_the_targets_theirs(config):
  config['model'].update(position='learned', max_length=32, max_source_length=64)
  config['data'].update(max_length=32)
  config['decode'].update(max_new_tokens=32)
  assert check(config).model['max_source_length'] == 64


def test_texts_have_no_keys_of_a_processor():
  assert not keys('processor', 'seq2seq')
