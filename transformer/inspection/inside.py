"""The states and attention weights of a model for one request, as arrays and as an HTML page.

look(task, model, line)                   displays the page in a notebook
look(task, model, line).html()            the page, as of `run.py --mode=attend`
look(...).maps['self'].weights            [L, H, T, S]
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from transformer.inference.attention_maps import (
  AttentionMap,
  Probe,
  attention_maps,
  observe_layers,
)
from transformer.inspection import heatmap
from transformer.modules.sites import observe
from transformer.modules.stack import Stack

# The largest parameters x positions x heads for which the page has the ablation of every head,
# which takes some seconds on a CPU. Call `ablate_heads` for larger models.
CHEAP = 2e10


class Lens(NamedTuple):
  """The outputs of each layer if it were the last one (logit lens).

  Attributes:
    positions: labels of the T positions, one, 'input', of a classifier.
    outputs: [L][T][k], the k most probable outputs of every layer and position, best first.
    probabilities: of these outputs.
  """

  positions: list[str]
  outputs: list[list[list[str]]]
  probabilities: Float[np.ndarray, 'L T k']


@dataclasses.dataclass(frozen=True, repr=False)
class Inside:
  """The states and attention weights of a model for one request.

  Attributes:
    title, subtitle: of the page: the request and its answer.
    maps: attention weights by kind: 'self', or 'cross', 'encoder' and 'decoder'.
    layers: {stack: {name: array}}; see attention_maps.observe_layers.
    lens: None if the model has no logits.
    changes: {kind of map: [L, H]}, the increase of -log p of the most probable output if a head is
      removed, mean over positions; {} if that would take long.
    pictures: as in a Probe.
  """

  title: str
  subtitle: str
  maps: dict[str, AttentionMap]
  layers: dict[str, dict[str, np.ndarray]]
  lens: Lens | None
  changes: dict[str, Float[np.ndarray, 'L H']]
  pictures: dict[str, np.ndarray]

  def html(self) -> str:
    """Return the page; see heatmap.html."""
    maps = []
    for kind, attention in self.maps.items():
      target, source = SIDES[kind]
      square = target == source
      prefix, stack = ('cross_', 'decoder') if kind == 'cross' else ('', kind)
      layers = self.layers['' if kind == 'self' else stack]
      maps.append(
        heatmap.map_data(
          *attention,
          kind=kind,
          rollout=rollout(attention.weights) if square else None,
          entropy=entropy(attention.weights),
          changes=self.changes.get(kind),
          vectors={name: layers[f'{prefix}{name}'] for name in ('queries', 'keys', 'values')},
          pictures=[self.pictures.get(side) for side in (target, source)],
        )
      )
    return heatmap.page(maps, title=self.title, subtitle=self.subtitle, lens=self.lens)

  def draw(self, path: Any) -> None:
    """Write the first map as PNG or SVG, by the suffix of the path; see heatmap.draw."""
    heatmap.draw(*next(iter(self.maps.values())), path, title=self.title)

  def _repr_html_(self) -> str:
    """Return the page in a frame, which Jupyter and Colab show."""
    frame = 'width="100%" height="900" style="border:0" title="attention"'
    return f'<iframe srcdoc="{escape(self.html())}" {frame}></iframe>'


# {kind of map: the labels of its rows and of its columns, as attributes of a Probe}
SIDES = {
  'self': ('columns', 'columns'),
  'cross': ('rows', 'columns'),
  'encoder': ('columns', 'columns'),
  'decoder': ('rows', 'rows'),
}


def look(task: Any, model: Any, line: Any, *, subtitle: str = '') -> Inside:
  """Return the states and attention weights of a model for a request.

  Args:
    task: encodes the request; see inference.predict.
    model: of that task.
    line: a text, or the path, content or array of an image or sound.
    subtitle: of the page, such as the answer.

  Raises:
    ValueError: the request cannot be encoded; says why, and the cure.
    FloatingPointError: an attention weight is NaN.
  """
  probe = task.attention(model, task.processor.encode_example(line))
  title = line if isinstance(line, str) else ''
  return look_at(probe, model, title=title, subtitle=subtitle)


def look_at(probe: Probe, model: Any, *, title: str = '', subtitle: str = '') -> Inside:
  """Return the states and attention weights of a model in any function that calls it.

  Args:
    probe: the function and its labels, such as `Probe(lambda model, x: model(x), (tokens,), pieces,
      pieces, lm_logits, tokenizer.pieces)`.
    model: the first argument of the function.
    title, subtitle: of the page.
  """
  layers = observe_layers(probe, model)
  maps = attention_maps(probe, layers)
  stack = 'decoder' if 'decoder' in layers else ''
  lens, changes = None, {}
  if probe.readout is not None and probe.names is not None:
    states = _normed(model, stack, layers[stack]['states'])
    lens = logit_lens(probe, model, states)
    heads = sum(m.weights.shape[0] * m.weights.shape[1] for m in maps.values())
    positions = len(probe.rows) + len(probe.columns)
    if sum(x.size for x in jax.tree.leaves(model)) * positions * heads <= CHEAP:
      changes = _changes(probe, model, stack, states)
  return Inside(title, subtitle, maps, layers, lens, changes, probe.pictures)


def entropy(weights: Float[np.ndarray, 'L H T S']) -> Float[np.ndarray, 'L H']:
  """Return the entropy of the weights of every head, in bits, mean over targets.

  >>> entropy(np.array([[[[0.5, 0.5], [1.0, 0.0]]]]))
  array([[0.5]])
  """
  weights = np.asarray(weights, np.float64)
  logs = np.log2(weights, out=np.zeros_like(weights), where=weights > 0)
  return -(weights * logs).sum(-1).mean(-1)


def rollout(weights: Float[np.ndarray, 'L H T T']) -> Float[np.ndarray, 'L T T']:
  """Return the share of each input in each position after every layer (attention rollout).

  The product over layers of (W + I) / 2, with W the mean of the weights over heads and I for the
  residual connection: Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928, section 3.

  >>> rollout(np.array([[[[1.0, 0.0], [1.0, 0.0]]]] * 2))[-1]
  array([[1.  , 0.  ],
         [0.75, 0.25]])
  """
  shares, layers = np.eye(weights.shape[-1]), []
  for mean in np.asarray(weights, np.float64).mean(axis=1):
    shares = (mean @ shares + shares) / 2
    layers.append(shares)
  return np.stack(layers)


def logit_lens(probe: Probe, model: Any, states: Float[Array, 'L T D'], best: int = 5) -> Lens:
  """Return the most probable outputs if the output layer is applied to the states of each layer.

  nostalgebraist 2020, "interpreting GPT: the logit lens", lesswrong.com.

  Args:
    probe: has a readout and names.
    model: first argument of the readout.
    states: after each layer, normalized as those of the last layer.
    best: k, the number of outputs.
  """
  assert probe.readout is not None and probe.names is not None
  p = jax.nn.softmax(probe.readout(model, states).astype(jnp.float32), axis=-1)
  p, numbers = jax.lax.top_k(p, min(best, p.shape[-1]))
  names = [[probe.names(ids.tolist()) for ids in layer] for layer in np.asarray(numbers)]
  positions = probe.rows if p.shape[1] == len(probe.rows) else ['input']
  return Lens(positions, names, np.asarray(p))


def ablate_heads(
  function: Callable[..., Any],
  model: Any,
  *arguments: Any,
  metric: Callable[[Any, dict[str, Array]], Array] = lambda result, values: result,
  read: Sequence[str] = (),
) -> dict[str, Float[np.ndarray, ' H']]:
  """Return the change of a metric if a head is removed, for every head, one at a time.

  To remove a head, its output is set to 0. Voita et al. 2019, https://arxiv.org/abs/1905.09418, and
  Michel et al. 2019, https://arxiv.org/abs/1905.10650, section 3.

  Args:
    function: (model, *arguments) to a result; calls the model, and is not compiled.
    model, arguments: its arguments.
    metric: (result, {site: value}) to a number.
    read: names of these sites; see sites.observe.

  Returns:
    {'blocks.0.attention': the change for each of its heads, ...}.

  >>> from transformer import Decoder, ModelConfig
  >>> model = Decoder(ModelConfig(vocab=5, width=8, heads=2, depth=2), nnx.Rngs(0))
  >>> changes = ablate_heads(lambda model, x: model(x).max(), model, jnp.array([[1, 2, 3]]))
  >>> [(name, change.shape) for name, change in changes.items()]
  [('blocks.0.attention', (2,)), ('blocks.1.attention', (2,))]
  """
  pattern = '*blocks.*.heads'
  shapes = jax.eval_shape(observe(function, read=[pattern]), model, *arguments)[1]
  ends = np.cumsum([value.shape[2] for value in shapes.values()])

  def measure(hidden, model, arguments):
    of_site = dict(zip(shapes, jnp.split(hidden, ends[:-1]), strict=True))
    edit = {
      name: functools.partial(lambda hide, x: jnp.where(hide[:, None], 0, x), hide)
      for name, hide in of_site.items()
    }
    return metric(*observe(function, read=read, edit=edit)(model, *arguments))

  @jax.jit
  def measure_all(hidden, model, arguments):
    return jax.lax.map(lambda hide: measure(hide, model, arguments), hidden)

  hidden = jnp.eye(ends[-1] + 1, ends[-1], dtype=bool)  # the last row removes no head
  values = np.asarray(measure_all(hidden, model, arguments))
  changes = np.split(values[:-1] - values[-1], ends[:-1])
  return {n.removesuffix('.heads'): change for n, change in zip(shapes, changes, strict=True)}


def _changes(probe, model, stack, states):
  """Return the attribute `changes` of Inside."""
  output = f'{stack}.output'.lstrip('.')
  best = jnp.argmax(probe.readout(model, states[-1:]), axis=-1)
  T = len(probe.rows)

  def nll(_, values):
    log_p = jax.nn.log_softmax(probe.readout(model, values[output][:1, :T]).astype(jnp.float32))
    return -jnp.take_along_axis(log_p, best[..., None], axis=-1).mean()

  by_block = ablate_heads(probe.function, model, *probe.arguments, metric=nll, read=[output])
  changes: dict[str, list] = {}
  for name, change in by_block.items():
    kind = 'cross' if name.endswith('cross') else name.split('.')[0] if stack else 'self'
    changes.setdefault(kind, []).append(change)
  return {kind: np.stack(layers) for kind, layers in changes.items()}


def _normed(model, stack, states):
  """Return the states after each layer, normalized by the final norm of the stack."""
  stacks = {m.prefix.rstrip('.'): m for _, m in nnx.iter_graph(model) if isinstance(m, Stack)}
  norm = stacks[stack].norm
  return jnp.asarray(states) if norm is None else norm(jnp.asarray(states))
