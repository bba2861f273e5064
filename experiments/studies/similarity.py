"""How well vectors of a retrieval encoder say how similar two sentences are (STS-B).

  python -m experiments.studies.similarity runs/retrieval_squad [runs/retrieval_cranfield ...]

Data, in data/stsb: dev.csv.gz, whose rows are two sentences and how similar people found them, from
0 to 5 (Cer et al. 2017, https://aclanthology.org/S17-2001). The cosine of the two vectors is
compared with that. No run was trained or chosen on these sentences; both are encoded as queries.
Beside them stands the cosine of tf-idf vectors, whose weights of words are those of dev itself.
"""

import csv
import gzip
import math
import pathlib
import sys
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import stats

from experiments.studies.study import RESULTS, keep
from transformer.tasks.retrieval import QUERY
from transformer.training import config
from transformer.training.experiment import reopen, restore_best
from transformer.training.workdir import Workdir


def read(file: pathlib.Path) -> tuple[list[str], list[str], np.ndarray]:
  """Return the first sentences, the second ones, and how similar people found them."""
  with gzip.open(file, 'rt', encoding='utf-8', newline='') as lines:
    first, second, scores = zip(*csv.reader(lines), strict=True)
  return list(first), list(second), np.array(scores, float)


def tf_idf(texts: Sequence[str]) -> np.ndarray:
  """Return the vectors (1 + log tf) log(N / df) of texts, of length 1."""
  counts = [Counter(text.lower().split()) for text in texts]
  documents = Counter(word for count in counts for word in count)
  number = {word: i for i, word in enumerate(documents)}
  found = np.zeros((len(texts), len(number)), np.float32)
  for row, count in zip(found, counts, strict=True):
    for word, times in count.items():
      row[number[word]] = (1 + math.log(times)) * math.log(len(texts) / documents[word])
  return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


def vectors(workdir: str, texts: Sequence[str]) -> np.ndarray:
  """Return the vectors of texts, of length 1, by the best checkpoint of a run."""
  run = Workdir(workdir)
  experiment = reopen(run.read_config(), run)
  model, _ = restore_best(experiment, run)
  task = experiment.task
  found = task.embed(model, task.processor.encode_column(texts), QUERY)
  return found / np.linalg.norm(found, axis=1, keepdims=True)


def main(*workdirs: str, folder=RESULTS):
  from matplotlib.figure import Figure

  began = time.perf_counter()
  first, second, judged = read(pathlib.Path(config.data_dir('stsb')) / 'dev.csv.gz')
  by = {'tf-idf': tf_idf([*first, *second])}
  by |= {pathlib.Path(run).name: vectors(run, [*first, *second]) for run in workdirs}
  cosines = {name: np.sum(v[: len(first)] * v[len(first) :], axis=1) for name, v in by.items()}
  rows = {
    name: {
      'spearman': round(float(stats.spearmanr(cosine, judged).statistic), 4),
      'pearson': round(float(stats.pearsonr(cosine, judged).statistic), 4),
    }
    for name, cosine in cosines.items()
  }
  figure = Figure(figsize=(8, 1 + 0.5 * len(rows)), layout='constrained')
  axes = figure.subplots()
  axes.barh(list(rows), [row['spearman'] for row in rows.values()], color='#4477aa')
  axes.set(xlabel="Spearman's correlation with people's judgements", xlim=(0, 1))
  axes.invert_yaxis()
  axes.spines[['top', 'right']].set_visible(False)
  keep('similarity', began, {'pairs': len(judged), 'by': rows}, figure, folder)


if __name__ == '__main__':
  main(*sys.argv[1:])
