"""The same models in PyTorch and Hugging Face transformers, as their users write them.

Needs `pip install torch transformers`; imports neither this codebase nor JAX.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

THREADS = 2


class TorchEncoderDecoder(nn.Module):
  """nn.Transformer with embeddings and a tied output layer, pre-norm, with the same dropout."""

  def __init__(self, *, vocab, width, heads, depth, feedforward, dropout, max_length):
    super().__init__()
    self.width = width
    self.source, self.target = (nn.Embedding(vocab, width) for _ in range(2))
    for table in (self.source, self.target):
      nn.init.normal_(table.weight, std=width**-0.5)
    self.transformer = nn.Transformer(
      width, heads, depth, depth, feedforward, dropout, batch_first=True, norm_first=True
    )
    for module in self.transformer.modules():
      if isinstance(module, nn.MultiheadAttention):
        module.dropout = 0.0  # on weights: ours has none either, and it would cost the peer
    self.dropout = nn.Dropout(dropout)
    angle = torch.arange(max_length)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
    positions = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
    self.register_buffer('positions', positions)
    self.register_buffer('future', torch.ones(max_length, max_length).triu(1).bool())

  def forward(self, inputs, targets):
    shifted = functional.pad(targets[:, :-1], (1, 0), value=1)
    x, y = (
      self.dropout(table(tokens) * math.sqrt(self.width) + self.positions)
      for table, tokens in ((self.source, inputs), (self.target, shifted))
    )
    padding = inputs == 0
    states = self.transformer(
      x,
      y,
      tgt_mask=self.future,
      tgt_is_causal=True,
      src_key_padding_mask=padding,
      memory_key_padding_mask=padding,
    )
    logits = functional.linear(states, self.target.weight)
    return _cross_entropy(logits, targets, label_smoothing=0.1)


class TorchGpt(nn.Module):
  """A model like nanoGPT: fused qkv, fused attention, GELU, learned positions, tied output."""

  def __init__(self, *, vocab, width, heads, depth, feedforward, dropout, max_length):
    super().__init__()
    self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(max_length, width)
    self.blocks = nn.ModuleList(
      TorchGptBlock(width, heads, feedforward, dropout) for _ in range(depth)
    )
    self.norm, self.dropout = nn.LayerNorm(width, bias=False), nn.Dropout(dropout)
    for parameter in self.parameters():
      if parameter.ndim > 1:
        nn.init.normal_(parameter, std=0.02)

  def forward(self, tokens, targets):
    x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
    x = self.dropout(x)
    for block in self.blocks:
      x = block(x)
    return self.lm_head(x, targets)

  def lm_head(self, x, targets):
    return _cross_entropy(functional.linear(self.norm(x), self.tokens.weight), targets)

  def compile_blocks(self):
    """Compile one block for all layers, and the output layer; fast for many layers."""
    for block in self.blocks:
      block.compile()
    self.lm_head = torch.compile(self.lm_head)


class TorchGptBlock(nn.Module):
  """Pre-norm attention and feed-forward, without biases, as nanoGPT trains them."""

  def __init__(self, width, heads, feedforward, dropout):
    super().__init__()
    self.heads = heads
    self.attention_norm, self.norm = (nn.LayerNorm(width, bias=False) for _ in range(2))
    self.qkv, self.out = nn.Linear(width, 3 * width, False), nn.Linear(width, width, False)
    self.hidden = nn.Linear(width, feedforward, False)
    self.back = nn.Linear(feedforward, width, False)
    self.dropout = nn.Dropout(dropout)

  def forward(self, x):
    B, T, D = x.shape
    q, k, v = (
      part.view(B, T, self.heads, -1).transpose(1, 2)
      for part in self.qkv(self.attention_norm(x)).chunk(3, -1)
    )
    y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + self.dropout(self.out(y.transpose(1, 2).reshape(B, T, D)))
    return x + self.dropout(self.back(functional.gelu(self.hidden(self.norm(x)))))


def marian(*, vocab, width, heads, depth, feedforward, dropout, max_length):
  """Return Hugging Face's encoder-decoder of these sizes."""
  from transformers import MarianConfig, MarianMTModel

  return MarianMTModel(
    MarianConfig(
      vocab_size=vocab,
      d_model=width,
      encoder_layers=depth,
      decoder_layers=depth,
      encoder_attention_heads=heads,
      decoder_attention_heads=heads,
      encoder_ffn_dim=feedforward,
      decoder_ffn_dim=feedforward,
      dropout=dropout,
      activation_dropout=dropout,
      attention_dropout=0.0,
      activation_function='relu',
      max_position_embeddings=4 * max_length,
      pad_token_id=0,
      bos_token_id=1,
      eos_token_id=2,
      decoder_start_token_id=1,
      forced_eos_token_id=None,
      scale_embedding=True,
      use_cache=False,
    )
  )


def gpt2(*, vocab, width, heads, depth, feedforward, dropout, max_length):
  """Return Hugging Face's decoder of these sizes."""
  from transformers import GPT2Config, GPT2LMHeadModel

  return GPT2LMHeadModel(
    GPT2Config(
      vocab_size=vocab,
      n_positions=max_length,
      n_embd=width,
      n_layer=depth,
      n_head=heads,
      n_inner=feedforward,
      resid_pdrop=dropout,
      embd_pdrop=dropout,
      attn_pdrop=0.0,
      use_cache=False,
    )
  )


def training(model: str, dtype: str, *, compiled: bool | str, shape: dict, rows: int, device='cpu'):
  """One training step of a peer with AdamW, on random tokens; compiled 'blocks': each apart."""
  torch.set_num_threads(THREADS)
  torch.manual_seed(0)
  network = {'torch': TorchEncoderDecoder, 'gpt': TorchGpt, 'marian': marian, 'gpt2': gpt2}[model]
  with torch.device(device):  # a large one is quicker made there than brought
    network = network(**shape).train()
  random, length = np.random.default_rng(0), shape['max_length']
  tokens = torch.from_numpy(random.integers(2, shape['vocab'], (2, rows, length))).to(device)
  inputs, targets = tokens
  if model == 'gpt' or model == 'gpt2':
    targets = inputs.roll(-1, 1)

  def loss():
    if model == 'marian':
      shifted = functional.pad(targets[:, :-1], (1, 0), value=1)
      found = network(
        input_ids=inputs, attention_mask=(inputs != 0).long(), decoder_input_ids=shifted
      )
      return _cross_entropy(found.logits, targets, label_smoothing=0.1)
    if model == 'gpt2':
      return _cross_entropy(network(input_ids=inputs).logits, targets)
    return network(inputs, targets)

  optimizer = torch.optim.AdamW(
    network.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0, fused=True
  )
  forward = loss
  if compiled == 'blocks':
    network.compile_blocks()
  elif compiled:
    forward = torch.compile(loss)

  def call():
    with torch.autocast(device, torch.bfloat16, enabled=dtype == 'bfloat16'):
      value = forward()
    value.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if device != 'cpu':
      torch.cuda.synchronize()
    return value

  return call


def _cross_entropy(logits, targets, label_smoothing=0.0):
  return functional.cross_entropy(
    logits.flatten(0, 1).float(), targets.flatten(), label_smoothing=label_smoothing
  )
