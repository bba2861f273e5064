"""The tiny models of golden/, and our answers under the names that `transformers` gives them."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from transformer.functional import search
from transformer.modules.cache import Cache
from transformer.modules.heads import (
  Classifier,
  DualEncoder,
  MaskedTokens,
  MultipleChoice,
  ReplacedTokens,
  Spans,
  TargetClassifier,
  TokenClassifier,
)
from transformer.modules.model import Decoder, Encoder, EncoderDecoder
from transformer.zoo.pretrained import load_pretrained

GOLDEN = pathlib.Path(__file__).parent / 'golden'
NAMES = sorted(folder.name for folder in GOLDEN.iterdir())
# without searches
FORWARD = """
  bart_labels bloom deit dinov2 dinov2_gated clip clip_text clip_vision distilbert distilbert_labels
  electra electra_labels electra_masked gemma gemma2 gemma3 gpt2_labels gpt_neox llama3 llama_labels
  m2m_100 mbart mistral modernbert modernbert_labels mpnet mt5 olmo2 opt pegasus phi3 qwen3
  qwen3_moe siglip siglip_text siglip_vision smollm3 t5_encoder t5_labels umt5
""".split()
# heads and towers on bodies that other goldens prove
SECOND = """
  bart_labels bert_choices bert_decoder clip_text clip_vision deit dinov2_gated distilbert_labels
  electra_labels gpt2_labels modernbert_labels roberta_choices siglip_text siglip_vision
""".split()
GENERATE = [
  name for name in NAMES if not name.startswith(('bert', 'roberta', 'vit')) and name not in FORWARD
]
STEPS, BEAMS = 12, 4


@functools.cache
def golden(name):
  """`read` of a tiny model in golden/."""
  return read(GOLDEN / name)


def read(folder):
  """(model, inputs, answers, config.json) of a folder that make_golden wrote."""
  model, _ = load_pretrained(folder, unroll=1)
  with np.load(folder / 'expected.npz') as file:
    arrays = {k: v.astype(np.int32) if v.dtype.kind == 'i' else v for k, v in file.items()}
  inputs = {k.removeprefix('in_'): v for k, v in arrays.items() if k.startswith('in_')}
  answers = {k.removeprefix('out_'): v for k, v in arrays.items() if k.startswith('out_')}
  return model, inputs, answers, json.loads((folder / 'config.json').read_text())


def copied(tmp_path, name, change=lambda tensors: tensors, **config):
  """A golden folder, copied, whose tensors and config.json are changed."""
  folder = tmp_path / name
  folder.mkdir(exist_ok=True)
  save_file(change(load_file(GOLDEN / name / 'model.safetensors')), folder / 'model.safetensors')
  theirs = json.loads((GOLDEN / name / 'config.json').read_text()) | config
  (folder / 'config.json').write_text(json.dumps(theirs))
  return folder


def source(inputs, patch=4):
  """(what an encoder reads, its segments)."""
  if 'pixel_values' in inputs:
    B, C, rows, columns = inputs['pixel_values'].shape
    squares = inputs['pixel_values'].reshape(B, C, rows // patch, patch, columns // patch, patch)
    return jnp.asarray(squares.transpose(0, 2, 4, 3, 5, 1).reshape(B, -1, patch * patch * C)), None
  if 'input_features' in inputs:
    return jnp.asarray(inputs['input_features'].swapaxes(1, 2)), None
  mask = inputs.get('attention_mask')
  return jnp.asarray(inputs['input_ids']), None if mask is None else jnp.asarray(mask)


@jax.jit
def answered(model, inputs, segments, types, targets, target_segments):
  """What the model says, by the names `transformers` gives it."""
  if isinstance(model, EncoderDecoder):
    memory = model.encode(inputs, segments=segments)
    logits = model.decode(targets, memory, segments=target_segments)
    return {'logits': logits, 'encoder_last_hidden_state': memory.states}
  if isinstance(model, Decoder):
    return {'logits': model(inputs, segments=segments)}
  given = dict(segments=segments) if types is None else dict(segments=segments, token_types=types)
  if isinstance(model, TargetClassifier):
    return {'logits': model(inputs, segments=segments)}
  if type(model) in (Classifier, MultipleChoice, TokenClassifier, ReplacedTokens):
    return {'logits': model(inputs, **given)}
  if isinstance(model, Spans):
    starts, ends = jnp.moveaxis(model(inputs, **given), -1, 0)
    return {'start_logits': starts, 'end_logits': ends}
  encoder = model if isinstance(model, Encoder) else model.encoder
  states = encoder(inputs, **given)
  found = {'last_hidden_state': states}
  if encoder.pooler is not None or encoder.projection is not None:
    pooled = encoder.encode_pooled(inputs, **given)
    found |= dict.fromkeys(('pooler_output', 'text_embeds', 'image_embeds'), pooled)
  elif encoder.config.modality == 'patches':
    found['pooler_output'] = encoder.encode_pooled(inputs)
  if isinstance(model, MaskedTokens):
    found |= dict.fromkeys(('logits', 'prediction_logits'), model(inputs, **given))
    if model.next_sentence is not None:
      found['seq_relationship_logits'] = model.next_sentence(found['pooler_output'])
  return found


@jax.jit
def compared(model, texts, images, segments):
  """What a DualEncoder says, by the names `transformers` gives it."""
  logits = model(texts, images, segments=segments)
  vectors = dict(text_embeds=model.text(texts, segments=segments), image_embeds=model.image(images))
  return vectors | dict(logits_per_text=logits, logits_per_image=logits.T)


def answers_of(model, inputs):
  x, segments = source(inputs)
  if isinstance(model, DualEncoder):
    return compared(model, inputs['input_ids'], x, inputs.get('attention_mask'))
  given = (inputs.get(k) for k in ('token_type_ids', 'decoder_input_ids', 'decoder_attention_mask'))
  return answered(model, x, segments, *given)


@functools.partial(jax.jit, static_argnums=4)
def generated(model, inputs, segments, first, eos):
  """What greedy search and beam search say [B, STEPS], [B, BEAMS, STEPS], and the latter's scores.

  -1 after the end.
  """
  if isinstance(model, EncoderDecoder):
    memory = model.decoder.prepare(model.encode(inputs, segments=segments))
    cache = model.init_cache(len(first), STEPS)
    wide = model.init_cache(len(first) * BEAMS, STEPS, beams=BEAMS)
  else:
    cache = model.init_cache(len(first), inputs.shape[1] + STEPS)
    _, cache = model(inputs[:, :-1], segments=segments[:, :-1], cache=cache)
    wide = cache.take(jnp.repeat(jnp.arange(len(first)), BEAMS))

  def step(tokens, cache):
    ones = jnp.ones((len(tokens), 1), jnp.int32)
    if isinstance(model, EncoderDecoder):
      logits, cache = model.decode(tokens[:, None], memory, segments=ones, cache=cache)
    else:
      logits, cache = model(tokens[:, None], segments=ones, cache=cache)
    return logits[:, 0], cache

  how = dict(steps=STEPS, eos=eos, pad=-1)
  greedy, _ = search.greedy(step, cache, first, **how)
  return greedy, *search.beam_search(step, wide, first, beams=BEAMS, reorder=Cache.take, **how)


def continued(model, inputs, config):
  """`generated` as config.json says."""
  x, segments = source(inputs)
  start = config.get('decoder_start_token_id')
  first = x[:, -1] if start is None else jnp.full(len(x), start)
  return generated(model, x, segments, first, config['eos_token_id'])


def real(name, values, inputs):
  """The values at positions that are no padding."""
  mask = inputs.get('attention_mask')
  if values.ndim == 3 or (mask is not None and values.shape == mask.shape):
    key = 'decoder_attention_mask' if name == 'logits' else 'attention_mask'
    mask = inputs.get(key, inputs.get('attention_mask'))
    if mask is not None and mask.shape == values.shape[:2]:
      return np.asarray(values)[mask != 0]
  return np.asarray(values)


def assert_same(found, expected, inputs, close):
  """All that was expected was found, and is equal where there is no padding."""
  keys = set(expected) - {'greedy', 'beam', 'beam_scores'}
  assert keys and keys <= set(found)
  for key in keys:
    close(real(key, found[key], inputs), real(key, expected[key], inputs))
