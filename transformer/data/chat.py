"""Conversations: the chat templates of published tokenizers, and files of messages and preferences.

A message is {'role': 'user', 'content': 'Hello'}, as in the `transformers` library.
"""

import functools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transformer.data.files import find_file
from transformer.data.reading import read_objects
from transformer.data.splits import split_by_hash
from transformer.data.tokenizers import Tokenizer

Messages = Sequence[dict[str, Any]]

# for tokenizers without a template: start and end token around each message
TEMPLATE = (
  "{% for message in messages %}{{ bos_token + message['role'] + '\\n' + message['content'] }}"
  '{{ eos_token }}{% endfor %}'
  "{% if add_generation_prompt %}{{ bos_token + 'assistant\\n' }}{% endif %}"
)


@functools.cache
def _compiled(template: str) -> Any:
  """Return a sandboxed template with the functions that templates of `transformers` may call."""
  try:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
  except ModuleNotFoundError:
    raise ValueError(
      'chat templates need the package jinja2, which is not installed: '
      "pip install 'functional-transformer[chat]'"
    ) from None

  def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
      x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )

  def raise_exception(message):
    raise ValueError(f'the chat template refuses these messages: {message}')

  environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
  )
  environment.filters['tojson'] = tojson
  environment.globals['raise_exception'] = raise_exception
  return environment.from_string(template)


def render(
  tokenizer: Tokenizer,
  messages: Messages,
  *,
  template: str = '',
  add_generation_prompt: bool = False,
  **variables: Any,
) -> str:
  """Return messages as the text that a chat model reads.

  Args:
    tokenizer: gives the template and the special tokens.
    messages: the conversation.
    template: replaces that of the tokenizer; '' for none.
    add_generation_prompt: whether to append the beginning of the model's next message.
    variables: of the template, such as tools or enable_thinking.

  Raises:
    ValueError: the template refuses the messages; a message contains the name of a special token,
      which would be encoded as that token; or jinja2 is not installed.
  """
  for message in messages:
    content = str(message.get('content', ''))
    if forged := [name for name in tokenizer.special_names if name in content]:
      raise ValueError(
        f'the message {content[:60]!r} has {forged[0]!r} in it, which the model would read as that '
        'token and not as text: remove it'
      )
  ids = {name: getattr(tokenizer, name) for name in ('bos', 'eos', 'unk', 'pad', 'mask')}
  names = {f'{k}_token': tokenizer.pieces([i])[0] for k, i in ids.items() if i is not None}
  text = template or tokenizer.chat_template or TEMPLATE
  return _compiled(text).render(
    messages=messages, add_generation_prompt=add_generation_prompt, **names | variables
  )


def apply_chat_template(
  tokenizer: Tokenizer, messages: Messages, *, add_generation_prompt: bool = True, **kwargs: Any
) -> list[int]:
  """Return the tokens of a conversation, ready for `generate`; arguments as of `render`."""
  text = render(tokenizer, messages, add_generation_prompt=add_generation_prompt, **kwargs)
  return tokenizer.encode_with_specials(text)


def answers(
  tokenizer: Tokenizer, messages: Messages, **kwargs: Any
) -> tuple[list[int], list[bool]]:
  """Return the tokens of a conversation, and for each whether a model is trained to generate it.

  These are the messages of the assistant, each with the special token that ends it.

  Args:
    tokenizer, messages, kwargs: as for `render`.

  Raises:
    ValueError: as of `render`; or the template writes earlier messages differently when more
      follow.
  """
  tokens: list[int] = []
  learned: list[bool] = []
  text = ''
  specials = {tokenizer.token_id(name) for name in tokenizer.special_names}

  def add(whole: str, learn: bool):
    nonlocal text
    if not whole.startswith(text):
      raise ValueError(
        'the chat template writes earlier messages otherwise once more follow, so that answers in '
        'the middle cannot be told apart: give conversations with one answer'
      )
    new = tokenizer.encode_with_specials(whole[len(text) :])
    end = next((i for i, token in enumerate(new) if token in specials), len(new) - 1)
    tokens.extend(new)
    learned.extend(learn and i <= end for i in range(len(new)))
    text = whole

  for i, message in enumerate(messages):
    if message['role'] == 'assistant':
      add(render(tokenizer, messages[:i], add_generation_prompt=True, **kwargs), False)
      add(render(tokenizer, messages[: i + 1], **kwargs), True)
  return tokens, learned


def conversations(folder: pathlib.Path, split: str, *_: str) -> list[dict[str, Any]]:
  """Return the objects of `<split>.jsonl`, or of a single file; each has a list 'messages'.

  The user's first message is also in 'inputs', the assistant's last message in 'targets'.
  """
  rows = []
  for row in _objects(folder, split, 'messages'):
    first = {message['role']: message['content'] for message in reversed(row['messages'])}
    answers = [m['content'] for m in row['messages'] if m['role'] == 'assistant']
    rows.append(row | {'inputs': first.get('user', ''), 'targets': answers[-1] if answers else ''})
  return rows


def preferences(folder: pathlib.Path, split: str, *_: str) -> list[dict[str, Any]]:
  """Return the objects of `<split>.jsonl`, or of a single file, for preference optimization.

  Their keys are prompt, chosen and rejected; prompt and chosen are also in 'inputs' and 'targets'.
  """
  return [
    row | {'inputs': row['prompt'], 'targets': row['chosen']}
    for row in _objects(folder, split, 'prompt', 'chosen', 'rejected')
  ]


def _objects(path: pathlib.Path, split: str, *keys: str) -> Iterator[dict[str, Any]]:
  one_file = bool(path.suffix) and not path.is_dir()
  file = path if one_file else find_file(path, [f'{split}.jsonl'])
  for _, row in read_objects(file, *keys):
    if not one_file or split_by_hash(json.dumps(row[keys[0]])) == split:
      yield row


def sums(folder: pathlib.Path, split: str, *_: str) -> list[dict[str, Any]]:
  """Return synthetic preferences: a question, the sum of two digits, and a wrong number."""
  rng = np.random.default_rng(['train', 'val', 'test'].index(split))
  rows = []
  for a, b, wrong in rng.integers(0, 10, (1000 if split == 'train' else 50, 3)).tolist():
    rows.append(
      {
        'inputs': f'{a} + {b} ?',
        'targets': str(a + b),
        'rejected': str((a + b + 1 + wrong) % 20),
      }
    )
  return rows
