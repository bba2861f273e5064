"""What the training loop and the command line ask of every task."""

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Key

from transformer.data.corpora import Source
from transformer.data.pipeline import Fields
from transformer.data.tokenizers import Tokenizer
from transformer.functional.losses import Mean
from transformer.modules.config import ModelConfig

Model = Any  # a Flax module; which, the task knows


@runtime_checkable
class Task(Protocol):
  """One objective: what it makes of examples, what it minimises, and what it is used for.

  Attributes:
    tokenizer: text to tokens and back.
    decoding: how outputs are made; at least `rows`, how many at once.
    reads: the sides of an example that it reads, so that a tokenizer can learn those that are text.
    figures: names of what `report` gives.
    packs: whether several examples may share a row.
  """

  tokenizer: Tokenizer
  decoding: Any
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

  def example(self, example: dict[str, Any]) -> tuple[Any, Any]:
    """An example as the line that `predict` is given and what it should answer."""

  def input(self, line: Any) -> Any:
    """What the model reads of a line; ValueError says what is wrong with it."""

  def predict(self, model: Model, lines: Iterable[Any], *, cut: bool = False) -> list[Any]:
    """The answer to each line, a text or a wav file's bytes.

    With `cut`, to what can be read of a line that `input` refuses.
    """

  def attend(self, model: Model, line: Any) -> tuple[np.ndarray, list[str], list[str]]:
    """Attention weights [L, H, T, S] of a line, and the pieces of text that T and S stand for."""
