"""Laws of evaluation/metrics.py."""

import gzip
import math
from importlib.metadata import version

import pytest
import sacrebleu
import sacremoses
from sacrebleu.metrics import BLEU

from transformer.evaluation.evaluate import LOWER_IS_BETTER
from transformer.evaluation.metrics import (
  METRICS,
  RANKED,
  bleu,
  bleu_lowercase_moses,
  cer,
  chrf,
  exact_match,
  wer,
)

GAINS = [n for n in METRICS if not n.startswith(LOWER_IS_BETTER) and n not in RANKED]

WORDS = 'Der Hund läuft schnell über die grüne Wiese , und "alle" sehen zu ( 3,5 km ) . z.B. Ende!'


@pytest.fixture
def texts(rng):
  """Predictions that are their references with some words changed."""
  words = WORDS.split()
  references = [' '.join(rng.choice(words, rng.integers(5, 15))) for _ in range(40)]
  predictions = [
    ' '.join(w if rng.random() < 0.8 else str(rng.choice(words)) for w in line.split())
    for line in references
  ]
  return predictions, references


def moses(lines):
  tokenizer = sacremoses.MosesTokenizer('en')
  return [' '.join(tokenizer.tokenize(line.lower(), escape=False)) for line in lines]


def test_exact_match_counts_equal_texts():
  score = exact_match(['a', 'b ', 'C', 'd'], ['a', 'b', 'c', 'd'])
  assert score == (50.0, 'exact match|n:4')


def test_bleu_and_chrf_are_sacrebleu(texts):
  predictions, references = texts
  found = bleu(predictions, references)
  assert 0 < found.value < 100
  assert found.value == sacrebleu.corpus_bleu(predictions, [references]).score
  found = chrf(predictions, references)
  assert 0 < found.value < 100
  assert found.value == sacrebleu.corpus_chrf(predictions, [references]).score


def test_signatures_say_what_makes_scores_comparable(texts):
  sacre = f'version:{sacrebleu.__version__}'
  expected = {
    'bleu': {'nrefs:1', 'case:mixed', 'eff:no', 'tok:13a', 'smooth:exp', sacre},
    'chrf': {'nrefs:1', 'case:mixed', 'eff:yes', 'nc:6', 'nw:0', 'space:no', sacre},
    'bleu_lowercase_moses': {
      *('nrefs:1', 'case:mixed', 'eff:no', 'tok:none', 'smooth:exp', sacre),
      'after:lowercase+sacremoses',
    },
    'exact_match': {'exact match', 'n:40'},
    **{
      f'bleu{n}_lowercase_words': {
        *('nrefs:1', 'case:mixed', 'eff:no', 'tok:none', 'smooth:exp', sacre),
        *(f'order:{n}', 'after:lowercase+no punctuation'),
      }
      for n in (1, 4)
    },
    **{
      name: {name, 'nrefs:1', 'case:mixed', 'punct:kept', 'space:one', f'jiwer:{version("jiwer")}'}
      for name in ('wer', 'cer')
    },
    'squad_exact_match': {'SQuAD 1.1 exact match', 'max over references', 'n:40'},
    'squad_f1': {'SQuAD 1.1 token F1', 'max over references', 'n:40'},
    **{name: {name, f'trec_eval {measure}', 'n:40'} for name, measure in RANKED.items()},
  }
  assert METRICS.keys() == expected.keys()
  for name, metric in METRICS.items():
    given = (['a b'] * 40, ['b:1'] * 40) if name in RANKED else texts
    assert set(metric(*given).signature.split('|')) == expected[name]


def test_lowercase_moses_is_bleu_of_moses_tokens_in_any_case(texts):
  predictions, references = texts
  found = bleu_lowercase_moses(predictions, references)
  tokens = moses(predictions), moses(references)
  assert found.value == BLEU(tokenize='none', force=True).corpus_score(tokens[0], [tokens[1]]).score
  assert found.value != bleu(predictions, references).value
  louder = [line.upper() for line in predictions], [line.title() for line in references]
  assert bleu_lowercase_moses(louder[0], references) == found
  assert bleu_lowercase_moses(predictions, [line.upper() for line in references]) == found


def test_multi30k_has_as_many_moses_tokens_as_the_literature_counts(real_data):
  file = real_data('multi30k') / 'test_2016_flickr.de.gz'
  references = gzip.decompress(file.read_bytes()).decode().splitlines()
  assert len(references) == 1000
  tokens = moses(references)
  assert sum(len(line.split()) for line in tokens) == 12_103
  assert bleu_lowercase_moses(references, references).value == pytest.approx(100)
  louder = [''.join(c.upper() if c != 'ß' else c for c in line) for line in references]
  assert louder != references
  assert bleu_lowercase_moses(louder, references).value == pytest.approx(100)
  changed = [' '.join(line.split()[::-1]) for line in references]
  expected = BLEU(tokenize='none', force=True).corpus_score(moses(changed), [tokens]).score
  assert bleu_lowercase_moses(changed, references).value == expected < 20


@pytest.mark.parametrize('name', GAINS)
def test_a_perfect_prediction_scores_100_and_an_unrelated_one_about_0(name, texts):
  _, references = texts
  assert METRICS[name](references, references).value == pytest.approx(100)
  assert METRICS[name](['xyz'] * len(references), references).value < 3
  assert 0 <= METRICS[name]([''] * len(references), references).value < 3


@pytest.mark.parametrize('name', METRICS)
def test_every_reference_needs_its_prediction(name):
  for predictions, references in ((['a'], ['a', 'b']), (['a', 'b'], ['a']), ([], [])):
    message = f'{len(predictions)} predictions for {len(references)} references'
    with pytest.raises(ValueError, match=message):
      METRICS[name](predictions, references)


def distance(a, b):
  """Levenshtein's, by its definition."""
  row = list(range(len(b) + 1))
  for i, x in enumerate(a, 1):
    row, before = [i], row
    for j, y in enumerate(b, 1):
      row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
  return row[-1]


def test_error_rates_are_edits_of_the_whole_split(texts, rng):
  predictions, references = texts
  predictions = [' '.join(w for w in line.split() if rng.random() < 0.8) for line in predictions]
  predictions[3] = ''
  for metric, units in ((wer, str.split), (cer, list)):
    edits = sum(distance(units(p), units(r)) for p, r in zip(predictions, references, strict=True))
    assert metric(predictions, references).value == pytest.approx(
      100 * edits / sum(len(units(r)) for r in references)
    )
    assert metric(references, references).value == 0
    assert metric([''] * len(references), references).value == 100
    assert metric(['b a  c '], [' b a c']).value == 0  # white space is one space
  assert wer(['a b c d'], ['x']).value == 400
  assert wer(['A'], ['a']).value == 100


def test_captions_are_scored_by_words_against_all_of_their_references():
  """By Papineni's definition, on a pair small enough to count by hand."""
  predictions = ['A dog runs, runs !', 'a cat']
  references = ['the dog runs .\tA Dog is running and runs', 'a cat sits\tthe cat']
  # of 6 words 'a', 'dog' and 'runs' once (no reference has it twice), 'a', 'cat': 5
  one = METRICS['bleu1_lowercase_words'](predictions, references)
  assert one.value == pytest.approx(100 * 5 / 6)  # 6 words, and the nearest lengths are 3 + 2
  lines = ['The dog, it RUNS', 'so and so and so on']  # with as many references as there are
  same = METRICS['bleu4_lowercase_words'](lines, ['another\tthe dog it runs.', lines[1]])
  assert same.value == pytest.approx(100)
  assert 'order:4' in same.signature and 'order:1' in one.signature


def test_a_constant_caption_scores_what_the_data_says(real_data):
  """36.1 and 6.8 were measured by others on the same captions."""
  from transformer.data import corpora

  source = corpora.load('captions', 'val', dir=real_data('flickr8k_1000'))
  references = ['\t'.join(example['references']) for example in source][::5]
  constant = 'a man in a blue shirt is standing in front of a man in a red shirt'
  found = {n: METRICS[f'bleu{n}_lowercase_words']([constant] * 113, references) for n in (1, 4)}
  assert found[1].value == pytest.approx(36.1, abs=0.1)
  assert found[4].value == pytest.approx(6.8, abs=0.1)


def test_squad_takes_the_best_reference_without_articles_and_marks():
  predictions = ['The U.S. Army!', 'in 1996', 'no idea', 'a']
  references = ['us army', 'the year 1996\t1996', 'blue\tred', 'the']
  assert METRICS['squad_exact_match'](predictions, references).value == 50  # 1 and 4: both nothing
  f1 = METRICS['squad_f1'](predictions, references)
  assert f1.value == pytest.approx(100 * (1 + 2 / 3 + 0 + 0) / 4)  # the published script's too
  assert 'n:4' in f1.signature


def test_repeated_words_count_as_often_as_they_are_in_both():
  assert METRICS['squad_f1'](['b b c'], ['b b b d']).value == pytest.approx(100 * 4 / 7)


def test_ranks_are_judged_as_by_hand():
  pytest.importorskip('pytrec_eval')
  predictions = ['a b c d', 'x y z']
  references = ['b:2 d:1 e:1', 'q:1']
  values = {name: METRICS[name](predictions, references).value for name in RANKED}
  assert values['recall_at_1'] == 0
  assert values['recall_at_5'] == pytest.approx(100 * (2 / 3) / 2)
  assert values['reciprocal_rank'] == pytest.approx(100 * (1 / 2) / 2)
  assert values['mean_average_precision'] == pytest.approx(100 * ((1 / 2 + 2 / 4) / 3) / 2)
  gain = 2 / math.log2(3) + 1 / math.log2(5)
  ideal = 2 + 1 / math.log2(3) + 1 / math.log2(4)
  assert values['ndcg_at_10'] == pytest.approx(100 * gain / ideal / 2)
