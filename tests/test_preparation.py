"""Prepared data of experiments have no text of the evaluated examples."""

import gzip
import json

from PIL import Image

from experiments.preparation import captions, text
from transformer.data import corpora


def test_captions_of_evaluated_images_are_left_out(tmp_path, capsys):
  flickr8k, multi30k = tmp_path / 'flickr8k_1000', tmp_path / 'multi30k'
  multi30k.mkdir()
  for split, images in (('train', 'abcdefghij'), ('val', 'k')):
    (flickr8k / split).mkdir(parents=True)
    for name in images:
      Image.new('RGB', (8, 8)).save(flickr8k / split / f'{name}.jpg')
    rows = [f'{name}.jpg\tA dog {name} {name * 2} {name * 3} .\n' for name in images]
    (flickr8k / f'{split}_captions.tsv').write_text('image\tcaption\n' + ''.join(rows))
  learned = corpora.load('captions', 'train[:90%]', dir=flickr8k)[0]['targets']
  chooses = corpora.load('captions', 'train[90%:]', dir=flickr8k)[0]['targets']
  english = [
    learned,
    chooses.upper().replace(' .', '!'),
    'A dog k and kk and five words more',  # 4 of the 10 that either has
    'The dog k kk kkk',  # 4 of 6; of val, which reports
    'Two men talk.',
  ]
  for split in ('train', 'val'):
    for language, lines in (('en', english), ('de', list('01234'))):
      with gzip.open(multi30k / f'{split}.{language}.gz', 'wt') as file:
        file.writelines(f'{line}\n' for line in lines)
  captions.main(str(tmp_path), str(tmp_path / 'out'))
  assert capsys.readouterr().err.count('2 of 5 pairs left out') == 2
  for split in ('train', 'val'):
    assert (tmp_path / 'out' / f'{split}.de').read_text() == '0\n2\n4\n'
    kept = (tmp_path / 'out' / f'{split}.en').read_text().splitlines()
    assert kept == [english[0], english[2], english[4]]


def test_the_text_for_pretraining_has_no_repetitions(tmp_path):
  question = {'qas': [{'question': ' Who reads ?', 'answers': []}]}
  articles = [
    {'paragraphs': [{'context': 'A page.\nIts second line.', **question}]},
    {'paragraphs': [{'context': 'A page.\nIts second line.', 'qas': []}]},
  ]
  judged = [{'paragraphs': [{'context': 'judged by', **question}]}]
  for file, content in (
    ('wikitext2/train.txt.gz', ' = Title = \n \n A <unk> line \n'),
    ('wikitext2/valid.txt.gz', ' judged by \n'),
    ('sst2/train_phrases.tsv.gz', 'label\tsentence\n1\ta gripping film\n'),
    ('sst2/dev.tsv.gz', 'label\tsentence\n1\tjudged by\n'),
    ('squad/train_news.json.gz', json.dumps({'data': articles})),
    ('squad/dev_visible.json.gz', json.dumps({'data': judged})),
  ):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    with gzip.open(tmp_path / file, 'wt') as opened:
      opened.write(content)
  text.main(str(tmp_path), str(tmp_path / 'out'))
  assert (tmp_path / 'out' / 'train.txt').read_text() == (
    ' = Title = \n \n A <unk> line \na gripping film\nA page. Its second line.\nWho reads ?\n'
  )
  assert (tmp_path / 'out' / 'val.txt').read_text() == ' judged by \n'
