"""Synthetic questions about paragraphs: in which city people live, and which things they have."""

import numpy as np

from transformer.data.questions import Example, example_of

SIZES = {'train': 2000, 'val': 40, 'test': 40}
CITIES = 'Rome Oslo Lima Cairo Kyoto Quito Delhi Paris'.split()
PEOPLE = 'Anna Boris Clara David Emma Farid Grace Hugo Irene Jonas Karla Louis'.split()
THINGS = 'goats boats clocks lamps horses violins kites drums'.split()


def facts(split: str) -> list[Example]:
  """Return the questions of a split, the same in every call.

  Examples are as in data.questions; paragraphs are named train/0, train/1, ...
  """
  if split not in SIZES:
    raise ValueError(f'unknown split {split!r} of facts: take {", ".join(SIZES)}')
  rng = np.random.default_rng([*SIZES].index(split))
  rows = []
  for number in range(SIZES[split]):
    statements = []
    for person in rng.permutation(PEOPLE)[:3]:
      statements.append((person, rng.choice(CITIES), f'{rng.integers(2, 99)} {rng.choice(THINGS)}'))
    context = ' '.join(f'{who} lives in {city} and has {x}.' for who, city, x in statements)
    who, city, things = statements[rng.integers(3)]
    if rng.integers(2):
      question, answer, before = f'Where does {who} live?', str(city), f'{who} lives in '
    else:
      question, answer = f'What does {who} have?', things
      before = f'{who} lives in {city} and has '
    start = context.index(before) + len(before)
    rows.append(example_of(question, context, [answer], [start], f'{split}/{number}'))
  return rows
