"""Damaged published models and runs: whatever is wrong, the error names the file or its folder."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from fuzzing import check_refusals, mutate

from experiments import algorithmic
from transformer import load_pretrained
from transformer.training import reporting
from transformer.training.checks import check
from transformer.training.workdir import Workdir

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'llama'
SHARD = 'model-00001-of-00001.safetensors'


@pytest.fixture
def published(tmp_path):
  """A model of one file of weights, named by an index."""
  folder = tmp_path / 'published'
  shutil.copytree(GOLDEN, folder)
  (folder / 'model.safetensors').rename(folder / SHARD)
  header = (folder / SHARD).read_bytes()
  names = json.loads(header[8 : 8 + int.from_bytes(header[:8], 'little')])
  index = {'metadata': {}, 'weight_map': {n: SHARD for n in names if n != '__metadata__'}}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  return folder


def damage(path, read, count):
  read()
  rng, content = np.random.default_rng(count), path.read_bytes()
  contents = (mutate(content, rng) for _ in range(count))
  check_refusals(read, path, contents, names=[str(path.parent)])


NAMES = ['config.json', SHARD, 'model.safetensors.index.json']


@pytest.mark.parametrize('name', NAMES)
def test_a_damaged_model_is_read_or_named(name, published):
  damage(published / name, lambda: load_pretrained(published), 4)


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_many_damaged_models_are_read_or_named(name, published, pytestconfig):
  count = pytestconfig.getoption('damaged') // 2
  damage(published / name, lambda: load_pretrained(published), count)


@pytest.mark.parametrize('name', ['config.json', 'fingerprints.json', 'seconds', 'metrics.jsonl'])
@pytest.mark.parametrize('count', [5, pytest.param(100, marks=pytest.mark.slow)])
def test_damaged_files_of_a_run_are_read_or_named(name, count, tmp_path):
  workdir = Workdir(tmp_path / 'run')
  workdir.claim(check(algorithmic.get_config()).as_dict())
  workdir.check_fingerprints({'the split train': 'abc'})
  workdir.add_seconds(3.0)
  metrics = {'step': 1, 'split': 'train', 'loss': 1.0, 'seconds': 2.5}
  (workdir.path / 'metrics.jsonl').write_text(json.dumps(metrics) + '\n')

  def read():
    workdir.read_config()
    workdir.remember('batches', '1')
    workdir.add_seconds(1.0)
    reporting._delete_after(workdir.path / 'metrics.jsonl', 1, 2)

  damage(workdir.path / name, read, count)
