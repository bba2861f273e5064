"""The interface of a task: an objective for training, and a predictor for the trained model.

A task may also have these members:

  batch_metrics(model, batch): the metrics of a batch in evaluation. Default: those of `loss`
    without a key.
  positions(max_length, max_new_tokens): the number of positions that the model needs. Default:
    max_length.
  warnings(columns, model, training=): messages for the log about a split; `model` is the
    ModelConfig. Default: none.
  stream(model, line): yields an answer piece by piece. Default: an answer is printed as a whole.
  leaves_out_long: whether the tokenizer is trained without examples of more than max_length words,
    because training leaves them out. Default: False.
  open(): raises, before training, if something that answers need is missing. Default: no check.
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
    metrics: {name of a metric: whether higher is better}, for a split.
    supports_packing: whether several examples may share a row.
  """

  tokenizer: Tokenizer
  text_fields: tuple[str, ...]
  metrics: Mapping[str, bool]
  supports_packing: Any

  def init(self, config: ModelConfig, key: Key[Array, '']) -> Model:
    """Return a freshly initialized model."""

  def columns(self, source: Source) -> Columns:
    """Return the columns of all examples, of which a batch is a selection of rows."""

  def loss(self, model: Model, batch: Batch, key: OptionalKey) -> tuple[Mean, Metrics]:
    """Return the loss of a batch, and its metrics; a key turns dropout on."""


@runtime_checkable
class Task(Objective, Predictor, Protocol):
  """An objective and a predictor with the same model."""
