"""What evaluation and the command line ask of a task whose model is trained."""

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np

Model = Any  # a Flax module; which, the task knows


@runtime_checkable
class Predictor(Protocol):
  """A way to answer requests with a trained model.

  Attributes:
    decoding: how outputs are made; at least `rows`, how many at once.
  """

  decoding: Any

  def example(self, example: dict[str, Any]) -> tuple[Any, Any]:
    """Return an example as the line that `predict` is given, and its reference."""

  def input(self, line: Any) -> Any:
    """Return what the model reads of a line; ValueError says what is wrong with it."""

  def predict(self, model: Model, lines: Iterable[Any], *, cut: bool = False) -> list[Any]:
    """Return the answer to each line, a text or a wav file's bytes.

    With `cut`, to what can be read of a line that `input` refuses.
    """

  def attend(self, model: Model, line: Any) -> tuple[np.ndarray, list[str], list[str]]:
    """Return the attention weights [L, H, T, S] of a line and the labels of T and S."""
