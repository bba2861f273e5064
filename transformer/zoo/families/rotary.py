"""Rotary positions in config.json."""

from collections.abc import Mapping
from typing import Any

from transformer.zoo.families.family import value

# {rope_type: {argument of the function in functional.positions.SCALINGS: key of config.json}}
SCALINGS: dict[str, dict[str, str]] = {
  'linear': {},
  'dynamic': {'original_length': 'original_max_position_embeddings'},
  'llama3': {
    'original_length': 'original_max_position_embeddings',
    'low': 'low_freq_factor',
    'high': 'high_freq_factor',
  },
  'yarn': {
    'original_length': 'original_max_position_embeddings',
    'fast': 'beta_fast',
    'slow': 'beta_slow',
    'whole': 'truncate',
    'stretch': 'attention_factor',
  },
}


def rotary(theirs: Mapping[str, Any], rope: Mapping[str, Any], theta: float) -> dict[str, Any]:
  """Return the fields rotary_base and rotary_scaling.

  Args:
    theirs: config.json.
    rope: rope_parameters, or rope_scaling of older files.
    theta: the default of the base.

  Raises:
    ValueError: the scaling, or one of its keys, is not supported.
  """
  kind = rope.get('rope_type', rope.get('type', 'default'))
  base = value(rope, 'rope_theta', value(theirs, 'rope_theta', theta))
  if kind == 'default':
    return dict(rotary_base=base, rotary_scaling=())
  if kind not in SCALINGS:
    raise ValueError(
      f'config.json: rope_type={kind!r} is not supported, only default, {", ".join(SCALINGS)} are'
    )
  table = {'factor': 'factor'} | SCALINGS[kind]
  known = {'rope_type', 'type', 'rope_theta', 'partial_rotary_factor', *table.values()}
  if unknown := {key for key in rope if rope[key] is not None} - known:
    raise ValueError(f'config.json: {", ".join(unknown)} of rope_type={kind!r} is not supported')
  types = {'original_length': theirs['max_position_embeddings'], 'whole': True}
  kwargs = {
    ours: value(rope, key, types.get(ours, 1.0)) for ours, key in table.items() if key in rope
  }
  if kind in ('dynamic', 'yarn'):
    kwargs.setdefault('original_length', theirs['max_position_embeddings'])
  return dict(rotary_base=base, rotary_scaling=tuple(sorted((kwargs | {'kind': kind}).items())))


def express_rotary(layer: Any) -> dict[str, Any]:
  """Return the keys of config.json for the rotary positions of a layer (config.Layer)."""
  scaling = dict(layer.rotary_scaling or ())
  if not scaling:
    return {'rope_theta': layer.rotary_base}
  kind = scaling.pop('kind')
  table = {'factor': 'factor'} | SCALINGS[kind]
  rope = {'rope_type': kind} | {table[ours]: number for ours, number in scaling.items()}
  return {'rope_theta': layer.rotary_base, 'rope_scaling': rope}


def partial_rotary(theirs: Mapping[str, Any], default: float = 1.0) -> dict[str, int]:
  """Return the field rotary_size: how many numbers of each head are rotated, 0 for all."""
  size = value(theirs, 'head_dim', 0) or theirs['hidden_size'] // theirs['num_attention_heads']
  rope = value(theirs, 'rope_parameters', {}) or value(theirs, 'rope_scaling', {})
  part = value(theirs, 'partial_rotary_factor', value(theirs, 'rotary_pct', default))
  rotated = int(size * value(rope, 'partial_rotary_factor', part))
  return dict(rotary_size=0 if rotated == size else rotated)
