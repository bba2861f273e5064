"""A page about one or more runs: curves, metrics, samples and configs, in one HTML file."""

import io
import itertools
import os
import pathlib
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from typing import Any

from transformer.training import comparison
from transformer.training.config import for_task
from transformer.training.workdir import Workdir, flatten

SAMPLES = 8  # shown of each split


def page(folders: Sequence[str], rows: dict[str, dict[str, Any]], near: pathlib.Path) -> str:
  """Return the page as HTML that needs no other file.

  Args:
    folders: workdirs of the runs.
    rows: from comparison.compare.
    near: the folder where the page will be; its links to attention pages are relative to it.
  """
  figure = io.StringIO()
  comparison.figure(folders).savefig(figure, format='svg')
  drawing = figure.getvalue()
  metrics, parts = _compared(rows, parts=False), _compared(rows, parts=True)
  body = ['<h2>Curves</h2>', drawing[drawing.index('<svg') :], '<h2>Metrics</h2>']
  body += [_table(('', *rows), metrics)]
  if parts:
    body += [f'<details><summary>Of parts</summary>{_table(("", *rows), parts)}</details>']
  for folder in folders:
    body += [f'<h2>{escape(str(folder))}</h2>', *_samples(Workdir(folder).path)]
    files = sorted(Workdir(folder).path.glob('attention/*.html'))
    links = [f'<a href="{escape(os.path.relpath(file, near))}">{file.stem}</a>' for file in files]
    body += ['<h3>Attention</h3>', ' '.join(links)] if links else []
    config = Workdir(folder).read_config()
    body += ['<h3>Config, where it is not the default</h3>', _table((), _changed(config))]
    whole = [(key, repr(value)) for key, value in flatten(config).items()]
    body += [f'<details><summary>Whole config</summary>{_table((), whole)}</details>']
  title = 'Runs' if len(folders) > 1 else f'Run {folders[0]}'
  template = resources.files(__package__).joinpath('report.html').read_text('utf-8')
  return template.replace('{{title}}', escape(title)).replace('{{body}}', '\n'.join(body))


def _changed(config: dict[str, Any]) -> list[tuple[str, str]]:
  """Return (key, value) of a config where the value is not the default."""
  default = flatten(for_task(config['task'], modality=config['model']['modality']).to_dict())
  return [(key, repr(value)) for key, value in flatten(config).items() if value != default.get(key)]


def _compared(rows: dict[str, dict[str, Any]], *, parts: bool) -> list[tuple[str, ...]]:
  """Return the lines of the metrics table: of splits, or of their parts (such as locales)."""
  keys = dict.fromkeys(key for row in rows.values() for key in row)
  return [
    (key, *(comparison.text(row.get(key, '')) for row in rows.values()))
    for key in keys
    if (key.count('/') > 1) == parts
  ]


def _samples(folder: pathlib.Path) -> list[str]:
  """Return tables in HTML of the first predictions of every split beside their references."""
  parts = []
  for file in sorted(folder.glob('predictions/*.reference.txt')):
    split = file.name.removesuffix('.reference.txt')
    with file.open() as references, (file.parent / f'{split}.txt').open() as answers:
      pairs = [
        (want.rstrip('\n'), got.rstrip('\n'))
        for want, got in itertools.islice(zip(references, answers, strict=False), SAMPLES)
      ]
    parts += [f'<h3>Samples of {escape(split)}</h3>', _table(('reference', 'prediction'), pairs)]
  return parts


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
  """Return a table in HTML, with a heading in each line; predictions that are wrong are marked."""
  top = ''.join(f'<th scope="col">{escape(name)}</th>' for name in head)
  marked = tuple(head) == ('reference', 'prediction')
  body = ''
  for first, *rest in lines:
    kind = ' class="wrong"' if marked and rest != [first] else ''
    cells = ''.join(f'<td{kind}>{escape(cell)}</td>' for cell in rest)
    body += f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>\n'
  return (
    f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
  )
