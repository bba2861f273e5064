"""Laws of evaluation/evaluate.py."""

import pytest

from transformer.data import tokenizers
from transformer.evaluation.evaluate import evaluate
from transformer.inference.decoding import Decoding
from transformer.tasks.seq2seq import Seq2Seq


@pytest.fixture
def parrot(monkeypatch):
  """A task that answers with its input, and the list of its requests."""
  asked = []

  def answer(task, model, requests):
    lines = [task.tokenizer.decode(request) for request in requests]
    asked.extend(lines)
    return lines

  monkeypatch.setattr(Seq2Seq, 'answer', answer)
  tokenizer = tokenizers.train(['abcdefghijklmnopqrstuvwxyz 0123'], kind='characters', vocab=64)
  return Seq2Seq(
    tokenizer=tokenizer, decoding=Decoding(max_new_tokens=8, batch_size=1), max_length=40
  ), asked


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
  found = evaluate(task, None, captions(), metrics=metrics, samples=2)
  assert asked == [f'caption {i} 1 of all' for i in range(4)] == found.predictions
  assert found.metrics == dict.fromkeys(metrics, pytest.approx(100))
  assert found.references[2] == 'caption 2 0 of all\tcaption 2 1 of all\tcaption 2 2 of all'
  assert [sample['inputs'] for sample in found.samples] == ['0.jpg', '1.jpg']
  assert len(evaluate(task, None, captions(), metrics=metrics, limit=3).predictions) == 3


def test_without_references_every_example_is_answered(parrot):
  task, _ = parrot
  source = [{'inputs': word, 'targets': 'a'} for word in 'aab']
  found = evaluate(task, None, source, metrics=['exact_match'])
  assert found.metrics == {'exact_match': pytest.approx(200 / 3)}
  assert found.references == ['a'] * 3
  assert evaluate(task, None, source, metrics=[], samples=2).predictions == ['a', 'a']
