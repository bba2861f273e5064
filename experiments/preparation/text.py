"""Make one folder of plain text for pretraining, from several data sets.

  python -m experiments.preparation.text data runs/text

This writes train.txt (WikiText-2, phrases of SST-2, paragraphs and questions of SQuAD; nothing from
a validation or test split) and val.txt (valid of WikiText-2). The first argument is the folder of
data sets.
"""

import gzip
import json
import pathlib
import sys
from collections.abc import Iterator


def lines(data: pathlib.Path) -> Iterator[str]:
  """Yield the texts to train on, each with its line end."""
  yield from _read(data / 'wikitext2' / 'train.txt.gz')
  for line in _read(data / 'sst2' / 'train_phrases.tsv.gz')[1:]:
    yield line.split('\t')[1]
  seen = set()
  for file in sorted((data / 'squad').glob('train_*.json.gz')):
    for article in json.loads(''.join(_read(file)))['data']:
      for paragraph in article['paragraphs']:
        if paragraph['context'] not in seen:
          seen.add(paragraph['context'])
          yield paragraph['context'].replace('\n', ' ') + '\n'
        yield from (question['question'].strip() + '\n' for question in paragraph['qas'])


def main(data: str, folder: str):
  """Write the files."""
  out = pathlib.Path(folder)
  out.mkdir(parents=True, exist_ok=True)
  (out / 'train.txt').write_text(''.join(lines(pathlib.Path(data))), encoding='utf-8')
  valid = ''.join(_read(pathlib.Path(data) / 'wikitext2' / 'valid.txt.gz'))
  (out / 'val.txt').write_text(valid, encoding='utf-8')


def _read(file: pathlib.Path) -> list[str]:
  with gzip.open(file, 'rt', encoding='utf-8', newline='\n') as opened:
    return list(opened)


if __name__ == '__main__':
  main(*sys.argv[1:])
