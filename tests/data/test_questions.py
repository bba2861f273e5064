"""Tests of data/questions.py, cloze.py and facts.py: answers are at their positions."""

import gzip
import json
import re

import numpy as np
import pytest

from transformer.data import cloze, corpora
from transformer.data.facts import facts

PARAGRAPH = (
  'In 1840 the Tower Building was part of the first arsenal of Arkansas. The Allied armies took it '
  'in March 1863, and burnt 20 ships (some\tof them new) on the river – with “Zoë”.'
)


def question_of(answer, start=None):
  start = PARAGRAPH.index(answer) if start is None else start
  answers = [{'text': answer, 'answer_start': start}]
  return {'question': f'what about {answer}?', 'answers': answers, 'id': '0'}


def article(title, *answers, start=None):
  questions = [question_of(answer, start) for answer in answers]
  paragraphs = [{'context': text, 'qas': questions} for text in (PARAGRAPH, PARAGRAPH + ' ')]
  return {'title': title, 'paragraphs': paragraphs}


@pytest.fixture
def folder(tmp_path):
  data = {'data': [article('Old Towers', '1840'), article('B', 'Zoë', '20 ships'), article('C')]}
  with gzip.open(tmp_path / 'dev.json.gz', 'wt') as file:
    json.dump(data, file)
  (tmp_path / 'one.json').write_text(json.dumps({'data': [article('D', 'river')]}))
  (tmp_path / 'wiki.txt').write_text(f'= A heading =\n{PARAGRAPH.replace(",", " ,")} {PARAGRAPH}\n')
  return tmp_path


def check_positions(source):
  for example in source:
    for answer, start in zip(example['answers'], example['starts'], strict=True):
      assert example['targets'][start : start + len(answer)] == answer


def test_questions_of_files_and_slices(folder):
  source = corpora.load('squad', 'dev', dir=folder)
  assert len(source) == 6
  check_positions(source)
  assert source[0] == {
    'inputs': 'what about 1840?',
    'targets': PARAGRAPH.replace('\t', ' '),
    'answers': ['1840'],
    'starts': [3],
    'relevant': 'Old_Towers/0:1',  # name of the paragraph and its grade, as in TREC's qrels
  }
  assert source[1]['relevant'] == 'Old_Towers/1:1'
  some = corpora.load('squad', 'dev[1:]+one', dir=folder)  # slices count articles
  answers = [e['inputs'].removeprefix('what about ').removesuffix('?') for e in some]
  assert answers == ['Zoë', '20 ships'] * 2 + ['river'] * 2


def test_errors_of_squad_files(folder):
  (folder / 'wrong.json').write_text(json.dumps({'data': [article('A', '1840', start=4)]}))
  with pytest.raises(ValueError, match='1840.*character 4'):
    corpora.load('squad', 'wrong', dir=folder)
  (folder / 'list.json').write_text('[]')
  with pytest.raises(ValueError, match='list.json.*format of SQuAD'):
    corpora.load('squad', 'list', dir=folder)
  with pytest.raises(FileNotFoundError, match='train.json'):
    corpora.load('squad', 'train', dir=folder)


@pytest.mark.parametrize('split', ['cloze:dev', 'cloze:wiki', 'cloze:dev[:1]'])
def test_cloze_questions(folder, split):
  source = corpora.load('squad', split, dir=folder)
  assert source
  check_positions(source)
  assert [source[i] for i in range(len(source))] == [*corpora.load('squad', split, dir=folder)]
  for example in source:
    assert example['inputs'].endswith('?') and example['answers'][0] not in example['inputs']
    words = cloze.WORD.findall(example['inputs'].lower())
    paragraph = example['targets'].lower()
    question_words = ' '.join(words for kind in cloze.QUESTION_WORDS.values() for words in kind)
    assert all(word in paragraph or word in question_words.split() for word in words)


def test_candidates_of_answers():
  words = [
    *cloze.WORD.finditer('The Red Cross built 20 large ships in 1901 near the old, rotten harbour.')
  ]
  found = {
    (kind, ' '.join(word[0] for word in words[first : last + 1]))
    for kind, first, last in cloze.candidates(words)
  }
  assert found == {
    ('name', 'Red Cross'),
    ('number', '20'),
    ('year', '1901'),
    ('thing', 'old'),  # the comma after it ends the phrase
  }
  assert cloze.questions('Too short.', 5, np.random.default_rng(0)) == []


def test_answers_of_facts_are_right():
  for split in ('train', 'val', 'test'):
    source = facts(split)
    check_positions(source)
    assert [*source] == [*facts(split)]
    for example in [*source][:50]:
      kind, _, person = example['inputs'].removesuffix('?').split()[:3]
      sentence = next(s for s in example['targets'].split('. ') if s.startswith(f'{person} '))
      city, thing = re.fullmatch(r'\w+ lives in (\w+) and has ([^.]+)\.?', sentence).groups()
      assert example['answers'] == [city if kind == 'Where' else thing]
  with pytest.raises(ValueError, match='facts: take train'):
    facts('dev')


def test_a_text_without_questions_is_an_error(tmp_path):
  (tmp_path / 'wiki.txt').write_text('A line that is long enough to be a paragraph. ' * 10)
  with pytest.raises(ValueError, match="'wiki' in .* cloze:wiki"):
    corpora.load('squad', 'wiki', dir=tmp_path)


def test_tfds_squad(tmp_path):
  tfds = pytest.importorskip('tensorflow_datasets')
  pytest.importorskip('array_record')

  class Squad(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('3.0.0')
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name='v1.1', version='3.0.0')]

    def _info(self):
      answer = {'text': tfds.features.Text(), 'answer_start': np.int32}
      features = {
        'id': np.str_,
        'title': tfds.features.Text(),
        'context': tfds.features.Text(),
        'question': tfds.features.Text(),
        'answers': tfds.features.Sequence(answer),
      }
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {'validation': self._generate_examples()}

    def _generate_examples(self):
      texts = ['Zoë', 'river']
      answers = [{'text': t, 'answer_start': PARAGRAPH.index(t)} for t in texts]
      row = {'id': '0', 'title': 'A', 'context': PARAGRAPH, 'question': 'who?', 'answers': answers}
      yield 0, row

  try:
    Squad(data_dir=tmp_path, file_format='array_record').download_and_prepare()
  except ImportError as error:
    pytest.skip(f'this TFDS cannot prepare a data set without TensorFlow: {error!r}')
  (example,) = corpora.load('squad/v1.1', 'validation', dir=tmp_path)
  check_positions([example])
  assert example['answers'] == ['Zoë', 'river']
  assert example['inputs'] == 'who?'


def test_squad_of_the_data_sets(real_data):
  source = corpora.load('squad', 'dev_visible', dir=real_data('squad'))
  assert len(source) == 4999
  check_positions(source)
  assert len({example['relevant'] for example in source}) == 1017
