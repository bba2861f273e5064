"""Make pairs of German and English captions for flickr8k.py:translation.

  python -m experiments.preparation.captions data runs/captions

This writes train.de, train.en, val.de and val.en: the captions of Multi30k (Elliott et al. 2016)
without those similar to a caption of a validation or test image of flickr8k.py. Most of these
images are in Multi30k, each with one caption. The first argument is the folder of data sets.
"""

import pathlib
import re
import sys

from experiments import flickr8k
from transformer.data import corpora

SIMILAR = 0.6  # two sentences are similar if they share this part of all their words


def words(sentence: str) -> frozenset[str]:
  """Return the words of a sentence, without case and punctuation."""
  return frozenset(re.findall(r'\w+', sentence.lower()))


def are_similar(a: frozenset[str], b: frozenset[str]) -> bool:
  """Return whether two sets of words are so similar that one sentence may reveal the other."""
  return len(a & b) >= SIMILAR * len(a | b)


def main(data: str, folder: str):
  """Write the files, and print how many pairs are left out."""
  images, multi30k = pathlib.Path(data, 'flickr8k_1000'), pathlib.Path(data, 'multi30k')
  splits = flickr8k.get_config().data
  sources = [corpora.load('captions', split, dir=images) for split in (splits.val, *splits.test)]
  evaluated = {words(source[i]['targets']) for source in sources for i in range(len(source))}

  def is_revealed(sentence: str) -> bool:
    ours = words(sentence)
    return any(are_similar(ours, other) for other in evaluated)

  out = pathlib.Path(folder)
  out.mkdir(parents=True, exist_ok=True)
  for split in ('train', 'val'):
    pairs = corpora.load('parallel', split, dir=multi30k, inputs='de', targets='en')
    kept = [pairs[i] for i in range(len(pairs)) if not is_revealed(pairs[i]['targets'])]
    print(f'{split}: {len(pairs) - len(kept)} of {len(pairs)} pairs left out', file=sys.stderr)
    for language, side in (('de', 'inputs'), ('en', 'targets')):
      text = ''.join(f'{pair[side]}\n' for pair in kept)
      (out / f'{split}.{language}').write_text(text, encoding='utf-8')


if __name__ == '__main__':
  main(*sys.argv[1:])
