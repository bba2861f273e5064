"""The tiny variants of question answering and retrieval: they train, predict, and report errors."""

import json
import re

import pytest

from transformer.training import commands

SMALL = {
  'data.batch_tokens': 512,
  'data.limit': 40,
  'data.buckets': 1,
  'model.width': 16,
  'model.heads': 2,
  'model.feedforward': 16,
  'model.depth': 1,
  'model.dtype': 'float32',
  'model.dropout': 0.0,
  'train.steps': 2,
  'train.save_every_steps': 2,
  'train.log_every_steps': 1,
  'eval.every_steps': 2,
  'eval.limit': 8,
  'decode.batch_size': 8,
}


@pytest.mark.slow
def test_answers_are_pieces_of_their_paragraph(experiment, tmp_path):
  status, out, err = experiment('squad.py:tiny', tmp_path, **SMALL)
  assert status == 0, err
  metrics = json.loads(out)['metrics']
  assert {'test/squad_f1', 'test/squad_exact_match', 'val/nll'} <= metrics.keys()
  lines = [
    'Where does Zoë live?\tZoë lives in Rome.',
    'Where does Zoë live?',
    json.dumps({'question': 'What has Zoë?', 'context': 'Zoë has\n3 goats.'}),
  ]
  status, out, err = experiment('squad.py:tiny', tmp_path, 'predict', '\n'.join(lines) + '\n')
  answers = out.splitlines()
  assert status == commands.USAGE and len(answers) == 3
  assert answers[0] and answers[0] in lines[0].split('\t')[1]
  assert answers[1] == '' and re.search('line 2: .*question<TAB>paragraph', err)
  assert answers[2] and answers[2] in 'Zoë has 3 goats.'


@pytest.mark.slow
def test_documents_are_ranked(experiment, tmp_path):
  status, out, err = experiment('retrieval_squad.py:tiny', tmp_path, **SMALL)
  assert status == 0, err
  assert {'val/recall_at_5', 'val/nll_in_batch'} <= json.loads(out)['metrics'].keys()
  question, words = 'Where does Anna live?\n', {'decode.bm25': 1.0}
  status, out, err = experiment('retrieval_squad.py:tiny', tmp_path, 'predict', question, **words)
  assert status == 0, err
  names = out.split()
  assert len(names) == 10 and all(name.startswith('val/') for name in names)
