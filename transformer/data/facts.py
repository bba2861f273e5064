"""Synthetic questions about paragraphs: who lives in which city, and owns how many things."""

import numpy as np

from transformer.data.questions import Example, example_of

SIZES = {'train': 2000, 'val': 40, 'test': 40}
CITIES = 'Rome Oslo Lima Cairo Kyoto Quito Delhi Paris'.split()
PEOPLE = 'Anna Boris Clara David Emma Farid Grace Hugo Irene Jonas Karla Louis'.split()
THINGS = 'goats boats clocks lamps horses violins kites drums'.split()


def facts(split: str) -> list[Example]:
  """Return the questions of a split, always the same; paragraphs are named train/0, train/1, ..."""
  if split not in SIZES:
    raise ValueError(f'unknown split {split!r} of facts: take {", ".join(SIZES)}')
  rng = np.random.default_rng([*SIZES].index(split))
  rows = []
  for number in range(SIZES[split]):
    told = []
    for person in rng.permutation(PEOPLE)[:3]:
      told.append((person, rng.choice(CITIES), f'{rng.integers(2, 99)} {rng.choice(THINGS)}'))
    context = ' '.join(f'{who} lives in {city} and has {things}.' for who, city, things in told)
    who, city, things = told[rng.integers(3)]
    if rng.integers(2):
      question, answer, before = f'Where does {who} live?', str(city), f'{who} lives in '
    else:
      question, answer = f'What does {who} have?', things
      before = f'{who} lives in {city} and has '
    start = context.index(before) + len(before)
    rows.append(example_of(question, context, [answer], [start], f'{split}/{number}'))
  return rows
