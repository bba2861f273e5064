"""Texts as windows of tokens, and lines with blanks to fill in."""

from collections.abc import Iterator, Sequence

from transformer.data.corpora import Source, chunks
from transformer.data.tokenizers import Tokenizer

BLANK = '___'  # what a user writes where text is missing
PART = 1 << 16  # characters of a text that are tokenized at once


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
  """Return the tokens of a text of any size."""
  # in parts, split at line ends: the tokenizer's time and memory grow faster than the text
  parts, start = [], 0
  while start < len(text):
    end = text.find('\n', start + PART) + 1 or len(text)
    parts.append(text[start:end])
    start = end
  return [token for part in tokenizer.encode_batch(parts) for token in part]


def windows(tokenizer: Tokenizer, source: Source, length: int) -> Iterator[list[int]]:
  """Yield the texts of a source ('targets') in windows of at most `length` tokens, none empty."""
  for examples in chunks(source):
    for example in examples:
      tokens = encode(tokenizer, example['targets'])
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
