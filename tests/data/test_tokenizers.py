"""Tests of data/tokenizers.py."""

import json
import pathlib
import pickle
import subprocess
import sys
import time
import unicodedata

import numpy as np
import pytest
import tokenizers as library

from transformer.data import tokenizers
from transformer.data.tokenizers import Tokenizer, train

CORPUS = [
  'The quick brown fox jumps over the lazy dog, 1984 times.',
  'Zwei junge Männer stehen im Freien; der größere trägt ein Äpfelchen.',
  'Un homme à vélo traverse la rue, là-bas, à 10:35.',
  'a\nb\tc  d "quoted" (brackets) <tags> & 100 % of them',
] * 4
TRICKY = [
  '',
  ' leading and  double   spaces ',
  '\n\ttabs\r\nand\u2028newlines\n',
  '😀👩‍👩‍👧 emoji 🇩🇪',
  'cafe\u0301 n\u0303',  # decomposed: NFC makes one character of two
  'naïve Ωμέγα 日本語 العربية',
  '<s> </s> <pad> <unk> </s>',
  'Ġ▁##Ċ',  # the marks that the libraries write spaces with
  '12 34.5e-6 ٣٤',
  'ABC ÄÖÜ ẞ Σ',
  '\x00\x7f\ufeff',
]


def random_texts(count, seed=0):
  """Any Unicode: characters of all planes but surrogates, which no UTF-8 text has."""
  rng = np.random.default_rng(seed)
  highest = np.array([0x7F, 0x24F, 0x2FFF, 0x10FFFF])
  for _ in range(count):
    points = rng.integers(highest[rng.integers(4, size=12)] + 1)
    yield ''.join(chr(p) for p in points if not 0xD800 <= p < 0xE000)


def nfc(text):
  return unicodedata.normalize('NFC', text)


@pytest.fixture(scope='module', params=tokenizers.KINDS)
def tokenizer(request):
  return train(CORPUS, kind=request.param, vocab=400)


@pytest.mark.parametrize('split_digits', [False, True])
@pytest.mark.parametrize('lowercase', [False, True])
def test_bpe_is_lossless(lowercase, split_digits):
  bpe = train(CORPUS, vocab=400, lowercase=lowercase, split_digits=split_digits)
  for text in [*CORPUS[:4], *TRICKY, *random_texts(200)]:
    expected = ''.join(c.lower() for c in nfc(text)) if lowercase else nfc(text)
    assert bpe.decode(bpe.encode(text)) == expected


def test_bytes_are_utf8_plus_four():
  tokenizer = train([], kind='bytes', vocab=260)
  assert tokenizer.size == 260
  for text in [*CORPUS[:4], *TRICKY, *random_texts(200)]:
    assert tokenizer.encode(text) == [b + 4 for b in text.encode()]
    assert tokenizer.decode(tokenizer.encode(text)) == text  # not even NFC


def test_every_character_is_its_own_token():
  tokenizer = train(CORPUS, kind='characters', vocab=400)
  alphabet = sorted(set(nfc(''.join(CORPUS))))
  assert tokenizer.size == 4 + len(alphabet)
  for text in CORPUS[:4]:
    assert tokenizer.encode(text) == [4 + alphabet.index(c) for c in nfc(text)]
    assert tokenizer.decode(tokenizer.encode(text)) == nfc(text)
  assert tokenizer.encode('a日本b') == [*tokenizer.encode('a'), 3, 3, *tokenizer.encode('b')]


@pytest.mark.parametrize('kind', ['unigram', 'wordpiece'])
def test_word_kinds_keep_the_words(kind):
  tokenizer = train(CORPUS, kind=kind, vocab=400)
  text = 'Zwei Männer stehen im Freien'
  assert tokenizer.decode(tokenizer.encode(text)) == text
  assert tokenizer.unk in tokenizer.encode('日')


def test_specials_and_sizes(tokenizer):
  assert (tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.unk) == (0, 1, 2, 3)
  assert 4 < tokenizer.size <= 400
  ids = [i for text in [*CORPUS, *TRICKY] for i in tokenizer.encode(text)]
  assert max(ids) < tokenizer.size


def test_text_never_becomes_a_special_token(tokenizer):
  for text in ['a</s>b', '<s>', '<pad><pad>', 'x <s> y', '</s>']:
    assert not {0, 1, 2} & set(tokenizer.encode(text))


def test_decode_stops_at_eos_and_skips_specials(tokenizer):
  ids = tokenizer.encode('fox')
  text = tokenizer.decode(ids)
  assert text == 'fox'
  assert tokenizer.decode([0, 1, *ids, 0, 2, *ids, 2]) == text
  assert tokenizer.decode(np.array([1, *ids, 2, 0, 0], np.int32)) == text
  assert tokenizer.decode([2, *ids]) == tokenizer.decode([]) == ''


def test_encode_batch_equals_encode(tokenizer):
  texts = CORPUS + TRICKY
  assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
  assert tokenizer.encode_batch(t for t in texts[:2]) == tokenizer.encode_batch(texts[:2])
  assert tokenizer.encode_batch([]) == []


def test_save_load_and_pickle_change_nothing(tokenizer, tmp_path):
  tokenizer.save(tmp_path / 'tokenizer.json')
  for same in (Tokenizer.load(tmp_path / 'tokenizer.json'), pickle.loads(pickle.dumps(tokenizer))):
    assert repr(same) == repr(tokenizer)
    for text in [*CORPUS, *TRICKY]:
      assert same.encode(text) == tokenizer.encode(text)
      assert same.decode(same.encode(text)) == tokenizer.decode(tokenizer.encode(text))


@pytest.mark.parametrize('kind', ['bpe', 'unigram', 'wordpiece', 'bytes', 'characters'])
def test_split_digits(kind):
  tokenizer = train(['in 1984 and 1984 and 2021'] * 9, kind=kind, vocab=300, split_digits=True)
  pieces = tokenizer.pieces(tokenizer.encode('in 1984'))
  assert [p.removeprefix('##') for p in pieces[-4:]] == list('1984')


def test_digits_merge_unless_split():
  tokenizer = train(['in 1984 and 1984 and 2021'] * 9, vocab=300)
  assert tokenizer.pieces(tokenizer.encode('in 1984')) == ['in', ' 1984']


def test_pieces_are_readable():
  bpe = train(['vert thé thé'] * 3, vocab=300)
  assert bpe.pieces(bpe.encode('vert thé\n')) == ['vert', ' thé', '\n']
  assert bpe.pieces([0, 1, 2, 3]) == ['<pad>', '<s>', '</s>', '<unk>']
  raw = train([], kind='bytes')
  assert raw.pieces(raw.encode('aé')) == ['a', '<C3>', '<A9>']
  assert ''.join(raw.pieces(range(4, 132))) == bytes(range(128)).decode()
  for wrong in (-1, raw.size):
    with pytest.raises(ValueError, match=f'{wrong}; .* 0 to 259'):
      raw.pieces([wrong])


@pytest.mark.parametrize('kind', ['bpe', 'bytes', 'characters'])
def test_training_is_deterministic_across_processes(kind, tmp_path):
  script = (
    'import sys; from transformer.data.tokenizers import train\n'
    'train(eval(sys.argv[1]), kind=sys.argv[2], vocab=400).save(sys.argv[3])'
  )
  train(CORPUS, kind=kind, vocab=400).save(tmp_path / 'here.json')
  subprocess.run(
    [sys.executable, '-c', script, repr(CORPUS), kind, tmp_path / 'there.json'],
    check=True,
    cwd=pathlib.Path(__file__).parents[2],
  )
  assert (tmp_path / 'here.json').read_bytes() == (tmp_path / 'there.json').read_bytes()


@pytest.mark.parametrize('kind', tokenizers.KINDS)
@pytest.mark.parametrize('vocab', [-1, 0, 20])
def test_a_vocab_below_the_alphabet_is_refused(kind, vocab):
  with pytest.raises(ValueError, match=f'vocab={vocab}.*Raise vocab'):
    train(CORPUS, kind=kind, vocab=vocab)


def test_the_vocab_named_in_the_error_is_enough():
  assert train(CORPUS, vocab=260).size == 260
  size = train(CORPUS, kind='characters', vocab=400).size
  assert train(CORPUS, kind='characters', vocab=size).size == size
  with pytest.raises(ValueError, match=f'take {size} ids'):
    train(CORPUS, kind='characters', vocab=size - 1)


def test_unknown_kind_and_no_text():
  with pytest.raises(ValueError, match="'word'.*bpe, bytes, characters, unigram, wordpiece"):
    train(CORPUS, kind='word', vocab=400)
  with pytest.raises(ValueError, match='no text'):
    train([], kind='bpe', vocab=400)


@pytest.mark.parametrize('content', [None, '', '{', '{}', '[1]', b'\xff\xfe', '{"model": 3}'])
def test_errors_of_tokenizer_files(content, tmp_path):
  path = tmp_path / 'tokenizer.json'
  if content is not None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(ValueError, match='tokenizer.json: not a readable tokenizer.json'):
    Tokenizer.load(path)


def bert(path):
  names = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a', 'man', '##ly', '.']
  ids = {name: i for i, name in enumerate(names)}
  t = library.Tokenizer(library.models.WordPiece(ids, unk_token='[UNK]'))
  t.normalizer = library.normalizers.BertNormalizer(lowercase=True)
  t.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
  t.post_processor = library.processors.BertProcessing(('[SEP]', 3), ('[CLS]', 2))
  t.decoder = library.decoders.WordPiece()
  t.add_special_tokens(names[:5])
  t.enable_truncation(3)  # published files carry both: neither may reach the ids
  t.enable_padding(length=20)
  t.save(str(path))


def gpt2(path):
  symbols = sorted(library.pre_tokenizers.ByteLevel.alphabet())
  ids = {s: i for i, s in enumerate([*symbols, 'Ġm', '<|endoftext|>'])}
  t = library.Tokenizer(library.models.BPE(ids, [('Ġ', 'm')]))
  t.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
  t.decoder = library.decoders.ByteLevel()
  t.add_special_tokens(['<|endoftext|>'])
  t.save(str(path))


def t5(path):
  pieces = [
    ('<pad>', 0.0),
    ('</s>', 0.0),
    ('<unk>', 0.0),
    ('▁a', -1.0),
    ('▁man', -2.0),
    ('.', -3.0),
  ]
  t = library.Tokenizer(library.models.Unigram(pieces, unk_id=2))
  t.pre_tokenizer = library.pre_tokenizers.Metaspace()
  t.decoder = library.decoders.Metaspace()
  t.post_processor = library.processors.TemplateProcessing('$A </s>', None, [('</s>', 1)])
  t.add_special_tokens(['<pad>', '</s>', '<unk>', '<extra_id_0>'])
  t.save(str(path))


@pytest.mark.parametrize(
  'write, specials, size, pieces, text',
  [
    (bert, (0, 2, 3, 1), 9, ['a', 'man', '##ly', 'man', '.'], 'a manly man.'),
    (gpt2, (None, 257, 257, None), 258, ['a', ' m', 'a', 'n', '.'], 'a man.'),
    (t5, (0, None, 1, 2), 7, ['▁a', '▁man', '.'], 'a man.'),
  ],
)
def test_published_shapes_load(write, specials, size, pieces, text, tmp_path):
  write(tmp_path / 'tokenizer.json')
  tokenizer = Tokenizer.load(tmp_path / 'tokenizer.json')
  assert (tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.unk) == specials
  assert tokenizer.size == size
  ids = tokenizer.encode(text)
  assert tokenizer.pieces(ids) == pieces
  assert tokenizer.encode_batch([text, 'a']) == [ids, tokenizer.encode('a')]
  assert tokenizer.decode([*ids, tokenizer.eos, *ids]) == text


def test_the_file_is_plain_json(tmp_path):
  train(CORPUS, vocab=300).save(tmp_path / 'tokenizer.json')
  content = json.loads((tmp_path / 'tokenizer.json').read_text(encoding='utf-8'))
  assert content['model']['type'] == 'BPE' and len(content['model']['vocab']) == 300


@pytest.mark.parametrize('kind', tokenizers.KINDS)
def test_sentinels_come_last_and_are_not_text(kind):
  tokenizer = train(CORPUS, kind=kind, vocab=400, sentinels=3)
  size = tokenizer.size
  assert tokenizer.sentinels == [size - 3, size - 2, size - 1] and tokenizer.mask == size - 3
  assert not set(tokenizer.encode('a <extra_id_0> b')) & set(tokenizer.sentinels)
  assert train(CORPUS, kind='bytes').sentinels == [] and train(CORPUS, kind='bytes').mask is None


@pytest.mark.parametrize('kind', ['bpe', 'wordpiece', 'unigram'])
def test_words_begin_where_space_was(kind):
  text = 'the theatre then there'
  tokenizer = train([text] * 5, kind=kind, vocab=300)
  begins = [tokenizer.begins_word[i] for i in tokenizer.encode(' ' + text)]
  assert sum(begins) == 4 and begins[0]


def test_spans_are_the_characters_of_the_ids(tokenizer):
  """Ids are those of encode, spans stand in order, and what is between two of them is space."""
  for text in [*CORPUS[:4], 'Un  homme, à vélo.']:
    ((ids, spans),) = tokenizer.encode_spans([text])
    assert ids == tokenizer.encode(text) and len(spans) == len(ids)
    covered = {i for start, end in spans for i in range(start, end)}
    assert all(text[i].isspace() for i in {*range(len(text))} - covered)
    assert [start for start, _ in spans] == sorted(start for start, _ in spans)
    whole = {text[start:end].strip() for start, end in spans}
    assert all(piece in text for piece in whole)


@pytest.mark.parametrize('unit', ['ACGT', 'e\u0301', '-', 'a1\u0301'])
@pytest.mark.parametrize('kind', ['bpe', 'unigram', 'wordpiece'])
def test_a_long_line_without_spaces_is_trained_on_in_no_time(kind, unit):
  texts = [f'plain words {i % 7}' for i in range(40)] + [unit * (200_000 // len(unit))]
  began = time.perf_counter()
  assert train(texts, kind=kind, vocab=400).size <= 400
  assert time.perf_counter() - began < 5


@pytest.mark.parametrize('kind', ['bpe', 'wordpiece', 'unigram'])
def test_the_same_texts_make_the_same_tokenizer(kind):
  texts = [*CORPUS, *random_texts(40)]
  first, *others = [train(texts, kind=kind, vocab=800).fingerprint for _ in range(4)]
  assert others == [first] * 3


def test_unigram_is_trained_on_a_bounded_number_of_different_letters(monkeypatch):
  """Words that are known stay in later texts, too: they are counted, and cost no time."""
  monkeypatch.setattr(tokenizers, 'MAX_LETTERS', 10)
  texts = ['four four five', 'too long for it now', 'five  it', 'x four']
  assert [*tokenizers._without_late_words(texts)] == ['four four five', 'it', 'five  it', 'four']
