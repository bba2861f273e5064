"""Laws of judging a split by what the model writes."""

import pytest

from transformer.data import tokenizers
from transformer.evaluation.evaluate import judge
from transformer.inference.decoding import Decoding
from transformer.tasks.seq2seq import Seq2Seq


@pytest.fixture
def parrot(monkeypatch):
  """A task that answers with its input, and the list of what it was asked."""
  asked = []

  def predict(task, model, lines, *, cut=False):
    asked.extend(lines)
    return list(lines)

  monkeypatch.setattr(Seq2Seq, 'predict', predict)
  tokenizer = tokenizers.train(['ab'], kind='characters', vocab=16)
  return Seq2Seq(tokenizer=tokenizer, decoding=Decoding(length=8, rows=1), length=8), asked


def captions(images=4, each=3):
  source = []
  for i in range(images):
    references = tuple(f'caption {i} {j} of all' for j in range(each))
    for caption in references:
      example = {'inputs': f'caption {i} 1 of all', 'targets': caption, 'name': f'{i}.jpg'}
      source.append(example | {'references': references})
  return source


def test_an_image_is_answered_once_and_compared_with_all_of_its_captions(parrot):
  task, asked = parrot
  metrics = ['bleu1_lowercase_words', 'bleu4_lowercase_words']
  found = judge(task, None, captions(), metrics=metrics, samples=2)
  assert asked == [f'caption {i} 1 of all' for i in range(4)] == found.predictions
  assert found.metrics == dict.fromkeys(metrics, pytest.approx(100))
  assert found.references[2] == 'caption 2 0 of all\tcaption 2 1 of all\tcaption 2 2 of all'
  assert [sample['inputs'] for sample in found.samples] == ['0.jpg', '1.jpg']
  assert len(judge(task, None, captions(), metrics=metrics, limit=3).predictions) == 3


def test_without_references_every_example_is_answered(parrot):
  task, _ = parrot
  source = [{'inputs': word, 'targets': 'a'} for word in 'aab']
  found = judge(task, None, source, metrics=['exact_match'])
  assert found.metrics == {'exact_match': pytest.approx(200 / 3)}
  assert found.references == ['a'] * 3
  assert judge(task, None, source, metrics=[], samples=2).predictions == ['a', 'a']
