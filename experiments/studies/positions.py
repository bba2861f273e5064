"""Which position scheme learns copy, reverse and sort, and which goes on beyond the lengths learnt.

  python -m experiments.studies.positions [FOLDER]       # of the runs, runs/positions if not given

The sweep of experiments/algorithmic.py for each task, trained on 1 to 20 symbols. Exact match, in
percent, on 1,000 unseen sequences of as many (test), and on 1,000 of 21 to 40 (longer). The same
command again goes on where it stopped.
"""

import json
import pathlib
import subprocess
import sys
import time

import numpy as np

from experiments.studies.study import RESULTS, keep

ROOT = pathlib.Path(__file__).parents[2]
TASKS = ('copy', 'reverse', 'sort')
SPLITS = {'test': '1-20 symbols, as in training', 'longer': '21-40 symbols'}


def main(runs: str = 'runs/positions', *flags: str, folder=RESULTS):
  from matplotlib.figure import Figure

  began, found = time.perf_counter(), {}
  for task in TASKS:
    command = [sys.executable, 'run.py', f'--config=experiments/algorithmic.py:{task}']
    command += ['--mode=sweep', f'--workdir={pathlib.Path(runs).absolute() / task}', *flags]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found[task] = {
      run['changed']['model.position']: {
        split: run['metrics'][f'{split}/exact_match'] for split in SPLITS
      }
      for run in json.loads(done.stdout.splitlines()[-1])['runs']
    }

  schemes = list(found[TASKS[0]])
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
