"""Metrics of classes, numbers and named entities."""

from collections.abc import Iterator, Sequence

import numpy as np

from transformer.evaluation.text import Score, check_pairs


def matthews_correlation(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """Return 100 times the Matthews correlation coefficient of classes; 0 where it is undefined.

  It is the correlation of one-hot vectors, for any number of classes: Gorodkin 2004,
  https://doi.org/10.1016/j.compbiolchem.2004.09.006, equation 8.
  """
  check_pairs(predictions, references)
  classes = [*{*predictions, *references}]
  one_hot = [[[x == name for name in classes] for x in xs] for xs in (predictions, references)]
  return _correlation('Matthews', *np.asarray(one_hot, np.float64))


def pearson_correlation(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """Return 100 times Pearson's correlation of numbers; 0 where they do not vary."""
  return _correlation('Pearson', *_numbers(predictions, references))


def spearman_correlation(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """Return 100 times Spearman's rank correlation of numbers; equal ones share their mean rank."""
  from scipy.stats import rankdata

  return _correlation('Spearman', *map(rankdata, _numbers(predictions, references)))


def _numbers(predictions, references):
  check_pairs(predictions, references)
  return [np.asarray(texts, np.float64) for texts in (predictions, references)]


def _correlation(name: str, x: np.ndarray, y: np.ndarray) -> Score:
  """The correlation over the first axis, summed over a second one where there is one."""
  x, y = x - x.mean(axis=0), y - y.mean(axis=0)
  scale = np.sqrt(np.sum(x**2) * np.sum(y**2))
  value = 100 * np.sum(x * y) / scale if scale else 0.0
  return Score(float(value), f'{name} correlation|n:{len(x)}')


def entity_f1(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """Return the F1 of named entities, in percent, over all lines together (micro average).

  An entity is right where its first word, its last word and its type are. The definition is that of
  the library `seqeval` in its default mode, and of conlleval (Tjong Kim Sang and De Meulder 2003).

  Args:
    predictions, references: lines of BIO tags separated by spaces, as many as words.
  """
  check_pairs(predictions, references)
  right = guessed = true = 0
  for number, (prediction, reference) in enumerate(
    zip(predictions, references, strict=True), start=1
  ):
    guesses, tags = prediction.split(), reference.split()
    if len(guesses) != len(tags):
      raise ValueError(f'line {number} has {len(guesses)} tags for {len(tags)} words')
    found, wanted = set(entities(guesses)), set(entities(tags))
    right, guessed, true = right + len(found & wanted), guessed + len(found), true + len(wanted)
  value = 200 * right / max(guessed + true, 1)
  return Score(value, f'entity F1|seqeval default|micro|n:{len(references)}|entities:{true}')


def entities(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
  """Yield (type, first word, last word) of each entity of BIO tags.

  As in seqeval's default mode, an I- without an entity of its type before it begins one.

  >>> list(entities(['B-a', 'I-a', 'O', 'I-b', 'I-c']))
  [('a', 0, 1), ('b', 3, 3), ('c', 4, 4)]
  """
  start, current = 0, ''
  for place, tag in enumerate([*tags, 'O']):
    mark, _, kind = tag.partition('-')
    if current and (mark != 'I' or kind != current):
      yield current, start, place - 1
      current = ''
    if mark in ('B', 'I') and not current:
      start, current = place, kind
