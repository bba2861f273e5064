"""Text <-> token ids: one class around the `tokenizers` library, one file `tokenizer.json` on disk.

What we train has <pad> = 0, <s> = 1 (bos), </s> = 2 (eos), <unk> = 3, then the pieces. Published
files of the same format (BERT, GPT-2, T5, ...) load through the same class and keep their own ids.
"""

import functools
import itertools
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

SENTINEL = '<extra_id_{}>'
SPECIALS = ('<pad>', '<s>', '</s>', '<unk>')
KINDS = ('bpe', 'bytes', 'characters', 'unigram', 'wordpiece')

# What published vocabularies call these tokens, the likeliest name first. In the GPT family one
# token both ends a document and begins the next.
NAMES = {
  'pad': ('<pad>', '[PAD]', '<|pad|>'),
  'bos': ('<s>', '[CLS]', '<bos>', '<|startoftext|>', '<|begin_of_text|>', '<|endoftext|>'),
  'eos': ('</s>', '[SEP]', '<eos>', '<|endoftext|>', '<|end_of_text|>'),
  'unk': ('<unk>', '[UNK]'),
  'mask': ('<mask>', '[MASK]', '<extra_id_0>'),
}

# GPT-2's alphabet, byte -> printable character: a printable byte stands for itself, the others
# take the characters from U+0100 on, in order. The library gives the set without the bytes.
_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet(), key=ord)
_HIDDEN = [b for b in range(256) if chr(b) not in _ALPHABET]
_BYTE = {c: ord(c) if ord(c) < 256 else _HIDDEN[ord(c) - 256] for c in _ALPHABET}


class Tokenizer:
  """text -> ids -> text.

  Text is only ever text: '</s>' typed by a user becomes pieces, never the id of a special token,
  and nothing is added, cut off or padded, whatever a published file asks for.

  Args:
    tokenizer: the library's object; this class owns it from here on.

  Attributes:
    size: number of ids N, special tokens included; every id is in [0, N).
    pad, bos, eos, unk, mask: ids, or None where the vocabulary has no such token.
    sentinels: ids of <extra_id_0>, <extra_id_1>, ..., which stand for what is left out (T5).
  """

  pad: Any  # int or None: who needs one checks once, and not at every use
  bos: Any
  eos: Any
  mask: Any

  def __init__(self, tokenizer: tokenizers.Tokenizer):
    tokenizer.encode_special_tokens = True  # "encode them like other text"; the file lacks it
    tokenizer.no_truncation()
    tokenizer.no_padding()
    self._tokenizer = tokenizer
    self.size: int = tokenizer.get_vocab_size()
    ids = tokenizer.get_vocab()
    self.pad, self.bos, self.eos, self.unk, self.mask = (
      next((ids[name] for name in names if name in ids), None) for names in NAMES.values()
    )
    sentinels = (ids.get(SENTINEL.format(i)) for i in itertools.count())
    self.sentinels: list[Any] = list(itertools.takewhile(lambda i: i is not None, sentinels))

  def encode(self, text: str) -> list[int]:
    """Ids of the pieces of `text`; no bos, no eos."""
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
    """`[encode(text) for text in texts]`, on all cores."""
    encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]

  def encode_spans(self, texts: Iterable[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Of each text the ids, and the characters text[start:end] that each of them stands for."""
    encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [(encoding.ids, encoding.offsets) for encoding in encodings]

  @property
  def specials(self) -> list[int]:
    """Ids that spell nothing."""
    return [
      i
      for i in (self.pad, self.bos, self.eos, self.unk, self.mask, *self.sentinels)
      if i is not None
    ]

  @functools.cached_property
  def begins_word(self) -> list[bool]:
    """For each id, whether a word begins with it, by the marks of WordPiece, byte BPE, unigram."""
    pieces = [self._tokenizer.id_to_token(i) or '' for i in range(self.size)]
    if any(piece.startswith('##') for piece in pieces):
      return [not piece.startswith('##') for piece in pieces]
    return [piece.startswith(('Ġ', '▁')) for piece in pieces]

  def decode(self, ids: Iterable[SupportsIndex]) -> str:
    """Text of `ids` up to the first eos, without specials; U+FFFD where bytes are not UTF-8."""
    before_eos = itertools.takewhile(lambda i: i != self.eos, map(int, ids))
    return self._tokenizer.decode(list(before_eos), skip_special_tokens=True)

  def pieces(self, ids: Iterable[SupportsIndex]) -> list[str]:
    """One readable string an id, for plots: 'Ġthé' as ' thé'; part of a character as '<F0 9F>'."""
    return [self._piece(int(i)) for i in ids]

  def _piece(self, i: int) -> str:
    piece = self._tokenizer.id_to_token(i) if i >= 0 else None
    if piece is None:
      raise ValueError(f'no token has the id {i}; this vocabulary has ids 0 to {self.size - 1}.')
    # This decoder tells a byte alphabet, to which a token added by hand need not keep.
    if not isinstance(self._tokenizer.decoder, decoders.ByteLevel) or not _BYTE.keys() >= {*piece}:
      return piece
    raw = bytes(_BYTE[c] for c in piece)
    try:
      return raw.decode('utf-8')
    except UnicodeDecodeError:
      return f'<{raw.hex(" ").upper()}>'

  def save(self, path: str | os.PathLike) -> None:
    """Writes the one file that `load`, and the `tokenizers` library in any language, reads."""
    pathlib.Path(path).write_text(self._tokenizer.to_str(pretty=True) + '\n', encoding='utf-8')

  @classmethod
  def load(cls, path: str | os.PathLike) -> 'Tokenizer':
    """Reads a `tokenizer.json`, ours or a published one; ValueError if it is missing or none."""
    try:
      return cls(tokenizers.Tokenizer.from_str(pathlib.Path(path).read_text(encoding='utf-8')))
    except Exception as error:  # the library raises plain Exception for everything
      raise ValueError(
        f'{os.fspath(path)}: not a readable tokenizer.json ({error}). Give the file that '
        'Tokenizer.save or save_pretrained wrote; a sentencepiece .model has to be converted.'
      ) from error

  def __reduce__(self):
    return Tokenizer, (self._tokenizer,)  # whose pickle forgets what the constructor sets

  def __repr__(self) -> str:
    names = ', '.join(f'{name}={getattr(self, name)}' for name in ('size', *NAMES))
    return f'Tokenizer({type(self._tokenizer.model).__name__}, {names})'


def train(
  texts: Iterable[str],
  *,
  kind: str = 'bpe',
  vocab: int = 8192,
  lowercase: bool = False,
  split_digits: bool = False,
  sentinels: int = 0,
) -> Tokenizer:
  """A vocabulary learnt from `texts`, after Unicode NFC (except 'bytes', which take text as it is).

  'bpe' and 'bytes' lose nothing: decode(encode(x)) == NFC(x), respectively x. 'characters' loses
  what was never seen (<unk>), 'unigram' that and a leading space, 'wordpiece' that and the
  spacing. 'bpe', 'bytes' and 'characters' are deterministic; 'unigram' and 'wordpiece' are not,
  for the library breaks their ties in hash order: keep the file.

  Args:
    texts: sentences or documents; merges and pieces never reach across two of them.
    kind: 'bpe' (pairs of bytes merged by frequency), 'bytes' (256 ids and the specials, learns
      nothing), 'characters' (each its own token), 'unigram' (by likelihood), 'wordpiece'.
    vocab: the largest number of ids, specials included; `size` is smaller where texts are few.
    lowercase: lower-cases, character by character (Python's str.lower also knows the final sigma).
    split_digits: each digit is its own token, so that numbers are spelt alike everywhere; always
      the case for 'bytes' and 'characters'.
    sentinels: so many tokens <extra_id_0>, ... come last, beyond vocab: the first is also the mask.

  Raises:
    ValueError: an unknown kind, no text, or a vocab that cannot hold the alphabet.

  Source: BPE, Sennrich et al. 2016 (1508.07909), on bytes as in GPT-2; unigram, Kudo 2018
  (1804.10959); WordPiece as in BERT (1810.04805).
  """
  if kind not in KINDS:
    raise ValueError(f'tokenizer kind {kind!r} is unknown; choose one of {", ".join(KINDS)}.')
  texts = [texts] if isinstance(texts, str) else list(texts)
  if not texts and kind != 'bytes':
    raise ValueError(f'no text to train a {kind!r} tokenizer on; is the corpus or split empty?')

  unicode = [] if kind == 'bytes' else [normalizers.NFC()]
  normalizer = normalizers.Sequence(unicode + [normalizers.Lowercase()] * lowercase)
  digits = [pre_tokenizers.Digits(individual_digits=True)] * split_digits
  options: dict[str, Any] = {
    'vocab_size': max(vocab, 0),
    'special_tokens': [*SPECIALS],
    'show_progress': False,
  }
  byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)

  trainer: Any = None
  splits: list[Any]
  decoder: Any
  if kind == 'bytes':
    tokenizer = _unmerged(sorted(_ALPHABET, key=_BYTE.__getitem__))  # so id = byte + 4
    splits, decoder = [byte_level], decoders.ByteLevel()
  elif kind == 'characters':
    tokenizer = _unmerged(sorted(set().union(*map(normalizer.normalize_str, texts))))
    splits, decoder = [], decoders.Fuse()
  elif kind == 'bpe':
    tokenizer = tokenizers.Tokenizer(models.BPE())
    splits, decoder = [*digits, byte_level], decoders.ByteLevel()
    trainer = trainers.BpeTrainer(min_frequency=2, initial_alphabet=_ALPHABET, **options)
  elif kind == 'unigram':
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    # Punctuation apart, as in sentencepiece; else the text '</s>' could match the special piece.
    splits = [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation(), *digits]
    decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(unk_token='<unk>', **options)
  else:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token='<unk>'))
    splits, decoder = [pre_tokenizers.BertPreTokenizer(), *digits], decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(min_frequency=2, **options)

  tokenizer.normalizer, tokenizer.decoder = normalizer, decoder
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
  if trainer:
    try:
      tokenizer.train_from_iterator(texts, trainer)
    except Exception as error:  # unigram's alphabet does not fit; the others exceed vocab instead
      raise ValueError(f'vocab={vocab}, kind={kind!r}: {error}. Raise vocab.') from error
  if (size := tokenizer.get_vocab_size()) > vocab:
    raise ValueError(
      f'vocab={vocab} is too small: the alphabet of {kind!r} on this text and the special tokens '
      f"take {size} ids. Raise vocab to more than that; 'bpe' spells any text with 260."
    )
  tokenizer.add_special_tokens([SENTINEL.format(i) for i in range(sentinels)])
  return Tokenizer(tokenizer)


def _unmerged(symbols: Sequence[str]) -> tokenizers.Tokenizer:
  """A BPE that never merges: each symbol stays a token of its own."""
  ids = {symbol: i for i, symbol in enumerate((*SPECIALS, *symbols))}
  tokenizer = tokenizers.Tokenizer(models.BPE(ids, [], unk_token='<unk>'))
  tokenizer.add_special_tokens(list(SPECIALS))
  return tokenizer
