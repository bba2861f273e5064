import json
import re
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest

from transformer.inspection import heatmap

SOURCE = ['en-US', ':', ' ', 'March', ' ', '3', ',', ' ', '2021', '</s>']
TARGET = [*'2021-03-03', '</s>']
SCRIPTS = [
  'العالم',
  'שלום',
  '世界',
  '本',
  'は',
  '한국어',
  'หนังสือ',
  '👩‍👩‍👧',
  '👍',
  '\u0301',
  '\ue123',
  '\x00',
  '$\\q$',  # an error to whoever reads it as mathematics
]


def attention(layers, heads, target, source, seed=0):
  scores = np.random.default_rng(seed).normal(0, 2, (layers, heads, target, source))
  return np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)


class Page(HTMLParser):
  """What a browser would see: the elements in order, their attributes, and the text of each."""

  def __init__(self, page):
    super().__init__()
    self.elements = []
    self.feed(page)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.elements.append([tag, dict(attrs), ''])

  def handle_data(self, data):
    if self.elements:
      self.elements[-1][2] += data

  def texts(self, tag):
    return [text for name, _, text in self.elements if name == tag]


def inlined(page):
  (text,) = (text for _, attrs, text in Page(page).elements if attrs.get('id') == 'data')
  return json.loads(text)['maps'][0]


def pixels(path):
  from matplotlib.image import imread

  return np.round(imread(path)[..., :3] * 255).astype(int)


@pytest.mark.parametrize('shape', [(1, 1, 3, 3), (2, 4, 11, 10), (3, 2, 60, 60), (2, 3, 1, 7)])
def test_the_page_has_the_weights(shape):
  weights = attention(*shape)
  layers, heads, target, source = shape
  data = inlined(heatmap.html(weights, ['r'] * target, [f'c{s}' for s in range(source)], title='x'))
  assert (data['layers'], data['heads']) == (layers, heads)
  assert data['columns'] == [f'c{s}' for s in range(source)]
  panels = np.reshape(data['thousandths'], (layers, 1 + heads, target, source)) / 1000
  np.testing.assert_allclose(panels[:, 1:], weights, rtol=0, atol=0.00051)
  np.testing.assert_allclose(panels[:, 0], weights.mean(1), rtol=0, atol=0.00051)


def test_float32_and_rounding_above_one_are_accepted():
  weights = np.full((1, 1, 1, 2), [1 + 1e-6, 0], np.float32)
  assert (
    inlined(heatmap.html(weights, ['a'], ['b', 'c'], title='x'))['thousandths'] == [1000, 0] * 2
  )


def test_no_text_can_break_the_page():
  hostile = ['<script>', '</script><b>', '<!--', '{{data}}', '&lt;', '"\'', '\\u003c', '\u2028x']
  weights = attention(1, 2, len(hostile), len(hostile))
  plain = heatmap.html(weights, ['r'] * 8, ['c'] * 8, title='x')
  page = heatmap.html(
    weights, hostile, hostile, title='</title><script>{{data}}', subtitle='<script>&'
  )
  assert [e[0] for e in Page(page).elements] == [e[0] for e in Page(plain).elements]
  assert inlined(page)['rows'] == [*hostile[:-1], 'U+2028x']
  assert Page(page).texts('title')[0].strip() == '</title><script>{{data}}'
  assert Page(page).texts('script')[1] == Page(plain).texts('script')[1]
  # Unlike the parser above, a browser also obeys '<!--<script>' inside a script element.
  assert '<' not in re.search(r'id="data">(.*?)</script>', page)[1]


def test_page_is_self_contained_and_ascii():
  weights = attention(1, 2, len(SCRIPTS), 2)
  page = heatmap.html(weights, SCRIPTS, ['世', '\udc80'], title='本 \udc80', subtitle='עברית')
  assert page.isascii()
  for reference in ('http', '//www', 'url(', '@import', 'src=', '<iframe', 'fetch('):
    assert reference not in page, reference
  links = [e[1]['href'] for e in Page(page).elements if 'href' in e[1]]
  assert links == ['data:,']  # without it a browser asks the server for /favicon.ico
  assert Page(page).texts('p')[0].strip() == 'עברית'


def test_every_right_to_left_text_decides_its_own_direction():
  page = heatmap.html(attention(1, 1, 1, 1), ['العالم'], ['שלום'], title='العالم')
  assert inlined(page)['rows'] == ['العالم']
  assert all(e[1].get('dir') == 'auto' for e in Page(page).elements if e[0] == 'h1')
  script = Page(page).texts('script')[1]
  assert "dir: 'auto'" in script and script.count("make(tip, 'bdi'") == 2


@pytest.mark.parametrize(
  'token, shown',
  [
    (' ', '␣'),
    (' March', '␣March'),
    ('', '∅'),
    ('a\n\t', 'a↵⇥'),
    ('\x00', 'U+0000'),
    ('\u00a0', 'U+00A0'),
    ('\u202e', 'U+202E'),  # would reverse what follows
    ('\u200d', 'U+200D'),
    ('می\u200cخواهم', 'می\u200cخواهم'),
    ('\u0301', '◌\u0301'),
    ('▁the', '▁the'),
    ('世界', '世界'),
  ],
)
def test_whitespace_and_controls_are_visible(token, shown):
  assert inlined(heatmap.html(np.ones((1, 1, 1, 1)), [token], ['a'], title='x'))['rows'] == [shown]


@pytest.mark.parametrize('stops, darker', [(heatmap.LIGHT, True), (heatmap.DARK, False)])
def test_scale_is_even_in_lightness(stops, darker):
  def lightness(colour):  # CIE L*, another model than the OKLab the stops were chosen in
    srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16

  steps = np.diff([lightness(colour) for colour in stops]) * (-1 if darker else 1)
  assert steps.min() > 7 and steps.max() < 13


def test_png_draws_each_layer_and_grows_with_it(tmp_path):
  sizes = []
  for layers in (1, 2):
    path = tmp_path / f'{layers}.png'
    heatmap.draw(attention(layers, 2, 11, 10), TARGET, SOURCE, path, title='March 3 → $x_1$')
    image = pixels(path)
    sizes.append(image.shape[:2])
    assert (image == 255).all(-1).mean() < 0.8
  heights, widths = zip(*sizes, strict=True)
  side = 160 * 4.5 / 11  # pixels of a cell
  assert heights[0] == heights[1] and 11 * side < heights[0] < 11 * side + 400
  np.testing.assert_allclose(np.diff(widths), 10 * side + 0.3 * 160, atol=2)


def test_png_colours_are_the_weights(tmp_path):
  weights = np.eye(4)[None, None].repeat(2, 1)
  heatmap.draw(weights, list('abcd'), list('wxyz'), tmp_path / 'eye.png')
  image = pixels(tmp_path / 'eye.png')
  dark, light = (
    (np.abs(image - [int(c[i : i + 2], 16) for i in (1, 3, 5)]).max(-1) <= 2).mean()
    for c in (heatmap.LIGHT[-1], heatmap.LIGHT[0])
  )
  assert light / dark == pytest.approx(3, rel=0.1)  # 12 zeros to 4 ones


def test_png_of_many_layers_is_the_last(tmp_path):
  weights = attention(12, 2, 5, 40)
  heatmap.draw(weights, list('abcde'), ['x'] * 40, tmp_path / 'all.png')
  weights[:-1] = weights[:1]
  heatmap.draw(weights, list('abcde'), ['x'] * 40, tmp_path / 'last.png')
  assert np.array_equal(pixels(tmp_path / 'all.png'), pixels(tmp_path / 'last.png'))
  weights[-1] = weights[0]
  heatmap.draw(weights, list('abcde'), ['x'] * 40, tmp_path / 'other.png')
  assert not np.array_equal(pixels(tmp_path / 'all.png'), pixels(tmp_path / 'other.png'))


@pytest.mark.parametrize('fonts', ['installed', 'none'])
def test_png_of_any_script_without_warnings(tmp_path, monkeypatch, fonts):
  if fonts == 'none':
    monkeypatch.setattr(heatmap, '_installed', lambda: [])
  n = len(SCRIPTS)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    heatmap.draw(
      attention(1, 1, n, n), SCRIPTS, SCRIPTS, tmp_path / 'a.png', title=''.join(SCRIPTS)
    )
  assert (pixels(tmp_path / 'a.png') < 255).any()


def test_missing_characters_become_boxes_or_code_points(monkeypatch):
  monkeypatch.setattr(heatmap, '_installed', lambda: [])
  texts, families = heatmap._drawable(['世', '世x', 'العالم', 'a'])
  assert texts == ['U+4E16', '□x', 'العالم', 'a'] and families == ['DejaVu Sans']
  # A sequence is one character to the reader, and to the shaper, which takes it from one font.
  texts, _ = heatmap._drawable(['x👩‍👩‍👧👍🏽y', 'x世\u0301'])
  assert texts == ['x□□y', 'x□']


def test_png_leaves_matplotlib_as_it_was(tmp_path):
  import matplotlib
  from matplotlib import _pylab_helpers

  before = dict(matplotlib.rcParams)
  heatmap.draw(attention(1, 1, 2, 2), ['a', 'b'], ['c', 'd'], tmp_path / 'a.png')
  assert dict(matplotlib.rcParams) == before and not _pylab_helpers.Gcf.get_all_fig_managers()


GOOD = np.full((2, 4, 2, 3), 0.3)
WRONG = {
  'rows': (GOOD, ['a'], list('xyz'), r'\(2, 4, 2, 3\).*2 target by 3 source.*1 row and 3 column'),
  'swapped': (GOOD, list('xyz'), list('ab'), r'2 target by 3 source.*3 row and 2 column labels'),
  'batch': (GOOD[None], list('ab'), list('xyz'), r'\(1, 2, 4, 2, 3\); index one batch element'),
  'empty': (
    GOOD[:0],
    list('ab'),
    list('xyz'),
    r'none of them empty, but have shape \(0, 4, 2, 3\)',
  ),
  'ids': (GOOD, [1, 2], list('xyz'), 'rows must be strings'),
  'negative': (GOOD - 0.4, list('ab'), list('xyz'), r'in \[0, 1\], but range from -0.1 to -0.1'),
  'scores': (GOOD * 10, list('ab'), list('xyz'), 'range from 3 to 3; pass the weights after the'),
  'nan': (np.where(np.eye(3)[:2], np.nan, GOOD), list('ab'), list('xyz'), 'range from nan'),
}


@pytest.mark.parametrize('case', WRONG)
def test_errors_of_attention_maps(case):
  weights, rows, columns, message = WRONG[case]
  with pytest.raises(ValueError, match=message):  # not by html(), where type checks may come first
    heatmap._checked(weights, rows, columns)


@pytest.mark.parametrize('case', ['rows', 'negative', 'nan'])
def test_html_and_png_check_their_arguments(case, tmp_path):
  weights, rows, columns, message = WRONG[case]
  with pytest.raises(ValueError, match=message):
    heatmap.html(weights, rows, columns, title='x')
  with pytest.raises(ValueError, match=message):
    heatmap.draw(weights, rows, columns, tmp_path / 'a.png')
