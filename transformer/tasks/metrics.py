"""How good texts are, by the field's own libraries, under names that cannot be misread."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Score(NamedTuple):
  """A figure, in percent, and the signature that makes it comparable."""

  value: float
  signature: str


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """How many predictions are the reference, character for character, in percent."""
  _check(predictions, references)
  same = sum(p == r for p, r in zip(predictions, references, strict=True))
  return Score(100 * same / len(references), f'exact match|n:{len(references)}')


def bleu(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """Cased, detokenised sacreBLEU (Post 2018), the score to quote."""
  from sacrebleu.metrics import BLEU

  return _sacrebleu(BLEU(), predictions, references)


def chrf(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """chrF2, character n-gram F-score (Popovic 2015)."""
  from sacrebleu.metrics import CHRF

  return _sacrebleu(CHRF(), predictions, references)


def bleu_lowercase_moses(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """BLEU of lower-cased text as Moses tokenises it: what the Multi30k literature prints.

  Moses' default rules without its lists of abbreviations, which are its English ones here.
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


def _sacrebleu(metric: Any, predictions: Sequence[str], references: Sequence[str]) -> Score:
  _check(predictions, references)
  value = metric.corpus_score(list(predictions), [list(references)]).score
  return Score(value, str(metric.get_signature()))


def _check(predictions: Sequence[str], references: Sequence[str]):
  # sacrebleu would score the first ones and leave out the rest without a word
  if len(predictions) != len(references) or not references:
    raise ValueError(
      f'{len(predictions)} predictions for {len(references)} references: give one for each, and '
      'at least one'
    )


METRICS: dict[str, Callable[[Sequence[str], Sequence[str]], Score]] = {
  'exact_match': exact_match,
  'bleu': bleu,
  'chrf': chrf,
  'bleu_lowercase_moses': bleu_lowercase_moses,
}
