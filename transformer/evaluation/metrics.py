"""How good a model is: by teacher forcing, and by its texts through the field's own libraries.

All under names that cannot be misread.
"""

import importlib.metadata
import itertools
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

from transformer.functional.losses import Mean, accuracy, cross_entropy

TEACHER_FORCED = ('nll_per_token', 'perplexity_per_token', 'token_accuracy')


def of_logits(
  logits: Float[Array, 'B T N'], targets: Int[Array, 'B T'], weights: Float[Array, 'B T']
) -> dict[str, Mean]:
  """What teacher forcing says of logits: nats per token, and how often the best token is right."""
  return {
    'nll_per_token': cross_entropy(logits, targets, weights),
    'token_accuracy': accuracy(logits, targets, weights),
  }


def with_perplexity(totals: dict[str, Mean]) -> dict[str, float]:
  """The means as numbers, and exp of the nats per token."""
  means = {name: float(mean.value) for name, mean in totals.items()}
  return dict(means, perplexity_per_token=_exp(means['nll_per_token']))


def per_text(nll: Mean, texts: Iterable[str]) -> dict[str, float]:
  """The negative log-likelihood of whole texts by units that no tokenizer changes.

  Words are what white space separates, and each line's end counts as one more (Merity et al. 2017,
  https://arxiv.org/abs/1609.07843, whose vocabulary has it as a token).
  """
  words = size = 0
  for text in texts:
    words += len(text.split()) + text.count('\n')
    size += len(text.encode())
  total = float(nll.sum)
  return {
    'perplexity_per_word': _exp(total / max(words, 1)),
    'bits_per_byte': total / max(size, 1) / math.log(2),
  }


def _exp(nats: float) -> float:
  return math.exp(min(nats, 700))  # beyond it is no float


RANKED = {  # figures of ranked names, as trec_eval calls them
  'recall_at_1': 'recall_1',
  'recall_at_5': 'recall_5',
  'recall_at_100': 'recall_100',
  'reciprocal_rank': 'recip_rank',
  'mean_average_precision': 'map',
  'ndcg_at_10': 'ndcg_cut_10',
}


class Score(NamedTuple):
  """A figure, in percent, and the signature that makes it comparable."""

  value: float
  signature: str


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """How many predictions are the reference, character for character, in percent."""
  check_pairs(predictions, references)
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


def wer(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """Word error rate: words to change, leave out or put in, in percent of the references' words."""
  return _jiwer('wer', predictions, references)


def cer(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """Character error rate, spaces between words counted as characters."""
  return _jiwer('cer', predictions, references)


def _jiwer(name: str, predictions: Sequence[str], references: Sequence[str]) -> Score:
  """Of texts as they are, but for white space at the ends and more than one between words."""
  import jiwer

  check_pairs(predictions, references)
  hypotheses, truths = ([' '.join(t.split()) for t in texts] for texts in (predictions, references))
  value = 100 * getattr(jiwer, name)(truths, hypotheses)
  version = importlib.metadata.version('jiwer')
  return Score(value, f'{name}|nrefs:1|case:mixed|punct:kept|space:one|jiwer:{version}')


def bleu1_lowercase_words(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """BLEU-1 of lower-cased words without punctuation, as captions are scored.

  Hodosh et al. 2013, https://doi.org/10.1613/jair.3994; corpus BLEU of Papineni et al. 2002.

  Args:
    predictions: a text each.
    references: texts with tabs between them, all of which count.
  """
  return _bleu_of_words(1, predictions, references)


def bleu4_lowercase_words(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """BLEU-4, of one to four words in a row; otherwise as `bleu1_lowercase_words`."""
  return _bleu_of_words(4, predictions, references)


def _bleu_of_words(order: int, predictions: Sequence[str], references: Sequence[str]) -> Score:
  from sacrebleu.metrics import BLEU

  def words(line: str) -> str:
    return ' '.join(re.sub(r'[^\w\s]', ' ', line.lower()).split())

  check_pairs(predictions, references)
  # the first references of all, the second ones of all, ..., and None where there is none
  columns = itertools.zip_longest(*([words(r) for r in line.split('\t')] for line in references))
  metric = BLEU(max_ngram_order=order, tokenize='none', force=True)
  found = metric.corpus_score([words(p) for p in predictions], [list(c) for c in columns])
  signature = f'{metric.get_signature()}|order:{order}|after:lowercase+no punctuation'
  return Score(found.score, signature)


def squad_exact_match(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """How many answers are one of the references after SQuAD's normalisation, in percent.

  Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250, section 6.1, and its published script:
  lower case, no punctuation and no articles, the maximum over the references.

  Args:
    predictions: an answer each.
    references: answers with tabs between them, one of which would do.
  """
  return _squad('exact match', lambda p, r: float(p == r), predictions, references)


def squad_f1(predictions: Sequence[str], references: Sequence[str]) -> Score:
  """The mean F1 of the words of answers, normalised as for `squad_exact_match`, in percent."""
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


def _of_ranks(name: str, measure: str) -> Callable[[Sequence[str], Sequence[str]], Score]:
  """A figure of ranked names by trec_eval, the mean over queries, in percent.

  Its predictions are names of documents, best first; its references are names and gains, as in
  '12:4 184:1', where what is not named is not relevant.
  """

  def score(predictions: Sequence[str], references: Sequence[str]) -> Score:
    import pytrec_eval

    check_pairs(predictions, references)
    relevant = {
      str(i): {name: int(gain) for name, _, gain in (r.rpartition(':') for r in line.split())}
      for i, line in enumerate(references)
    }
    ranked = {
      str(i): {name: -float(rank) for rank, name in enumerate(line.split())}
      for i, line in enumerate(predictions)
    }
    found = pytrec_eval.RelevanceEvaluator(relevant, {measure}).evaluate(ranked)
    values = [next(iter(figures.values())) for figures in found.values()]
    # it leaves out queries without any answer
    value = 100 * sum(values) / len(references)
    return Score(value, f'{name}|trec_eval {measure}|n:{len(references)}')

  return score


def _sacrebleu(metric: Any, predictions: Sequence[str], references: Sequence[str]) -> Score:
  check_pairs(predictions, references)
  value = metric.corpus_score(list(predictions), [list(references)]).score
  return Score(value, str(metric.get_signature()))


def check_pairs(predictions: Sequence[Any], references: Sequence[Any]):
  """Raises ValueError where there is not a prediction for each reference, or none at all."""
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
  'bleu1_lowercase_words': bleu1_lowercase_words,
  'bleu4_lowercase_words': bleu4_lowercase_words,
  'wer': wer,
  'cer': cer,
  'squad_exact_match': squad_exact_match,
  'squad_f1': squad_f1,
  **{name: _of_ranks(name, measure) for name, measure in RANKED.items()},
}

# what a metric needs of an extra of setup.cfg: missed before the training, not after it
LIBRARIES = {'wer': 'jiwer', 'cer': 'jiwer', **dict.fromkeys(RANKED, 'pytrec_eval')}
