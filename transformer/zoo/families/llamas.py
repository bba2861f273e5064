"""Llama and decoders of similar architecture: one table of names, and the differences of each."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from transformer.modules.heads import Classifier
from transformer.modules.model import Decoder, Encoder
from transformer.zoo.families.decoders import QKV, below_score
from transformer.zoo.families.family import Family, value
from transformer.zoo.families.rotary import express_rotary, partial_rotary, rotary
from transformer.zoo.families.rows import Row, around_one, fused, layers

BLOCK = 'stack/blocks/'
INNER = [f'{BLOCK}feedforward/hidden', f'{BLOCK}feedforward/gate']
NAMES = {
  'embed': 'embed_tokens',
  f'{BLOCK}attention_norm': 'layers.{}.input_layernorm',
  f'{BLOCK}attention/query': 'layers.{}.self_attn.q_proj',
  f'{BLOCK}attention/key': 'layers.{}.self_attn.k_proj',
  f'{BLOCK}attention/value': 'layers.{}.self_attn.v_proj',
  f'{BLOCK}attention/out': 'layers.{}.self_attn.o_proj',
  f'{BLOCK}attention/query_norm': 'layers.{}.self_attn.q_norm',
  f'{BLOCK}attention/key_norm': 'layers.{}.self_attn.k_norm',
  f'{BLOCK}feedforward_norm': 'layers.{}.post_attention_layernorm',
  f'{BLOCK}feedforward/hidden': 'layers.{}.mlp.gate_proj',
  f'{BLOCK}feedforward/gate': 'layers.{}.mlp.up_proj',
  f'{BLOCK}feedforward/out': 'layers.{}.mlp.down_proj',
  'stack/norm': 'norm',
  'output': 'lm_head',
}
FIELDS = {
  'vocab': ('vocab_size', 32000),
  'width': ('hidden_size', 4096),
  'depth': ('num_hidden_layers', 32),
  'heads': ('num_attention_heads', 32),
  'kv_heads': ('num_key_value_heads', 0),
  'head_size': ('head_dim', 0),
  'feedforward': ('intermediate_size', 11008),
  'max_length': ('max_position_embeddings', 2048),
  'activation': ('hidden_act', 'silu'),
  'norm_epsilon': ('rms_norm_eps', 1e-6),
  'attention_dropout': ('attention_dropout', 0.0),
}
FIXED = dict(norm='rms', prenorm=True, position='rotary', gated=True, bias=False)
FIXED |= dict(scale_embedding=False, dropout=0.0)


def repeated(layers: list[dict[str, Any]]) -> dict[str, Any]:
  """Return the fields of ModelConfig for these settings of each of the L layers.

  If all are equal, the result is these settings; otherwise `layers`, the shortest repeated pattern.
  """
  L = len(layers)
  n = next(n for n in range(1, L + 1) if L % n == 0 and layers[:n] * (L // n) == layers)
  return layers[0] if n == 1 else {'layers': tuple(layers[:n])}


def all_layers(config: Any) -> tuple[Any, ...]:
  """Return the settings (config.Layer) of each of the L layers."""
  return config.pattern * (config.depth // len(config.pattern))


class Variant(NamedTuple):
  """The differences of a family from Llama.

  Attributes:
    fixed: fields of ModelConfig that have the same value in all its models.
    biases: which of attention_bias and mlp_bias its config.json has.
    tie, theta: defaults of tie_word_embeddings and rope_theta.
    window: default of sliding_window, 0 for no window; None if there is no such key.
    slides: (config.json, i) to whether layer i has the window, if layer_types is missing.
    turns: (config.json, i) to whether layer i has rotary positions.
    local_theta: default of the rotary base of layers with a window; 0 for that of the others.
    derive: (config.json) to further fields of ModelConfig.
    express: (our config) to the keys of these fields.
  """

  fixed: Mapping[str, Any] = {}
  biases: tuple[str, ...] = ()
  tie: bool = False
  theta: float = 10_000.0
  window: int | None = None
  slides: Callable[[Mapping[str, Any], int], bool] = lambda theirs, i: True
  turns: Callable[[Mapping[str, Any], int], bool] = lambda theirs, i: True
  local_theta: float = 0.0
  derive: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda theirs: {}
  express: Callable[[Any], dict[str, Any]] = lambda config: {}


def like_llama(
  architecture: str,
  fields: Mapping[str, tuple[str, Any]] = {},
  rows: Callable[..., list[Row]] = lambda *_: layers(NAMES),
  only: Mapping[str, Any] = {},
  **variant: Any,
) -> Family:
  """Return a family of decoders like Llama.

  Models without an output layer are read as causal Encoders; classifiers use the last position.

  Args:
    architecture: their class, such as LlamaForCausalLM.
    fields: entries of Family.fields that differ from FIELDS.
    rows: as of Family.
    only: as of Family.
    variant: arguments of Variant.
  """
  settings, name = Variant(**variant), architecture.removesuffix('ForCausalLM')
  others: dict[str, type] = {
    f'{name}ForSequenceClassification': Classifier,
    f'{name}Model': Encoder,
  }
  return Family(
    architectures={architecture: Decoder, **others},
    fields=FIELDS | dict(fields),
    fixed=FIXED,
    only=dict(only),
    rows=lambda config, kind, theirs: below_score(rows(config, kind, theirs), kind),
    derive=lambda theirs, names, kind: (
      _derive(settings, theirs) | ({} if kind is Decoder else dict(causal=True, pooling='last'))
    ),
    express=functools.partial(_express, settings),
    prefix='model.',
    aliases={'lm_head.weight': 'embed_tokens.weight'},
    ignored=re.compile(r'layers\.\d+\.self_attn\.rotary_emb\.inv_freq'),
    heads=re.compile(r'lm_head\..*'),
  )


def _derive(variant, theirs):
  """Return the fields of ModelConfig that depend on more than one key of config.json."""
  fields = {
    ours: key in variant.biases and value(theirs, key, False)
    for key, names in _BIASES.items()
    for ours in names
  }
  fields |= dict(variant.fixed) | partial_rotary(theirs)
  fields['tie'] = 'output' if value(theirs, 'tie_word_embeddings', variant.tie) else 'none'
  rope = value(theirs, 'rope_parameters', {}) or value(theirs, 'rope_scaling', {})
  base = local = rotary(theirs, value(rope, 'full_attention', rope), variant.theta)
  if variant.local_theta:
    theta = value(theirs, 'rope_local_base_freq', variant.local_theta)
    rope = value(rope, 'sliding_attention', {})
    local = rotary({**theirs, 'rope_theta': None}, rope, theta)
  each = [
    dict(window=window)
    | (local if window else base)
    | ({} if variant.turns(theirs, i) else dict(rotary_base=0.0))
    for i, window in enumerate(_windows(variant, theirs))
  ]
  return fields | repeated(each) | variant.derive(theirs)


def _windows(variant, theirs):
  """Return the window of each layer; 0 for none."""
  window, depth = 0, theirs['num_hidden_layers']
  if variant.window is not None:  # null means no window, a missing key the default
    window = value(theirs, 'sliding_window', 0 if 'sliding_window' in theirs else variant.window)
  if theirs.get('use_sliding_window') and not window:
    raise ValueError('config.json: use_sliding_window=True is not supported without sliding_window')
  types = value(theirs, 'layer_types', [])
  if not types:
    return [window if window and variant.slides(theirs, i) else 0 for i in range(depth)]
  kinds = {'full_attention': 0} | ({'sliding_attention': window} if window else {})
  if not set(types) <= kinds.keys() or len(types) != depth:
    raise ValueError(
      f'config.json: layer_types={types} is not supported, only {depth} of {", ".join(kinds)} are'
    )
  return [kinds[each] for each in types]


def _express(variant, config):
  """Return the keys of config.json for the fields of `_derive`."""
  each = all_layers(config)
  whole = next((layer for layer in each if not layer.window and layer.rotary_base), each[0])
  keys = express_rotary(whole) | {'tie_word_embeddings': config.tie in ('output', 'all')}
  keys |= {key: getattr(config, _BIASES[key][0]) for key in variant.biases}
  if config.rotary_size:
    keys['partial_rotary_factor'] = config.rotary_size / config.key_size
  if variant.window is not None:
    keys['sliding_window'] = max(layer.window for layer in each) or None
  if variant.window is not None and len(config.pattern) > 1:
    kinds = ('full_attention', 'sliding_attention')
    keys['layer_types'] = [kinds[bool(layer.window)] for layer in each]
  return keys | variant.express(config)


_BIASES = {
  'attention_bias': ('bias_attention', 'bias_qkv'),
  'mlp_bias': ('bias_feedforward',),
}


# Touvron et al. 2023, https://arxiv.org/abs/2302.13971; SmolLM has the same architecture
LLAMA = like_llama(
  'LlamaForCausalLM',
  biases=('attention_bias', 'mlp_bias'),
)

# Jiang et al. 2023, https://arxiv.org/abs/2310.06825
MISTRAL = like_llama(
  'MistralForCausalLM',
  {
    'kv_heads': ('num_key_value_heads', 8),
    'feedforward': ('intermediate_size', 14336),
    'max_length': ('max_position_embeddings', 131072),
  },
  window=4096,
)


def _qwen_slides(theirs, i):
  return value(theirs, 'use_sliding_window', False) and i >= value(theirs, 'max_window_layers', 28)


def _qwen_express(config):
  return dict(use_sliding_window=any(layer.window for layer in config.pattern))


# Yang et al. 2024, https://arxiv.org/abs/2407.10671
QWEN2 = like_llama(
  'Qwen2ForCausalLM',
  {
    'vocab': ('vocab_size', 151936),
    'feedforward': ('intermediate_size', 22016),
    'kv_heads': ('num_key_value_heads', 32),
    'max_length': ('max_position_embeddings', 32768),
  },
  fixed=dict(bias_qkv=True),
  window=0,
  slides=_qwen_slides,
  express=_qwen_express,
)

# Yang et al. 2025, https://arxiv.org/abs/2505.09388
QWEN3 = like_llama(
  'Qwen3ForCausalLM',
  {ours: QWEN2.fields[ours] for ours in ('vocab', 'feedforward', 'kv_heads', 'max_length')}
  | {'head_size': ('head_dim', 128)},
  fixed=dict(qk_norm='head'),
  biases=('attention_bias',),
  window=0,
  slides=_qwen_slides,
  express=_qwen_express,
)


def _experts(layer):
  """Return the rows of a mixture of experts, stored as a tensor for each layer and expert."""
  names = {'hidden': 'gate_proj', 'gate': 'up_proj', 'out': 'down_proj'}
  return [
    *layers({f'{BLOCK}feedforward/router': f'{layer}.gate'}),
    *layers(names, f'{BLOCK}feedforward/experts/', f'{layer}.experts.{{}}.'),
  ]


# Yang et al. 2025, https://arxiv.org/abs/2505.09388, section 2, with experts in every layer
QWEN3_MOE = like_llama(
  'Qwen3MoeForCausalLM',
  {
    'vocab': ('vocab_size', 151936),
    'width': ('hidden_size', 2048),
    'depth': ('num_hidden_layers', 24),
    'kv_heads': ('num_key_value_heads', 4),
    'feedforward': ('moe_intermediate_size', 768),
    'experts': ('num_experts|num_local_experts', 128),
    'experts_per_token': ('num_experts_per_tok', 8),
    'normalize_experts': ('norm_topk_prob', False),
    'max_length': ('max_position_embeddings', 32768),
  },
  only=dict(decoder_sparse_step=1, mlp_only_layers=[]),
  fixed=dict(qk_norm='head'),
  biases=('attention_bias',),
  window=4096,
  slides=lambda theirs, i: value(theirs, 'use_sliding_window', False),
  express=_qwen_express,
  rows=lambda *_: layers(NAMES) + _experts('layers.{}.mlp'),
)


def _smollm3_turns(theirs, i):
  listed = value(theirs, 'no_rope_layers', [])
  return bool(
    listed[i] if i < len(listed) else (i + 1) % value(theirs, 'no_rope_layer_interval', 4)
  )


# Bakouch et al. 2025, https://huggingface.co/blog/smollm3: every fourth layer has no positions
SMOLLM3 = like_llama(
  'SmolLM3ForCausalLM',
  {
    'vocab': ('vocab_size', 128256),
    'width': ('hidden_size', 2048),
    'depth': ('num_hidden_layers', 36),
    'heads': ('num_attention_heads', 16),
    'kv_heads': ('num_key_value_heads', 4),
    'max_length': ('max_position_embeddings', 32768),
  },
  only=dict(use_sliding_window=False),
  biases=('attention_bias', 'mlp_bias'),
  tie=True,
  theta=2e6,
  turns=_smollm3_turns,
  express=lambda config: {
    'no_rope_layers': [int(layer.rotary_base > 0) for layer in all_layers(config)]
  },
)

# Walsh et al. 2024, https://arxiv.org/abs/2501.00656: norms after sublayers, not before
OLMO2 = like_llama(
  'Olmo2ForCausalLM',
  {'vocab': ('vocab_size', 50304), 'norm_epsilon': ('rms_norm_eps', 1e-5)},
  fixed=dict(sublayer_norm='output', qk_norm='all'),
  biases=('attention_bias',),
  rows=lambda *_: layers(
    NAMES
    | {
      f'{BLOCK}attention_output_norm': 'layers.{}.post_attention_layernorm',
      f'{BLOCK}feedforward_output_norm': 'layers.{}.post_feedforward_layernorm',
    }
  ),
)


def _gemma_activation(theirs, key):
  # in the first configs gelu means the tanh approximation
  return 'gelu_new' if theirs[key] == 'gelu' else theirs[key]


_TANH = {'gelu_tanh': 'gelu_pytorch_tanh'}

# Gemma Team 2024, https://arxiv.org/abs/2403.08295
GEMMA = like_llama(
  'GemmaForCausalLM',
  {
    'vocab': ('vocab_size', 256000),
    'width': ('hidden_size', 3072),
    'depth': ('num_hidden_layers', 28),
    'heads': ('num_attention_heads', 16),
    'kv_heads': ('num_key_value_heads', 16),
    'head_size': ('head_dim', 256),
    'feedforward': ('intermediate_size', 24576),
    'max_length': ('max_position_embeddings', 8192),
    'activation': ('hidden_act', 'gelu_pytorch_tanh'),
  },
  fixed=dict(scale_embedding=True),
  only=dict(use_bidirectional_attention=False),
  biases=('attention_bias',),
  tie=True,
  derive=lambda theirs: dict(activation=_gemma_activation(theirs, 'hidden_act')),
  express=lambda config: (
    {'hidden_act': _TANH[config.activation]} if config.activation in _TANH else {}
  ),
  rows=lambda *_: around_one(layers(NAMES)),
)


def _gemma2_derive(theirs):
  return dict(
    attention_scale=float(value(theirs, 'query_pre_attn_scalar', 256)) ** -0.5,
    soft_cap_attention=_cap(theirs, 'attn_logit_softcapping', 50.0),
    soft_cap_logits=_cap(theirs, 'final_logit_softcapping', 30.0),
  )


def _cap(theirs, key, default):
  """Return a soft cap; 0, for null, means none."""
  return value(theirs, key, 0.0 if key in theirs else default)


def _gemma2_express(config):
  scalar = config.attention_scale**-2 if config.attention_scale else config.key_size
  keys = dict(query_pre_attn_scalar=round(scalar))
  keys |= dict(attn_logit_softcapping=config.soft_cap_attention or None)
  return keys | dict(final_logit_softcapping=config.soft_cap_logits or None)


GEMMA2_FIELDS = {
  'vocab': ('vocab_size', 256000),
  'width': ('hidden_size', 2304),
  'depth': ('num_hidden_layers', 26),
  'heads': ('num_attention_heads', 8),
  'kv_heads': ('num_key_value_heads', 4),
  'head_size': ('head_dim', 256),
  'feedforward': ('intermediate_size', 9216),
  'max_length': ('max_position_embeddings', 8192),
  'activation': ('hidden_activation', 'gelu_pytorch_tanh'),
}
GEMMA2_NAMES = NAMES | {
  f'{BLOCK}attention_output_norm': 'layers.{}.post_attention_layernorm',
  f'{BLOCK}feedforward_norm': 'layers.{}.pre_feedforward_layernorm',
  f'{BLOCK}feedforward_output_norm': 'layers.{}.post_feedforward_layernorm',
}

# Gemma Team 2024, https://arxiv.org/abs/2408.00118
GEMMA2 = like_llama(
  'Gemma2ForCausalLM',
  GEMMA2_FIELDS,
  fixed=dict(scale_embedding=True, sublayer_norm='both'),
  only=dict(use_bidirectional_attention=False),
  biases=('attention_bias',),
  tie=True,
  window=4096,
  slides=lambda theirs, i: i % 2 == 0,
  derive=_gemma2_derive,
  express=_gemma2_express,
  rows=lambda *_: around_one(layers(GEMMA2_NAMES)),
)

# Gemma Team 2025, https://arxiv.org/abs/2503.19786; only the models of text
GEMMA3 = like_llama(
  'Gemma3ForCausalLM',
  GEMMA2_FIELDS
  | {'vocab': ('vocab_size', 262208), 'max_length': ('max_position_embeddings', 131072)},
  fixed=dict(scale_embedding=True, sublayer_norm='both', qk_norm='head'),
  # transformers reads attn_logit_softcapping from config.json, and never applies it
  only=dict(use_bidirectional_attention=False, attn_logit_softcapping=None),
  biases=('attention_bias',),
  tie=True,
  theta=1e6,
  local_theta=10_000.0,
  window=4096,
  slides=lambda theirs, i: bool((i + 1) % value(theirs, 'sliding_window_pattern', 6)),
  derive=lambda theirs: _gemma2_derive(
    {'attn_logit_softcapping': None, 'final_logit_softcapping': None, **theirs}
  ),
  express=lambda config: (
    _gemma2_express(config)
    | {
      'rope_local_base_freq': next(
        (layer.rotary_base for layer in config.pattern if layer.window), 10_000.0
      )
    }
  ),
  rows=lambda *_: around_one(layers(GEMMA2_NAMES)),
)


def _phi3_rows(config, kind, theirs):
  H, G, K = config.heads, config.groups, config.key_size
  return [
    *(row for row in layers(NAMES) if not row.ours[0].startswith((*QKV, *INNER))),
    *fused(QKV, 'layers.{}.self_attn.qkv_proj', (H * K, G * K, G * K)),
    *fused(INNER, 'layers.{}.mlp.gate_up_proj'),
  ]


# Abdin et al. 2024, https://arxiv.org/abs/2404.14219
PHI3 = like_llama(
  'Phi3ForCausalLM',
  {
    'vocab': ('vocab_size', 32064),
    'width': ('hidden_size', 3072),
    'feedforward': ('intermediate_size', 8192),
    'max_length': ('max_position_embeddings', 4096),
    'norm_epsilon': ('rms_norm_eps', 1e-5),
    'dropout': ('resid_pdrop embd_pdrop', 0.0),
  },
  window=0,
  rows=_phi3_rows,
)
