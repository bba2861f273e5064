"""Human-written dates in 40 locales -> ISO 8601: the bundled corpus, made on the spot by Babel.

    en-US: Wednesday, March 3, 2021 -> 2021-03-03
    es-ES: 5/12/71 -> 1971-12-05
    ja-JP: 2030年7月14日日曜日 -> 2030-07-14

Every line begins with its locale (a BCP 47 tag), for 3/4/05 is another day in each country. The
text is what CLDR's four lengths and its skeletons of year, month and day give: about seven
spellings of a day in a locale. Babel writes Gregorian years and ASCII digits everywhere, also where
CLDR prefers another calendar (th-TH, fa-IR) or other digits (ar-EG, fa-IR, bn-BD).

Source: Unicode CLDR as packed by Babel; UTS #35 part 4 defines lengths, skeletons and patterns.
"""

import dataclasses
import datetime
import functools
import hashlib
import operator
from collections.abc import Mapping
from typing import SupportsIndex

LOCALES = (
  *('en-US', 'en-GB', 'de-DE', 'nl-NL', 'sv-SE', 'nb-NO', 'da-DK', 'fr-FR', 'fr-CA', 'es-ES'),
  *('it-IT', 'pt-BR', 'pl-PL', 'cs-CZ', 'fi-FI', 'hu-HU', 'eu-ES', 'tr-TR', 'id-ID', 'vi-VN'),
  *('ru-RU', 'uk-UA', 'bg-BG', 'kk-KZ', 'el-GR', 'hy-AM', 'ka-GE', 'he-IL', 'ar-EG', 'fa-IR'),
  *('ur-PK', 'hi-IN', 'bn-BD', 'ta-IN', 'th-TH', 'am-ET', 'ja-JP', 'ko-KR', 'zh-CN', 'zh-TW'),
)
# Never trained on, but their languages are: the words are known, order and punctuation are not.
HELD_OUT_LOCALES = ('de-AT', 'en-AU', 'es-CL', 'fr-CH', 'pt-PT', 'zh-HK')

# POSIX reads two-digit years 69-99 as 1969-1999 and 00-68 as 2000-2068.
FIRST_DAY, LAST_DAY = datetime.date(1969, 1, 1), datetime.date(2068, 12, 31)

LENGTHS = ('short', 'medium', 'long', 'full')
SIZES = {'train': 60_000, 'val': 1_000, 'test': 4_000, 'test_unseen_locales': 600}

# CLDR's narrow and no-break spaces and direction marks, as a keyboard types them.
TYPED = str.maketrans({'\u00a0': ' ', '\u202f': ' ', '\u200e': None, '\u200f': None})


@dataclasses.dataclass(frozen=True)
class Dates:
  """`dates[i] -> {'inputs': 'en-US: March 3, 2021', 'targets': '2021-03-03', 'locale': 'en-US'}`.

  A pure function of (split, seed, i): it holds no example, so it pickles to a few bytes and workers
  may read in any order. Splits share no day: 90 % of the days of 1969-2068 are for train, 5 % for
  val, 5 % for both tests, whatever the locale, format and seed. Locales take turns: example i is
  in locale i modulo their number; its day and format are drawn uniformly.

  Args:
    split: 'train', 'val', 'test' (of `LOCALES`) or 'test_unseen_locales' (of `HELD_OUT_LOCALES`).
    size: number of examples, 0 for `SIZES[split]`; a smaller size is a prefix of a larger one.
    seed: draws other days and formats; never moves a day to another split.

  Raises:
    ValueError: an unknown split or a negative size.
  """

  split: str
  _: dataclasses.KW_ONLY
  size: int = 0
  seed: int = 0

  def __post_init__(self):
    if self.split not in SIZES:
      raise ValueError(f'unknown split {self.split!r} of dates: take one of {", ".join(SIZES)}')
    if self.size < 0:
      raise ValueError(f'size={self.size} examples: give a positive number, or 0 for the default')

  def __len__(self) -> int:
    return self.size or SIZES[self.split]

  def __getitem__(self, i: SupportsIndex) -> dict[str, str]:
    i = operator.index(i)
    if not 0 <= i < len(self):
      raise IndexError(f'example {i} of {len(self)}: the index runs from 0 to {len(self) - 1}')
    inputs, targets, locale = _example(self.split, self.seed, i)
    return {'inputs': inputs, 'targets': targets, 'locale': locale}


# a run reads all of them twice in a row: to learn the tokenizer, then to encode
@functools.lru_cache(maxsize=1 << 16)
def _example(split: str, seed: int, i: int) -> tuple[str, str, str]:
  locales = HELD_OUT_LOCALES if split == 'test_unseen_locales' else LOCALES
  locale = locales[i % len(locales)]
  days, spellings = _days()[split], tuple(dict.fromkeys(formats(locale).values()))
  draw, which = divmod(_hash(f'{split} {seed} {i}'), len(days))
  day = days[which]
  return write(day, spellings[draw % len(spellings)], locale), day.isoformat(), locale


def write(day: datetime.date, pattern: str, locale: str) -> str:
  """The input line: `day` in CLDR's `pattern`, e.g. 'MMMM d, y' -> 'en-US: March 3, 2021'."""
  from babel.dates import parse_pattern

  return f'{locale}: ' + parse_pattern(pattern).apply(day, _babel_locale(locale)).translate(TYPED)


@functools.cache
def formats(locale: str) -> Mapping[str, str]:
  """{name: CLDR pattern}: a locale's four lengths, its skeletons of year, month, day (and weekday).

  Skeletons with an era are left out: nobody writes 'AD' behind a date of this century.
  """
  babel = _babel_locale(locale)
  names = {name: babel.date_formats[name].pattern for name in LENGTHS}
  for skeleton, pattern in sorted(babel.datetime_skeletons.items()):
    if set('yMd') <= set(skeleton) <= set('yMdEc'):
      names[skeleton] = pattern.pattern
  return names


def split_of(day: datetime.date) -> str:
  """'train', 'val' or 'test', by a hash of the ISO date: the same for every locale and seed."""
  return {0: 'val', 1: 'test'}.get(_hash(day.isoformat()) % 20, 'train')


@functools.cache
def _days() -> Mapping[str, list[datetime.date]]:
  days: dict[str, list[datetime.date]] = {'train': [], 'val': [], 'test': []}
  for ordinal in range(FIRST_DAY.toordinal(), LAST_DAY.toordinal() + 1):
    day = datetime.date.fromordinal(ordinal)
    days[split_of(day)].append(day)
  return {**days, 'test_unseen_locales': days['test']}


@functools.cache
def _babel_locale(locale: str):
  from babel import Locale

  return Locale.parse(locale, sep='-')


def _hash(text: str) -> int:
  return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
