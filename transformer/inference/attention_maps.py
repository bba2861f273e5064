"""Attention maps of a task: the weights of one request, with labels for its positions."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from transformer.inference.batching import Row, bucket_length, pad_rows, split_padding
from transformer.inference.checks import check_finite, check_rows
from transformer.modules import sites

# What is read of every layer, and its name in `observe_layers`.
KINDS = sites.KINDS | {
  f'{attention}.{name}': f'{prefix}{name}'
  for attention, prefix in (('attention', ''), ('cross', 'cross_'))
  for name in ('queries', 'keys', 'values')
}


class AttentionMap(NamedTuple):
  """The attention weights of one request, and the labels of its target and source positions."""

  weights: Float[np.ndarray, 'L H T S']
  rows: list[str]
  columns: list[str]


class Probe(NamedTuple):
  """One request, and the function by which a model computes it, so that its layers are observed.

  Attributes:
    function: of (model, *arguments); a method of a task, or a plain function.
    arguments: arrays of one row, padded.
    rows, columns: labels of the target and the source positions; the same where there is one stack.
    readout: of (model, states of all positions [L, T, D]), logits [L, T or 1, N] of what the model
      says; None if it says nothing by logits.
    names: of the numbers that the logits are of: token or class numbers to texts.
    pictures: pixels [H, W, 3] or frames [S, bands] that the rows or columns are positions of.
  """

  function: Callable[..., Any]
  arguments: tuple[Any, ...]
  rows: list[str]
  columns: list[str]
  readout: Callable[[Any, Array], Array] | None = None
  names: Callable[[Sequence[int]], list[str]] | None = None
  pictures: dict[str, np.ndarray] = {}


def attend(task: Any, model: Any, line: Any) -> AttentionMap:
  """Return how the positions of a request, or of its answer, attend to the request.

  Raises:
    ValueError: the line cannot be answered; says why, and what to do.
    FloatingPointError: a weight is NaN.
  """
  probe = task.attention(model, task.processor.encode_example(line))
  return next(iter(attention_maps(probe, observe_layers(probe, model)).values()))


def observe_layers(probe: Probe, model: Any) -> dict[str, dict[str, Shaped[np.ndarray, 'L ...']]]:
  """Return what all layers compute for a request, without padding.

  Returns:
    For every stack ('encoder' and 'decoder', or '' if there is one): 'states' [L, T, D] after each
    layer, attention weights 'self' [L, H, T, S] and in a decoder 'cross', and 'queries', 'keys'
    and 'values' [L, T, heads, K], and the same of cross-attention as 'cross_queries', ...

  Raises:
    FloatingPointError: a weight is NaN.
  """
  layers = jax.tree.map(np.asarray, _captured(probe.function, model, probe.arguments))
  found: dict[str, dict[str, np.ndarray]] = {}
  for stack, kinds in layers.items():
    T, S = len(probe.columns if stack == 'encoder' else probe.rows), len(probe.columns)
    lengths = {'self': (T, T), 'cross': (T, S), 'cross_keys': (S,), 'cross_values': (S,)}
    found[stack] = {
      name: _first_row(x, lengths.get(name, (T,)), weights=name in ('self', 'cross'))
      for name, x in kinds.items()
    }
    for name in {'self', 'cross'} & found[stack].keys():
      check_finite(found[stack][name], 'the model computes NaN for this line')
  return found


def attention_maps(
  probe: Probe, layers: dict[str, dict[str, Shaped[np.ndarray, 'L ...']]]
) -> dict[str, AttentionMap]:
  """Return the maps of all attention by kind: 'self', or 'cross', 'encoder' and 'decoder'."""
  if '' in layers:
    return {'self': AttentionMap(layers['']['self'], probe.rows, probe.rows)}
  decoder, sources = layers['decoder'], layers['encoder']['self']
  return {
    'cross': AttentionMap(decoder['cross'], probe.rows, probe.columns),
    'encoder': AttentionMap(sources, probe.columns, probe.columns),
    'decoder': AttentionMap(decoder['self'], probe.rows, probe.rows),
  }


def self_attention(task: Any, model: Any, row: Row, **fields: Any) -> Probe:
  """Return how the positions of an encoded request attend to each other in `task.forward`.

  Args:
    task, model: what answers the request.
    row: the request: tokens, pixels or frames.
    fields: `readout` and `names` of the Probe.
  """
  labels = task.processor.labels(row)
  fields |= {'pictures': _pictures(columns=row)}
  return Probe(task.forward, (_padded(task, model, row),), labels, labels, **fields)


def causal_attention(task: Any, model: Any, row: Row) -> Probe:
  """Return how the positions of a prompt attend to those before it."""
  batch = _one_row(task, model, row)
  batch['targets'] = batch['inputs']
  labels = task.processor.labels(row)
  return Probe(task.loss, (batch, None), labels, labels, lm_logits, task.tokenizer.pieces)


def cross_attention(
  task: Any, model: Any, row: Row, outputs: Row, labels: list[str], **fields: Any
) -> Probe:
  """Return how the positions of an answer attend to each other and to its encoded request.

  Args:
    task, model, row: as in `self_attention`.
    outputs: the answer, as targets in training: tokens or frames.
    labels: of the outputs.
    fields: `readout`, `names` and `pictures` of the Probe.
  """
  # padded, so that few programs are compiled
  targets, segments = split_padding(jnp.asarray(pad_rows([outputs], task.decoding.max_new_tokens)))
  batch = _one_row(task, model, row) | {'targets': targets, 'targets_segments': segments}
  fields = {'pictures': _pictures(columns=row)} | fields
  return Probe(task.loss, (batch, None), labels, task.processor.labels(row), **fields)


def lm_logits(model: Any, states: Float[Array, 'L T D']) -> Float[Array, 'L T N']:
  """Return the logits of tokens by the table of a model with a language-model head."""
  return model.lm_head.attend(states)


def out_logits(model: Any, states: Float[Array, 'L T D']) -> Float[Array, 'L T N']:
  """Return the logits by the linear head of a model."""
  return model.out(states)


@functools.partial(jax.jit, static_argnums=0)
def capture_layers(task: Any, model: Any, batch: dict[str, Array]) -> dict[str, dict[str, Array]]:
  """Return the states and attention weights of all layers in `task.loss`; see sites.capture."""
  return sites.capture(task.loss)(model, batch, None)[1]


@functools.partial(jax.jit, static_argnums=0)
def _captured(function, model, arguments):
  return sites.capture(function, KINDS)(model, *arguments)[1]


def _first_row(x, lengths, *, weights):
  """The first row of x [L, B, ...], or of weights [L, B, H, T, S], cut to the lengths."""
  cut = tuple(map(slice, lengths))
  return x[:, 0, :, *cut] if weights else x[:, 0, *cut]


def _pictures(**rows):
  """Return the rows that are pixels or frames."""
  return {name: row for name, row in rows.items() if np.ndim(row) > 1}


def _one_row(task: Any, model: Any, row: Row) -> dict[str, Array]:
  """Return an encoded request as the inputs of a batch."""
  rows, segments = split_padding(jnp.asarray(_padded(task, model, row)))
  return {'inputs': rows, 'inputs_segments': segments}


def _padded(task: Any, model: Any, row: Row) -> Shaped[np.ndarray, '1 S ...']:
  check_rows(model.config, [row], source=hasattr(model, 'decoder'))
  return pad_rows([row], bucket_length(len(row), task.processor.max_length))
