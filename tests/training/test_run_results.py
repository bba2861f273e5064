"""The files and metrics that a run ends with."""

import os
import pathlib
import types

import pytest

from transformer.evaluation.evaluate import Evaluation
from transformer.training import results as module
from transformer.training.experiment import Experiment
from transformer.training.workdir import Workdir

SPLITS = ['/etc/mine', '../../up', 'a/../../b', '.', 'val', 'val.reference', 'x\0y', 'x' * 300]


@pytest.mark.parametrize('answer', ['a text', b'RIFF a sound'])
def test_predictions_of_a_split_of_any_name_are_in_the_workdir(tmp_path, monkeypatch, answer):
  """Every file that is opened for writing or renamed, while all splits are reported."""
  found = Evaluation({'nll': 1.0}, {}, [], [answer], [answer])
  monkeypatch.setattr(module, 'evaluate', lambda *_, **__: found)
  monkeypatch.setattr(module.sharding, 'place_batches', lambda *_: None)
  monkeypatch.setattr(Experiment, 'source', lambda *_: [{}])
  monkeypatch.setattr(Experiment, 'batches', lambda *_: None)
  settings = types.SimpleNamespace(
    data=types.SimpleNamespace(val='val', test=tuple(SPLITS)),
    eval=types.SimpleNamespace(metrics=(), samples=0, by='', limit=3),
  )
  workdir = Workdir(tmp_path / 'here' / 'run')
  written = []
  monkeypatch.setattr(
    pathlib.Path, 'replace', lambda path, to: written.append(to) or os.replace(path, to)
  )
  module.evaluate_splits(Experiment(settings, None, None, None), None, workdir)
  assert len(written) >= 2 * len(SPLITS)
  for file in written:
    assert file.resolve().is_relative_to(workdir.path / 'predictions')
  assert [path.name for path in tmp_path.iterdir()] == ['here']
  assert [path.name for path in (tmp_path / 'here').iterdir()] == ['run']
