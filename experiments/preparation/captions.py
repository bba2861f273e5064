"""Pairs of captions to learn to describe in words, before there is anything to see.

  python -m experiments.preparation.captions ../shared/data runs/captions

writes train.de, train.en, val.de and val.en, those of Multi30k (Elliott et al. 2016) but for the
sentences that are like a caption of a Flickr8k image which flickr8k.py chooses or reports by: most
of these images are in Multi30k, and one of their five captions with them.
"""

import pathlib
import re
import sys

from experiments import flickr8k
from transformer.data import corpora

ALIKE = 0.6  # of the words that two sentences have, the share that both have


def words(sentence: str) -> frozenset[str]:
  """Its words, without case and punctuation."""
  return frozenset(re.findall(r'\w+', sentence.lower()))


def alike(a: frozenset[str], b: frozenset[str]) -> bool:
  """Whether two sets of words have so much in common that one sentence may tell the other."""
  return len(a & b) >= ALIKE * len(a | b)


def main(data: str, folder: str):
  """Writes the files; says how many pairs are left out."""
  images, multi30k = pathlib.Path(data, 'flickr8k_1000'), pathlib.Path(data, 'multi30k')
  splits = flickr8k.get_config().data
  sources = [corpora.load('captions', split, dir=images) for split in (splits.val, splits.test)]
  judged = {words(source[i]['targets']) for source in sources for i in range(len(source))}

  def told(sentence: str) -> bool:
    ours = words(sentence)
    return any(alike(ours, other) for other in judged)

  out = pathlib.Path(folder)
  out.mkdir(parents=True, exist_ok=True)
  for split in ('train', 'val'):
    pairs = corpora.load('parallel', split, dir=multi30k, inputs='de', targets='en')
    kept = [pairs[i] for i in range(len(pairs)) if not told(pairs[i]['targets'])]
    print(f'{split}: {len(pairs) - len(kept)} of {len(pairs)} pairs left out', file=sys.stderr)
    for language, side in (('de', 'inputs'), ('en', 'targets')):
      text = ''.join(f'{pair[side]}\n' for pair in kept)
      (out / f'{split}.{language}').write_text(text, encoding='utf-8')


if __name__ == '__main__':
  main(*sys.argv[1:])
