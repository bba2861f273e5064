"""The experiments for a user's own data, from files to batches; nothing is trained."""

import json
import logging
import unicodedata

import numpy as np
import PIL.Image
import pytest
import tokenizers as library

from experiments import image_folders, labelled_texts, pairs, recordings
from transformer.data import audio, tokenizers
from transformer.training import start
from transformer.training.command_line import usage_error
from transformer.training.start import start_run
from transformer.training.workdir import Workdir, as_line


def opened(module, folder, tmp_path, **data):
  """Return the experiment of a config file on the data of a folder or file."""
  config = module.get_config()
  config.data.update(dir=str(folder), **data)
  return start_run(config.to_dict(), Workdir(tmp_path / 'run'))


def test_classes_are_the_names_of_folders(tmp_path):
  decomposed = unicodedata.normalize('NFD', 'pâte, rouge')
  for i in range(60):
    for kind in (decomposed, '日本', 'riz'):
      (tmp_path / 'photos' / kind).mkdir(parents=True, exist_ok=True)
      PIL.Image.new('RGB', (8, 8), (i, i, i)).save(tmp_path / 'photos' / kind / f'{i}.png')
  experiment = opened(image_folders, tmp_path / 'photos', tmp_path)
  assert experiment.task.classes == ('pâte, rouge', 'riz', '日本')
  (label,) = {e['targets'] for e in experiment.source('val')} & {'pâte, rouge'}
  assert experiment.task.columns(experiment.source('val'))['inputs'].shape[1:] == (64, 64, 3)
  stored = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert stored['loss']['classes'] == ['pâte, rouge', 'riz', '日本'] and label


@pytest.mark.parametrize('header', [True, False])
def test_texts_with_labels_in_one_file_are_trained_on(header, tmp_path):
  rows = [f'good thing number {i}\tyes, of course\nbad thing {i}\tno' for i in range(60)]
  file = tmp_path / 'mine.tsv'
  file.write_text('\n'.join(['Text\tLabel'] * header + rows))
  if header:
    flags = '--config.data.source=Text --config.data.target=Label'
    with pytest.raises(ValueError, match=f'mine.tsv:1: .*data.source, data.target.*{flags}'):
      opened(labelled_texts, file, tmp_path)
  names = dict(source='Text', target='Label') if header else {}
  experiment = opened(labelled_texts, file, tmp_path, **names)
  assert experiment.task.classes == ('no', 'yes, of course')
  assert len(experiment.batches('train')) > 0


@pytest.mark.parametrize(
  'rows, words',
  [
    (['How it was\tOpinion', *['fine\tyes', 'bad\tno'] * 30], "'Opinion', occurs once: if it is"),
    (['fine\tyes', *['fine\tyes', 'bad\tno'] * 30, 'odd\tnever'], ''),
    ([f'text {i}\tclass {i}' for i in range(60)], ''),
  ],
)
def test_classes_are_counted_and_odd_ones_named(rows, words, tmp_path, monkeypatch):
  said, warned = [], []
  monkeypatch.setattr(start.logging, 'info', lambda text, *args: said.append(text % args))
  monkeypatch.setattr(start.logging, 'warning', lambda text, *args: warned.append(text % args))
  for split in ('train', 'val', 'test'):
    (tmp_path / f'{split}.tsv').write_text('\n'.join(rows))
  opened(labelled_texts, tmp_path, tmp_path)
  assert len(warned) == bool(words) and words in ''.join(warned)
  assert ('never' in rows[-1]) == ('3 classes: yes (31), no (30), never (1)' in said)


def test_recordings_with_one_table_are_trained_on(tmp_path):
  folder = tmp_path / 'speech'
  (folder / 'clips').mkdir(parents=True)
  for i in range(40):
    audio.write(folder / 'clips' / f'{i}.wav', np.sin(np.arange(4000) / (9 + i)), 16_000)
  (folder / 'table.tsv').write_text(''.join(f'{i}.wav\tturn number {i} off\n' for i in range(40)))
  experiment = opened(recordings, folder, tmp_path)
  sounds = [e['inputs'] for s in ('train', 'val', 'test') for e in experiment.source(s)]
  assert sorted(sounds) == sorted(str(folder / 'clips' / f'{i}.wav') for i in range(40))


def test_targets_that_the_tokenizer_cannot_write_are_counted(tmp_path, caplog):
  for split, word in (('train', 'abc'), ('val', 'abż'), ('test', 'abc')):
    (tmp_path / f'{split}.tsv').write_text(f'abc\t{word}\nab\tba\n')
  config = pairs.get_config()
  config.tokenizer.update(kind='characters')
  config.data.dir = str(tmp_path)
  experiment = start_run(config.to_dict(), Workdir(tmp_path / 'run'))
  logging.getLogger('absl').addHandler(caplog.handler)
  experiment.batches('train')
  assert 'cannot write' not in caplog.text
  experiment.batches('val')
  logging.getLogger('absl').removeHandler(caplog.handler)
  assert '1 of 2 targets of val have characters that the tokenizer cannot write' in caplog.text


def test_an_answer_is_one_line_of_a_file(tmp_path):
  text = 'one\ntwo\rthree\r\nfour\u2028five\x85six\n'
  assert as_line(text, tmp_path) == 'one two three four five six'
  assert as_line('', tmp_path) == ''


def test_a_tokenizer_that_panics_is_an_error(monkeypatch):
  """The library's trainer raises a PanicException, which is no Exception."""

  class PanicException(BaseException):
    pass

  def train(*_):
    raise PanicException('alphabet')

  monkeypatch.setattr(library.Tokenizer, 'train_from_iterator', train, raising=False)
  with pytest.raises(ValueError, match='PanicException: alphabet'):
    tokenizers.train(['a'], kind='unigram', vocab=100)


def test_an_error_in_one_line_names_a_file_as_it_is_called(capsys):
  with pytest.raises(SystemExit):
    usage_error(ValueError('my  data/a\u00a0b.tsv:2: wrong\n    and more'))
  assert capsys.readouterr().err == 'error: my  data/a\u00a0b.tsv:2: wrong and more\n'
