"""Speed of the data pipeline alone, which must be faster than training.

  python -m experiments.benchmarks.pipeline [--save]

Cases: sentences of random tokens with the lengths of a translation corpus, bucketed or packed, made
by `pipeline.prefetch` in its thread; the same sentences as documents of a prepared corpus, packed
for a language model and read from disk; and nanoGPT's loader, which reads windows at random
positions of a file of tokens.
"""

import pathlib
import statistics
import tempfile
import time

from absl import app

from experiments.benchmarks import harness

EXAMPLES, BATCHES, TOKENS, LENGTH = 100_000, 300, 4096, 128


def prepared(folder, column):
  """Write documents as a prepared corpus, and return the batches of a language model."""
  from transformer.data import preparation, tokenizers
  from transformer.data.prepared import Prepared, PreparedBatches, write_json
  from transformer.inference.decoding import Decoding
  from transformer.tasks.language_model import LanguageModel

  tokenizer = tokenizers.train([], kind='bytes', vocab=260)
  task = LanguageModel(tokenizer=tokenizer, decoding=Decoding(), max_length=LENGTH)
  documents = [{'targets': column[i] % tokenizer.size} for i in range(len(column))]
  encoder = preparation.Encoder('documents', task)
  info = preparation.write_split(folder, 'train', lambda: documents, encoder, {})
  settings = dict(cut=task.cut[:3], max_length=LENGTH, packing=True, buckets=1)
  info['index'] = preparation.write_index(folder, 'train', info, settings)
  write_json(folder, {'vocab': tokenizer.size, 'splits': {'train': info}})
  return PreparedBatches(Prepared.open(folder, 'train'), task.columns, tokens=TOKENS)


def nanogpt(file):
  """Yield batches as nanoGPT's get_batch makes them."""
  import numpy as np

  random = np.random.default_rng(0)
  for _ in range(BATCHES):
    tokens = np.memmap(file, np.uint16, 'r')  # opened for each batch, as in nanoGPT
    starts = random.integers(len(tokens) - LENGTH, size=TOKENS // LENGTH)
    inputs = np.stack([tokens[i : i + LENGTH].astype(np.int64) for i in starts])
    targets = np.stack([tokens[i + 1 : i + 1 + LENGTH].astype(np.int64) for i in starts])
    yield {'inputs': inputs, 'targets_segments': np.ones_like(targets), 'targets': targets}


def main(argv):
  del argv
  import numpy as np

  from transformer.data import pipeline

  random = np.random.default_rng(0)
  sizes = np.clip(random.gamma(6, 3, (EXAMPLES, 2)).astype(int), 2, 64)
  fields = {}
  for name, column in (('inputs', sizes[:, 0]), ('targets', sizes[:, 1])):
    tokens = random.integers(1, 10_000, column.sum(), np.int32)
    fields[name] = pipeline.Ragged(tokens, np.concatenate([[0], np.cumsum(column)]))
  with tempfile.TemporaryDirectory() as folder:
    variants = {
      'bucketed': pipeline.Batches(fields, pipeline.bucket(sizes, buckets=8), tokens=TOKENS),
      'packed': pipeline.Batches(fields, pipeline.pack(sizes, length=LENGTH), tokens=TOKENS),
      'prepared': prepared(pathlib.Path(folder), fields['targets']),
    }
    makers = {
      name: lambda batches=batches: pipeline.prefetch(batches, 0, BATCHES)
      for name, batches in variants.items()
    }
    makers['nanogpt'] = lambda: nanogpt(pathlib.Path(folder) / 'train.targets.bin')
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    tokens = {}
    for _ in range(harness.ROUNDS.value):
      for name, make in makers.items():
        began, tokens[name] = time.perf_counter(), 0
        for batch in make():
          tokens[name] += int(np.count_nonzero(batch['targets_segments']))
        seconds[name].append(time.perf_counter() - began)
  result = {
    'case': 'pipeline',
    'unit': 'target tokens/s',
    **{f'{name}_per_s': tokens[name] / statistics.median(seconds[name]) for name in makers},
    **harness.machine('pipeline'),
  }
  harness.write(result, save=harness.SAVE.value)


if __name__ == '__main__':
  app.run(main)
