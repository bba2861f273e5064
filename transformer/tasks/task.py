"""What the training loop and the command line ask of every task."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Key

from transformer.data.corpora import Source
from transformer.data.pipeline import Fields
from transformer.data.tokenizers import Tokenizer
from transformer.functional.losses import Mean
from transformer.inference.predict import Model, Predictor
from transformer.modules.config import ModelConfig


@runtime_checkable
class Task(Predictor, Protocol):
  """One objective: what it makes of examples, what it minimises, and what it is used for.

  Attributes:
    tokenizer: text to tokens and back.
    reads: the sides of an example that it reads, so that a tokenizer can learn those that are text.
    figures: names of what `report` gives.
    packs: whether several examples may share a row.
  """

  tokenizer: Tokenizer
  reads: tuple[str, ...]
  figures: tuple[str, ...]
  packs: Any

  def init(self, config: ModelConfig, key: Key[Array, '']) -> Model:
    """A fresh model."""

  def features(self, source: Source) -> Fields:
    """All examples as numbers, for the pipeline: the fields of a batch."""

  def quick(self) -> 'Task':
    """The same task, answering as fast as it can."""

  def loss(
    self, model: Model, batch: dict[str, Array], key: Key[Array, ''] | None
  ) -> tuple[Mean, dict[str, Mean]]:
    """What is minimised, and what else to log of it."""

  def measure(self, model: Model, batch: dict[str, Array]) -> dict[str, Mean]:
    """How good the model is on a batch that is not learnt from."""

  def report(self, totals: dict[str, Mean], source: Source) -> dict[str, float]:
    """The figures of a split, from what `measure` adds up to."""

  def capture(self, model: Model, batch: dict[str, Array]) -> dict[str, dict[str, Array]]:
    """Every layer's 'states' [L, B, T, D] of each stack, and its attention weights."""
