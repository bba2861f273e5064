"""The results of a study: numbers as JSON, with the command and the machine, and a plot."""

import json
import pathlib
import subprocess
import sys
import time
from typing import Any

import jax

RESULTS = pathlib.Path(__file__).parent / 'results'


def keep(name: str, began: float, numbers: dict[str, Any], figure: Any, folder=RESULTS):
  """Write NAME.json and NAME.png.

  Args:
    name: of the study.
    began: time.perf_counter() when it did.
    numbers: what was found.
    figure: of Matplotlib.
    folder: where to.
  """
  here = pathlib.Path(__file__).parent
  result = {
    'study': name,
    'command': ' '.join(['python', '-m', f'experiments.studies.{name}', *sys.argv[1:]]),
    **numbers,
    'seconds': round(time.perf_counter() - began, 1),
    'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    'date': time.strftime('%Y-%m-%d'),
    'commit': subprocess.check_output(['git', 'rev-parse', 'HEAD'], cwd=here, text=True).strip(),
  }
  folder.mkdir(exist_ok=True)
  (folder / f'{name}.json').write_text(json.dumps(result, indent=1) + '\n')
  figure.savefig(folder / f'{name}.png', dpi=120)
  print(json.dumps(result))


def curves(axes: Any, series: dict[str, tuple[list, list]], *, x: str, y: str, log: str = ''):
  """Draw lines with a legend.

  Args:
    axes: of Matplotlib.
    series: (x, y) of each line.
    x, y: what the axes say.
    log: which axes are logarithmic: '', 'x', 'y' or 'xy'.
  """
  for label, (at, values) in series.items():
    axes.plot(at, values, 'o-', label=label, markersize=4)
  axes.set(xlabel=x, ylabel=y)
  if 'x' in log:
    axes.set_xscale('log', base=2)
  if 'y' in log:
    axes.set_yscale('log')
  axes.spines[['top', 'right']].set_visible(False)
  axes.legend(frameon=False)
