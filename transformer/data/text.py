"""Encoding of long texts, documents and lines with blanks (___)."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from transformer.data.corpora import Source, chunks
from transformer.data.tokenizers import Tokenizer

BLANK = '___'  # stands for missing text
PART = 1 << 16  # characters: longer texts are tokenized in parts
SHORT = 1 << 12  # characters: shorter texts are tokenized in batches
Tokens = Int[np.ndarray, '_']


class Cut(NamedTuple):
  """Settings of a task for cutting documents into windows; a window becomes a row of a batch.

  Attributes:
    length: number of tokens in a window; the last one of a document may have fewer.
    step: number of tokens from the begin of a window to that of the next.
    added: length of a row minus that of its window; may be negative.
    whole: whether a document begins with the start token and ends with the end token.
  """

  length: int
  step: int
  added: int = 0
  whole: bool = False


def encode(tokenizer: Tokenizer, text: str) -> Tokens:
  """Return the tokens of a text of any size."""
  # in parts that end at line ends, because the tokenizer's time and memory grow faster than the
  # text
  parts, start = [], 0
  while start < len(text):
    end = text.find('\n', start + PART) + 1 or len(text)
    parts.append(text[start:end])
    start = end
  tokens = [np.zeros(0, np.int32)]
  for i in range(0, len(parts), 32):  # the tokenizer needs 100 bytes of memory for each letter
    tokens += [np.asarray(part, np.int32) for part in tokenizer.encode_batch(parts[i : i + 32])]
  return np.concatenate(tokens)


def encode_documents(
  tokenizer: Tokenizer, texts: Sequence[str | Tokens], *, whole: bool = False
) -> Iterator[Tokens]:
  """Yield the tokens of each document; arrays of tokens are yielded unchanged.

  Args:
    tokenizer: encodes the texts.
    texts: the documents, as texts or tokens.
    whole: whether to add the start and the end token to texts.
  """
  first, last = ([tokenizer.bos], [tokenizer.eos]) if whole else ([], [])
  for short, members in itertools.groupby(texts, lambda text: len(text) <= SHORT):
    group: list[Any] = list(members)
    if isinstance(group[0], np.ndarray):
      yield from group
      continue
    at_once = 1024 if short else 1
    for i in range(0, len(group), at_once):
      some = group[i : i + at_once]
      for tokens in tokenizer.encode_batch(some) if short else [encode(tokenizer, *some)]:
        yield np.asarray([*first, *tokens, *last], np.int32)


def windows(tokenizer: Tokenizer, source: Source, length: int) -> Iterator[Tokens]:
  """Yield the texts of a source ('targets') in non-empty windows of at most `length` tokens."""
  for examples in chunks(source):
    for tokens in encode_documents(tokenizer, [example['targets'] for example in examples]):
      for start in range(0, len(tokens), length):
        yield tokens[start : start + length]


def with_blanks(tokenizer: Tokenizer, line: str, fillers: Sequence[int]) -> list[int]:
  """Return the tokens of a line in which the i-th ___ is replaced by the token fillers[i]."""
  *before, last = line.split(BLANK)
  if any(tokenizer.begins_word):  # the space before a word is part of its token, so it is missing
    before = [part.removesuffix(' ') for part in before]
  first, *rest = tokenizer.encode_batch([*before, last])
  return [*first, *(t for filler, part in zip(fillers, rest, strict=True) for t in (filler, *part))]


def blanked_middle(text: str, *, most: int = 30) -> tuple[str, list[str], int]:
  """Return the first line of a text with ___ in place of its middle word.

  Args:
    text: its blank lines are skipped.
    most: the largest number of words to keep.

  Returns:
    The line with ___, its words, and the index of the replaced word.
  """
  line = next((line for line in text.split('\n') if line.strip()), '')
  words = line.split()[:most]
  middle = len(words) // 2
  return ' '.join([*words[:middle], *[BLANK] * bool(words), *words[middle + 1 :]]), words, middle
