"""Cloze questions: a span of a sentence is the answer, and the rest of it becomes the question.

After Lewis et al. 2019, https://arxiv.org/abs/1906.04980, sections 2.1 to 2.3.2, with simple rules
that choose answers, and with words and endings dropped as noise.
"""

import re

import numpy as np

FUNCTION_WORDS = frozenset(
  'a about after all also although an and any are as at be became been before being between both '
  'but by can could did do does during each for from had has have he her his how i if in into is '
  'it its may more most no nor not of on one only or other our out over she should since so some '
  'such than that the their them then there these they this those through to under until up was '
  'we were what when where which while who whom whose will with would you your'.split()
)
SENTENCE = re.compile(r'[^.!?]+(?:[.!?](?!\s|$)[^.!?]*)*[.!?]?')
WORD = re.compile(r"[\w'’$£€%-]+(?:[.,]\d+)*")
ENDINGS = re.compile(r'(?<=\w{4})(?:ed|ing|s)$')
QUESTION_WORDS = {
  'year': ('when', 'in what year', 'what year'),
  'number': ('how many', 'how much', 'what'),
  'name': ('who', 'what', 'which', 'where', 'what is the name of'),
  'thing': ('what', 'what', 'which', 'what kind of'),
}
MAX_ANSWER = 6  # words


def questions(text: str, count: int, rng: np.random.Generator) -> list[tuple[str, str, int]]:
  """Return up to `count` generated questions about a text, each from another sentence.

  Returns:
    (question, answer, index of the answer's first character in the text).
  """
  sentences = [m for m in SENTENCE.finditer(text) if 5 <= len(WORD.findall(m[0])) <= 60]
  result = []
  for i in rng.permutation(len(sentences))[:count]:
    words = [*WORD.finditer(text, *sentences[i].span())]
    answers = candidates(words)
    if answers:
      kind, first, last = answers[rng.choice(len(answers))]
      start, end = words[first].start(), words[last].end()
      before, after = words[max(first - 8, 0) : first], words[last + 1 : last + 9]
      question = _ask(kind, [w[0] for w in before], [w[0] for w in after], rng)
      result.append((question, text[start:end], start))
  return result


def candidates(words: list[re.Match[str]]) -> list[tuple[str, int, int]]:
  """Return possible answers among words: numbers, names, and things after a function word.

  Returns:
    (a key of QUESTION_WORDS, index of the first word, index of the last word).
  """
  kinds = ['' if w[0].lower() in FUNCTION_WORDS else _kind(w[0]) for w in words]
  result, first = [], 0
  while first < len(words):
    last, kind = first, kinds[first]
    while kind in kinds[last + 1 : last + 2] and last + 1 < first + MAX_ANSWER:
      if words[last + 1].start() > words[last].end() + 1:  # more than a space between them
        break
      last += 1
    # the first word of a sentence always has a capital, as a name has
    if kind and (kind != 'thing' or (first and not kinds[first - 1])) and (first or last):
      result.append((kind, first, last))
    first = last + 1
  return result


def _kind(word: str) -> str:
  if re.fullmatch(r'1\d\d\d|20\d\d', word):
    return 'year'
  if re.search(r'\d', word):
    return 'number'
  return 'name' if word[0].isupper() else 'thing'


def _ask(kind: str, before: list[str], after: list[str], rng: np.random.Generator) -> str:
  question_word = str(rng.choice(QUESTION_WORDS[kind]))
  before, after = (_noisy(words, rng) for words in (before, after))
  order = [
    [question_word, *before, *after],
    [question_word, *after, *before],
    [*before, question_word, *after],
  ]
  return ' '.join(order[rng.choice(3)]) + '?'


def _noisy(words: list[str], rng: np.random.Generator) -> list[str]:
  """Return the words without some of them, and some of the others without their ending."""
  kept = [w for w in words if rng.random() > (0.5 if w.lower() in FUNCTION_WORDS else 0.2)]
  return [ENDINGS.sub('', w) if rng.random() < 0.3 else w for w in kept]
