"""Models of the same sizes as ours in PyTorch and Hugging Face transformers, with random weights.

Differences from our architecture are in the docstrings of the models.

Needs `pip install torch transformers`; imports neither this codebase nor JAX.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

THREADS = 2
PAD, START, END = 0, 1, 2


class TorchEncoderDecoder(nn.Module):
  """nn.Transformer with embeddings and a tied output layer; tokens [B, max_length] to the loss."""

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
        module.dropout = 0.0  # of attention weights; ours has none, and it takes time
    self.dropout = nn.Dropout(dropout)
    angle = torch.arange(max_length)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
    positions = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
    self.register_buffer('positions', positions)
    self.register_buffer('future', torch.ones(max_length, max_length).triu(1).bool())

  def forward(self, inputs, targets):
    shifted = functional.pad(targets[:, :-1], (1, 0), value=START)
    x, y = (
      self.dropout(table(tokens) * math.sqrt(self.width) + self.positions)
      for table, tokens in ((self.source, inputs), (self.target, shifted))
    )
    padding = inputs == PAD  # there is none, but ours also computes with a mask
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
  """A model like nanoGPT (fused qkv and attention, GELU, tied output); tokens to the loss."""

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
    return self.loss_of_states(x, targets)

  def loss_of_states(self, x, targets):
    return _cross_entropy(functional.linear(self.norm(x), self.tokens.weight), targets)

  def compile_blocks(self):
    """Compile one graph for all blocks, and one for the loss, which is faster for deep models."""
    for block in self.blocks:
      block.compile()
    self.loss_of_states = torch.compile(self.loss_of_states)


class TorchGptBlock(nn.Module):
  """Pre-norm attention and feed-forward, without biases, as nanoGPT trains them."""

  def __init__(self, width, heads, feedforward, dropout):
    super().__init__()
    self.heads = heads
    self.attention_norm, self.mlp_norm = (nn.LayerNorm(width, bias=False) for _ in range(2))
    self.qkv, self.out = nn.Linear(width, 3 * width, False), nn.Linear(width, width, False)
    self.up, self.down = nn.Linear(width, feedforward, False), nn.Linear(feedforward, width, False)
    self.dropout = nn.Dropout(dropout)

  def forward(self, x):
    B, T, D = x.shape
    q, k, v = (
      part.view(B, T, self.heads, -1).transpose(1, 2)
      for part in self.qkv(self.attention_norm(x)).chunk(3, -1)
    )
    y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + self.dropout(self.out(y.transpose(1, 2).reshape(B, T, D)))
    return x + self.dropout(self.down(functional.gelu(self.up(self.mlp_norm(x)))))


def marian(*, vocab, width, heads, depth, feedforward, dropout, max_length):
  """Return Hugging Face's Marian, which is post-norm, unlike ours."""
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
      max_position_embeddings=4 * max_length,  # sinusoids, of which the first are used
      pad_token_id=PAD,
      bos_token_id=START,
      eos_token_id=END,
      decoder_start_token_id=START,
      forced_eos_token_id=None,
      scale_embedding=True,
      use_cache=False,
    )
  )


def gpt2(*, vocab, width, heads, depth, feedforward, dropout, max_length):
  """Return Hugging Face's GPT-2, which has biases and the tanh GELU, unlike ours."""
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


def training(model: str, dtype: str, *, mode: str, sizes: dict, batch_size: int, device='cpu'):
  """Return a function that makes one training step on a fixed random batch, and returns the loss.

  Args:
    model: torch, gpt, marian or gpt2.
    dtype: of autocast.
    mode: eager, compiled, or blocks (each block is compiled separately; gpt only).
    sizes: arguments of the model.
    batch_size: sequences of max_length tokens.
    device: as torch names it.
  """
  torch.set_num_threads(THREADS)
  torch.manual_seed(0)
  network = {'torch': TorchEncoderDecoder, 'gpt': TorchGpt, 'marian': marian, 'gpt2': gpt2}[model]
  with torch.device(device):  # to initialize there is faster than to copy a large model
    network = network(**sizes).train()
  loss = _loss(model, network, *_tokens(model, sizes, batch_size, device))
  if mode == 'blocks':
    network.compile_blocks()
  elif mode == 'compiled':
    loss = torch.compile(loss)
  optimizer = torch.optim.AdamW(
    network.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0, fused=True
  )

  def call():
    with torch.autocast(device, torch.bfloat16, enabled=dtype == 'bfloat16'):
      value = loss()
    value.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if device != 'cpu':
      torch.cuda.synchronize()
    return value

  return call


def _tokens(model, sizes, batch_size, device):
  """Return random (inputs, targets); the targets of a decoder are its inputs shifted by one."""
  shape = (2, batch_size, sizes['max_length'])
  tokens = np.random.default_rng(0).integers(END, sizes['vocab'], shape)
  inputs, targets = torch.from_numpy(tokens).to(device)
  return inputs, inputs.roll(-1, 1) if model in ('gpt', 'gpt2') else targets


def _loss(model, network, inputs, targets):
  """Return a function without arguments that returns the loss."""

  def marian_loss():
    shifted = functional.pad(targets[:, :-1], (1, 0), value=START)
    mask = (inputs != PAD).long()
    logits = network(input_ids=inputs, attention_mask=mask, decoder_input_ids=shifted).logits
    return _cross_entropy(logits, targets, label_smoothing=0.1)

  if model == 'marian':
    return marian_loss
  if model == 'gpt2':
    return lambda: _cross_entropy(network(input_ids=inputs).logits, targets)
  return lambda: network(inputs, targets)


def _cross_entropy(logits, targets, label_smoothing=0.0):
  return functional.cross_entropy(
    logits.flatten(0, 1).float(), targets.flatten(), label_smoothing=label_smoothing
  )
