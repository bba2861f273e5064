"""Supervised fine-tuning of a chat model on the tokens of the assistant's messages."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from transformer.data import chat
from transformer.data.corpora import Source, chunks
from transformer.data.pipeline import Ragged
from transformer.evaluation.likelihood import TOKEN_METRICS
from transformer.inference.batching import PAD
from transformer.tasks.language_model import LanguageModel, PromptProcessor


@dataclasses.dataclass(frozen=True)
class ChatProcessor(PromptProcessor):
  """Encodes a message of a user as a conversation that the assistant continues.

  Attributes:
    template: chat template in Jinja; '' for the tokenizer's own.
  """

  template: str = ''

  def encode_example(self, line: str, *, truncate: bool = False) -> list[int]:
    """Return the tokens of a conversation with one message."""
    if not (line.strip() or truncate):
      raise ValueError('the line is empty: give it a message')
    return chat.apply_chat_template(self.tokenizer, messages_of(line), template=self.template)


def messages_of(question: str, *answer: str) -> list[dict[str, Any]]:
  """Return the messages of a user's question and, if given, the assistant's answer."""
  turns = [{'role': 'assistant', 'content': text} for text in answer]
  return [{'role': 'user', 'content': question}, *turns]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat(LanguageModel):
  """Cross-entropy of the assistant's messages, given the earlier messages.

  An example has `messages`, or `inputs` of a user and `targets` of the assistant.

  Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, section 3.5 (SFT).

  Attributes:
    template: chat template in Jinja; '' for the tokenizer's own.
  """

  template: str = ''

  text_fields = ('inputs', 'targets')
  metrics = TOKEN_METRICS

  @property
  def processor(self) -> ChatProcessor:
    """Return the processor of messages."""
    return ChatProcessor(self.tokenizer, self.max_length, template=self.template)

  def columns(self, source: Source) -> dict[str, Any]:
    """Return the conversations, and as targets the next tokens."""
    rows = [
      self.row(example.get('messages') or messages_of(example['inputs'], example['targets']))
      for examples in chunks(source)
      for example in examples
    ]
    inputs, targets = zip(*rows, strict=True)
    return {'inputs': Ragged.from_sequences(inputs), 'targets': Ragged.from_sequences(targets)}

  def row(self, messages: chat.Messages) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of a conversation, and the next tokens, PAD outside the assistant's text.

    Raises:
      ValueError: there is no message of the assistant.
    """
    tokens, learned = chat.answers(self.tokenizer, messages, template=self.template)
    if not any(learned):
      raise ValueError(f'there is no message of the assistant in {str(messages)[:100]}: add one')
    array = np.asarray(tokens, np.int32)
    return array[:-1], np.where(learned, array, PAD)[1:].astype(np.int32)

  def example(self, example: dict[str, Any]) -> tuple[str, str]:
    """Return the fields `inputs` and `targets`: the user's message and the assistant's."""
    return example['inputs'], example['targets']

  @property
  def _ends(self) -> tuple[int, ...]:
    """The token that ends an answer in the template, and the tokenizer's end tokens."""
    tokens, learned = chat.answers(self.tokenizer, messages_of('a', 'b'), template=self.template)
    last = tokens[max(i for i, learn in enumerate(learned) if learn)]
    return tuple(dict.fromkeys((last, *self.tokenizer.ends)))

  def _continuation(self, text: Sequence[int], prompt: int) -> str:
    new = [token for token in text[prompt:] if token not in self._ends]
    return self.tokenizer.decode(new)
