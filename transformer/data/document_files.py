"""Files of documents, for language modeling: JSONL, parquet, or text with a document on each line.

`<split>.jsonl`, `<split>.parquet` or `<split>.txt` in a folder, or a single file, which is divided
by a hash of the texts (see `splits.split_by_hash`). All but parquet may end in .gz, .xz or .bz2.
"""

import pathlib
from collections.abc import Iterator

from transformer.data.reading import check_field, naming, plain_name, read_lines, read_objects
from transformer.data.splits import split_by_hash
from transformer.data.text_files import file_of, some

ROWS = 1024  # rows of a parquet file that are read at once


def documents(path: pathlib.Path, split: str, targets: str) -> Iterator[dict[str, str]]:
  """Yield {'targets': text} for the documents of a split that are not blank.

  The file is read piece by piece.

  Args:
    path: a folder or a file.
    split: its name.
    targets: key or column of the text; 'targets' means 'text'.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file has another format, or no document of the split.
  """
  key = 'text' if targets == 'targets' else targets
  file, one_file = file_of(path, split, ['.jsonl', '.parquet', '.txt'])
  read = {'.jsonl': _read_jsonl, '.parquet': _read_parquet, '.txt': _read_txt}
  kind = pathlib.Path(plain_name(file)).suffix
  if kind not in read:
    raise ValueError(f'{file}: rename it to *.jsonl, *.parquet or *.txt, as its content is.')
  texts = (text for text in read[kind](file, key) if text.strip())
  kept = (text for text in texts if not one_file or split_by_hash(text) == split)
  yield from ({'targets': text} for text in some(kept, file, split))


def _read_jsonl(file: pathlib.Path, key: str) -> Iterator[str]:
  for number, row in read_objects(file, key):
    with naming(f'{file}:{number}', 'give it a text'):
      text = check_field(row, key)
    yield text


def _read_txt(file: pathlib.Path, key: str) -> Iterator[str]:
  return (line for _, line in read_lines(file))


def _read_parquet(file: pathlib.Path, key: str) -> Iterator[str]:
  from pyarrow import parquet

  with naming(file, 'write it with pyarrow.parquet'), parquet.ParquetFile(file) as opened:
    if key not in (columns := opened.schema_arrow.names):
      raise ValueError(f'no column {key!r}, but {", ".join(columns)}: name one in data.target')
    for batch in opened.iter_batches(ROWS, columns=[key]):
      for row in batch.to_pylist():
        yield check_field(row, key)
