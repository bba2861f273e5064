"""Which position schemes learn to copy, reverse and sort, also beyond the lengths of training.

  python -m experiments.studies.positions [FOLDER]       # of the runs, runs/positions if not given

The sweep of experiments/algorithmic.py for each task, trained on 1 to 20 symbols. Exact match, in
percent, on 1,000 unseen sequences of as many (test), and on 1,000 of 21 to 40 (longer). The same
command again goes on where it stopped.

One CPU core, an hour (results/positions.png): in range every scheme has 99.7 % or more; none at all
cannot copy or reverse (0.4, 2.3), but sorts. Beyond it only sorting goes on, which asks for counts
and not for places: none 61.1, alibi 30.8, relative 26.0, rotary 21.7, sinusoidal and learned 0. Of
copies alibi has 7.6 and of reversals 6.1, sinusoidal 4.5 of copies, the others 0.2 at most.
"""

import json
import pathlib
import subprocess
import sys
import time

import numpy as np

from experiments import algorithmic
from experiments.studies.study import RESULTS, keep

ROOT = pathlib.Path(__file__).parents[2]
TASKS = ('copy', 'reverse', 'sort')
SPLITS = {'test': '1-20 symbols, as in training', 'longer': '21-40 symbols'}


def main(runs: str = 'runs/positions', *flags: str, folder=RESULTS):
  from matplotlib.figure import Figure

  began, variants, found = time.perf_counter(), [], {}
  algorithmic.sweep(variants.append)
  schemes = [variant['model.position'] for variant in variants]
  for task in TASKS:
    workdir = pathlib.Path(runs).absolute() / task
    files = [workdir / f'sweep-{i}' / 'train.json' for i in range(len(schemes))]
    if not all(file.exists() for file in files):
      command = [sys.executable, 'run.py', f'--config=experiments/algorithmic.py:{task}']
      command += ['--mode=sweep', f'--workdir={workdir}', *flags]
      subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    results = [json.loads(file.read_text()) for file in files]
    found[task] = {
      scheme: {'seconds': result['seconds']}
      | {split: result['metrics'][f'{split}/exact_match'] for split in SPLITS}
      for scheme, result in zip(schemes, results, strict=True)
    }

  figure = Figure(figsize=(8, 3.4), layout='constrained')
  for axes, (split, title) in zip(figure.subplots(1, 2), SPLITS.items(), strict=True):
    scores = np.array([[found[task][s][split] for task in TASKS] for s in schemes])
    axes.imshow(scores, vmin=0, vmax=100, cmap='Blues', aspect='auto')
    for (row, column), score in np.ndenumerate(scores):
      colour = 'white' if score > 60 else 'black'
      axes.text(column, row, f'{score:.1f}', ha='center', va='center', color=colour)
    axes.set_xticks(range(len(TASKS)), TASKS)
    axes.set_yticks(range(len(schemes)), schemes)
    axes.set_title(f'exact match %, {title}', fontsize=10)
  keep('positions', began, {'exact_match': found}, figure, folder)


if __name__ == '__main__':
  main(*sys.argv[1:])
