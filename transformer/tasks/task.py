"""The interface of a task: an objective to train, and a predictor to use what was trained.

A task may also have these members; without them the default holds.

  batch_metrics(model, batch): the metrics of a batch in evaluation; those of `loss` without a key.
  positions(max_length, max_new_tokens): how many positions the model needs; max_length.
  warnings(columns, model, training=): messages about a split for the log; none. `model` is the
    ModelConfig.
  stream(model, line): the answer piece by piece; without it an answer is printed as a whole.
  leaves_out_long: whether no tokenizer is trained on examples of more than max_length words, which
    have more tokens and are left out; False.
  open(): raise, before training, if something that answers need is missing; no check.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Key, Shaped

from transformer.data.corpora import Source
from transformer.data.pipeline import Columns
from transformer.data.tokenizers import Tokenizer
from transformer.functional.losses import Mean
from transformer.inference.predict import Model, Predictor
from transformer.modules.config import ModelConfig

Batch = dict[str, Shaped[Array, 'B ...']]
OptionalKey = Key[Array, ''] | None
Metrics = dict[str, Mean]


@runtime_checkable
class Objective(Protocol):
  """A training objective.

  Attributes:
    tokenizer: text to tokens and back.
    text_fields: the fields of an example that are text, from which a tokenizer can be trained.
    metrics: names of the metrics of a split, and for each whether higher is better.
    supports_packing: whether several examples may share a row.
  """

  tokenizer: Tokenizer
  text_fields: tuple[str, ...]
  metrics: Mapping[str, bool]
  supports_packing: Any

  def init(self, config: ModelConfig, key: Key[Array, '']) -> Model:
    """Return a freshly initialized model."""

  def columns(self, source: Source) -> Columns:
    """Return the columns of a batch that the objective makes of each example."""

  def loss(self, model: Model, batch: Batch, key: OptionalKey) -> tuple[Mean, Metrics]:
    """Return the loss of a batch, and metrics; a key turns dropout on."""


@runtime_checkable
class Task(Objective, Predictor, Protocol):
  """An objective and the use of its model."""
