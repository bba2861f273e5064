"""Attention maps: an interactive HTML page (`html`, `page`) and a figure (`draw`).

Their input is `weights` [L, H, T, S]: row t of every [T, S] panel has the attention weights of
target token t over the source tokens. Layers and heads are counted from 1, as in papers. The page
is heatmap.html with heatmap.css and heatmap.js inlined.
"""

import base64
import functools
import io
import json
import pathlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
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

SAVEFIG = {'dpi': 160, 'bbox_inches': 'tight', 'pad_inches': 0.25}  # arguments of savefig
JOINERS = '\u200c\u200d'

# Queries, keys and values with more numbers than this are left out, because the page would be slow.
MOST_NUMBERS = 2_000_000


def html(
  weights: Float[np.ndarray, 'L H T S'],
  rows: Sequence[str],
  columns: Sequence[str],
  *,
  title: str,
  subtitle: str = '',
) -> str:
  """Return an HTML page with every layer and head; it first shows the mean of the last layer.

  Args:
    weights: attention weights in [0, 1].
    rows: the T target tokens.
    columns: the S source tokens.
    title: heading of the page.
    subtitle: a line below it.

  Raises:
    ValueError: weights and tokens have different sizes, or a weight is not in [0, 1].
  """
  return page([map_data(weights, rows, columns)], title=title, subtitle=subtitle)


def page(
  maps: Sequence[Mapping[str, Any]], *, title: str, subtitle: str = '', lens: Any = None
) -> str:
  """Return an HTML page of one or more kinds of attention of a request.

  The page needs no other file and no network. It is ASCII, so that it can be written in any
  encoding. Its data are in the JSON of `<script id="data">`.

  Args:
    maps: each from `map_data`.
    title: heading of the page.
    subtitle: a line below it.
    lens: an inside.Lens, or None.
  """
  lens_data = lens and {
    'positions': [_visible(token) for token in lens.positions],
    'outputs': [[[_visible(name) for name in k] for k in layer] for layer in lens.outputs],
    'thousandths': np.rint(1000 * lens.probabilities).astype(int).tolist(),
  }
  data = {'maps': maps, 'lens': lens_data, 'scale': {'light': LIGHT, 'dark': DARK}}
  # a token '</script>' or '<!--' must not end the element with the data
  inlined = json.dumps(data, separators=(',', ':')).replace('<', r'\u003c')
  texts = {'title': escape(title), 'subtitle': escape(subtitle), 'data': inlined}
  files = resources.files(__package__)
  texts |= {kind: files.joinpath(f'heatmap.{kind}').read_text('utf-8') for kind in ('css', 'js')}
  template = files.joinpath('heatmap.html').read_text('utf-8')
  filled = re.sub(r'\{\{(\w+)\}\}', lambda match: texts[match[1]], template)
  return filled.encode('ascii', 'xmlcharrefreplace').decode('ascii')


def map_data(
  weights: Float[np.ndarray, 'L H T S'],
  rows: Sequence[str],
  columns: Sequence[str],
  *,
  kind: str = '',
  rollout: Float[np.ndarray, 'L T S'] | None = None,
  entropy: Float[np.ndarray, 'L H'] | None = None,
  changes: Float[np.ndarray, 'L H'] | None = None,
  vectors: Mapping[str, Float[np.ndarray, 'L T heads K']] | None = None,
  pictures: Sequence[np.ndarray | None] = (None, None),
) -> dict[str, Any]:
  """Return the data of one kind of attention for `page`, as JSON types.

  The weights are in 'thousandths', [L, 1 + H, T, S] flattened; the mean over heads comes first.

  Args:
    weights, rows, columns: as in `html`.
    kind: 'self', 'cross', 'encoder', 'decoder', or '' for no name.
    rollout: attention rollout; see inside.rollout.
    entropy: of the heads, in bits.
    changes: increase of the loss without each head, in nats.
    vectors: 'queries', 'keys' and 'values'; left out if there are more than MOST_NUMBERS numbers.
    pictures: pixels [H, W, C] or frames [n, bands] of the rows' and the columns' input, or None.

  Raises:
    ValueError: as in `html`.
  """
  weights, rows, columns = _checked(weights, rows, columns)
  panels = np.concatenate([weights.mean(axis=1, keepdims=True), weights], axis=1)
  vectors = vectors or {}
  if sum(x.size for x in vectors.values()) > MOST_NUMBERS:
    vectors = {}
  return {
    'kind': kind,
    'layers': weights.shape[0],
    'heads': weights.shape[1],
    'rows': [_visible(token) for token in rows],
    'columns': [_visible(token) for token in columns],
    'thousandths': _thousandths(panels),
    'rollout': None if rollout is None else _thousandths(rollout),
    'entropy': None if entropy is None else np.round(entropy, 3).tolist(),
    'changes': None if changes is None else [[float(f'{x:.3g}') for x in row] for row in changes],
    'vectors': {name: _packed(x) for name, x in vectors.items()},
    'pictures': [
      None if x is None else _picture(x, names)
      for x, names in zip(pictures, (rows, columns), strict=True)
    ],
  }


def _thousandths(values):
  return np.rint(1000 * values).astype(int).ravel().tolist()


def _packed(x):
  """Return vectors [L, T, heads, K] as int8 [L, heads, T, K] in base64; 127 is the largest one."""
  largest = float(np.abs(x).max()) or 1.0
  numbers = np.rint(127 * np.asarray(x, np.float32).swapaxes(1, 2) / largest).astype(np.int8)
  data = base64.b64encode(numbers.tobytes()).decode()
  return {'shape': numbers.shape, 'largest': float(f'{largest:.3g}'), 'data': data}


def _picture(x, names):
  """Return pixels or frames as a PNG in a data URL, with the grid of positions in it."""
  from PIL import Image

  if x.ndim == 3:
    kind, grid = 'patches', [int(n) + 1 for n in names[-1].split(',')]
    image = Image.fromarray(x.squeeze(-1) if x.shape[-1] == 1 else x)
  else:  # low frequencies at the bottom
    kind, grid, x = 'frames', [1, len(names)], x.T[::-1]
    low, high = np.percentile(x, [1, 99])
    x = np.clip((x - low) / max(high - low, 1e-9), 0, 1)
    image = Image.fromarray(np.rint(255 * (1 - x)).astype(np.uint8))
  file = io.BytesIO()
  image.save(file, 'png')
  url = 'data:image/png;base64,' + base64.b64encode(file.getvalue()).decode()
  return {'kind': kind, 'grid': grid, 'size': image.size, 'url': url}


def draw(
  weights: Float[np.ndarray, 'L H T S'],
  rows: Sequence[str],
  columns: Sequence[str],
  path: str | PathLike,
  *,
  title: str = '',
) -> None:
  """Write a PNG or SVG of each layer's mean over heads, side by side.

  If that is too wide, only the last layer is drawn. Long tokens are truncated. Characters that no
  installed font has are drawn as a box, or as their code point if they are a whole token.
  Matplotlib before 3.11 neither joins nor reverses right-to-left tokens.

  Args:
    weights: attention weights in [0, 1].
    rows: the T target tokens.
    columns: the S source tokens.
    path: the file to write; its suffix is .png or .svg.
    title: heading of the figure.

  Raises:
    ValueError: weights and tokens have different sizes, or a weight is not in [0, 1].
  """
  kind = pathlib.Path(path).suffix.lstrip('.') or 'png'
  _figure(weights, rows, columns, title).savefig(path, format=kind, **SAVEFIG)


def png(
  weights: Float[np.ndarray, 'L H T S'], rows: Sequence[str], columns: Sequence[str]
) -> bytes:
  """Return the PNG that `draw` writes, without a title."""
  file = io.BytesIO()
  _figure(weights, rows, columns, '').savefig(file, format='png', **SAVEFIG)
  return file.getvalue()


def _figure(weights, rows, columns, title: str) -> Any:
  from matplotlib.colors import LinearSegmentedColormap
  from matplotlib.figure import Figure

  weights, rows, columns = _checked(weights, rows, columns)
  means = weights.mean(axis=1)
  layers, height, width = means.shape
  cell = min(0.5, max(0.16, 4.5 / max(height, width)))  # inches, like all lengths below
  wide, tall, gap, bar = cell * width, cell * height, 0.3, 0.12
  drawn = range(layers) if layers * (wide + gap) <= 24 else range(layers - 1, layers)
  right = len(drawn) * (wide + gap)
  figure = Figure(figsize=(right + bar, tall), facecolor='white')

  def axes(left, across):
    return figure.add_axes((left / (right + bar), 0, across / (right + bar), 1))

  labels = [_visible(token) for token in (*rows, *columns)]
  texts, families = _drawable([*labels, ' '.join(title.split())])
  title = texts.pop()
  labels = [text if len(text) <= 24 else text[:23] + '…' for text in texts]
  font = {'fontfamily': families, 'fontsize': min(11, cell * 72 * 0.72), 'parse_math': False}
  colors = LinearSegmentedColormap.from_list('attention', LIGHT)
  scale = {'cmap': colors, 'vmin': 0, 'vmax': means[list(drawn)].max() or 1}
  for i, layer in enumerate(drawn):
    panel = axes(i * (wide + gap), wide)
    mesh = panel.pcolormesh(means[layer], **scale, edgecolors='white', linewidth=cell * 3)
    row_labels = labels[:height] if i == 0 else [''] * height
    _label_panel(panel, row_labels, labels[height:], cell, font)
    panel.set_xlabel(f'layer {layer + 1} of {layers}', color=QUIET, fontsize=10, labelpad=8)
  _label_scale(figure.colorbar(mesh, cax=axes(right, bar)))
  if title:
    # the title is above the column labels, whose height is known only after layout
    top = figure.get_tightbbox().y1 / tall
    heading = dict(fontfamily=families, fontsize=13, parse_math=False, color=INK, va='bottom')
    figure.text(0, top + 0.2 / tall, title, **heading)  # type: ignore[arg-type]
  return figure


def _label_panel(panel, rows: list[str], columns: list[str], cell: float, font: dict[str, Any]):
  """Write the tokens to the left and above; rotate column labels that are wider than a cell."""
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
  if not (weights.min() >= 0 and weights.max() <= 1 + 1e-4):  # also true for NaN
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
  if len(token) > 1:  # inside a token, keep joiners, which combine letters and emoji
    signs |= {c: c for c in JOINERS}
  text = ''.join(signs.get(c) or (c if c.isprintable() else f'U+{ord(c):04X}') for c in token)
  return '◌' + text if unicodedata.category(text[0])[0] == 'M' else text


def _drawable(texts: Sequence[str]) -> tuple[list[str], list[str]]:
  """Return texts with boxes for characters that no font has, and the font families to use."""
  clusters = [_clusters(text) for text in texts]
  missing = {cluster for text in clusters for cluster in text}
  families = []
  for family in ('DejaVu Sans', *_installed()):  # the first comes with matplotlib
    if covered := {cluster for cluster in missing if _coverage(family).issuperset(cluster)}:
      missing -= covered
      families.append(family)

  def boxed(text):
    if len(text) == 1 and text[0] in missing:
      return 'U+' + '+'.join(f'{ord(c):04X}' for c in text[0])
    return ''.join('□' if cluster in missing else cluster for cluster in text)

  return [boxed(text) for text in clusters], families or ['DejaVu Sans']


def _clusters(text: str) -> list[str]:
  """Return the parts of a text that need one font: a character with its marks and joiners."""
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

  def order(name):  # by name, but first the font with the most scripts
    return 'CJK JP' not in name, name

  return sorted(filter(re.compile(pattern).match, names), key=order)


@functools.cache
def _coverage(family: str) -> frozenset[str]:
  from matplotlib.font_manager import findfont, get_font

  return frozenset(map(chr, get_font(findfont(family)).get_charmap()))
