"""Texts as windows of tokens, and lines with blanks to fill in."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from transformer.data.corpora import Source, chunks
from transformer.data.tokenizers import Tokenizer

BLANK = '___'  # what a user writes where text is missing
PART = 1 << 16  # characters of a text that are tokenized at once
SHORT = 1 << 12  # characters of a text that is tokenized together with others
Tokens = Int[np.ndarray, '_']


class Cut(NamedTuple):
  """How a task cuts a document into windows, each of which makes a row of a batch.

  Attributes:
    length: tokens in a window; the last one of a document may have fewer.
    step: tokens from the beginning of a window to that of the next.
    added: tokens of a row beyond those of its window; may be negative.
    whole: whether a document begins with the start token and ends with the end token.
  """

  length: int
  step: int
  added: int = 0
  whole: bool = False


def encode(tokenizer: Tokenizer, text: str) -> Tokens:
  """Return the tokens of a text of any size."""
  # in parts, split at line ends: the tokenizer's time and memory grow faster than the text
  parts, start = [], 0
  while start < len(text):
    end = text.find('\n', start + PART) + 1 or len(text)
    parts.append(text[start:end])
    start = end
  tokens = [np.zeros(0, np.int32)]
  for i in range(0, len(parts), 32):  # for each letter the tokenizer takes 100 bytes of memory
    tokens += [np.asarray(part, np.int32) for part in tokenizer.encode_batch(parts[i : i + 32])]
  return np.concatenate(tokens)


def encode_documents(
  tokenizer: Tokenizer, texts: Sequence[str | Tokens], *, whole: bool = False
) -> Iterator[Tokens]:
  """Yield the tokens of each document; those that are tokens already stay as they are.

  Args:
    tokenizer: text to tokens.
    texts: of the documents.
    whole: whether to add the start and the end token.
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
  """Yield the texts of a source ('targets') in windows of at most `length` tokens, none empty."""
  for examples in chunks(source):
    for tokens in encode_documents(tokenizer, [example['targets'] for example in examples]):
      for start in range(0, len(tokens), length):
        yield tokens[start : start + length]


def with_blanks(tokenizer: Tokenizer, line: str, fillers: Sequence[int]) -> list[int]:
  """Return the tokens of a line, with one filler after the other in place of every ___."""
  *before, last = line.split(BLANK)
  if any(tokenizer.begins_word):  # the space before a word is part of its token, so it is missing
    before = [part.removesuffix(' ') for part in before]
  first, *rest = tokenizer.encode_batch([*before, last])
  return [*first, *(t for filler, part in zip(fillers, rest, strict=True) for t in (filler, *part))]


def blanked_middle(text: str, *, most: int = 30) -> tuple[str, list[str], int]:
  """Return the first line of a text with ___ for its middle word, its words, and which is missing.

  Args:
    text: any; lines of white space are passed over.
    most: words of the line that are kept.
  """
  line = next((line for line in text.split('\n') if line.strip()), '')
  words = line.split()[:most]
  middle = len(words) // 2
  return ' '.join([*words[:middle], *[BLANK] * bool(words), *words[middle + 1 :]]), words, middle
