"""Tokenizers of folders with SentencePiece files and no tokenizer.json: Marian and T5."""

import pathlib
import struct
from collections.abc import Iterator
from typing import Any

from transformer.zoo.pretrained.files import read_json

UNIGRAM = 1  # model_type in SentencePiece's TrainerSpec
FAR = -1e5  # a score so low that the piece is used only if there is no other segmentation


def read_sentencepiece(folder: pathlib.Path) -> Any:
  """Return a tokenizer of the `tokenizers` library, made from a folder's files; None without them.

  Marian has source.spm and, with the ids of both languages, vocab.json; T5 has spiece.model, and
  its sentinels follow in reverse order.

  Raises:
    ValueError: a file is damaged, or no unigram model.
  """
  if (folder / 'source.spm').is_file() and (folder / 'vocab.json').is_file():
    pieces, normalizer = _read(folder / 'source.spm')
    ids = read_json(folder / 'vocab.json')
    if not all(type(i) is int and i >= 0 for i in ids.values()):
      raise ValueError(f'{folder / "vocab.json"} does not give each piece a number: fetch it again')
    names = {i: piece for piece, i in ids.items()}
    size = max(names, default=-1) + 1
    vocab = [names.get(i, f'<unused {i}>') for i in range(min(size, 10 * len(names)))]
    return _tokenizer([(name, pieces.get(name, FAR)) for name in vocab], normalizer)
  if (folder / 'spiece.model').is_file():
    pieces, normalizer = _read(folder / 'spiece.model')
    sentinels = [(f'<extra_id_{i}>', FAR) for i in reversed(range(100))]
    return _tokenizer([*pieces.items(), *sentinels], normalizer)
  return None


def _tokenizer(vocab: list[tuple[str, float]], normalizer: dict[int, Any]) -> Any:
  import tokenizers
  from tokenizers import decoders, models, normalizers, pre_tokenizers

  names = [name for name, _ in vocab]
  tokenizer = tokenizers.Tokenizer(models.Unigram(vocab, names.index('<unk>')))
  rules = [normalizers.Precompiled(charsmap)] if (charsmap := normalizer.get(2)) else []
  spaces = [normalizers.Strip(left=False), normalizers.Replace(tokenizers.Regex(' {2,}'), '▁')]
  tokenizer.normalizer = normalizers.Sequence(rules + spaces)
  prefix = 'always' if normalizer.get(3, 1) else 'never'
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix)
  tokenizer.decoder = decoders.Metaspace(prepend_scheme=prefix)
  tokenizer.add_special_tokens([n for n in names if n in ('<pad>', '<s>', '</s>', '<unk>')])
  tokenizer.add_special_tokens([n for n in names if n.startswith('<extra_id_')])
  tokenizer.add_tokens([n for n in names if n.startswith('>>') and n.endswith('<<')])  # languages
  return tokenizer


def _read(file: pathlib.Path) -> tuple[dict[str, float], dict[int, Any]]:
  """Return {piece: score} and {field number: value} of the normalizer of a unigram model."""
  try:
    model = list(_fields(file.read_bytes()))
    pieces = [dict(_fields(field)) for number, field in model if number == 1]
    others = dict(model)
    trainer, normalizer = dict(_fields(others[2])), dict(_fields(others[3]))
    scores = {piece[1].decode(): struct.unpack('<f', piece.get(2, bytes(4)))[0] for piece in pieces}
    special = {piece[1].decode() for piece in pieces if piece.get(3, 1) != 1}
  except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
    raise ValueError(f'{file} is damaged ({error!r}): fetch it again') from error
  if trainer.get(3, UNIGRAM) != UNIGRAM:
    raise ValueError(f'{file} is no unigram model: make a tokenizer.json of it with transformers')
  return {name: FAR if name in special else score for name, score in scores.items()}, normalizer


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
  """Yield (number, value) of the fields of a protocol buffer."""
  position = 0

  def varint():
    nonlocal position
    number, shift = 0, 0
    while True:
      byte, position = data[position], position + 1
      number |= (byte & 127) << shift
      shift += 7
      if byte < 128:
        return number

  while position < len(data):
    key = varint()
    if (kind := key & 7) == 0:
      yield key >> 3, varint()
      continue
    size = {1: lambda: 8, 2: varint, 5: lambda: 4}[kind]()
    if position + size > len(data):
      raise ValueError('cut short')
    yield key >> 3, data[position : position + size]
    position += size
