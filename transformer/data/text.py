"""From texts to windows of tokens, and lines with blanks in them."""

from collections.abc import Iterator, Sequence

from transformer.data.corpora import Source, chunks
from transformer.data.tokenizers import Tokenizer

BLANK = '___'  # what a user writes for something to be filled in
PART = 1 << 16  # characters of a text that are tokenized at once


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
  """The tokens of a text of any size."""
  # in parts, cut at line ends: tokenizers take time and memory that grow with the part
  parts, start = [], 0
  while start < len(text):
    end = text.find('\n', start + PART) + 1 or len(text)
    parts.append(text[start:end])
    start = end
  return [token for part in tokenizer.encode_batch(parts) for token in part]


def windows(tokenizer: Tokenizer, source: Source, length: int) -> Iterator[list[int]]:
  """The texts of a source ('targets') as pieces of at most `length` tokens, none empty."""
  for examples in chunks(source):
    for example in examples:
      tokens = encode(tokenizer, example['targets'])
      for start in range(0, len(tokens), length):
        yield tokens[start : start + length]


def with_blanks(tokenizer: Tokenizer, line: str, fillers: Sequence[int]) -> list[int]:
  """The tokens of a line, with the fillers in turn for every ___."""
  *before, last = line.split(BLANK)
  if any(tokenizer.begins_word):  # the space before a word is part of it, and so of what is missing
    before = [part.removesuffix(' ') for part in before]
  first, *rest = tokenizer.encode_batch([*before, last])
  return [*first, *(t for filler, part in zip(fillers, rest, strict=True) for t in (filler, *part))]
