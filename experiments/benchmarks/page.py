"""A page with all recorded benchmarks in one HTML file: a table by processor, bars and curves.

python -m experiments.benchmarks.page [--out=runs/benchmarks.html]
"""

import html
import io
import json
import pathlib

from absl import app, flags

from experiments.benchmarks import harness

_OUT = flags.DEFINE_string('out', 'runs/benchmarks.html', 'file to write')
OURS, PEER = '#1f6f8b', '#b0b0b0'


def bars(result: dict) -> str:
  """Return an SVG of the work per second of every variant."""
  from matplotlib.figure import Figure

  variants = sorted(result['variants'].items(), key=lambda item: item[1]['per_s'])
  figure = Figure(figsize=(7, 0.6 + 0.3 * len(variants)), layout='constrained')
  axes = figure.subplots()
  colors = [OURS if name.startswith('ours') else PEER for name, _ in variants]
  rates = axes.barh([n for n, _ in variants], [v['per_s'] for _, v in variants], color=colors)
  axes.bar_label(rates, [f'{v["per_s"]:,.0f}' for _, v in variants], padding=3)
  axes.set_xlabel(result['unit'])
  axes.margins(x=0.15)
  axes.spines[['top', 'right']].set_visible(False)
  return svg(figure)


def curves(result: dict) -> str:
  """Return an SVG of the seconds of a step and of compilation by the size that is varied."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7, 3), layout='constrained')
  for axes, key in zip(figure.subplots(1, 2), ('step_s', 'compile_s'), strict=True):
    for name, points in result['by'].items():
      size = [point[name.split(',')[0]] for point in points]
      axes.loglog([s / size[0] for s in size], [p[key] for p in points], 'o-', label=name)
    axes.set_xlabel('size, relative to the smallest')
    axes.set_title({'step_s': 'step, s', 'compile_s': 'compilation, s'}[key])
  axes.legend(frameon=False)
  return svg(figure)


def losses(result: dict) -> str:
  """Return an SVG of the loss by step."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7, 3), layout='constrained')
  axes = figure.subplots()
  for name, values in result['curves'].items():
    steps = [(i + 0.5) * result['window'] for i in range(len(values))]
    axes.semilogy(steps, values, 'o-', label=name)
  axes.set_xlabel('step')
  axes.set_ylabel(result['unit'])
  axes.legend(frameon=False)
  return svg(figure)


FIGURES = {'variants': bars, 'by': curves, 'curves': losses}  # {key of a result: its figure}


def svg(figure) -> str:
  """Return the figure as SVG."""
  text = io.StringIO()
  figure.savefig(text, format='svg')
  return text.getvalue()[text.getvalue().index('<svg') :]


def section(result: dict) -> str:
  """Return the HTML of a benchmark: figure, ratio, machine and command."""
  lines = [
    f'{result["machine"]}, {result["date"]}',
    f'<code>{html.escape(result["command"])}</code>',
  ]
  if 'ratio' in result:
    lines.insert(0, f'<b>{result["ratio"]:.2f}</b> times the best peer, {result["peer"]}')
  picture = ''.join(draw(result) for key, draw in FIGURES.items() if key in result)
  numbers = {k: v for k, v in result.items() if isinstance(v, float) and 'ratio' not in k}
  lines += [f'{name}: {value:,.4g}' for name, value in numbers.items()]
  return f'<h2>{result["case"]}</h2>{picture}<p>{"<br>".join(lines)}</p>'


def table(results: dict[str, list[dict]]) -> str:
  """Return an HTML table of the ratios to the best peer: a row per case, a column per processor.

  Args:
    results: {processor: its results}.
  """
  ratios = {
    name: {result['case']: result['ratio'] for result in of_processor if 'ratio' in result}
    for name, of_processor in results.items()
  }
  ratios = {name: by_case for name, by_case in ratios.items() if by_case}
  cases = sorted({case for by_case in ratios.values() for case in by_case})

  def row(cells, kind='td'):
    return '<tr>' + ''.join(f'<{kind}>{cell}</{kind}>' for cell in cells) + '</tr>'

  rows = [row(['speed / best peer', *ratios], 'th')]
  for case in cases:
    values = (by_case.get(case) for by_case in ratios.values())
    rows.append(row([case, *('' if value is None else f'{value:.2f}' for value in values)]))
  return f'<table>{"".join(rows)}</table>'


def main(argv):
  del argv
  files = sorted(harness.RESULTS.glob('*/*.json'))
  if not files:
    raise SystemExit(f'{harness.RESULTS} has no result: run a benchmark with --save first')
  results: dict[str, list[dict]] = {}
  for file in files:
    results.setdefault(file.parent.name, []).append(json.loads(file.read_text()))
  body = table(results)
  for name, of_processor in results.items():
    body += f'<h1>{name}</h1>' + ''.join(map(section, of_processor))
  out = pathlib.Path(_OUT.value)
  out.parent.mkdir(parents=True, exist_ok=True)
  style = 'body{font:15px sans-serif;max-width:46em;margin:2em auto}p{color:#444}'
  style += 'td,th{padding:.2em 1em;text-align:left}'
  out.write_text(
    f'<!doctype html><meta charset=utf-8><title>Benchmarks</title><style>{style}</style>{body}'
  )
  print(out)


if __name__ == '__main__':
  app.run(main)
