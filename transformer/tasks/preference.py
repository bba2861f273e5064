"""Direct preference optimization (DPO): learn to prefer the better of two answers to a message."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from transformer.data.corpora import Source
from transformer.data.pipeline import Ragged
from transformer.functional.losses import Mean
from transformer.inference.batching import PAD, bucket_length, pad_rows
from transformer.modules.model import Decoder
from transformer.tasks.chat import Chat, messages_of
from transformer.tasks.task import Batch, Metrics, OptionalKey

# the columns of the better and of the worse answer: inputs and targets
CHOSEN, REJECTED = ('inputs', 'targets'), ('rejected', 'rejected_targets')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preference(Chat):
  """-log sigmoid(beta m), where m is the margin of the better answer.

  m = log p(chosen) - log p(rejected) of the model, minus the same of a reference, which is the
  model before training. The reference is computed once, when the data are read.

  Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, equation 7.

  Attributes:
    reference: the folder of the published model in config.warm_start; '' for a reference with equal
      probabilities.
    beta: scale of the margin; a larger one keeps the model closer to the reference.
    preference_smoothing: assumed share of pairs with the wrong preference (Mitchell 2023).
  """

  reference: str = ''
  beta: float = 0.1
  preference_smoothing: float = 0.0

  metrics = {'preference_loss': False, 'preferred': True}
  supports_packing = False

  def columns(self, source: Source) -> dict[str, Any]:
    """Return both answers to each message, and the reference's log p(chosen) - log p(rejected)."""
    examples = [source[i] for i in range(len(source))]
    pairs = [
      [self.row(messages_of(example['inputs'], example[name])) for example in examples]
      for name in ('targets', 'rejected')
    ]
    columns: dict[str, Any] = {'reference': self._reference(pairs)}
    for names, rows in zip((CHOSEN, REJECTED), pairs, strict=True):
      columns |= dict(zip(names, map(Ragged.from_sequences, zip(*rows, strict=True)), strict=True))
    return columns

  def _reference(self, pairs: list[list[tuple[np.ndarray, np.ndarray]]]) -> np.ndarray:
    """Return the reference's log p(chosen) - log p(rejected) for every example."""
    if not self.reference:
      return np.zeros(len(pairs[0]), np.float32)
    from transformer.zoo.pretrained import load_pretrained

    model, _ = load_pretrained(pathlib.Path(self.reference).expanduser())

    def reference_log_p(row):
      inputs, targets = row
      length = bucket_length(len(inputs), self.max_length)
      segments = np.arange(length)[None] < len(inputs)
      tokens = pad_rows([inputs], length, pad=0)
      return _jitted(model, tokens, segments.astype(np.int32), pad_rows([targets], length))[0]

    chosen, rejected = (np.array([reference_log_p(row) for row in rows]) for rows in pairs)
    return (chosen - rejected).astype(np.float32)

  def loss(self, model: Decoder, batch: Batch, key: OptionalKey) -> tuple[Mean, Metrics]:
    """Return the loss, and as metrics the share of positive margins and the mean margin."""
    chosen, rejected = (
      log_p(model, batch[tokens], batch[f'{tokens}_segments'], batch[targets], key)
      for tokens, targets in (CHOSEN, REJECTED)
    )
    weights = batch['reference_segments'].astype(jnp.float32)
    margin = chosen - rejected - batch['reference']
    smooth = self.preference_smoothing
    loss = (1 - smooth) * jax.nn.softplus(-self.beta * margin)
    loss += smooth * jax.nn.softplus(self.beta * margin)

    def mean(x):
      return Mean(jnp.sum(x * weights), jnp.sum(weights))

    return mean(loss), {'preferred': mean(margin > 0), 'margin': mean(margin)}

  def batch_metrics(self, model: Decoder, batch: Batch) -> Metrics:
    """Return the metrics of a batch, the loss included."""
    loss, metrics = self.loss(model, batch, None)
    return metrics | {'preference_loss': loss}


def log_p(
  model: Decoder, tokens: Array, segments: Array, targets: Array, key: OptionalKey = None
) -> Float[Array, ' B']:
  """Return log p of the targets of each row, summed over its tokens that are not PAD."""
  logits = model(tokens, segments=segments, key=key).astype(jnp.float32)
  scored = (segments != 0) & (targets != PAD)
  nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
  return -jnp.sum(jnp.where(scored, nll, 0), axis=1)


_jitted = jax.jit(log_p)
