"""Answer lines of text with an exported model: python predict.py < lines.txt

Needs only jax, flatbuffers, numpy, safetensors and tokenizers. Outputs are decoded greedily.
"""

import itertools
import json
import pathlib
import sys

import jax.export
import numpy as np
import tokenizers
from safetensors.numpy import load_file


def padded(rows, left=False):
  """Return tokens [B, S], and segments: 1, and 0 for padding. S is 8, 16, 32, ..."""
  length = max(8, 1 << (max(map(len, rows)) - 1).bit_length())
  tokens, segments = np.zeros((2, len(rows), length), np.int32)
  for i, row in enumerate(rows):
    columns = slice(length - len(row), None) if left else slice(len(row))
    tokens[i, columns], segments[i, columns] = row, 1
  return tokens, segments


def finite(logits):
  """Return logits as a NumPy array; raise FloatingPointError if one is NaN."""
  if np.isnan(array := np.array(logits)).any():
    raise FloatingPointError('the model computes NaN for these lines')
  return array


class Model:
  """An exported model; `answer` answers lines, `functions` are its compiled functions by name."""

  def __init__(self, folder=pathlib.Path(__file__).parent):
    self.config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
    self.tokenizer.encode_special_tokens = True  # a name such as </s> in a line is text
    self.weights = jax.device_put(load_file(folder / 'model.safetensors'))
    files = {name: (folder / f'{name}.stablehlo').read_bytes() for name in self.config['functions']}
    self.functions = {f: jax.jit(jax.export.deserialize(bytearray(files[f])).call) for f in files}

  def answer(self, lines):
    """Return the answer to each line; raise ValueError if one has no tokens or too many."""
    c, rows = self.config, []
    for line in lines:
      ids = self.tokenizer.encode(line, add_special_tokens=False).ids
      rows += [[*c['prefix'], *ids, *c['suffix']]]
      if not (ids or c['accepts_empty']) or (c['suffix'] and len(rows[-1]) > c['max_length']):
        raise ValueError(f'{line[:60]!r} has {len(ids)} tokens: give 1 to {c["max_length"]}')
    return getattr(self, c['task'])(rows)

  def classification(self, rows):
    """Return the class of each row of tokens."""
    logits = finite(self.functions['classify'](self.weights, *padded(rows)))
    return [self.config['classes'][best] for best in np.argmax(logits, axis=-1)]

  def seq2seq(self, rows):
    """Return the output text of each row of tokens."""
    memory = self.functions['encode'](self.weights, *padded(rows))
    start = np.full((len(rows), 1), self.config['start'], np.int32)
    steps = self.config['max_new_tokens']
    return [self.text(x) for x in self.generate(start, np.ones_like(start), steps, memory)]

  def language_model(self, rows):
    """Return the continuation of each row of tokens."""
    window, new, ends = (self.config[x] for x in ('max_length', 'max_new_tokens', 'ends'))
    texts, step = [list(row) for row in rows], max(window // 2, 1)
    for before in range(0, new, step):  # half a window reads the end of the text, half is new
      steps = min(step, new - before)
      prompts = padded([text[-(window - steps) :] for text in texts], left=True)
      for text, output in zip(texts, self.generate(*prompts, steps), strict=True):
        text += output if not before or text[-1] not in ends else []
    start = len(self.config['prefix'])
    shown = [len(self.text(row[start:])) for row in rows]
    return [self.text(x[start:])[n:] for x, n in zip(texts, shown, strict=True)]

  def generate(self, tokens, segments, steps, memory=()):
    """Return up to `steps` tokens that continue each row, the end token included."""
    size = {'b': len(tokens), 'c': tokens.shape[1] + steps}
    cache = [np.zeros([size.get(n, n) for n in x], kind) for x, kind in self.config['cache']]
    columns, ends = [], self.config['ends']
    for _ in range(steps):
      call = self.functions['step' if tokens.shape[1] == 1 else 'prefill']
      logits, cache = call(self.weights, tokens, segments, cache, memory)
      (logits := finite(logits))[:, self.config['suppress']] = -np.inf
      columns.append(np.argmax(logits, axis=-1))
      if np.isin(columns, ends).any(axis=0).all():
        break
      tokens, segments = columns[-1][:, None].astype(np.int32), np.ones((len(tokens), 1), np.int32)
    rows = np.stack(columns, axis=1).tolist()
    return [row[: next((i for i, t in enumerate(row) if t in ends), steps) + 1] for row in rows]

  def text(self, tokens):
    """Return the text of tokens, up to the first end token."""
    kept = itertools.takewhile(lambda token: token not in self.config['ends'], tokens)
    return self.tokenizer.decode(list(kept), skip_special_tokens=True)


if __name__ == '__main__':
  MODEL, FILE = None, open(sys.stdin.fileno(), encoding='utf-8-sig')
  try:
    MODEL = Model()
    while batch := [line.rstrip('\r\n') for line in itertools.islice(FILE, 32)]:
      print(*(answer.replace('\n', ' ') for answer in MODEL.answer(batch)), sep='\n', flush=True)
  except Exception as error:  # each library raises another type
    sys.exit(f'error: {error}' if MODEL else f'error: this folder is damaged or not whole: {error}')
