"""Tokenizers: a class around the `tokenizers` library, with a file `tokenizer.json`.

Tokenizers trained here have <pad> = 0, <s> = 1 (bos), </s> = 2 (eos), <unk> = 3, then the pieces.
Published files of the same format (BERT, GPT-2, T5, ...) load into the same class and keep their
ids.
"""

import difflib
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, SupportsIndex

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from transformer.data.reading import naming

# The time of the trainers grows with the square of the length of a word. Only the first 1000
# letters, 1000 other characters, or 10,000 characters without a space are used for training.
LONG_WORD = re.compile(r'(\w{1000})\w+|([^\w\s]{1000})[^\w\s]+|(\S{10000})\S+')
# The time of 'unigram' also grows with the total length of all different words.
MAX_LETTERS = 1 << 19
CHAT_TEMPLATE = 'chat_template.jinja'
SETTINGS = 'tokenizer_settings.json'
MAX_SIZE = 1 << 22  # the largest id of a vocabulary with gaps; published ones have up to a million
SENTINEL = '<extra_id_{}>'
SPECIALS = ('<pad>', '<s>', '</s>', '<unk>')
KINDS = ('bpe', 'bytes', 'characters', 'unigram', 'wordpiece')

# {special token: its names in published vocabularies}; the first that a vocabulary has is used. In
# GPT's family one token is both bos and eos.
NAMES = {
  'pad': ('<pad>', '[PAD]', '<|pad|>'),
  'bos': ('<s>', '[CLS]', '<bos>', '<|startoftext|>', '<|begin_of_text|>', '<|endoftext|>'),
  'eos': ('</s>', '[SEP]', '<eos>', '<|endoftext|>', '<|end_of_text|>'),
  'unk': ('<unk>', '[UNK]'),
  'mask': ('<mask>', '[MASK]', '<extra_id_0>'),
}

# GPT-2's alphabet, which maps bytes to printable characters: a printable byte to itself, the others
# to the characters from U+0100, in order. The library returns only the set of characters.
_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet(), key=ord)
_HIDDEN = [b for b in range(256) if chr(b) not in _ALPHABET]
_BYTE = {c: ord(c) if ord(c) < 256 else _HIDDEN[ord(c) - 256] for c in _ALPHABET}


class Tokenizer:
  """A tokenizer: text to ids and back.

  '</s>' in a text is encoded as text, never as the special token. Nothing is added, truncated or
  padded, even if a published file has such settings.

  Args:
    tokenizer: the library's object, which is changed.
    tokens: {key of NAMES: special token}, for those that are not to be looked up in NAMES.
    ends: further ids that end an output.
    template: whether `prefix` and `suffix` come from the template in the file; otherwise they are
      empty.
    chat_template: Jinja template of conversations; '' if there is none.

  Attributes:
    size: number of ids N, special tokens included; every id is in [0, N), and some may be unused.
    trained_size: the same without tokens that were added after training.
    pad, bos, eos, unk, mask: ids, or None if the vocabulary has no such token.
    ends: all ids that end an output, also eos.
    prefix, suffix: ids that a published model expects around each text.
    sentinels: ids of <extra_id_0>, <extra_id_1>, ..., which replace masked spans (T5).
    settings: the arguments that are not in tokenizer.json.
  """

  pad: Any  # int or None; Any, so that callers need not check at every use
  bos: Any
  eos: Any
  mask: Any

  def __init__(
    self,
    tokenizer: tokenizers.Tokenizer,
    tokens: Mapping[str, str | None] = MappingProxyType({}),
    ends: Sequence[int] = (),
    template: bool = False,
    chat_template: str = '',
  ):
    tokenizer.encode_special_tokens = True  # "encode them like other text"; the file lacks it
    tokenizer.no_truncation()
    tokenizer.no_padding()
    self._tokenizer = tokenizer
    self.settings = {'tokens': dict(tokens), 'ends': tuple(ends), 'template': template}
    self.chat_template = chat_template
    self._ids = tokenizer.get_vocab()
    self.size: int = max(self._ids.values(), default=-1) + 1
    trained = tokenizer.get_vocab(with_added_tokens=False)
    self.trained_size: int = max(trained.values(), default=-1) + 1
    candidates = {name: (tokens[name],) if name in tokens else NAMES[name] for name in NAMES}
    self.pad, self.bos, self.eos, self.unk, self.mask = (
      next((self._ids[token] for token in names if token in self._ids), None)
      for names in candidates.values()
    )
    if ends and 'eos' not in tokens:
      self.eos = ends[0]
    self.ends = tuple(i for i in dict.fromkeys((self.eos, *ends)) if i is not None)
    sentinels = (self._ids.get(SENTINEL.format(i)) for i in itertools.count())
    self.sentinels: list[Any] = list(itertools.takewhile(lambda i: i is not None, sentinels))
    self.prefix, self.suffix = self._template() if template else ([], [])

  def _template(self) -> tuple[list[int], list[int]]:
    """Return the ids that the file's template puts before and after a text."""
    encoding = self._tokenizer.encode('a', add_special_tokens=True)
    mask, ids = encoding.special_tokens_mask, encoding.ids
    text = [i for i, special in enumerate(mask) if not special]
    return (ids[: text[0]], ids[text[-1] + 1 :]) if text else ([], [])

  def token_id(self, token: str) -> int:
    """Return the id of a token such as '<|im_end|>'; raise ValueError if there is none."""
    if token not in self._ids:
      near = difflib.get_close_matches(token, self._ids, n=1)
      raise ValueError(
        f'the vocabulary has no {token!r}{f"; there is {near[0]!r}" if near else ""}'
      )
    return self._ids[token]

  def encode(self, text: str) -> list[int]:
    """Return the ids of the pieces of `text`, without bos and eos."""
    return self._tokenizer.encode(_whole(text), add_special_tokens=False).ids

  @functools.cached_property
  def special_names(self) -> list[str]:
    """The special tokens as text, as in chat templates."""
    added = self._tokenizer.get_added_tokens_decoder().values()
    return [token.content for token in added if token.special]

  def encode_with_specials(self, text: str) -> list[int]:
    """Return the ids of a text in which '<s>' and others are encoded as special tokens."""
    return self._with_specials.encode(_whole(text), add_special_tokens=False).ids

  @functools.cached_property
  def _with_specials(self) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(self._tokenizer.to_str())

  def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
    """Return the ids of each text as `encode` does, computed on all cores."""
    texts = list(map(_whole, texts))
    encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]

  def encode_spans(self, texts: Iterable[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Return for each text its ids, and the (start, end) of each id in characters of the text."""
    encodings = self._tokenizer.encode_batch(list(map(_whole, texts)), add_special_tokens=False)
    return [(encoding.ids, encoding.offsets) for encoding in encodings]

  @property
  def specials(self) -> list[int]:
    """The ids of pad, bos, eos, unk, mask, the sentinels and `ends`, without repetition."""
    ids = (self.pad, self.bos, self.eos, self.unk, self.mask, *self.sentinels, *self.ends)
    return [i for i in dict.fromkeys(ids) if i is not None]

  @property
  def fingerprint(self) -> str:
    """The SHA-256 of the vocabulary and all rules."""
    given = json.dumps(self.settings) if any(self.settings.values()) else ''
    return hashlib.sha256((self._tokenizer.to_str() + given).encode()).hexdigest()

  @functools.cached_property
  def begins_word(self) -> list[bool]:
    """For each id, whether it is marked as the beginning of a word: 'Ġ', '▁', or no '##'.

    The first word of a text may have no mark. False for all ids of vocabularies without marks.
    """
    pieces = [self._tokenizer.id_to_token(i) or '' for i in range(self.size)]
    if any(piece.startswith('##') for piece in pieces):
      return [not piece.startswith('##') for piece in pieces]
    return [piece.startswith(('Ġ', '▁')) for piece in pieces]

  @functools.cached_property
  def token_bytes(self) -> list[bytes]:
    """For each id, the bytes that it appends to a text; for a special token those of its name."""
    names = [self._tokenizer.id_to_token(i) for i in range(self.size)]
    if isinstance(self._tokenizer.decoder, decoders.ByteLevel):
      return [
        bytes(_BYTE[c] for c in name) if _BYTE.keys() >= {*name} else name.encode()
        for name in (name or '' for name in names)
      ]
    before = self.encode('a')[-1:]
    start = len(self._tokenizer.decode(before))
    ids = [[*before, i] for i, name in enumerate(names) if name is not None]
    texts = self._tokenizer.decode_batch(ids, skip_special_tokens=False)
    result = [b''] * self.size
    for (*_, i), text in zip(ids, texts, strict=True):
      byte = re.fullmatch('<0x([0-9A-F]{2})>', names[i] or '')
      result[i] = bytes.fromhex(byte[1]) if byte else text[start:].encode()
    return result

  def decode(self, ids: Iterable[SupportsIndex]) -> str:
    """Return the text of ids up to the first end token, without special tokens.

    Bytes that are not UTF-8 become U+FFFD. If bos is eos, as in GPT-2, pass ids without bos.
    """
    before_end = itertools.takewhile(lambda i: i not in self.ends, map(int, ids))
    return self._tokenizer.decode(list(before_end), skip_special_tokens=True)

  def pieces(self, ids: Iterable[SupportsIndex]) -> list[str]:
    """Return a readable text for each id: ' thé' for 'Ġthé', '<F0 9F>' for part of a character."""
    return [self._piece(int(i)) for i in ids]

  def _piece(self, i: int) -> str:
    piece = self._tokenizer.id_to_token(i) if i >= 0 else None
    if piece is None and 0 <= i < self.size:
      return f'<unused {i}>'  # a gap in the vocabulary
    if piece is None:
      raise ValueError(f'no token has the id {i}; this vocabulary has ids 0 to {self.size - 1}.')
    # with this decoder tokens are in the alphabet of bytes, except those added after training
    if not isinstance(self._tokenizer.decoder, decoders.ByteLevel) or not _BYTE.keys() >= {*piece}:
      return piece
    raw = bytes(_BYTE[c] for c in piece)
    try:
      return raw.decode('utf-8')
    except UnicodeDecodeError:
      return f'<{raw.hex(" ").upper()}>'

  def save(self, path: str | os.PathLike) -> None:
    """Write a tokenizer.json, which `load` and the `tokenizers` library can read.

    The chat template, if there is one, is written into a file in the same folder.
    """
    path = pathlib.Path(path)
    path.write_text(self._tokenizer.to_str(pretty=True) + '\n', encoding='utf-8')
    if self.chat_template:
      (path.parent / CHAT_TEMPLATE).write_text(self.chat_template, encoding='utf-8')

  @classmethod
  def load(cls, path: str | os.PathLike, **settings: Any) -> 'Tokenizer':
    """Read a `tokenizer.json`, ours or a published one.

    Args:
      path: of the file. A chat template and the settings of a run in the same folder are read,
        too.
      settings: arguments of the constructor.

    Raises:
      ValueError: the file does not exist, cannot be read, or has a regular expression that may not
        terminate.
    """
    cure = (
      'give the file that Tokenizer.save or save_pretrained wrote; a sentencepiece .model has to '
      'be converted.'
    )
    with naming(f'{os.fspath(path)}: not a readable tokenizer.json', cure):
      if not os.path.isfile(path):
        raise ValueError('there is no such file')
      text = pathlib.Path(path).read_text(encoding='utf-8')
      template = pathlib.Path(path).parent / CHAT_TEMPLATE
      if template.is_file():
        settings = {'chat_template': template.read_text(encoding='utf-8')} | settings
      if (file := pathlib.Path(path).with_name(SETTINGS)).is_file():
        settings = json.loads(file.read_bytes()) | settings
      for pattern in _patterns(json.loads(text)):
        if _repeats_repetitions(pattern):
          raise ValueError(
            f'the pattern {pattern!r} has nested repetitions, as in (a+)+, and may never end'
          )
      result = cls(tokenizers.Tokenizer.from_str(text), **settings)
      if result.size > max(MAX_SIZE, 4 * len(result._ids)):
        raise ValueError(f'it has {len(result._ids)} tokens, with ids up to {result.size - 1}')
      return result

  def __reduce__(self):
    # the library's pickle lacks the settings that the constructor makes
    return Tokenizer, (self._tokenizer, *self.settings.values(), self.chat_template)

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
  """Train a tokenizer on texts; the same texts give the same tokenizer.

  Texts are normalized to Unicode NFC, except for 'bytes'. Without `lowercase`, decode(encode(x)) is
  x for 'bytes' and NFC(x) for 'bpe'. 'characters' loses characters that are not in the texts
  (<unk>), 'unigram' these and a leading space, 'wordpiece' these and the spacing.

  Args:
    texts: sentences or documents; a piece is always within one of them.
    kind: 'bpe' (pairs of bytes merged by frequency), 'bytes' (256 ids and the specials, not
      trained), 'characters' (each its own token), 'unigram' (by likelihood), 'wordpiece'.
    vocab: the largest number of ids, with special tokens, without sentinels; few texts give fewer.
    lowercase: whether to lower-case, character by character (unlike str.lower for a final sigma).
    split_digits: whether each digit is its own token; always so for 'bytes' and 'characters'.
    sentinels: number of tokens <extra_id_0>, ... after the others, so that `size` may be vocab +
      sentinels. The first is also the mask.

  Raises:
    ValueError: an unknown kind, no text, or a vocab that cannot hold the alphabet.

  BPE: Sennrich et al. 2016, on bytes as in GPT-2; unigram: Kudo 2018; WordPiece as in BERT.
  """
  if kind not in KINDS:
    raise ValueError(f'tokenizer kind {kind!r} is unknown; choose one of {", ".join(KINDS)}.')
  texts = [texts] if isinstance(texts, str) else list(map(_whole, texts))
  if not texts and kind != 'bytes':
    raise ValueError(f'no text to train a {kind!r} tokenizer on; is the corpus or split empty?')
  unicode = [] if kind == 'bytes' else [normalizers.NFC()]
  normalizer = normalizers.Sequence(unicode + [normalizers.Lowercase()] * lowercase)
  trainer = None
  if kind == 'bytes':
    tokenizer = _without_merges(sorted(_ALPHABET, key=_BYTE.__getitem__))  # so id = byte + 4
  elif kind == 'characters':
    tokenizer = _without_merges(sorted(set().union(*map(normalizer.normalize_str, texts))))
  else:
    tokenizer, trainer = _trainable(kind, vocab)
  tokenizer.normalizer = normalizer
  tokenizer.pre_tokenizer, tokenizer.decoder = _splitting(kind, split_digits)
  if trainer:
    # unigram raises an error if the alphabet does not fit; the other kinds then exceed vocab
    with naming(f'vocab={vocab}, kind={kind!r}', 'Raise vocab'):
      tokenizer = _learn(tokenizer, trainer, kind, texts)
  if (size := tokenizer.get_vocab_size()) > vocab:
    raise ValueError(
      f'vocab={vocab} is too small: the alphabet of {kind!r} on this text and the special tokens '
      f"take {size} ids. Raise vocab to at least that; 'bpe' needs 260 for any text."
    )
  tokenizer.add_special_tokens([SENTINEL.format(i) for i in range(sentinels)])
  return Tokenizer(tokenizer)


def _learn(tokenizer: Any, trainer: Any, kind: str, texts: list[str]) -> Any:
  """Return the tokenizer, trained on the texts."""
  if kind == 'wordpiece':
    trainer = _with_sorted_letters(tokenizer, texts, trainer)
  shortened: Iterable[str] = map(_without_long_words, texts)
  if kind == 'unigram':
    shortened = _without_late_words(shortened)
  tokenizer.train_from_iterator(shortened, trainer)
  return tokenizer if kind == 'bpe' else _in_sorted_order(tokenizer)


def _patterns(part: Any) -> Iterator[str]:
  """Yield the regular expressions of a tokenizer.json."""
  for key, value in part.items() if isinstance(part, dict) else enumerate(part):
    if key == 'Regex' and isinstance(value, str):
      yield value
    elif isinstance(value, dict | list) and key not in ('vocab', 'merges', 'added_tokens'):
      yield from _patterns(value)


def _repeats_repetitions(pattern: str) -> bool:
  """Return whether a repeated group contains a repetition, as in (a+)+ or (?:a*b?)*.

  Matching such a pattern can take time exponential in the length of the text.
  """
  # whether each open group, and the last closed one, contains an unbounded repetition
  within, closed = [False], False
  for part in re.findall(r'(\\.|\[(?:\\.|[^\]\\])*\]|\(|\)|[*+]|\{\d+,\}|.)', pattern, re.DOTALL):
    repeated = part in ('*', '+') or part.startswith('{') and len(part) > 1
    if repeated and closed:
      return True
    within[-1] |= repeated
    closed = False
    if part == '(':
      within.append(False)
    elif part == ')' and len(within) > 1:
      closed = within.pop()
      within[-1] |= closed
  return False


def _whole(text: str) -> str:
  """Return the text; raise ValueError if it contains half of a surrogate pair."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f'{text[:60]!r} has half a surrogate pair at character {error.start}, which no tokenizer '
      "takes: repair it, as with text.encode(errors='replace').decode()"
    ) from None
  return text


def _without_long_words(text: str) -> str:
  if len(text) <= 1000:
    return text
  return LONG_WORD.sub(r'\1\2\3', unicodedata.normalize('NFC', text))


def _without_late_words(texts: Iterable[str]) -> Iterator[str]:
  """Yield the texts without words after the first ones, whose letters are MAX_LETTERS in all."""
  known: set[str] = set()
  left = MAX_LETTERS
  for text in texts:
    words = text.split(' ')
    for word in words:
      if word not in known and len(word) <= left:
        known.add(word)
        left -= len(word)
    yield ' '.join(word for word in words if word in known)


def _trainable(kind: str, vocab: int) -> tuple[tokenizers.Tokenizer, Any]:
  """Return an untrained tokenizer of a kind, and its trainer."""
  options: dict[str, Any] = dict(
    vocab_size=max(vocab, 0), special_tokens=[*SPECIALS], show_progress=False
  )
  if kind == 'bpe':
    options |= dict(min_frequency=2, initial_alphabet=_ALPHABET)
    return tokenizers.Tokenizer(models.BPE()), trainers.BpeTrainer(**options)
  if kind == 'unigram':
    trainer = trainers.UnigramTrainer(unk_token='<unk>', **options)
    return tokenizers.Tokenizer(models.Unigram()), trainer
  model = models.WordPiece(unk_token='<unk>')
  return tokenizers.Tokenizer(model), trainers.WordPieceTrainer(min_frequency=2, **options)


def _with_sorted_letters(tokenizer: tokenizers.Tokenizer, texts: list[str], trainer: Any) -> Any:
  """Return a trainer that numbers letters within words ('##a') in sorted order.

  The library numbers them in the order of a hash table, which differs in every run, and breaks ties
  between pairs by these numbers. Tokens that are special keep their numbers.
  """
  first = trainers.WordPieceTrainer(vocab_size=0, special_tokens=[*SPECIALS], show_progress=False)
  tokenizer.train_from_iterator(map(_without_long_words, texts), first)
  letters = sorted(tokenizer.get_vocab().keys() - {*SPECIALS})
  return trainers.WordPieceTrainer(
    vocab_size=trainer.vocab_size,
    min_frequency=trainer.min_frequency,
    special_tokens=[*SPECIALS, *letters],
    show_progress=False,
  )


def _in_sorted_order(trained: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
  """Return a trained tokenizer that no longer depends on the order of the library's hash tables.

  In that order unigram computes sums, so that scores differ in their last digits, and gives letters
  that are no pieces the lowest scores, 0.0001 apart.
  """
  file = json.loads(trained.to_str())
  if file['model']['type'] == 'Unigram':
    scores = {piece: score for piece, score in file['model']['vocab'][len(SPECIALS) :]}
    letters = sorted((score, piece) for piece, score in scores.items() if len(piece) == 1)
    steps = np.asarray([score - letters[0][0] for score, _ in letters]) / 1e-4
    lowest = [x for x, n in zip(letters, steps, strict=True) if abs(n - round(n)) < 1e-5]
    names = sorted(piece for _, piece in lowest)
    scores |= {piece: score for piece, (score, _) in zip(names, lowest, strict=True)}
    ordered = sorted((-round(score, 4), piece) for piece, score in scores.items())
    file['model']['vocab'][len(SPECIALS) :] = [(piece, -score) for score, piece in ordered]
  file['added_tokens'] = [t for t in file['added_tokens'] if t['content'] in SPECIALS]
  return tokenizers.Tokenizer.from_str(json.dumps(file))


def _splitting(kind: str, split_digits: bool) -> tuple[Any, Any]:
  """Return how text is split before it is tokenized, and how tokens are joined to text."""
  digits = [pre_tokenizers.Digits(individual_digits=True)] * split_digits
  byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
  # punctuation is split off, as in sentencepiece, so that '</s>' cannot match the special piece
  metaspace = [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
  splits: Any
  splits, decoder = {
    'bytes': ([byte_level], decoders.ByteLevel()),
    'characters': ([], decoders.Fuse()),
    'bpe': ([*digits, byte_level], decoders.ByteLevel()),
    'unigram': ([*metaspace, *digits], decoders.Metaspace()),
    'wordpiece': ([pre_tokenizers.BertPreTokenizer(), *digits], decoders.WordPiece()),
  }[kind]
  return pre_tokenizers.Sequence(splits), decoder


def _without_merges(symbols: Sequence[str]) -> tokenizers.Tokenizer:
  """Return a BPE tokenizer without merges: each symbol is a token of its own."""
  ids = {symbol: i for i, symbol in enumerate((*SPECIALS, *symbols))}
  tokenizer = tokenizers.Tokenizer(models.BPE(ids, [], unk_token='<unk>'))
  tokenizer.add_special_tokens(list(SPECIALS))
  return tokenizer
