"""Metrics of texts, mostly computed by published libraries such as sacreBLEU and jiwer."""

import importlib.metadata
import itertools
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple


class Score(NamedTuple):
  """The value of a metric, mostly in percent, and its signature.

  The signature names the settings and versions; scores are comparable if their signatures are
  equal.
  """

  value: float
  signature: str


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """Return the share of predictions that equal their reference, in percent."""
  return _equal('exact match', predictions, references)


def accuracy(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """Return the share of correct classes, in percent."""
  return _equal('accuracy', predictions, references)


def _equal(name: str, predictions: Sequence[str], references: Sequence[str]) -> Score:
  check_pairs(predictions, references)
  same = sum(p == r for p, r in zip(predictions, references, strict=True))
  return Score(100 * same / len(references), f'{name}|n:{len(references)}')


def bleu(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """Return cased, detokenized BLEU by sacreBLEU (Post 2018), the score to report in papers."""
  from sacrebleu.metrics import BLEU

  return _sacrebleu(BLEU(), predictions, references)


def chrf(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """Return chrF2, the character n-gram F-score (Popovic 2015), by sacreBLEU."""
  from sacrebleu.metrics import CHRF

  return _sacrebleu(CHRF(), predictions, references)


def bleu_lowercase_moses(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """Return BLEU of lowercase text tokenized by Moses, as papers about Multi30k report it.

  Moses uses its rules for English, also for other languages.
  """
  from sacrebleu.metrics import BLEU
  from sacremoses import MosesTokenizer

  moses = MosesTokenizer()

  def tokenize(line: str) -> str:
    return moses.tokenize(line.lower(), escape=False, return_str=True)

  value, signature = _sacrebleu(
    BLEU(tokenize='none', force=True),
    [tokenize(line) for line in predictions],
    [tokenize(line) for line in references],
  )
  return Score(value, f'{signature}|after:lowercase+sacremoses')


def wer(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """Return the word error rate: word edits per word of the references, in percent."""
  return _jiwer('wer', predictions, references)


def cer(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """Return the character error rate, in percent; spaces between words are characters."""
  return _jiwer('cer', predictions, references)


def _jiwer(name: str, predictions: Sequence[str], references: Sequence[str]) -> Score:
  """Return an error rate by jiwer, of texts with single spaces between words."""
  import jiwer

  check_pairs(predictions, references)
  hypotheses, truths = ([' '.join(t.split()) for t in texts] for texts in (predictions, references))
  value = 100 * getattr(jiwer, name)(truths, hypotheses)
  version = importlib.metadata.version('jiwer')
  return Score(value, f'{name}|nrefs:1|case:mixed|punct:kept|space:one|jiwer:{version}')


def bleu1_lowercase_words(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """Return BLEU-1 of lowercase words without punctuation, as usual for captions.

  Hodosh et al. 2013, https://doi.org/10.1613/jair.3994; corpus BLEU of Papineni et al. 2002.

  Args:
    predictions: texts.
    references: for each prediction one or more texts, separated by tabs.
  """
  return _bleu_of_words(1, predictions, references)


def bleu4_lowercase_words(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """Return BLEU-4, of n-grams up to four words; otherwise as `bleu1_lowercase_words`."""
  return _bleu_of_words(4, predictions, references)


def _bleu_of_words(order: int, predictions: Sequence[str], references: Sequence[str]) -> Score:
  from sacrebleu.metrics import BLEU

  def words(line: str) -> str:
    return ' '.join(re.sub(r'[^\w\s]', ' ', line.lower()).split())

  check_pairs(predictions, references)
  # column i has reference i of every prediction, or None where it is missing
  columns = itertools.zip_longest(*([words(r) for r in line.split('\t')] for line in references))
  metric = BLEU(max_ngram_order=order, tokenize='none', force=True)
  result = metric.corpus_score([words(p) for p in predictions], [list(c) for c in columns])
  signature = f'{metric.get_signature()}|order:{order}|after:lowercase+no punctuation'
  return Score(result.score, signature)


def squad_exact_match(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """Return the share of answers equal to a reference after SQuAD's normalization, in percent.

  Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250, section 6.1, and its published script:
  lower case, no punctuation and no articles, the maximum over the references.

  Args:
    predictions: answers.
    references: for each prediction one or more correct answers, separated by tabs.
  """
  return _squad('exact match', lambda p, r: float(p == r), predictions, references)


def squad_f1(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """Return the mean F1 of the words of answers in percent, normalized as in `squad_exact_match`."""
  return _squad('token F1', _overlap, predictions, references)


def _squad(name, score, predictions, references) -> Score:
  check_pairs(predictions, references)
  total = sum(
    max(score(_squad_words(p), _squad_words(r)) for r in line.split('\t'))
    for p, line in zip(predictions, references, strict=True)
  )
  return Score(
    100 * total / len(references), f'SQuAD 1.1 {name}|max over references|n:{len(references)}'
  )


def _squad_words(text: str) -> list[str]:
  text = ''.join(c for c in text.lower() if c not in string.punctuation)
  return re.sub(r'\b(a|an|the)\b', ' ', text).split()


def _overlap(prediction: list[str], reference: list[str]) -> float:
  same = (Counter(prediction) & Counter(reference)).total()
  return 2 * same / (len(prediction) + len(reference)) if same else 0.0


def _sacrebleu(metric: Any, predictions: Sequence[str], references: Sequence[str]) -> Score:
  check_pairs(predictions, references)
  value = metric.corpus_score(list(predictions), [list(references)]).score
  return Score(value, str(metric.get_signature()))


def check_pairs(predictions: Sequence[Any], references: Sequence[Any]):
  """Raise ValueError unless there are as many predictions as references, and at least one."""
  # sacrebleu would silently ignore the rest
  if len(predictions) != len(references) or not references:
    raise ValueError(
      f'{len(predictions)} predictions for {len(references)} references: give one for each, and '
      'at least one'
    )
