"""The folder of a run: its config, what may change when it is resumed, one process at a time."""

import copy
import json
import pathlib
import re
import subprocess
import sys

import pytest

from experiments import algorithmic
from transformer.data import tokenizers
from transformer.data.pipeline import Ragged
from transformer.training import config, experiment, sharding, start
from transformer.training import workdir as module
from transformer.training.checks import check
from transformer.training.config import FORMAT
from transformer.training.experiment import fingerprint
from transformer.training.workdir import (
  MAY_CHANGE,
  Workdir,
  default_workdir,
  file_name,
  get_config,
  write,
)

CONFIG = check(algorithmic.get_config()).as_dict()


def changed(**keys):
  config = copy.deepcopy(CONFIG)
  for key, value in keys.items():
    section, _, name = key.partition('__')
    if name:
      config[section][name] = value
    else:
      config[section] = value
  return config


@pytest.fixture
def workdir(tmp_path):
  run = Workdir(tmp_path / 'run')
  run.claim(CONFIG)
  return run


def test_the_config_of_a_run_is_stored(workdir):
  assert workdir.has_config() and workdir.read_config() == CONFIG
  assert get_config(str(workdir)).to_dict() == CONFIG
  workdir.claim(CONFIG)


def test_configs_keep_text_of_any_language(tmp_path):
  run = Workdir(tmp_path)
  run.claim(changed(data__dir='/Größe/日本'))
  assert run.read_config()['data']['dir'] == '/Größe/日本'


def test_a_run_of_another_experiment_is_an_error(workdir):
  """Names each key that differs and both values, and leaves the folder as it is."""
  with pytest.raises(ValueError) as error:
    workdir.claim(changed(model__width=32, seed=1, data__name='sort'))
  text = str(error.value)
  assert str(workdir) in text
  assert 'model.width is 64 there and 32 here' in text
  assert 'seed is 0 there and 1 here' in text
  assert "data.name is 'reverse' there and 'sort' here" in text
  assert 'another --workdir, or delete that folder' in text
  assert text.endswith(f'\n  rm -r {workdir}')  # nothing is lost
  (workdir.path / 'checkpoints' / 'last' / '10').mkdir(parents=True)
  with pytest.raises(ValueError, match='start again$'):
    workdir.claim(changed(seed=1))
  assert workdir.read_config() == CONFIG


def stored(workdir, change):
  """Change the stored config of a run."""
  file = workdir.path / 'config.json'
  values = json.loads(file.read_text())
  change(values)
  file.write_text(json.dumps(values))


def test_a_key_that_a_run_lacks_has_the_value_that_keeps_its_meaning(workdir, monkeypatch):
  """That is the default, but where the key came with another default than runs had before."""
  stored(workdir, lambda values: [values['model'].pop('window'), values['decode'].pop('alpha')])
  assert workdir.read_config() == CONFIG
  workdir.compare(CONFIG)
  monkeypatch.setattr(config, 'ADDED', {FORMAT + 1: {'model.window': 7}})
  monkeypatch.setattr(config, 'FORMAT', FORMAT + 1)
  assert workdir.read_config() == changed(model__window=7)
  stored(workdir, lambda values: values.update(format=FORMAT + 1))
  assert workdir.read_config() == CONFIG


def test_an_unknown_key_of_a_run_is_named(workdir):
  stored(workdir, lambda values: values['model'].update(widht=3))
  with pytest.raises(ValueError, match='model.widht is unknown: did you mean config.model.width'):
    workdir.read_config()


@pytest.mark.parametrize('number, cure', [(FORMAT + 1, 'update this code'), (1, 'train it again')])
def test_a_run_of_another_format_is_an_error(workdir, number, cure):
  stored(workdir, lambda values: values.update(format=number))
  with pytest.raises(ValueError, match=f'it has format {number}.*{cure}'):
    workdir.read_config()


@pytest.mark.parametrize(
  'key, value',
  [
    ('train__steps', 99),
    ('train__keep_checkpoints', 5),
    ('train__save_every_steps', 1),
    ('train__microbatches', 4),
    ('eval__limit', 0),
    ('decode__beams', 5),
    ('mesh__data', 8),
    ('data__dir', '/moved'),
    ('data__test', ('test', 'other')),
  ],
)
def test_keys_that_may_change_are_stored_when_a_run_resumes(workdir, key, value, monkeypatch):
  """The folder then has the new value, and the log both."""
  said, (section, name) = [], key.split('__')
  monkeypatch.setattr(module.logging, 'info', lambda text, *args: said.append(text % args))
  workdir.claim(changed(**{key: value}))
  before = CONFIG[section][name]
  assert said == [f'the run goes on with {section}.{name}={value!r}, which was {before!r}']
  assert workdir.read_config() == changed(**{key: value})


@pytest.mark.parametrize('key', ['data__batch_tokens', 'data__train', 'model__dropout'])
def test_keys_of_what_is_trained_may_not_change(workdir, key):
  with pytest.raises(ValueError, match=key.replace('__', '.')):
    workdir.claim(changed(**{key: 7}))


def test_keys_that_may_change_exist():
  """A renamed key could no longer be changed, without an error."""
  every = [
    f'{section}.{key}' for section in config.SECTIONS for key in config.keys(section, 'seq2seq')
  ]
  for prefix in MAY_CHANGE:
    assert any(key.startswith(prefix) for key in every), prefix


@pytest.mark.parametrize('damage', [b'', b'{"seed": 0', b'[1]', b'null', b'\xff\xfe{}'])
def test_a_damaged_config_is_named(workdir, damage):
  file = workdir.path / 'config.json'
  file.write_bytes(damage)
  for use in (workdir.read_config, lambda: workdir.claim(CONFIG), lambda: get_config(str(workdir))):
    with pytest.raises(
      ValueError, match=f'(?s){re.escape(str(file))} is not .* or use another --workdir'
    ):
      use()


def test_a_folder_without_a_run_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match=f'no trained model in {tmp_path}.*train one first'):
    Workdir(tmp_path).read_config()
  assert not Workdir(tmp_path).has_config() and Workdir(tmp_path).tokenizer() is None


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert Workdir('~/run').path == tmp_path / 'run'


def test_the_tokenizer_of_a_run_is_stored(workdir):
  tokenizer = tokenizers.train(
    ['a b c'], kind='characters', vocab=10, lowercase=False, split_digits=False
  )
  workdir.save_tokenizer(tokenizer)
  assert Workdir(workdir.path).tokenizer().encode('c a b') == tokenizer.encode('c a b')


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
  file = tmp_path / 'a' / 'b.txt'
  write(file, 'first\n')
  with pytest.raises(UnicodeEncodeError):
    write(file, 'second\n\ud800')
  assert file.read_text() == 'first\n'


HOSTILE = [
  '/etc/x',
  '../../x',
  '..',
  '.',
  'a/../../x',
  'a\\..\\x',
  'a/b',
  '.hidden',
  'nul\0x',
  'x' * 999,
]
HOSTILE += ['train[:10%]', 'größe', 'a\nb', '%2E.%2Fa', '../a', '-rf', 'x' * 998 + 'y', 'a\udcff']


def test_an_output_is_in_its_folder_whatever_its_name(tmp_path):
  """And no two names have the same file."""
  files = [tmp_path / file_name(name, '.txt') for name in HOSTILE]
  for file in files:
    write(file, '')
    assert file.resolve().parent == tmp_path and not file.name.startswith('.')
  assert len({*files}) == len(HOSTILE) == len([*tmp_path.iterdir()])
  for name in HOSTILE:
    assert default_workdir(name).resolve().parent == pathlib.Path('runs').resolve()
  with pytest.raises(ValueError, match='needs a name'):
    file_name('')


HOLDER = f"""
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location('workdir', {module.__file__!r})
workdir = importlib.util.module_from_spec(spec)
spec.loader.exec_module(workdir)
workdir.Workdir(sys.argv[1]).lock()
print('locked', flush=True)
time.sleep(60)
"""


def test_one_process_at_a_time(workdir):
  """The error names the process that has the lock; the lock ends with it, even if it is killed."""
  command = [sys.executable, '-c', HOLDER, str(workdir)]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
    assert holder.stdout.readline() == 'locked\n'
    with pytest.raises(ValueError) as error:
      workdir.lock()
    assert f'process {holder.pid} on ' in str(error.value)
    assert f'is training in {workdir}: wait for it' in str(error.value)
    holder.kill()
  workdir.lock()
  workdir.lock()  # again by the same process
  assert workdir.read_config() == CONFIG


def test_the_seconds_of_a_run_are_added_up(tmp_path):
  workdir = Workdir(tmp_path / 'run')
  assert [workdir.add_seconds(seconds) for seconds in (2.0, 0.5)] == [2.0, 2.5]
  assert Workdir(tmp_path / 'run').add_seconds(1.0) == 3.5
  (workdir.path / 'seconds').write_text('')  # the disk was full
  assert workdir.add_seconds(2.0) == 2.0


def test_a_changed_tokenizer_is_an_error(workdir):
  """Two ids swapped: every text is another one to the model."""
  arguments = dict(kind='characters', vocab=10, lowercase=False, split_digits=False)
  workdir.save_tokenizer(tokenizers.train(['a b c'], **arguments))
  file = workdir.path / 'tokenizer.json'
  whole = file.read_text()
  file.write_text(whole.replace('"a"', '"_"').replace('"b"', '"a"').replace('"_"', '"b"'))
  assert file.read_text() != whole
  with pytest.raises(ValueError, match=f'tokenizer.json changed since {workdir} was trained'):
    workdir.tokenizer()
  (workdir.path / 'fingerprints.json').unlink()  # as the message says
  assert workdir.tokenizer() is not None


def test_changed_data_are_an_error(workdir):
  """Changed, shuffled, shortened or in other places; the same again are the same."""

  def columns(*texts):
    return {'inputs': Ragged.from_sequences([[ord(x) for x in text] for text in texts])}

  workdir.check_fingerprints({'the split train': fingerprint(columns('ab', 'c'))})
  workdir.check_fingerprints({'the split train': fingerprint(columns('ab', 'c')), 'new': 'x'})
  for texts in (('ab', 'd'), ('c', 'ab'), ('ab',), ('a', 'bc'), ('ab', 'c', '')):
    with pytest.raises(ValueError, match='the split train changed since .* delete .*fingerprints'):
      workdir.check_fingerprints({'the split train': fingerprint(columns(*texts))})


def test_a_run_keeps_the_dtype_that_was_chosen_for_its_processor(workdir, tmp_path, monkeypatch):
  auto = check(changed(model=CONFIG['model'] | {'dtype': 'auto'}))
  mesh = sharding.make_mesh()
  for chosen in ('bfloat16', 'float32'):
    monkeypatch.setattr(experiment.platforms, 'matmul_dtype', lambda platform, dtype=chosen: dtype)
    new = experiment.with_dtype(auto, Workdir(tmp_path / 'new'), mesh)
    assert new.model['dtype'] == chosen
    assert experiment.with_dtype(auto, workdir, mesh).model['dtype'] == 'float32'  # as stored
  workdir.compare(new.as_dict())


def test_checkpoints_without_a_config_are_said(tmp_path):
  (tmp_path / 'checkpoints' / 'last' / '4').mkdir(parents=True)
  with pytest.raises(ValueError, match='has a checkpoint of step 4, but no config.json'):
    start._compare_steps(check(changed()), Workdir(tmp_path))


@pytest.mark.parametrize('steps, made', [(30, 0), (30, 20), (30, 30), (60, 30), (20, 30)])
@pytest.mark.parametrize('schedule', ['cosine', 'constant'])
def test_a_changed_number_of_steps_is_logged(workdir, steps, made, schedule, monkeypatch):
  said = []
  monkeypatch.setattr(start.logging, 'info', lambda text, *args: said.append(text % args))
  monkeypatch.setattr(start.logging, 'warning', lambda text, *args: said.append(text % args))
  (workdir.path / 'checkpoints' / 'last' / str(made)).mkdir(parents=True)
  (workdir.path / 'checkpoints' / 'last' / '99.orbax-checkpoint-tmp').mkdir()
  optimizer = CONFIG['optimizer'] | {'schedule': schedule, 'warmup_steps': 5}
  write(workdir.path / 'config.json', json.dumps({'format': FORMAT, **changed(train__steps=30)}))
  settings = check(changed(train__steps=steps, optimizer=optimizer))
  if steps < made:
    with pytest.raises(ValueError, match='has 30 steps already, more than train.steps=20'):
      start._compare_steps(settings, workdir)
    return
  start._compare_steps(settings, workdir)
  assert any('is only evaluated' in text for text in said) == (made == steps)
  assert any('train.steps was 30 and is 60' in t for t in said) == (
    steps > 30 and schedule == 'cosine'
  )
