"""Tests of training/prepared_data.py: a corpus is prepared for a run, and read by it."""

import json

import numpy as np
import PIL.Image
import pytest

from transformer.data.prepared import JSON, PreparedBatches
from transformer.training import config, prepared_data
from transformer.training.start import prepare_corpus, start_run
from transformer.training.workdir import Workdir
from transformer.zoo import presets


def small(task, modality='tokens', **data):
  c = config.for_task(task, modality=modality)
  c.experiment = 'small'
  c.data.update(max_length=16, batch_tokens=64, **data)
  c.model.update(presets.TRANSFORMER_TINY, width=8, feedforward=8, heads=1)
  c.tokenizer.update(kind='bytes', vocab=260)
  c.train.steps, c.optimizer.learning_rate = 4, 1e-3
  return c


def documents(folder):
  for split, count in (('train', 40), ('val', 3)):
    lines = (json.dumps({'text': f'document {i} ' + 'ab' * (i % 9)}) for i in range(count))
    (folder / f'{split}.jsonl').write_text('\n'.join(lines) + '\n')
  return small('language_model', name='documents', dir=str(folder), packing=True)


def prepared(c, folder):
  c.data.update(name='prepared', dir=str(folder), limit=0, val_limit=0)
  return c


@pytest.fixture
def corpus(tmp_path):
  c = documents(tmp_path)
  c.data.update(limit=30, val_limit=2)
  described = prepare_corpus(c.to_dict(), Workdir(tmp_path / 'corpus'), 1)
  assert described['splits']['train']['columns']['targets']['count'] == 30
  assert described['splits']['val']['columns']['fields']['count'] == 2
  return prepared(c, tmp_path / 'corpus')


def test_a_run_reads_what_was_prepared_for_it(corpus, tmp_path):
  experiment = start_run(corpus.to_dict(), Workdir(tmp_path / 'run'))
  batches = experiment.batches('train')
  assert isinstance(batches, PreparedBatches) and batches[0]['inputs'].shape[1] == 16
  assert experiment.source('val')[1]['targets'] == 'document 1 ab'
  assert not isinstance(experiment.batches('val'), PreparedBatches)
  tokenizers = [(tmp_path / name / 'tokenizer.json').read_text() for name in ('run', 'corpus')]
  assert tokenizers[0] == tokenizers[1]


def test_a_validation_split_that_takes_long_is_said(corpus, tmp_path, monkeypatch, caplog):
  experiment = start_run(corpus.to_dict(), Workdir(tmp_path / 'run'))
  experiment.try_evaluation()
  assert 'every evaluation' not in caplog.text
  monkeypatch.setattr('transformer.training.experiment.LARGE', 1)
  experiment.try_evaluation()
  assert 'reads all 2 examples of val: set data.val_limit, such as 2000, when the' in caplog.text


def test_settings_that_it_was_not_prepared_with_are_named(corpus, tmp_path):
  for key, value, words in (
    ('data.packing', False, 'packing was True and is False.*--mode=prepare'),
    ('data.max_length', 8, 'cut was .*max_length was 16 and is 8'),
    ('loss.documents', True, 'whole was False and is True'),
    ('data.val_limit', 3, 'data.val_limit=3 has to be set when a corpus is prepared'),
    ('data.limit', 3, 'data.limit=3 has to be set when a corpus is prepared'),
  ):
    changed = corpus.copy_and_resolve_references()
    changed.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=words):
      start_run(changed.to_dict(), Workdir(tmp_path / key)).batches('train')
  with pytest.raises(ValueError, match='name the source of it'):
    prepare_corpus(corpus.to_dict(), Workdir(tmp_path / 'again'), 1)


def test_a_corpus_of_other_data_is_not_replaced(corpus, tmp_path):
  files = lambda: {f: f.read_bytes() for f in (tmp_path / 'corpus').rglob('*') if f.is_file()}
  before, other = files(), tmp_path / 'other'
  other.mkdir()
  (other / 'train.txt').write_text('another\n')
  (other / 'val.txt').write_text('another\n')
  for key, value in (('data.dir', str(other)), ('data.source', 'text')):
    changed = documents(tmp_path)
    changed.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=f'has the corpus of {key}=.* would replace it'):
      prepare_corpus(changed.to_dict(), Workdir(tmp_path / 'corpus'), 1)
  assert files().items() >= before.items()


def test_a_missing_split_is_an_error_before_anything_is_written(tmp_path):
  c = documents(tmp_path)
  c.data.test = ('test',)
  with pytest.raises(FileNotFoundError, match='test.jsonl'):
    prepare_corpus(c.to_dict(), Workdir(tmp_path / 'corpus'), 1)
  assert not (tmp_path / 'corpus' / 'tokenizer.json').exists()


def test_images_are_prepared_with_their_classes(tmp_path):
  for split, count in (('train', 6), ('val', 2)):
    for i in range(count):
      folder = tmp_path / split / 'xy'[i % 2]
      folder.mkdir(parents=True, exist_ok=True)
      PIL.Image.fromarray(np.full((8, 8), 9 * i, np.uint8)).save(folder / f'{i}.png')
  c = small('classification', 'patches', name='images', dir=str(tmp_path))
  c.processor.update(height=8, width=8, channels=1, patch=4)
  c.model.update(features=16, tie='none')
  prepare_corpus(c.to_dict(), Workdir(tmp_path / 'corpus'), 1)
  experiment = start_run(prepared(c, tmp_path / 'corpus').to_dict(), Workdir(tmp_path / 'run'))
  assert experiment.task.classes == ('x', 'y')
  for split, count in (('train', 6), ('val', 2)):
    (batch,) = [experiment.batches(split)[i] for i in range(len(experiment.batches(split)))]
    there = batch['label_segments'] != 0
    assert there.sum() == count
    np.testing.assert_array_equal(batch['inputs'][there, 0, 0, 0] // 9 % 2, batch['label'][there])


def test_a_tokenizer_is_trained_on_a_part_of_a_large_corpus(monkeypatch):
  monkeypatch.setattr(prepared_data, 'SAMPLE', 100)
  kept = prepared_data.sample(({'targets': f'{i:09}.'} for i in range(50)), ['targets'])
  assert [int(x['targets'][:-1]) for x in kept] == [*range(0, 50, 8)]


def test_it_says_what_it_was_prepared_from(corpus):
  described = json.loads((prepared_data.pathlib.Path(corpus.data.dir) / JSON).read_text())
  assert described['settings']['data']['name'] == 'documents' and described['vocab'] == 260
