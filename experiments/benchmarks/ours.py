"""The training steps of this codebase for the benchmarks, the same as in experiments."""

import functools

TINY = dict(vocab=10240, width=128, heads=4, depth=4, feedforward=256, dropout=0.1, max_length=32)
BASE = dict(vocab=16384, width=512, heads=8, depth=6, feedforward=2048, dropout=0.1, max_length=32)
NANO_CPU = dict(vocab=65, width=128, heads=4, depth=4, feedforward=512, dropout=0.0, max_length=64)
NANO_GPU = dict(
  vocab=65, width=384, heads=6, depth=6, feedforward=1536, dropout=0.2, max_length=256
)


def adam(width: int):
  """Return the optimizer of all cases: AdamW with a constant learning rate."""
  from transformer.training import optimizers

  optimizer, _ = optimizers.build(
    learning_rate=1e-3, schedule='constant', warmup_steps=0, clip=0.0, steps=1, width=width
  )
  return optimizer


def prepare(build, loss, width: int, batch: dict, steps: int):
  """Return (state, update, batches); update(state, batches, key) makes several steps.

  Args:
    build: (key) to a model.
    loss: of `train_step`.
    width: of the model.
    batch: of arrays.
    steps: in a call of update, which donates the state.
  """
  import jax
  import jax.numpy as jnp

  from transformer.training.step import init_state, train_steps

  optimizer = adam(width)
  state = jax.jit(lambda key: init_state(build(key), optimizer, ema=0.0))(jax.random.key(0))
  update = jax.jit(functools.partial(train_steps, loss=loss, optimizer=optimizer), donate_argnums=0)
  return state, update, jax.tree.map(lambda x: jnp.stack([x] * steps), batch)


def encoder_decoder(shape: dict, *, rows: int, dtype: str, steps: int = 1):
  """Return `prepare` of an encoder-decoder with teacher forcing and label smoothing."""
  import numpy as np

  from transformer import ModelConfig
  from transformer.data import tokenizers
  from transformer.inference.decoding import Decoding
  from transformer.tasks.seq2seq import Seq2Seq

  config = ModelConfig(**dict(prenorm=True, tie='output', dtype=dtype) | shape)
  tokens = np.random.default_rng(0).integers(
    2, config.vocab, (2, rows, config.max_length), np.int32
  )
  ones = np.ones_like(tokens[0])
  batch = dict(inputs=tokens[0], inputs_segments=ones, targets=tokens[1], targets_segments=ones)
  task = Seq2Seq(
    tokenizer=tokenizers.train([], kind='bytes'),  # only its start token is used
    decoding=Decoding(beams=1, alpha=0.0, max_new_tokens=config.max_length, batch_size=rows),
    max_length=config.max_length,
    label_smoothing=0.1,
    z_loss=0.0,
    start='bos',
  )
  return prepare(functools.partial(task.init, config), task.loss, config.width, batch, steps)


def decoder(shape: dict, *, rows: int, dtype: str, steps: int = 1):
  """Return `prepare` of a decoder like GPT, with next-token prediction."""
  import jax.numpy as jnp
  import numpy as np
  from flax import nnx

  from transformer import Decoder, ModelConfig

  gpt = dict(prenorm=True, tie='output', position='learned', activation='gelu_erf', bias=False)
  config = ModelConfig(**gpt, **shape, dtype=dtype)
  tokens = np.random.default_rng(0).integers(0, config.vocab, (rows, config.max_length), np.int32)
  batch = dict(tokens=tokens, targets=np.roll(tokens, -1, 1))

  def loss(model, batch, key):
    states = model.states(batch['tokens'], key=key)
    weights = jnp.ones(batch['tokens'].shape)
    loss, nll = model.lm_head.cross_entropy(states, batch['targets'], weights)
    return loss, {'nll_per_token': nll}

  return prepare(lambda key: Decoder(config, nnx.Rngs(key)), loss, config.width, batch, steps)
