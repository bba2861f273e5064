"""The tiny variants of what answers and what finds: they train, predict, and say what is wrong."""

import json
import types

import pytest

from experiments import retrieval_squad, squad
from transformer.training import commands

SMALL = {
  'data.tokens': 512,
  'data.limit': 40,
  'data.buckets': 1,
  'model.width': 16,
  'model.heads': 2,
  'model.feedforward': 16,
  'model.depth': 1,
  'model.dtype': 'float32',
  'train.steps': 2,
  'train.save_every_steps': 2,
  'train.log_every_steps': 1,
  'eval.every_steps': 2,
  'eval.limit': 8,
  'decode.rows': 8,
}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
  """run(module, mode, input, **changed): (status, what is printed, what is said)."""
  monkeypatch.setenv('TRANSFORMER_TUNE', '0')

  def command(module, mode='train', input='', **changed):
    config = module.get_config('tiny')
    config.update_from_flattened_dict(dict(SMALL, **changed))
    (tmp_path / 'lines').write_text(input)
    where = str(tmp_path / module.__name__)
    flags = types.SimpleNamespace(
      config=config, mode=mode, workdir=where, input=str(tmp_path / 'lines')
    )
    status = commands.main(flags)
    return status, *(text.splitlines() for text in capsys.readouterr())

  return command


def test_questions_are_answered_out_of_their_paragraph(run):
  status, (result,), _ = run(squad)
  metrics = json.loads(result)['metrics']
  assert status == 0 and {'test/squad_f1', 'test/squad_exact_match', 'val/nll'} <= metrics.keys()
  lines = [
    'Where does Zoë live?\tZoë lives in Rome.',
    'Where does Zoë live?',
    json.dumps({'question': 'What has Zoë?', 'context': 'Zoë has\n3 goats.'}),
  ]
  status, answers, errors = run(squad, 'predict', '\n'.join(lines) + '\n')
  assert status == commands.USAGE and len(answers) == 3
  assert answers[0] and answers[0] in lines[0].split('\t')[1]
  assert answers[1] == '' and any('line 2' in e and 'question<TAB>paragraph' in e for e in errors)
  assert answers[2] and answers[2] in 'Zoë has 3 goats.'


def test_documents_are_ranked(run):
  status, (result,), _ = run(retrieval_squad)
  metrics = json.loads(result)['metrics']
  assert status == 0 and {'val/recall_at_5', 'val/nll_in_batch'} <= metrics.keys()
  status, (names,), _ = run(
    retrieval_squad, 'predict', 'Where does Anna live?\n', **{'decode.bm25': 1.0}
  )
  assert status == 0 and len(names.split()) == 10
  assert all(name.startswith('val/') for name in names.split())
