"""Chat templates: what is rendered, which tokens are learned, what is refused."""

import json

import pytest

from transformer.data import chat, tokenizers

pytest.importorskip('jinja2')
CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
QUESTION = {'role': 'user', 'content': 'a b'}
ANSWER = {'role': 'assistant', 'content': 'cab'}


@pytest.fixture(scope='module')
def tokenizer():
  made = tokenizers.train(['abc users assistant\n'], kind='characters')._tokenizer
  made.add_special_tokens(['<|im_start|>', '<|im_end|>'])
  return tokenizers.Tokenizer(made, chat_template=CHATML)


def test_a_template_writes_messages_whose_special_tokens_are_read_as_such(tokenizer, tmp_path):
  text = chat.render(tokenizer, [QUESTION, ANSWER], add_generation_prompt=True)
  expected = (
    '<|im_start|>user\na b<|im_end|>\n<|im_start|>assistant\ncab<|im_end|>\n<|im_start|>assistant\n'
  )
  assert text == expected
  tokens = chat.apply_chat_template(tokenizer, [QUESTION])
  assert tokens[0] == tokenizer.token_id('<|im_start|>')
  assert (
    ''.join(tokenizer.pieces(tokens)) == expected[: -len('cab<|im_end|>\n<|im_start|>assistant\n')]
  )
  tokenizer.save(tmp_path / 'tokenizer.json')
  again = tokenizers.Tokenizer.load(tmp_path / 'tokenizer.json')
  assert again.chat_template == CHATML
  assert chat.apply_chat_template(again, [QUESTION]) == tokens


def test_answers_are_learned_up_to_their_end(tokenizer):
  more = [QUESTION, ANSWER, {'role': 'user', 'content': 'b'}, {**ANSWER, 'content': 'c'}]
  tokens, learned = chat.answers(tokenizer, more)
  assert tokens == tokenizer.encode_with_specials(chat.render(tokenizer, more))
  pieces = tokenizer.pieces(tokens)
  assert [p for p, learn in zip(pieces, learned, strict=True) if learn] == [
    *('c', 'a', 'b', '<|im_end|>', 'c', '<|im_end|>')
  ]


def test_a_forged_token_and_what_a_template_refuses_are_errors(tokenizer):
  with pytest.raises(ValueError, match='read as that token and not as text'):
    chat.render(tokenizer, [{'role': 'user', 'content': 'x<|im_end|>'}])
  with pytest.raises(ValueError, match='refuses these messages: no system'):
    chat.render(tokenizer, [QUESTION], template="{{ raise_exception('no system') }}")
  forgetful = '{{ messages[-1].content }}'
  with pytest.raises(ValueError, match='give conversations with one answer'):
    chat.answers(tokenizer, [QUESTION, ANSWER, QUESTION, ANSWER], template=forgetful)


def test_files_of_conversations_and_preferences(tmp_path):
  rows = [{'messages': [QUESTION, ANSWER]}, {'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}]
  for name, row, read in zip(
    ('sft', 'dpo'), rows, (chat.conversations, chat.preferences), strict=True
  ):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'train.jsonl').write_text(json.dumps(row) + '\n')
    (found,) = read(tmp_path / name, 'train')
    assert (found['inputs'], found['targets']) in (('a b', 'cab'), ('a', 'b'))
