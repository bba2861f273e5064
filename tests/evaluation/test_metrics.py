"""Tests of evaluation/metrics.py."""

import functools
import gzip
import math
from importlib.metadata import version

import pytest
import sacrebleu
import sacremoses
import scipy.stats
from sacrebleu.metrics import BLEU

from transformer.evaluation.classes import entities
from transformer.evaluation.metrics import METRICS, is_better, try_metric
from transformer.evaluation.ranking import RANKING
from transformer.evaluation.text import bleu, bleu_lowercase_moses, cer, chrf, exact_match, wer

SOUNDS = ('mel_cepstral_distortion', 'length_ratio')
CORRELATIONS = ('pearson_correlation', 'spearman_correlation', 'matthews_correlation')
GIVEN = {  # what predictions and references are, where they are no plain text
  **dict.fromkeys(RANKING, (['a b'] * 40, ['b:1'] * 40)),
  'pearson_correlation': (['1', '2.5'] * 20, ['3', '2'] * 20),
  'spearman_correlation': (['1', '2.5'] * 20, ['3', '2'] * 20),
  'entity_f1': (['O B-x'] * 40, ['B-x O'] * 40),
}
GAINS = [
  name
  for name, metric in METRICS.items()
  if metric.higher_is_better and name not in (*GIVEN, *SOUNDS, *CORRELATIONS)
]

WORDS = 'Der Hund läuft schnell über die grüne Wiese , und "alle" sehen zu ( 3,5 km ) . z.B. Ende!'


@pytest.mark.parametrize('name', [name for name in METRICS if name not in SOUNDS])
def test_every_metric_can_be_tried_on_a_reference_alone(name):
  try_metric(name, GIVEN.get(name, (None, ['red ant\tant']))[1][0])
  for odd in ('a', '-1'):
    if name not in RANKING and 'pearson' not in name and 'spearman' not in name:
      try_metric(name, odd)


def test_what_is_no_number_is_found_by_trying_a_correlation():
  with pytest.raises(ValueError, match="pearson_correlation fails .*'ant'.*could not convert"):
    try_metric('pearson_correlation', 'ant')


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


def score(name, predictions, references):
  return METRICS[name].function(predictions, references)


def test_exact_match_counts_equal_texts():
  found = exact_match(['a', 'b ', 'C', 'd'], ['a', 'b', 'c', 'd'])
  assert found == (50.0, 'exact match|n:4')


def test_bleu_and_chrf_are_sacrebleu(texts):
  predictions, references = texts
  found = bleu(predictions, references)
  assert 0 < found.value < 100
  assert found.value == sacrebleu.corpus_bleu(predictions, [references]).score
  found = chrf(predictions, references)
  assert 0 < found.value < 100
  assert found.value == sacrebleu.corpus_chrf(predictions, [references]).score


def test_signatures_have_settings_and_versions(texts):
  sacre = f'version:{sacrebleu.__version__}'
  expected = {
    'bleu': {'nrefs:1', 'case:mixed', 'eff:no', 'tok:13a', 'smooth:exp', sacre},
    'chrf': {'nrefs:1', 'case:mixed', 'eff:yes', 'nc:6', 'nw:0', 'space:no', sacre},
    'bleu_lowercase_moses': {
      *('nrefs:1', 'case:mixed', 'eff:no', 'tok:none', 'smooth:exp', sacre),
      'after:lowercase+sacremoses',
    },
    'exact_match': {'exact match', 'n:40'},
    'accuracy': {'accuracy', 'n:40'},
    'entity_f1': {'entity F1', 'seqeval default', 'micro', 'n:40', 'entities:40'},
    **{
      f'{name.lower()}_correlation': {f'{name} correlation', 'n:40'}
      for name in ('Matthews', 'Pearson', 'Spearman')
    },
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
    **{name: {name, f'trec_eval {measure}', 'n:40'} for name, measure in RANKING.items()},
  }
  assert METRICS.keys() - SOUNDS == expected.keys()
  for name, wanted in expected.items():
    found = score(name, *GIVEN.get(name, texts))
    assert set(found.signature.split('|')) == wanted


def test_lowercase_moses_equals_bleu_of_moses_tokens(texts):
  predictions, references = texts
  found = bleu_lowercase_moses(predictions, references)
  tokens = moses(predictions), moses(references)
  assert found.value == BLEU(tokenize='none', force=True).corpus_score(tokens[0], [tokens[1]]).score
  assert found.value != bleu(predictions, references).value
  louder = [line.upper() for line in predictions], [line.title() for line in references]
  assert bleu_lowercase_moses(louder[0], references) == found
  assert bleu_lowercase_moses(predictions, [line.upper() for line in references]) == found


def test_multi30k_has_the_published_number_of_moses_tokens(real_data):
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
  assert score(name, references, references).value == pytest.approx(100)
  assert score(name, ['xyz'] * len(references), references).value < 3
  assert 0 <= score(name, [''] * len(references), references).value < 3


@pytest.mark.parametrize('name', sorted(METRICS.keys() - SOUNDS))
def test_missing_predictions_are_refused(name):
  for predictions, references in ((['a'], ['a', 'b']), (['a', 'b'], ['a']), ([], [])):
    message = f'{len(predictions)} predictions for {len(references)} references'
    with pytest.raises(ValueError, match=message):
      score(name, predictions, references)


def distance(a, b):
  """Levenshtein's, by its definition."""
  row = list(range(len(b) + 1))
  for i, x in enumerate(a, 1):
    row, before = [i], row
    for j, y in enumerate(b, 1):
      row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
  return row[-1]


def test_error_rates_count_edits_of_the_whole_split(texts, rng):
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


def test_caption_bleu_counts_words_of_all_references():
  """By Papineni's definition, on a pair small enough to count by hand."""
  predictions = ['A dog runs, runs !', 'a cat']
  references = ['the dog runs .\tA Dog is running and runs', 'a cat sits\tthe cat']
  # of 6 words 'a', 'dog' and 'runs' once (no reference has it twice), 'a', 'cat': 5
  one = score('bleu1_lowercase_words', predictions, references)
  assert one.value == pytest.approx(100 * 5 / 6)  # 6 words, and the nearest lengths are 3 + 2
  lines = ['The dog, it RUNS', 'so and so and so on']  # with as many references as there are
  same = score('bleu4_lowercase_words', lines, ['another\tthe dog it runs.', lines[1]])
  assert same.value == pytest.approx(100)
  assert 'order:4' in same.signature and 'order:1' in one.signature


def test_constant_caption_has_its_published_score(real_data):
  """36.1 and 6.8 were measured by others on the same captions."""
  from transformer.data import corpora

  source = corpora.load('captions', 'val', dir=real_data('flickr8k_1000'))
  references = ['\t'.join(example['references']) for example in source][::5]
  constant = 'a man in a blue shirt is standing in front of a man in a red shirt'
  found = {n: score(f'bleu{n}_lowercase_words', [constant] * 113, references) for n in (1, 4)}
  assert found[1].value == pytest.approx(36.1, abs=0.1)
  assert found[4].value == pytest.approx(6.8, abs=0.1)


def test_squad_metrics_use_the_best_normalized_reference():
  predictions = ['The U.S. Army!', 'in 1996', 'no idea', 'a']
  references = ['us army', 'the year 1996\t1996', 'blue\tred', 'the']
  assert score('squad_exact_match', predictions, references).value == 50  # 1 and 4
  f1 = score('squad_f1', predictions, references)
  assert f1.value == pytest.approx(100 * (1 + 2 / 3 + 0 + 0) / 4)  # the published script's too
  assert 'n:4' in f1.signature


def test_squad_f1_counts_repeated_words():
  assert score('squad_f1', ['b b c'], ['b b b d']).value == pytest.approx(100 * 4 / 7)


def test_ranking_metrics_equal_hand_calculations():
  pytest.importorskip('pytrec_eval')
  predictions = ['a b c d', 'x y z']
  references = ['b:2 d:1 e:1', 'q:1']
  values = {name: score(name, predictions, references).value for name in RANKING}
  assert values['recall_at_1'] == 0
  assert values['recall_at_5'] == pytest.approx(100 * (2 / 3) / 2)
  assert values['reciprocal_rank'] == pytest.approx(100 * (1 / 2) / 2)
  assert values['mean_average_precision'] == pytest.approx(100 * ((1 / 2 + 2 / 4) / 3) / 2)
  gain = 2 / math.log2(3) + 1 / math.log2(5)
  ideal = 2 + 1 / math.log2(3) + 1 / math.log2(4)
  assert values['ndcg_at_10'] == pytest.approx(100 * gain / ideal / 2)


def test_the_table_has_the_direction_of_each_metric():
  lower = {name for name, metric in METRICS.items() if not metric.higher_is_better}
  assert lower == {'wer', 'cer', 'mel_cepstral_distortion'}
  own = {'nll': False, 'start_accuracy': True}
  assert is_better('wer', 1.0, 2.0, own) and not is_better('bleu', 1.0, 2.0, own)
  assert is_better('nll', 1.0, 2.0, own) and not is_better('start_accuracy', 1.0, 2.0, own)
  assert not is_better('bleu', 2.0, 2.0, own) and not is_better('nll', 2.0, 2.0, own)


def test_matthews_correlation_equals_the_formula_of_two_classes():
  predictions = ['1'] * 6 + ['0'] * 4 + ['1'] * 1 + ['0'] * 9
  references = ['1'] * 10 + ['0'] * 10
  matthews = functools.partial(score, 'matthews_correlation')
  expected = (6 * 9 - 1 * 4) / math.sqrt(7 * 10 * 13 * 10)  # tp tn - fp fn, by the four margins
  assert matthews(predictions, references).value == pytest.approx(100 * expected)
  assert matthews(['1'] * 20, references).value == 0  # a majority class
  assert matthews(references, references).value == pytest.approx(100)
  swapped = [{'1': '0', '0': '1'}[name] for name in references]
  assert matthews(swapped, references).value == pytest.approx(-100)
  three = ['a', 'b', 'c'] * 5
  assert matthews(three, three).value == pytest.approx(100)


def test_correlations_equal_those_of_scipy(rng):
  x, y = rng.normal(size=(2, 30)).round(1)
  texts = [list(map(str, values)) for values in (x, x + y)]
  for name, expected in (('pearson', scipy.stats.pearsonr), ('spearman', scipy.stats.spearmanr)):
    found = score(f'{name}_correlation', *texts).value
    assert found == pytest.approx(100 * expected(*(list(map(float, t)) for t in texts)).statistic)
  assert score('pearson_correlation', ['1', '1'], ['2', '3']).value == 0


@pytest.mark.parametrize(
  'tags, expected',
  [
    ('O O', []),
    ('B-PER I-PER O B-LOC', [('PER', 0, 1), ('LOC', 3, 3)]),
    ('B-PER B-PER', [('PER', 0, 0), ('PER', 1, 1)]),
    ('I-PER I-PER O', [('PER', 0, 1)]),  # seqeval's default accepts it
    ('O I-LOC B-LOC', [('LOC', 1, 1), ('LOC', 2, 2)]),
    ('B-PER I-LOC I-LOC', [('PER', 0, 0), ('LOC', 1, 2)]),
    ('I-PER I-LOC I-PER', [('PER', 0, 0), ('LOC', 1, 1), ('PER', 2, 2)]),
    ('B-creative-work I-creative-work', [('creative-work', 0, 1)]),
  ],
)
def test_entities_follow_seqeval(tags, expected):
  assert list(entities(tags.split())) == expected


def test_entity_f1_counts_whole_entities():
  references = ['B-PER I-PER O B-LOC', 'O O', 'B-ORG I-ORG']
  predictions = ['B-PER I-PER O B-ORG', 'B-LOC O', 'B-ORG O']
  # 1 right of 4 found and 3 true; a wrong type or end counts for nothing
  found = score('entity_f1', predictions, references)
  assert found.value == pytest.approx(100 * 2 * 1 / (4 + 3))
  assert score('entity_f1', ['O'], ['O']).value == 0
  with pytest.raises(ValueError, match='line 2 has 1 tags for 2 words'):
    score('entity_f1', ['O', 'O'], ['O', 'O O'])
