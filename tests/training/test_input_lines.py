"""The lines of --input: whatever file or pipe they come from, and as they come."""

import codecs
import gzip
import os
import threading

import pytest

from transformer.training.input_lines import read_chunks

LINES = ['оne', '', 'two\u2028and', ' 3\x1b[31m']
TEXT = '\n'.join(LINES).encode()


def lines_of(name, size=3):
  return [line for chunk in read_chunks(str(name), size) for line in chunk]


@pytest.mark.parametrize(
  'file, content',
  [
    ('plain.txt', TEXT),
    ('no ending', TEXT + b'\n'),
    ('windows.txt', codecs.BOM_UTF8 + TEXT.replace(b'\n', b'\r\n')),
    ('packed.txt.gz', gzip.compress(TEXT, mtime=0)),
    ('[a] *.txt', TEXT),
  ],
)
def test_lines_of_files_are_read_in_order(tmp_path, file, content, monkeypatch):
  (tmp_path / file).write_bytes(content)
  assert lines_of(tmp_path / file) == LINES
  monkeypatch.setenv('HOME', str(tmp_path))
  assert lines_of(f'~/{file}') == LINES


def test_lines_of_a_named_pipe_are_read(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  writer = threading.Thread(target=lambda: (tmp_path / 'pipe').write_bytes(TEXT))
  writer.start()
  assert lines_of(tmp_path / 'pipe') == LINES
  writer.join()


def test_a_line_is_given_before_the_next_has_arrived():
  reading, writing = os.pipe()
  try:
    chunks = read_chunks(f'/dev/fd/{reading}', 16)
    for text in ('first', 'second'):
      os.write(writing, f'{text}\n'.encode())
      assert next(chunks) == [text]
    os.write(writing, b'third\nfourth\n')
    os.close(writing)
    assert [line for chunk in chunks for line in chunk] == ['third', 'fourth']
  finally:
    os.close(reading)


def test_a_line_of_another_encoding_costs_itself_alone(tmp_path):
  (tmp_path / 'mixed').write_bytes(b'a\n\xe4\nb\n')
  first, error, last = lines_of(tmp_path / 'mixed')
  assert (first, last) == ('a', 'b')
  assert isinstance(error, ValueError) and 'not UTF-8' in str(error)


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda path: path.write_bytes('a\nb\n'.encode('utf-16')), 'UTF-16'),
    (lambda path: path.write_bytes(gzip.compress(TEXT, mtime=0)[:-9]), 'EOFError'),
    (lambda path: path.mkdir(), 'no file'),
    (lambda path: None, 'no file'),
  ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, make, words):
  path = tmp_path / 'lines.gz' if words == 'EOFError' else tmp_path / 'lines'
  make(path)
  with pytest.raises((ValueError, OSError), match=f'--input={path}.*{words}'):
    lines_of(path)
