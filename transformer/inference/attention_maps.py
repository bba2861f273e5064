"""Attention maps of a task: the attention weights of one request, with labels of its positions."""

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

# sites of a layer that are read, and their names in the result of `observe_layers`
KINDS = sites.KINDS | {
  f'{attention}.{name}': f'{prefix}{name}'
  for attention, prefix in (('attention', ''), ('cross', 'cross_'))
  for name in ('queries', 'keys', 'values')
}


class AttentionMap(NamedTuple):
  """The attention weights of one request.

  Attributes:
    weights: of all layers and heads.
    rows, columns: labels of the T target and the S source positions.
  """

  weights: Float[np.ndarray, 'L H T S']
  rows: list[str]
  columns: list[str]


class Probe(NamedTuple):
  """A computation of one request whose layers can be observed.

  Attributes:
    function: f(model, *arguments), a method of a task or a plain function.
    arguments: arrays of one row, padded.
    rows, columns: labels of the target and the source positions; equal in a model of one stack.
    readout: f(model, states [L, T, D]) returns the logits [L, T or 1, N] of the model's head for
      the states of every layer (logit lens); None for a model without logits.
    names: f(token or class numbers) returns their names.
    pictures: pixels [H, W, 3] or frames [S, bands], if 'rows' or 'columns' are their positions.
  """

  function: Callable[..., Any]
  arguments: tuple[Any, ...]
  rows: list[str]
  columns: list[str]
  readout: Callable[[Any, Array], Array] | None = None
  names: Callable[[Sequence[int]], list[str]] | None = None
  pictures: dict[str, np.ndarray] = {}


def attend(task: Any, model: Any, line: Any) -> AttentionMap:
  """Return the attention of a request's positions, or of its answer's, to the request.

  Args:
    task, model, line: as in `predict`.

  Raises:
    ValueError: the line cannot be answered.
    FloatingPointError: a weight is NaN.
  """
  probe = task.attention(model, task.processor.encode_example(line))
  return next(iter(attention_maps(probe, observe_layers(probe, model)).values()))


def observe_layers(probe: Probe, model: Any) -> dict[str, dict[str, Shaped[np.ndarray, 'L ...']]]:
  """Return values of all layers for a request, without padding.

  Returns:
    {stack: {name: values}}; the stacks are 'encoder' and 'decoder', or '' if there is one only. The
    values are 'states' [L, T, D] after each layer, the attention weights 'self' [L, H, T, S],
    'queries', 'keys' and 'values' [L, T, heads, K]; with cross-attention also 'cross',
    'cross_queries', 'cross_keys' and 'cross_values'.

  Raises:
    FloatingPointError: a weight is NaN.
  """
  layers = jax.tree.map(np.asarray, _captured(probe.function, model, probe.arguments))
  result: dict[str, dict[str, np.ndarray]] = {}
  for stack, kinds in layers.items():
    T, S = len(probe.columns if stack == 'encoder' else probe.rows), len(probe.columns)
    lengths = {'self': (T, T), 'cross': (T, S), 'cross_keys': (S,), 'cross_values': (S,)}
    result[stack] = {
      name: _first_row(x, lengths.get(name, (T,)), weights=name in ('self', 'cross'))
      for name, x in kinds.items()
    }
    for name in {'self', 'cross'} & result[stack].keys():
      check_finite(result[stack][name], 'the model computes NaN for this line')
  return result


def attention_maps(
  probe: Probe, layers: dict[str, dict[str, Shaped[np.ndarray, 'L ...']]]
) -> dict[str, AttentionMap]:
  """Return the attention maps of `observe_layers` by kind.

  The kinds are 'self', or in an encoder-decoder 'cross', 'encoder' and 'decoder'.
  """
  if '' in layers:
    return {'self': AttentionMap(layers['']['self'], probe.rows, probe.rows)}
  decoder, sources = layers['decoder'], layers['encoder']['self']
  return {
    'cross': AttentionMap(decoder['cross'], probe.rows, probe.columns),
    'encoder': AttentionMap(sources, probe.columns, probe.columns),
    'decoder': AttentionMap(decoder['self'], probe.rows, probe.rows),
  }


def self_attention(task: Any, model: Any, row: Row, **fields: Any) -> Probe:
  """Return the Probe of self-attention in `task.forward`.

  Args:
    task, model: as in `predict`.
    row: the encoded request: tokens, pixels or frames.
    fields: `readout` and `names` of the Probe.
  """
  labels = task.processor.labels(row)
  fields |= {'pictures': _pictures(columns=row)}
  return Probe(task.forward, (_padded(task, model, row),), labels, labels, **fields)


def causal_attention(task: Any, model: Any, row: Row) -> Probe:
  """Return the Probe of causal self-attention in a prompt."""
  batch = _one_row(task, model, row)
  batch['targets'] = batch['inputs']
  labels = task.processor.labels(row)
  return Probe(task.loss, (batch, None), labels, labels, lm_logits, task.tokenizer.pieces)


def cross_attention(
  task: Any, model: Any, row: Row, outputs: Row, labels: list[str], **fields: Any
) -> Probe:
  """Return the Probe of an answer's attention to itself and to its request.

  Args:
    task, model, row: as in `self_attention`.
    outputs: the answer, as targets in training: tokens or frames.
    labels: labels of the outputs.
    fields: `readout`, `names` and `pictures` of the Probe.
  """
  # padded, so that few programs are compiled
  targets, segments = split_padding(jnp.asarray(pad_rows([outputs], task.decoding.max_new_tokens)))
  batch = _one_row(task, model, row) | {'targets': targets, 'targets_segments': segments}
  fields = {'pictures': _pictures(columns=row)} | fields
  return Probe(task.loss, (batch, None), labels, task.processor.labels(row), **fields)


def lm_logits(model: Any, states: Float[Array, 'L T D']) -> Float[Array, 'L T N']:
  """Return the logits of tokens by the `lm_head` of a model."""
  return model.lm_head.attend(states)


def out_logits(model: Any, states: Float[Array, 'L T D']) -> Float[Array, 'L T N']:
  """Return the logits by the linear head `out` of a model."""
  return model.out(states)


@functools.partial(jax.jit, static_argnums=0)
def capture_layers(task: Any, model: Any, batch: dict[str, Array]) -> dict[str, dict[str, Array]]:
  """Return the states and attention weights of all layers in `task.loss`; see sites.capture."""
  return sites.capture(task.loss)(model, batch, None)[1]


@functools.partial(jax.jit, static_argnums=0)
def _captured(function, model, arguments):
  return sites.capture(function, KINDS)(model, *arguments)[1]


def _first_row(x, lengths, *, weights):
  """Return the first row of x [L, B, ...], or of weights [L, B, H, T, S], cut to the lengths."""
  cut = tuple(map(slice, lengths))
  return x[:, 0, :, *cut] if weights else x[:, 0, *cut]


def _pictures(**rows):
  """Return those of the rows that are pixels or frames, not tokens."""
  return {name: row for name, row in rows.items() if np.ndim(row) > 1}


def _one_row(task: Any, model: Any, row: Row) -> dict[str, Array]:
  """Return an encoded request as the inputs of a batch of one row."""
  rows, segments = split_padding(jnp.asarray(_padded(task, model, row)))
  return {'inputs': rows, 'inputs_segments': segments}


def _padded(task: Any, model: Any, row: Row) -> Shaped[np.ndarray, '1 S ...']:
  check_rows(model.config, [row], source=hasattr(model, 'decoder'))
  return pad_rows([row], bucket_length(len(row), task.processor.max_length))
