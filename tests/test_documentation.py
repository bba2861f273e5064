"""The README and the guides: links lead somewhere, snippets run, tables agree with the code."""

import pathlib
import re

import jax
import pytest
from flax import nnx

from transformer import EncoderDecoder, ModelConfig

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [*ROOT.glob('*.md'), *(ROOT / 'docs').glob('*.md')]


def paths_of(pattern, page):
  return re.findall(pattern, page.read_text(encoding='utf-8'))


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page):
  for link in paths_of(r'\]\(([^)#\s]+)', page):
    # pages of the reference exist once docs/build.py has run, which checks links to them
    if not re.match(r'https?://|reference/', link):
      assert (page.parent / link).exists(), link


def test_the_layout_of_parameters_is_the_documented_one():
  sizes = dict(L=3, D=32, H=8, G=2, K=5, F=48, N=100, P=64)
  config = ModelConfig(
    vocab=100, width=32, depth=3, heads=8, kv_heads=2, head_size=5, feedforward=48, max_length=64,
    tie='none', gated=True, position='learned',
  )  # fmt: skip
  model = jax.eval_shape(lambda: EncoderDecoder(config, nnx.Rngs(0)))
  leaves = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(nnx.state(model)))[0]
  shapes = {jax.tree_util.keystr(path, simple=True, separator='/'): x.shape for path, x in leaves}
  text = (ROOT / 'docs' / 'parameters.md').read_text(encoding='utf-8')
  table = text.split('<!-- parameters -->')[1].split('<!-- end of parameters -->')[0]
  documented = {
    path: tuple(
      int(jax.numpy.prod(jax.numpy.array([sizes[s] for s in axis.split()])))
      for axis in shape.split(', ')
    )
    for path, shape in re.findall(r'`(.+)` \| ([A-Z ,]+) \|', table)
  }
  documented |= {
    path.replace('encoder/', 'decoder/'): shape
    for path, shape in documented.items()
    if path.startswith('encoder/')
  }
  assert documented == shapes
