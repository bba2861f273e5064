"""The README claims what was recorded, and nothing else."""

import json

import pytest

from experiments.results import __main__ as results


def test_the_table_is_that_of_the_records():
  readme = results.README.read_text(encoding='utf-8')
  assert results.with_table(readme) == readme
  assert results.table().count('\n') == 2 + len(list(results.HERE.glob('*.json')))


def test_every_metric_of_the_table_has_a_plain_name():
  records = [json.loads(file.read_text()) for file in results.HERE.glob('*.json')]
  assert {r['metric'].rsplit('/', 1)[1] for r in records} <= results.LABELS.keys()


def test_an_evaluation_from_before_the_end_of_the_training_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(results, 'HERE', tmp_path)
  files = {'config': {}, 'train': {'best_step': 2}, 'evaluate': {'step': 1}}
  for name, content in files.items():
    (tmp_path / f'{name}.json').write_text(json.dumps(content))
  with pytest.raises(ValueError, match='evaluate.json is of step 1, the best one is now 2'):
    results.record(str(tmp_path), 'test/accuracy', 'none')


def test_a_metric_that_was_not_measured_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(results, 'HERE', tmp_path)
  files = {'config': {}, 'train': {'best_step': 2, 'metrics': {'val/wer': 1.0}}}
  for name, content in files.items():
    (tmp_path / f'{name}.json').write_text(json.dumps(content))
  with pytest.raises(ValueError, match='has no val/bleu, but val/wer'):
    results.record(str(tmp_path), 'val/bleu', 'none')


def test_runs_with_other_seeds_are_recorded_if_nothing_else_differs(tmp_path, monkeypatch):
  monkeypatch.setattr(results, 'HERE', tmp_path)
  monkeypatch.setattr(results.subprocess, 'check_output', lambda *_, **__: 'abc\n')
  runs = [tmp_path / name for name in ('first', 'second', 'longer')]
  for i, run in enumerate(runs):
    run.mkdir()
    config = {'seed': i, 'data': {'val': 'val'}, 'train': {'steps': 3 + (i == 2)}}
    train = {'experiment': 'mine', 'best_step': 2, 'workdir': '', 'device': '1 x cpu', 'cores': 2}
    train |= {'seconds': 60, 'metrics': {'val/wer': 7.0 + i}}
    for name, content in {'config': config, 'train': train}.items():
      (run / f'{name}.json').write_text(json.dumps(content))
  results.record(str(runs[0]), 'val/wer', 'none', str(runs[1]))
  row = (
    '| mine | word error rate, % (down) | val | val | 7.00 (other seeds 8.00) | none | 2 CPU cores'
  )
  assert row in results.table()
  with pytest.raises(ValueError, match='longer differs from .*first in more than the seed'):
    results.record(str(runs[0]), 'val/wer', 'none', str(runs[2]))
