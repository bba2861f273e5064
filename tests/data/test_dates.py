import collections
import datetime
import json
import os
import pickle
import random
import re
import subprocess
import sys
import unicodedata

import pytest
from babel.dates import format_date, format_skeleton

from transformer.data import dates
from transformer.data.dates import HELD_OUT_LOCALES, LENGTHS, LOCALES, Dates, formats
from transformer.data.splits import split_by_hash

SPLITS = tuple(dates.SIZES)
ALL_DAYS = [
  datetime.date.fromordinal(n)
  for n in range(dates.FIRST_DAY.toordinal(), dates.LAST_DAY.toordinal() + 1)
]


def names_of(example):
  """The lengths and skeletons with which Babel's own front door writes this example's input."""
  locale, text = example['inputs'].split(': ', 1)
  assert locale == example['locale']
  day, babel_locale = datetime.date.fromisoformat(example['targets']), locale.replace('-', '_')
  written = {}
  for name in formats(locale):
    if name in LENGTHS:
      written[name] = format_date(day, name, locale=babel_locale)
    else:
      written[name] = format_skeleton(name, day, fuzzy=False, locale=babel_locale)
  return {name for name, line in written.items() if line.translate(dates.TYPED) == text}


def few_or_many(few, many):
  """A plain pytest looks at few examples."""
  return pytest.mark.parametrize('size', [few, pytest.param(many, marks=pytest.mark.slow)])


@few_or_many(500, 3000)
def test_splits_share_no_day(size):
  days = {
    split: {e['targets'] for seed in (0, 1) for e in Dates(split, size=size, seed=seed)}
    for split in SPLITS
  }
  assert not days['train'] & days['val']
  assert not (days['train'] | days['val']) & (days['test'] | days['test_unseen_locales'])


def test_the_split_is_90_5_5_and_every_day_month_and_year_is_common_in_training():
  share = collections.Counter(map(split_by_hash, map(str, ALL_DAYS)))
  assert share['train'] / len(ALL_DAYS) == pytest.approx(0.90, abs=0.01)
  assert share['val'] / len(ALL_DAYS) == pytest.approx(0.05, abs=0.01)
  seen = collections.Counter()
  for example in Dates('train', size=20_000):
    year, month, day = example['targets'].split('-')
    seen.update((f'{year}-', f'-{month}-', f'-{day}'))
  expected = {f'{year}-' for year in range(1969, 2069)}
  expected |= {f'-{month:02}-' for month in range(1, 13)} | {f'-{day:02}' for day in range(1, 32)}
  assert expected == set(seen)
  assert min(seen.values()) >= 100


def test_locales_take_turns_and_held_out_ones_stay_out():
  assert len(set(LOCALES)) == len(LOCALES) >= 30
  assert not set(LOCALES) & set(HELD_OUT_LOCALES)
  for split in SPLITS:
    size = 0 if 'test' in split else 1000  # all, or the first
    counts = collections.Counter(e['locale'] for e in Dates(split, size=size))
    assert set(counts) == set(HELD_OUT_LOCALES if 'unseen' in split else LOCALES)
    assert max(counts.values()) - min(counts.values()) <= 1
    if 'test' in split:
      assert min(counts.values()) >= 100


@pytest.mark.slow
def test_held_out_locales_are_written_in_characters_of_training():
  # Otherwise the unseen-locale score would measure the vocabulary, not the model.
  known = set().union(*(e['inputs'] for e in Dates('train', size=20_000)))
  for split in SPLITS:
    assert set().union(*(e['inputs'] for e in Dates(split))) <= known


@few_or_many(100, 400)
def test_babel_writes_the_input_back_from_the_target(size):
  for split in SPLITS:
    for example in Dates(split, size=size, seed=3):
      day = datetime.date.fromisoformat(example['targets'])
      assert day.isoformat() == example['targets']
      assert dates.FIRST_DAY <= day <= dates.LAST_DAY
      assert names_of(example), example


def test_every_length_and_at_least_five_skeletons_occur():
  names = set().union(*(names_of(e) for e in Dates('train', size=400)))
  assert set(LENGTHS) <= names
  assert len(names - set(LENGTHS)) >= 5


def test_the_examples_of_the_module_docstring_exist():
  lines = re.findall(r'^    ((\S+): .+) -> (\S+)$', dates.__doc__, re.MULTILINE)
  assert len(lines) == 3
  for inputs, locale, targets in lines:
    assert names_of({'inputs': inputs, 'targets': targets, 'locale': locale})


@pytest.mark.slow
def test_no_line_has_two_dates():
  # Exchanging a short year, a month and a day maps these days onto themselves, so whatever order
  # or name is ambiguous anywhere in the century is ambiguous here.
  days = [d for d in ALL_DAYS if 2001 <= d.year <= 2012 and d.day <= 12]
  for locale in LOCALES + HELD_OUT_LOCALES:
    meaning = {}
    for pattern in set(formats(locale).values()):
      for day in days:
        line = dates.write(day, pattern, locale)
        assert meaning.setdefault(line, day) == day, line


@pytest.mark.slow
def test_no_line_has_two_dates_in_the_whole_century():
  meaning = {}
  for pattern in set(formats('en-US').values()):
    for day in ALL_DAYS:
      line = dates.write(day, pattern, 'en-US')
      assert meaning.setdefault(line, day) == day, line


@few_or_many(400, 2000)
def test_lines_have_characters_of_a_keyboard(size):
  for split in SPLITS:
    for example in Dates(split, size=size):
      for character in example['inputs']:
        joiner = character in '\u200c\u200d'  # part of the spelling in Persian and Indic scripts
        assert character == ' ' or joiner or unicodedata.category(character)[0] not in 'ZC'


def test_another_process_draws_the_same_examples():
  program = (
    'import json, runpy, sys; Dates = runpy.run_path(sys.argv[1])["Dates"]; '
    'print(json.dumps([Dates(split, seed=5)[i] for split in sys.argv[2:] for i in range(20)]))'
  )
  answer = subprocess.run(
    [sys.executable, '-c', program, dates.__file__, *SPLITS],
    env={**os.environ, 'PYTHONHASHSEED': '1'},
    capture_output=True,
    check=True,
  )
  assert json.loads(answer.stdout) == [Dates(s, seed=5)[i] for s in SPLITS for i in range(20)]
  assert list(Dates('val', size=40, seed=5)) != list(Dates('val', size=40, seed=6))


@pytest.mark.parametrize('split', SPLITS)
def test_random_access_is_iteration(split):
  source = Dates(split, size=200)
  in_order = list(source)
  assert len(in_order) == len(source) == 200
  order = random.Random(0).sample(range(200), 200)
  copy = pickle.loads(pickle.dumps(source))
  assert [copy[i] for i in order] == [in_order[i] for i in order]
  assert list(Dates(split, size=50)) == in_order[:50]
  assert len(Dates(split)) == dates.SIZES[split]


def test_errors_name_the_wrong_argument():
  with pytest.raises(ValueError, match="'dev'.*train, val, test"):
    Dates('dev')
  with pytest.raises(ValueError, match='size=-1'):
    Dates('train', size=-1)
  for i in (3, -1):
    with pytest.raises(IndexError, match=f'example {i} of 3'):
      Dates('train', size=3)[i]
