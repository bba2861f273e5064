"""Data folders: the variable, the default, and where the data sets are published."""

import pathlib
import re

import pytest

from transformer.data.folders import PUBLISHED, data_dir, where_published


@pytest.mark.parametrize('variable, expected', [('/sets', '/sets/sst2'), ('', 'data/sst2')])
def test_a_folder_is_below_that_of_the_variable_or_data(variable, expected, monkeypatch):
  monkeypatch.setenv('TRANSFORMER_DATA', variable)
  assert data_dir('sst2') == expected


def test_the_folder_of_all_data_sets(monkeypatch):
  monkeypatch.delenv('TRANSFORMER_DATA', raising=False)
  assert data_dir('') == 'data'


def test_a_published_data_set_is_known_by_its_folder():
  assert where_published('/anywhere/trec/train.txt.gz') == PUBLISHED['trec']
  assert where_published('/home/me/mine.tsv') == ''
  for name, text in PUBLISHED.items():
    assert re.match(r'https?://\S+', text), name


def test_every_data_set_of_an_experiment_is_known():
  """Every folder that an experiment gives to `data_dir`."""
  experiments = pathlib.Path(__file__).parents[2] / 'experiments'
  for file in experiments.glob('*.py'):
    for name in re.findall(r"data_dir\('([^'/]+)", file.read_text()):
      assert name in PUBLISHED, f'{file} reads {name}: add it to folders.PUBLISHED'
