"""Settings of inference, and the search for output tokens by these settings."""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Collection
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from transformer.functional import constraints, search
from transformer.inference.checks import check_ids, check_possible


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batching:
  """Settings of inference for a task without a search.

  Attributes:
    batch_size: requests in a batch. Smaller batches are filled up, so that all have one shape and
      an answer is bit-identical whatever the other requests are.
  """

  batch_size: int = 32

  def __post_init__(self):
    check_positive(self, 'batch_size')

  def fast(self) -> 'Batching':
    """Return the settings for validation during training, which may be cheaper."""
    return self


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding(Batching):
  """Settings of a search for output tokens.

  Constraints name tokens by their ids, and apply in the order of these attributes.

  Attributes:
    beams: W, number of beams; 1 is greedy search or sampling.
    alpha: exponent of the length penalty ((5 + L) / 6)^alpha of beam search.
    length_penalty: exponent of the length penalty L^length_penalty, as in `transformers`.
    early_stopping: when a beam search ends: True, False or 'never'; see search.beam_search.
    num_return_sequences: outputs for each request, best first; at most `beams`, unless sampled.
    temperature: 0 takes the most probable token; above 0 tokens are sampled, with 1 from the
      model's own distribution.
    top_k, top_p, min_p: filters of the sampled tokens; see search.filter_logits.
    seed: seed of sampling. The samples of a request do not depend on the other requests.
    max_new_tokens: largest number of tokens of an output, end token included.
    repetition_penalty: above 1 makes tokens of the prompt and the output less probable.
    no_repeated_ngrams: n; no n-gram occurs twice. 0 allows repetitions.
    bad_words: sequences of tokens that no output contains.
    suppress: tokens that no output contains after its prefix.
    begin_suppress: tokens with which no output begins, after its prefix.
    min_new_tokens: smallest number of tokens before the end token.
    prefix: tokens with which every output begins.
    choices: sequences of tokens; every output is one of them and an end token. () allows any
      output.
  """

  beams: int = 1
  alpha: float = 0.0
  length_penalty: float = 0.0
  early_stopping: Any = 'never'
  num_return_sequences: int = 1
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  seed: int = 0
  max_new_tokens: int = 128
  repetition_penalty: float = 1.0
  no_repeated_ngrams: int = 0
  bad_words: tuple[Any, ...] = ()
  suppress: tuple[int, ...] = ()
  begin_suppress: tuple[int, ...] = ()
  min_new_tokens: int = 0
  prefix: tuple[int, ...] = ()
  choices: tuple[Any, ...] = ()

  def __post_init__(self):
    for name in ('bad_words', 'choices'):
      words = getattr(self, name)
      if any(isinstance(word, int | str) or not (len(word) or name == 'choices') for word in words):
        raise ValueError(f'decode.{name}={words}: give sequences of ids, such as ((5, 6), (7,))')
      object.__setattr__(self, name, tuple(map(tuple, words)))
    check_positive(self, 'beams', 'max_new_tokens', 'batch_size', 'num_return_sequences')
    for name in ('no_repeated_ngrams', 'min_new_tokens'):
      if getattr(self, name) < 0:
        raise ValueError(f'decode.{name}={getattr(self, name)} must be at least 0')
    if self.num_return_sequences > self.beams and not self.temperature:
      raise ValueError(
        f'decode.num_return_sequences={self.num_return_sequences} is more than decode.beams='
        f'{self.beams}: raise beams, or sample with a temperature'
      )
    if self.early_stopping not in (True, False, 'never'):
      raise ValueError(
        f"decode.early_stopping={self.early_stopping!r} must be True, False or 'never'"
      )
    if not self.alpha >= 0:
      raise ValueError(f'decode.alpha={self.alpha} must be at least 0: more prefers longer outputs')
    if self.temperature and self.beams > 1:
      raise ValueError(
        f'decode.temperature={self.temperature} samples, but decode.beams={self.beams} searches '
        'for the best: set beams to 1 or temperature to 0'
      )
    if not self.repetition_penalty > 0:
      raise ValueError(
        f'decode.repetition_penalty={self.repetition_penalty} must be above 0: 1 changes nothing'
      )
    if max(self.min_new_tokens, len(self.prefix)) > self.max_new_tokens:
      raise ValueError(
        f'decode.max_new_tokens={self.max_new_tokens} is fewer than decode.min_new_tokens='
        f'{self.min_new_tokens} or the {len(self.prefix)} tokens of decode.prefix: raise it'
      )
    if (longest := max(map(len, self.choices), default=0)) > self.max_new_tokens:
      raise ValueError(
        f'decode.max_new_tokens={self.max_new_tokens} cuts one of decode.choices, which has '
        f'{longest} tokens: raise it'
      )
    try:
      search.check_filters(**self.filters)
    except ValueError as error:
      raise ValueError(f'decode: {error}') from error

  @property
  def filters(self) -> dict[str, Any]:
    """Return the arguments of search.filter_logits."""
    names = ('temperature', 'top_k', 'top_p', 'min_p')
    return {name: getattr(self, name) for name in names}

  @property
  def key(self) -> Key[Array, '']:
    """Return the PRNG key of the seed."""
    return _key(self.seed)

  def fast(self) -> 'Decoding':
    """Return the settings without beams."""
    return dataclasses.replace(self, beams=1, num_return_sequences=1)

  def for_model(self, model: Any, never: Collection[int | None], *, eos: search.Ends) -> 'Decoding':
    """Return the settings with the tokens that the model must not generate forbidden.

    Args:
      model: the model. Tokens that its published settings forbid are forbidden, too.
      never: tokens such as the padding; None is ignored.
      eos: the end tokens, which are never forbidden here.

    Raises:
      ValueError: an id, except published ones, is outside the vocabulary.
    """
    generation = getattr(getattr(model, 'published', None), 'generation', {})
    suppress, begin_suppress, bad_words = (
      tuple(generation.get(name) or ())
      for name in ('suppress_tokens', 'begin_suppress_tokens', 'bad_words_ids')
    )
    bad_words = tuple(map(tuple, bad_words))
    check_ids(vars(self), model.config.vocab, published=(*suppress, *begin_suppress, *bad_words))
    forbidden = {*self.suppress, *suppress, *never} - {None, *search.as_tuple(eos)}
    return dataclasses.replace(
      self,
      suppress=tuple(sorted(i for i in forbidden if i is not None)),
      begin_suppress=tuple(dict.fromkeys(self.begin_suppress + begin_suppress)),
      bad_words=tuple(dict.fromkeys((*self.bad_words, *bad_words))),
    )

  def constrain(self, prompts: Int[Array, 'B P'], eos: search.Ends) -> search.Constrain | None:
    """Return the constraint on the rows of a search that continue these prompts, if any."""
    parts = self._constraints(eos)
    return constraints.on_rows(constraints.combine(parts), prompts) if parts else None

  def _constraints(self, eos: search.Ends) -> list[constraints.Constraint]:
    """Return the constraints that these settings name, in the order in which they apply."""
    penalty, words, least = self.repetition_penalty, self.bad_words, self.min_new_tokens
    begin, forbid = len(self.prefix), constraints.forbid
    return [
      *([constraints.penalize_repetitions(penalty)] if penalty != 1 else []),
      *([constraints.no_repeated_ngrams(n)] if (n := self.no_repeated_ngrams) else []),
      *([constraints.forbid_sequences(words)] if words else []),
      *([forbid(search.as_tuple(eos), before=least)] if least else []),
      *([forbid(self.suppress, after=begin)] if self.suppress else []),
      *([forbid(s, after=begin, before=begin + 1)] if (s := self.begin_suppress) else []),
      *([constraints.force_prefix(self.prefix)] if self.prefix else []),
      *([constraints.follow(self._trie(eos))] if self.choices else []),
    ]

  def _trie(self, eos: search.Ends) -> constraints.Automaton:
    ends = search.as_tuple(eos)
    if not ends:
      raise ValueError('decode.choices needs an end token: pass eos')
    return constraints.trie(self.choices, ends[0])

  def after(self, generated: int, steps: int) -> 'Decoding':
    """Return the settings for the next `steps` tokens after `generated` ones.

    Raises:
      ValueError: one of `choices` does not fit in one window.
    """
    if self.choices and (generated or max(map(len, self.choices)) > steps):
      raise ValueError(
        f'decode.choices has outputs of more than {generated or steps} tokens, the most that are '
        'generated at once: raise data.max_length'
      )
    begins = generated <= len(self.prefix) < generated + steps
    return dataclasses.replace(
      self,
      max_new_tokens=steps,
      min_new_tokens=min(max(self.min_new_tokens - generated, 0), steps),
      begin_suppress=self.begin_suppress if begins else (),
      prefix=self.prefix[generated : generated + steps],
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constrained(Decoding):
  """Settings of a search with a constraint given as a function, which a config file cannot hold.

  Attributes:
    constraint: as in `functional.constraints`, such as `follow(automaton)`; it applies last.
  """

  constraint: constraints.Constraint

  def _constraints(self, eos: search.Ends) -> list[constraints.Constraint]:
    return [*super()._constraints(eos), self.constraint]


def check_positive(settings: Any, *names: str):
  """Raise ValueError if a number has a wrong type or is not finite, or one in `names` is < 1."""
  for name, hint in get_type_hints(type(settings)).items():
    value = getattr(settings, name)
    if hint is int and (not isinstance(value, numbers.Integral) or isinstance(value, bool)):
      raise ValueError(f'decode.{name}={value!r} must be an integer')
    if hint is float and not (isinstance(value, numbers.Real) and math.isfinite(value)):
      raise ValueError(f'decode.{name}={value!r} must be a finite number')
  for name in names:
    if getattr(settings, name) < 1:
      raise ValueError(f'decode.{name}={getattr(settings, name)} must be at least 1')


def search_tokens(
  step: search.Step,
  cache: PyTree,
  prompts: Int[Array, 'B P'],
  keys: Key[Array, ' B'],
  decoding: Decoding,
  *,
  eos: search.Ends,
  reorder: Callable[[PyTree, Int[Array, ' R']], PyTree],
  stop: search.Stop | None = None,
) -> tuple[Int[Array, 'B W T'], Float[Array, 'B W']]:
  """Return the output tokens of each row and their scores, best first.

  Args:
    step, cache, eos, reorder, stop: as in functional.search; the cache has W rows for each prompt.
    prompts: padded with -1 on the left; their last tokens are the first argument of `step`.
    keys: PRNG key of each row, for sampling.
    decoding: settings of the search.
  """
  first = prompts[:, -1]
  settings: dict[str, Any] = dict(
    steps=decoding.max_new_tokens,
    eos=eos,
    constrain=decoding.constrain(prompts, eos),
    stop=stop,
    pad=None if stop is None else -1,  # there may be no end token that shows where a row ends
  )
  if decoding.beams > 1:
    names = ('beams', 'alpha', 'length_penalty', 'early_stopping')
    settings |= {name: getattr(decoding, name) for name in names} | dict(reorder=reorder)
    return search.beam_search(step, cache, first, **settings)
  if len(first) == 1:
    step, cache = _without_row_axis(step, cache)
  if decoding.temperature:
    tokens, scores = search.sample(step, cache, first, keys, **settings, **decoding.filters)
  else:
    tokens, scores = search.greedy(step, cache, first, **settings)
  return tokens[:, None], scores[:, None]


def _without_row_axis(step: search.Step, cache: PyTree) -> tuple[search.Step, PyTree]:
  """Return `step` and `cache` of a search with one row, without the cache's axis of rows.

  XLA's CPU backend drops an axis of size 1 inside the loop but not in the arrays that the loop
  carries, so that it would copy the cache at every step, a tenth of the time.
  """
  scalar = jax.tree.map(lambda x: jnp.ndim(x) == 0, cache)

  def add_axis(cache):
    return jax.tree.map(lambda x, scalar: x if scalar else x[None], cache, scalar)

  def drop_axis(cache):
    return jax.tree.map(lambda x, scalar: x if scalar else x[0], cache, scalar)

  def step_without(tokens, cache):
    logits, cache = step(tokens, add_axis(cache))
    return logits, drop_axis(cache)

  return step_without, drop_axis(cache)


def try_search(decoding: Decoding, vocab: int, eos: search.Ends):
  """Check the constraints of these settings by a search in which all tokens are equally probable.

  Raises:
    ValueError: an id is outside the vocabulary, or the constraints forbid every token.
  """
  check_ids(vars(decoding), vocab)
  prompt, keys = jnp.full((1, 1), -1), jax.random.split(decoding.key, 1)
  if decoding.constrain(prompt, eos) is None:
    return

  @jax.jit
  def run():
    step = lambda tokens, cache: (jnp.zeros((len(tokens), vocab)), cache)  # noqa: E731
    return search_tokens(step, (), prompt, keys, decoding, eos=eos, reorder=lambda cache, _: cache)

  check_possible(jax.device_get(run())[1][0])


@functools.partial(jax.jit, static_argnums=0)  # the seed is a constant, not a transferred array
def _key(seed: int) -> Key[Array, '']:
  return jax.random.key(seed)


def row_keys(key: Key[Array, ''], prompts: Shaped[Array, 'B S ...']) -> Key[Array, ' B']:
  """Return a key for each row, from its tokens without padding.

  The second and further rows with the same tokens get other keys, by their count, so that a prompt
  given several times gets several samples.
  """
  if jnp.issubdtype(prompts.dtype, jnp.floating):  # padded with NaN
    prompts = jax.lax.bitcast_convert_type(jnp.nan_to_num(prompts), jnp.int32)
  prompts = prompts.reshape(len(prompts), -1)
  real = prompts > 0
  # a polynomial of the tokens, in a base whose powers modulo 2^32 are all odd
  index = jnp.cumsum(real, axis=1, dtype=jnp.uint32)
  power = jnp.uint32(0x01000193) ** index
  words = jnp.sum(jnp.where(real, prompts, 0).astype(jnp.uint32) * power, axis=1, dtype=jnp.uint32)
  earlier = jnp.tril(words[:, None] == words[None], k=-1).sum(axis=1, dtype=jnp.uint32)
  words += earlier * jnp.uint32(0x9E3779B9)
  return search.over_rows(lambda word: jax.random.fold_in(key, word), key)(words)
