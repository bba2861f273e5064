"""The page of attention in headless Chromium: a script in it clicks, types and reads."""

import html
import json
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest

from transformer.inspection import heatmap
from transformer.inspection.inside import Lens, entropy, rollout

NAMES = 'chromium', 'chromium-browser', 'google-chrome'
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), '')
SOURCE, TARGET = list('abcdef'), ['x', '</s>', 'العالم', 'y']

DRIVER = pathlib.Path(__file__).with_name('page_driver.js').read_text(encoding='utf-8')


def attention(layers, heads, target, source, seed=0):
  return np.random.default_rng(seed).dirichlet(np.ones(source), (layers, heads, target))


@pytest.fixture(scope='module')
def maps():
  cross = attention(2, 3, 4, 6)
  patches = attention(1, 2, 5, 5, seed=1)
  names = ['all', '0,0', '0,1', '1,0', '1,1']
  picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
  vectors = {name: np.random.default_rng(2).normal(size=(2, 4, 3, 8)) for name in ('queries',)}
  return (cross, patches), [
    heatmap.map_data(
      cross, TARGET, SOURCE, kind='cross', entropy=entropy(cross), changes=cross[..., 0, 0],
      vectors=vectors,
    ),
    heatmap.map_data(
      patches, names, names, kind='encoder', rollout=rollout(patches), entropy=entropy(patches),
      pictures=(picture, picture),
    ),
  ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason='there is no Chromium on this machine')
def test_the_page_answers_clicks_and_keys(maps, tmp_path):
  (cross, patches), data = maps
  lens = Lens(['p', 'q'], [[['a', 'b']] * 2, [['c', 'd']] * 2], np.full((2, 2, 2), 0.5))
  page = heatmap.page(data, title='a request', subtitle='its answer', lens=lens)
  (tmp_path / 'page.html').write_text(page.replace('</html>', f'<script>{DRIVER}</script></html>'))
  flags = '--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking'
  flags += f' --virtual-time-budget=3000 --user-data-dir={tmp_path}/profile --dump-dom'
  command = [CHROMIUM, *flags.split(), f'file://{tmp_path}/page.html']
  dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
  found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom)[1]))
  assert 'error' not in found, found['error']
  assert found['kinds'] == ['decoder to encoder', 'encoder'] and found['views'] == 2 * 4

  def said(weights, token, names=SOURCE):
    order = np.argsort(-np.rint(1000 * weights), kind='stable')[:5]
    return f'{token} attends to ' + ', '.join(f'{names[i]} ({weights[i]:.2f})' for i in order)

  def same(text, want):  # rounded twice
    assert re.sub(r'\d\.\d\d', '', text) == re.sub(r'\d\.\d\d', '', want)

  same(found['hover'], said(cross[1].mean(0)[0], 'x'))
  assert found['tip'] == 'none' and len(set(found['shaded'])) > 2
  assert found['view'] == 'Layer 1 of 2 · head 2 of 3'
  assert 'entropy' in found['facts'] and 'without this head' in found['facts']
  same(found['head'], said(cross[0, 1, 0], 'x'))  # the token stays chosen
  assert found['cell'] == f'العالم → f: {cross[0, 1, 2, 5]:.3f}'  # two down from x
  assert found['escaped'] == ''
  bits = [float(line[2]) for line in found['sorted']]
  assert bits == sorted(bits, reverse=True) and len(bits) == 6
  layer, head = found['sorted'][0][:2]
  assert found['chosen'] == f'Layer {layer} of 2 · head {head} of 3' and found['vectors'] == 1
  assert found['kind'] == 'encoder' and found['rollout'] == 1 and found['strips'] == 1
  assert found['patch'].startswith('0,0 attends to ')
  assert [line[1:] for line in found['lens']] == [['c', 'c'], ['a', 'a']]  # the last layer on top
  assert found['svg'].count('<rect') == 1 + 25 and 'xmlns=' in found['svg']
  assert found['tabs'] == 0  # whatever has the focus has a name
