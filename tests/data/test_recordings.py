"""Tests of the corpora of speech: recordings, frames, fsdd, yesno, keypad and Concatenated."""

import dataclasses
import functools
import io
import itertools
import pickle
import tarfile

import numpy as np
import pytest

from transformer.data import audio, corpora
from transformer.data.concatenation import RATE, Concatenated
from transformer.data.digits import DIGITS, keypad
from transformer.data.yesno import split_words

# the digit of each pair of a low and a high frequency in Hz: dual-tone signalling of telephones
KEYS = {
  **{(697, 1209): 1, (697, 1336): 2, (697, 1477): 3},
  **{(770, 1209): 4, (770, 1336): 5, (770, 1477): 6},
  **{(852, 1209): 7, (852, 1336): 8, (852, 1477): 9},
  (941, 1336): 0,
}


def tone(seconds, hertz=440.0, amplitude=0.5):
  return amplitude * np.sin(2 * np.pi * hertz * np.arange(int(RATE * seconds)) / RATE)


def archive(path, sounds):
  """Write a tar file of wav files that lie in folder/."""
  with tarfile.open(path, 'w:xz' if path.suffix == '.xz' else 'w') as opened:
    for name, sound in sounds.items():
      content = audio.encode(sound, RATE)
      info = tarfile.TarInfo(f'folder/{name}')
      info.size = len(content)
      opened.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize('kind', ['folder', '.tar', '.tar.xz'])
def test_recordings_with_a_table(kind, tmp_path):
  sounds = {f'u{i}.wav': tone(0.1 + 0.01 * i) for i in range(3)}
  if kind == 'folder':
    (tmp_path / 'train').mkdir()
    for name, sound in sounds.items():
      audio.write(tmp_path / 'train' / name, sound, RATE)
  else:
    archive(tmp_path / f'train{kind}', sounds)
  (tmp_path / 'train.tsv').write_text('id\tsec\ttext\nu2\t1\tb a\nu0.wav\t1\ta\nu1\t1\tc\n')
  load = functools.partial(corpora.load, 'recordings', dir=tmp_path, inputs='id', targets='text')
  source = load('train')
  assert [example['targets'] for example in source] == ['b a', 'a', 'c']
  assert [example['name'] for example in source] == ['u2.wav', 'u0.wav', 'u1.wav']
  assert [len(audio.read(e['inputs'], RATE)) for e in source] == [960, 800, 880]
  assert [e['targets'] for e in load('train[1:]')] == ['a', 'c']
  assert [e['targets'] for e in load('train[-3:-1]')] == ['b a', 'a']
  with pytest.raises(ValueError, match=r"'train\[5:\]' of recordings.*another part"):
    load('train[5:]')
  with pytest.raises(ValueError, match=r'train\[1\].*write train, train'):
    load('train[1]')
  with pytest.raises(FileNotFoundError, match=r'val\.tar.*There now: train'):
    load('val')
  with (tmp_path / 'train.tsv').open('a') as table:
    table.write('u9\t1\td\n')
  with pytest.raises(ValueError, match=r"no sound 'u9'.*u0\.wav, u1\.wav"):
    load('train')


def test_frames_are_cut_as_their_lengths_say(tmp_path, rng):
  lengths = np.array([3, 1, 5], np.int32)
  feats = rng.normal(size=(9, 13)).astype(np.float32)
  np.savez(tmp_path / 'train.npz', feats=feats, lengths=lengths)
  (tmp_path / 'train.tsv').write_text('a\tone\nb\ttwo\nc\tthree\n')
  source = corpora.load('frames', 'train', dir=tmp_path)
  assert [e['targets'] for e in source] == ['one', 'two', 'three']
  assert [e['name'] for e in source] == ['a', 'b', 'c']
  for example, part in zip(source, np.split(feats, [3, 4]), strict=True):
    np.testing.assert_array_equal(example['inputs'], part)
  np.savez(tmp_path / 'train.npz', feats=feats[:8], lengths=lengths)
  with pytest.raises(ValueError, match='3 lengths, 9 in all, for 3 transcripts and 8 frames'):
    corpora.load('frames', 'train', dir=tmp_path)


def test_fsdd_is_in_the_order_of_indices(tmp_path):
  names = [f'{d}_{s}_{i}.wav' for d, s, i in itertools.product((7, 0), 'ba', (10, 9))]
  archive(tmp_path / 'train.tar', {name: tone(0.1) for name in names})
  source = corpora.load('fsdd', 'train', dir=tmp_path)
  assert [e['name'] for e in source] == [
    *('0_a_9.wav', '0_b_9.wav', '7_a_9.wav', '7_b_9.wav'),
    *('0_a_10.wav', '0_b_10.wav', '7_a_10.wav', '7_b_10.wav'),
  ]
  assert [e['targets'] for e in source] == ['zero', 'zero', 'seven', 'seven'] * 2
  assert [e['speaker'] for e in source] == ['a', 'b'] * 4
  spoken = corpora.load('fsdd', 'train[1:3]', dir=tmp_path, targets='speaker: digit')
  assert [e['targets'] for e in spoken] == ['b: zero', 'a: seven']
  strings = corpora.load('fsdd_strings', 'train[:4]', dir=tmp_path)
  parts = [part for e in strings for part in e['name'].split('+')]
  # digits of the slice only
  assert set(parts) == {
    '0_a_9.wav',
    '0_b_9.wav',
    '7_a_9.wav',
    '7_b_9.wav',
  }


def words_of_two_speakers():
  words = [
    {'inputs': np.float32(tone(0.05 + 0.01 * i, 300 + 40 * i)), 'targets': f'w{i}', 'name': str(i)}
    for i in range(6)
  ]
  for i, word in enumerate(words):
    word['speaker'] = 'ab'[i % 2]
  return words


def test_concatenated_are_recordings_of_one_speaker_with_pauses():
  words = words_of_two_speakers()
  source = Concatenated(words, words=(2, 4), pause=0.1, size=300, seed=5)
  counts = set()
  for example in source:
    said = [words[int(i)] for i in example['name'].split('+')]
    assert example['targets'] == ' '.join(word['targets'] for word in said)
    assert len({word['speaker'] for word in said}) == 1
    counts.add(len(said))
    sound = audio.read(example['inputs'], RATE)
    pauses = len(sound) - sum(len(word['inputs']) for word in said)
    assert 0 <= pauses <= 0.1 * RATE * (len(said) + 1)
  assert counts == {2, 3, 4}


def test_concatenated_recordings_stand_in_the_order_of_the_text():
  words = words_of_two_speakers()
  source = Concatenated(words, words=(2, 4), pause=0.1, size=300, seed=5)
  orders = [(e, e['name'].split('+')) for e in source]
  example, order = next((e, order) for e, order in orders if len({*order}) == len(order) == 3)
  sound, start = audio.read(example['inputs'], RATE), 0
  for i in order:  # each is where it correlates best, after the end of the one before
    word = words[int(i)]['inputs']
    fit = np.correlate(sound[start:], word) / (word @ word)
    assert fit.max() == pytest.approx(1, abs=0.05)  # noise is added to the whole
    start += np.argmax(fit) + len(word)


def test_concatenated_depend_on_the_seed_alone():
  source = Concatenated(words_of_two_speakers(), words=(2, 4), pause=0.1, size=300, seed=5)
  assert pickle.loads(pickle.dumps(source))[np.int64(7)] == source[7]
  other = dataclasses.replace(source, seed=6)
  assert [e['targets'] for e in other] != [e['targets'] for e in source]
  with pytest.raises(IndexError):
    source[300]


def test_yesno_and_new_strings_of_its_words(tmp_path, rng):
  def spoken(name):  # no is low, yes is high; between them faint noise
    parts = [rng.normal(size=RATE // 2) * 1e-3]
    for word in name[:-4].split('_'):
      parts += [tone(0.3, (300, 900)[int(word)]), rng.normal(size=RATE // 3) * 1e-3]
    return np.concatenate(parts)

  names = ['0_1_1_0.wav', '0_0_1_0.wav', '0_0_0_1.wav']
  archive(tmp_path / 'train.tar', {name: spoken(name) for name in names})
  source = corpora.load('yesno', 'train', dir=tmp_path)
  assert [e['name'] for e in source] == sorted(names)
  assert [e['targets'] for e in source] == ['no no no yes', 'no no yes no', 'no yes yes no']
  for example in source:
    words = split_words(example)
    assert ' '.join(word['targets'] for word in words) == example['targets']
    for word in words:
      # a tone of 0.3 s, 0.1 s kept on each side, and what the window of loudness (0.26 s) blurs
      assert 0.45 * RATE < len(word['inputs']) < 0.85 * RATE
      peak = np.argmax(np.abs(np.fft.rfft(word['inputs']))) * RATE / len(word['inputs'])
      assert abs(peak - {'no': 300, 'yes': 900}[word['targets']]) < 20
  assert split_words(dict(source[0], targets='no no no no yes')) == []  # fewer pieces
  joined = corpora.load('yesno', 'joined[:1]', dir=tmp_path)
  assert len(joined) == 8 * 4  # eight strings for each word of the recording
  assert any(e['targets'].startswith('yes') for e in joined)


def test_keypad_tones_are_those_of_its_digits():
  for split in ('train', 'val', 'test'):
    for example in keypad(split)[:40]:
      sound = example['inputs']
      spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), RATE))  # 1 Hz a bin
      low = min((697, 770, 852, 941), key=lambda f: abs(f - 600 - np.argmax(spectrum[600:1075])))
      high = min((1209, 1336, 1477), key=lambda f: abs(f - 1075 - np.argmax(spectrum[1075:1700])))
      assert DIGITS[KEYS[low, high]] == example['targets']
  sounds = [keypad(split)[3]['inputs'] for split in ('train', 'val')]
  assert len(sounds[0]) != len(sounds[1])
  source = corpora.load('keypad_strings', 'val')
  assert len(source) == 60 and 3 <= len(source[0]['targets'].split()) <= 7
  said = {e['targets'] for e in source}
  assert len(said & {e['targets'] for e in corpora.load('keypad_strings', 'test')}) < 5
  assert corpora.load('keypad', 'val')[7]['targets'] == 'seven'
  with pytest.raises(ValueError, match="unknown split 'dev' of keypad: take train, val"):
    corpora.load('keypad_strings', 'dev')


def test_errors_of_recordings(tmp_path):
  for name in ('fsdd', 'yesno'):
    (tmp_path / name / 'train').mkdir(parents=True)
    (tmp_path / name / 'train' / 'README').write_text('notes count for nothing')
    with pytest.raises(ValueError, match='no file that ends in .wav'):
      corpora.load(name, 'train', dir=tmp_path / name)
    (tmp_path / name / 'train' / 'one.wav').write_bytes(b'')
    with pytest.raises(ValueError, match='one.wav of train is not named'):
      corpora.load(name, 'train', dir=tmp_path / name)
    (tmp_path / name / 'train' / 'more.wav').mkdir()
    (tmp_path / name / 'train' / 'more.wav' / 'one.wav').write_bytes(b'')
    with pytest.raises(ValueError, match='two sounds of train are called one.wav'):
      corpora.load(name, 'train', dir=tmp_path / name)
  (tmp_path / 'broken.tar').write_bytes(b'not long')
  with pytest.raises(ValueError, match=r'broken.tar: broken archive'):
    corpora.load('fsdd', 'broken', dir=tmp_path)


def test_recordings_of_the_data_sets(real_data):
  train = corpora.load('fsdd', 'train', dir=real_data('fsdd'))
  assert (
    len(train) == 2700 and len(corpora.load('fsdd', 'test_visible', dir=real_data('fsdd'))) == 250
  )
  indices = [int(e['name'][:-4].split('_')[2]) for e in train]
  assert indices == sorted(indices)
  assert indices[2399] < 45 <= indices[2400]  # the slices of experiments/fsdd.py divide by index
  source = corpora.load('yesno', 'joined', dir=real_data('yesno'))
  # eight words of each recording but one, whose pauses are too loud to divide it
  assert len(source.recordings) == 8 * 30


def test_a_folder_of_sounds_and_one_table_is_divided_by_their_names(tmp_path):
  (tmp_path / 'clips').mkdir()
  names = [f'{i}.wav' for i in range(60)]
  for name in names:
    (tmp_path / 'clips' / name).write_bytes(b'')
  table = tmp_path / 'validated.tsv'
  table.write_text('path\tsentence\n' + ''.join(f'{name}\tone\n' for name in names))
  load = lambda split, **columns: corpora.load('recordings', split, dir=tmp_path, **columns)
  found = [load(s, inputs='path', targets='sentence') for s in ('train', 'val', 'test')]
  assert sorted(e['name'] for part in found for e in part) == sorted(names)
  with pytest.raises(ValueError, match='validated.tsv:1: .*seems to be a header'):
    load('train')
  table.unlink()
  with pytest.raises(FileNotFoundError, match='has 0 tables of transcripts'):
    load('train')
