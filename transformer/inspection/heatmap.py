"""Attention maps: an interactive HTML page (`html`) and a figure (`png`).

Both take plain arrays: `weights` [L, H, T, S], where row t of every [T, S] panel has the attention
weights of target token t over the source tokens. Layers and heads are counted from 1, as in papers.
"""

import functools
import json
import re
import unicodedata
from collections.abc import Sequence
from html import escape
from importlib import resources
from os import PathLike
from typing import Any

import numpy as np
from jaxtyping import Float

# Nine steps of equal OKLab lightness differences at one hue (258 degrees), all within sRGB.
LIGHT = '#f2f3f5 #c1dafe #95bffe #67a4fe #4588eb #316fc9 #2658a1 #204375 #1b2e4b'.split()
DARK = '#232529 #283b58 #2e5186 #3969af #4d82d1 #6b9de8 #91b9f5 #bcd4f8 #ebeff4'.split()
INK, QUIET = '#1b1f27', '#626a78'  # of texts

JOINERS = '\u200c\u200d'


def html(
  weights: Float[np.ndarray, 'L H T S'],
  rows: Sequence[str],
  columns: Sequence[str],
  *,
  title: str,
  subtitle: str = '',
) -> str:
  """Return a self-contained page with every layer and head; it opens on the last layer's mean.

  The page loads nothing. The weights are in the JSON of `<script id="data">`, key `thousandths`,
  flat [L, 1 + H, T, S]: each layer's mean over heads comes before its heads.

  Args:
    weights: attention weights in [0, 1].
    rows: the T target tokens.
    columns: the S source tokens.
    title: heading of the page.
    subtitle: a line below it.

  Returns:
    The page, pure ASCII, so that it may be written with any encoding.

  Raises:
    ValueError: weights and tokens have different sizes, or a weight is not in [0, 1].
  """
  weights, rows, columns = _checked(weights, rows, columns)
  panels = np.concatenate([weights.mean(axis=1, keepdims=True), weights], axis=1)
  data = {
    'layers': weights.shape[0],
    'heads': weights.shape[1],
    'rows': [_visible(token) for token in rows],
    'columns': [_visible(token) for token in columns],
    'scale': {'light': LIGHT, 'dark': DARK},
    'thousandths': np.rint(1000 * panels).astype(int).ravel().tolist(),
  }
  # a token '</script>' or '<!--' must not end the element with the data
  inlined = json.dumps(data, separators=(',', ':')).replace('<', r'\u003c')
  texts = {'title': escape(title), 'subtitle': escape(subtitle), 'data': inlined}
  page = resources.files(__package__).joinpath('heatmap.html').read_text(encoding='utf-8')
  page = re.sub(r'\{\{(\w+)\}\}', lambda match: texts[match[1]], page)
  return page.encode('ascii', 'xmlcharrefreplace').decode('ascii')


def png(
  weights: Float[np.ndarray, 'L H T S'],
  rows: Sequence[str],
  columns: Sequence[str],
  path: str | PathLike,
  *,
  title: str = '',
) -> None:
  """Write a PNG of each layer's mean over heads, side by side; of the last layer if too wide.

  The page of `html` shows everything. The PNG has no single heads; long tokens are truncated;
  characters that no known installed font has are drawn as a box, or as their code point if they
  are a whole token; and matplotlib before 3.11 neither joins nor reverses right-to-left tokens.

  Args:
    weights: attention weights in [0, 1].
    rows: the T target tokens.
    columns: the S source tokens.
    path: the file to write.
    title: heading of the figure.

  Raises:
    ValueError: weights and tokens have different sizes, or a weight is not in [0, 1].
  """
  from matplotlib.colors import LinearSegmentedColormap
  from matplotlib.figure import Figure

  weights, rows, columns = _checked(weights, rows, columns)
  means = weights.mean(axis=1)
  layers, height, width = means.shape
  cell = min(0.5, max(0.16, 4.5 / max(height, width)))  # inches, and so is every length below
  wide, tall, gap, bar = cell * width, cell * height, 0.3, 0.12
  shown = range(layers) if layers * (wide + gap) <= 24 else range(layers - 1, layers)
  right = len(shown) * (wide + gap)
  figure = Figure(figsize=(right + bar, tall), facecolor='white')

  def axes(left, across):
    return figure.add_axes((left / (right + bar), 0, across / (right + bar), 1))

  labels = [_visible(token) for token in (*rows, *columns)]
  texts, families = _drawable([*labels, ' '.join(title.split())])
  title = texts.pop()
  labels = [text if len(text) <= 24 else text[:23] + '…' for text in texts]
  font = {'fontfamily': families, 'fontsize': min(11, cell * 72 * 0.72), 'parse_math': False}
  colours = LinearSegmentedColormap.from_list('attention', LIGHT)
  scale = {'cmap': colours, 'vmin': 0, 'vmax': means[list(shown)].max() or 1}
  for i, layer in enumerate(shown):
    panel = axes(i * (wide + gap), wide)
    mesh = panel.pcolormesh(means[layer], **scale, edgecolors='white', linewidth=cell * 3)
    row_labels = labels[:height] if i == 0 else [''] * height
    _label_panel(panel, row_labels, labels[height:], cell, font)
    panel.set_xlabel(f'layer {layer + 1} of {layers}', color=QUIET, fontsize=10, labelpad=8)
  _label_scale(figure.colorbar(mesh, cax=axes(right, bar)))
  if title:
    # the height of the column labels is known only after layout; the title is above them
    top = figure.get_tightbbox().y1 / tall
    heading = dict(fontfamily=families, fontsize=13, parse_math=False, color=INK, va='bottom')
    figure.text(0, top + 0.2 / tall, title, **heading)  # type: ignore[arg-type]
  figure.savefig(path, format='png', dpi=160, bbox_inches='tight', pad_inches=0.25)


def _label_panel(panel, rows: list[str], columns: list[str], cell: float, font: dict[str, Any]):
  """Write the tokens at the left and on top; those that do not fit across a cell are rotated."""
  fits = int(cell * 72 / (0.62 * font['fontsize']))  # characters across a cell
  panel.invert_yaxis()
  panel.xaxis.tick_top()
  panel.tick_params(length=0, pad=3, labelcolor=INK)
  panel.set_xticks(np.arange(len(columns)) + 0.5, columns, **font)
  for label in panel.get_xticklabels():
    label.set_rotation(90 if len(label.get_text()) > fits else 0)
  panel.set_yticks(np.arange(len(rows)) + 0.5, rows, **font)
  panel.spines[:].set_visible(False)


def _label_scale(legend):
  legend.outline.set_visible(False)
  legend.ax.tick_params(length=0, labelsize=9, labelcolor=QUIET)
  legend.set_label('weight, mean over heads', color=QUIET, fontsize=9)


def _checked(weights, rows, columns) -> tuple[np.ndarray, list[str], list[str]]:
  weights, rows, columns = np.asarray(weights, dtype=np.float64), list(rows), list(columns)
  for name, tokens in (('rows', rows), ('columns', columns)):
    if not all(isinstance(token, str) for token in tokens):
      raise ValueError(f'{name} must be strings, one a token; decode ids or bytes first')
  if weights.ndim != 4 or 0 in weights.shape:
    raise ValueError(
      f'weights must be [layers, heads, target, source], none of them empty, but have shape '
      f'{weights.shape}; index one batch element, and add missing axes with weights[None]'
    )
  if weights.shape[2:] != (len(rows), len(columns)):
    raise ValueError(
      f'weights of shape {weights.shape} show {weights.shape[2]} target by {weights.shape[3]} '
      f'source tokens, but there are {len(rows)} row and {len(columns)} column labels; '
      'cut both to the tokens that are not padding'
    )
  if not (weights.min() >= 0 and weights.max() <= 1 + 1e-4):  # this way round NaN fails too
    raise ValueError(
      f'weights must lie in [0, 1], but range from {weights.min():.4g} to {weights.max():.4g}; '
      'pass the weights after the softmax, not the scores'
    )
  return weights, rows, columns


def _visible(token: str) -> str:
  """Return the token with visible signs for spaces and control characters."""
  if not token:
    return '∅'
  signs = {' ': '␣', '\n': '↵', '\t': '⇥'}
  if len(token) > 1:  # inside a token, joiners shape its letters and emoji
    signs |= {c: c for c in JOINERS}
  text = ''.join(signs.get(c) or (c if c.isprintable() else f'U+{ord(c):04X}') for c in token)
  return '◌' + text if unicodedata.category(text[0])[0] == 'M' else text


def _drawable(texts: Sequence[str]) -> tuple[list[str], list[str]]:
  """Return texts without characters that no font has, and the font families for the rest."""
  clusters = [_clusters(text) for text in texts]
  missing = {cluster for text in clusters for cluster in text}
  families = []
  for family in ('DejaVu Sans', *_installed()):  # the first comes with matplotlib
    if found := {cluster for cluster in missing if _coverage(family).issuperset(cluster)}:
      missing -= found
      families.append(family)

  def boxed(text):
    if len(text) == 1 and text[0] in missing:
      return 'U+' + '+'.join(f'{ord(c):04X}' for c in text[0])
    return ''.join('□' if cluster in missing else cluster for cluster in text)

  return [boxed(text) for text in clusters], families or ['DejaVu Sans']


def _clusters(text: str) -> list[str]:
  """Split a text where its font may change: not before marks, joiners and skin tones."""
  clusters: list[str] = []
  for c in text:
    joins = unicodedata.category(c)[0] == 'M' or c in JOINERS or '🏻' <= c <= '🏿'
    if clusters and (joins or clusters[-1].endswith('\u200d')):
      clusters[-1] += c
    else:
      clusters.append(c)
  return clusters


def _installed() -> list[str]:
  from matplotlib.font_manager import fontManager

  pattern = (
    r'Noto Sans (?!Mono)|Arial Unicode|Hiragino Sans|PingFang|Microsoft YaHei|Malgun|Nirmala'
  )
  names = {entry.name for entry in fontManager.ttflist}

  def order(name):  # by name, the same on every run, but the font with most scripts first
    return 'CJK JP' not in name, name

  return sorted(filter(re.compile(pattern).match, names), key=order)


@functools.cache
def _coverage(family: str) -> frozenset[str]:
  from matplotlib.font_manager import findfont, get_font

  return frozenset(map(chr, get_font(findfont(family)).get_charmap()))
