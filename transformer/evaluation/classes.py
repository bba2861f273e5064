"""Metrics of predicted classes, numbers and named entities."""

from collections.abc import Iterator, Sequence

import numpy as np

from transformer.evaluation.text import Score, check_pairs


def matthews_correlation(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """Return 100 times the Matthews correlation coefficient of classes; 0 where it is undefined.

  For any number of classes it is the correlation of one-hot vectors: Gorodkin 2004,
  https://doi.org/10.1016/j.compbiolchem.2004.09.006, equation 8.
  """
  check_pairs(predictions, references)
  classes = [*{*predictions, *references}]
  one_hot = [[[x == name for name in classes] for x in xs] for xs in (predictions, references)]
  return _correlation('Matthews', *np.asarray(one_hot, np.float64))


def pearson_correlation(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """Return 100 times Pearson's correlation of numbers; 0 if one side is constant."""
  return _correlation('Pearson', *_numbers(predictions, references))


def spearman_correlation(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """Return 100 times Spearman's rank correlation of numbers; ties get their mean rank."""
  from scipy.stats import rankdata

  return _correlation('Spearman', *map(rankdata, _numbers(predictions, references)))


def _numbers(predictions, references):
  check_pairs(predictions, references)
  return [np.asarray(texts, np.float64) for texts in (predictions, references)]


def _correlation(name: str, x: np.ndarray, y: np.ndarray) -> Score:
  """Return 100 times the correlation over the first axis, with products summed over a second."""
  x, y = x - x.mean(axis=0), y - y.mean(axis=0)
  scale = np.sqrt(np.sum(x**2) * np.sum(y**2))
  value = 100 * np.sum(x * y) / scale if scale else 0.0
  return Score(float(value), f'{name} correlation|n:{len(x)}')


def entity_f1(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """Return the F1 of named entities, in percent, over all lines (micro average).

  An entity is correct if its first word, its last word and its type are. The definition is that of
  `seqeval` in its default mode and of conlleval (Tjong Kim Sang and De Meulder 2003).

  Args:
    predictions, references: lines of BIO tags separated by spaces, one for each word.

  Raises:
    ValueError: a prediction has another number of tags than its reference.
  """
  check_pairs(predictions, references)
  correct = predicted = true = 0
  for number, (prediction, reference) in enumerate(
    zip(predictions, references, strict=True), start=1
  ):
    tags, true_tags = prediction.split(), reference.split()
    if len(tags) != len(true_tags):
      raise ValueError(f'line {number} has {len(tags)} tags for {len(true_tags)} words')
    predicted_entities, true_entities = set(entities(tags)), set(entities(true_tags))
    correct += len(predicted_entities & true_entities)
    predicted += len(predicted_entities)
    true += len(true_entities)
  value = 200 * correct / max(predicted + true, 1)
  return Score(value, f'entity F1|seqeval default|micro|n:{len(references)}|entities:{true}')


def entities(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
  """Yield (type, first word, last word) of each entity of BIO tags.

  As in seqeval's default mode, an I- tag that does not continue an entity of its type begins one.

  >>> list(entities(['B-a', 'I-a', 'O', 'I-b', 'I-c']))
  [('a', 0, 1), ('b', 3, 3), ('c', 4, 4)]
  """
  start, current = 0, ''
  for index, tag in enumerate([*tags, 'O']):
    prefix, _, kind = tag.partition('-')
    if current and (prefix != 'I' or kind != current):
      yield current, start, index - 1
      current = ''
    if prefix in ('B', 'I') and not current:
      start, current = index, kind
