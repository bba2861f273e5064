"""Stopping strings: texts that end an output, matched in the bytes of its tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from transformer.functional.constraints import history
from transformer.functional.search import Stop


class StopTable(NamedTuple):
  """The transitions of an automaton over tokens that matches stopping strings (Aho-Corasick).

  A state is the longest prefix of a stopping string with which the bytes read so far end.

  Attributes:
    next: the state after each token, for each of Q states.
    ends: whether a stopping string ends within the token.
  """

  next: Int[Array, 'Q N']
  ends: Bool[Array, 'Q N']


def stop_table(texts: Sequence[str], pieces: Sequence[bytes], vocab: int) -> StopTable:
  """Return the table of stopping strings; tokens without bytes do not change the state.

  Args:
    texts: the stopping strings.
    pieces: the bytes of each token; see `Tokenizer.token_bytes`.
    vocab: N, number of tokens of the model.

  Raises:
    ValueError: one of the strings is empty.

  >>> stop_table(['ab'], [b'a', b'xab', b'bc'], 3).ends.tolist()
  [[False, True, False], [False, True, True], [False, True, False]]
  """
  patterns = [text.encode() for text in texts]
  if not all(patterns):
    raise ValueError('a stopping string is empty: remove it')
  prefixes = sorted({x[:i] for x in patterns for i in range(len(x) + 1)}, key=len)
  state_of = {prefix: state for state, prefix in enumerate(prefixes)}
  steps = np.zeros((len(prefixes), 256), np.int32)
  stops = np.zeros((len(prefixes), 256), bool)
  for state, prefix in enumerate(prefixes):
    for byte in range(256):
      read = prefix + bytes([byte])
      stops[state, byte] = read.endswith(tuple(patterns))
      steps[state, byte] = next(
        state_of[read[i:]] for i in range(len(read) + 1) if read[i:] in state_of
      )
  after = np.repeat(np.arange(len(prefixes), dtype=np.int32)[:, None], vocab, axis=1)
  ends = np.zeros(after.shape, bool)
  pieces = pieces[:vocab]
  for index in range(max(map(len, pieces), default=0)):
    tokens = [i for i, piece in enumerate(pieces) if len(piece) > index]
    bytes_read = np.array([pieces[i][index] for i in tokens])
    ends[:, tokens] |= stops[after[:, tokens], bytes_read]
    after[:, tokens] = steps[after[:, tokens], bytes_read]
  return StopTable(jnp.asarray(after), jnp.asarray(ends))


def stop_when(table: StopTable, prompts: Int[Array, 'B P']) -> Stop:
  """Return the argument `stop` of a search: whether a stopping string ends within the last token.

  The string may begin in the prompt, as in the `transformers` library.
  """
  states = len(table.next)  # more than a stopping string has bytes, and so tokens

  def ends_row(row):
    def read(state, token):
      real = token >= 0
      token = jnp.maximum(token, 0)
      return jnp.where(real, table.next[state, token], 0), real & table.ends[state, token]

    return jax.lax.scan(read, jnp.int32(0), row[-states:])[1][-1]

  def stop(tokens, position):
    return jax.vmap(ends_row)(history(prompts, tokens, position + 1))

  return stop
