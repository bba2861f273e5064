"""Named sites inside a model, where a caller can read or replace a value.

The sites of a layer, as in `blocks.3.attention.weights`:

  attention.queries, .keys, .values    [B, T, heads, K]
  attention.weights                    [B, H, T, S]
  attention.heads                      [B, T, H, K], the output of each head
  attention.output                     [B, T, D], what attention adds to the residual stream
  cross.*                              the same of cross-attention
  feedforward.hidden, .output          [B, T, F], [B, T, D]
  output                               [B, T, D], the residual stream after the layer

A stack also has `embedding`, before its first layer, and `output`, after the last. In a model with
two stacks all names begin with `encoder.` or `decoder.`.

`observe` runs a function and reads or replaces values. `zero_heads`, `patch` and `steer` return
edits for it, which `|` joins. Sites cost nothing in a program that is traced without `observe`.
"""

import contextlib
import contextvars
import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class _Observer(NamedTuple):
  read: tuple[str, ...]
  edit: dict[str, Callable[[Array], Array]]
  prefix: str
  values: dict[str, Array]  # the values read
  seen: set[str]  # the names of all sites of the run


_observer: contextvars.ContextVar[_Observer | None] = contextvars.ContextVar('sites', default=None)


def observe(
  f: Callable,
  *,
  read: Iterable[str] = (),
  edit: Mapping[str, Callable[[Array], Array]] | None = None,
) -> Callable[..., tuple[Any, dict[str, Array]]]:
  """Return a function that calls f, replaces values at sites, and also returns values of sites.

  Layers run one by one instead of in a scan, so a deep model takes longer to compile.

  Args:
    f: calls a model, or is the model. Not the result of `jax.jit`, which may have been compiled
      without the sites; apply `jax.jit`, `jax.vmap` or `jax.grad` to the result of `observe`.
    read: names of sites, or patterns such as 'blocks.*.attention.weights'.
    edit: maps a name or pattern to a function of the value that returns its replacement.

  Returns:
    A function of f's arguments that returns (f's result, {name: value} for the sites in `read`).

  Raises:
    TypeError: f is the result of `jax.jit`.
    ValueError: when called, if a name or pattern matches no site; lists all sites.

  >>> from flax import nnx
  >>> from transformer import Decoder, ModelConfig
  >>> model = Decoder(ModelConfig(vocab=5, width=8, heads=2, depth=2), nnx.Rngs(0))
  >>> without = {'blocks.1.attention.heads': lambda heads: heads.at[:, :, 0].set(0)}
  >>> run = observe(model, read=['blocks.*.attention.weights'], edit=without)
  >>> logits, values = run(jnp.array([[1, 2, 3]]))
  >>> list(values), values['blocks.0.attention.weights'].shape
  (['blocks.0.attention.weights', 'blocks.1.attention.weights'], (1, 2, 3, 3))
  """
  if hasattr(f, 'lower'):
    raise TypeError('observe(jax.jit(f)) would miss compiled code: write jax.jit(observe(f))')
  read, edit = tuple(read), dict(edit or {})

  def observed(*args, **kwargs):
    observer = _Observer(read, edit, '', {}, set())
    with _active(observer):
      result = f(*args, **kwargs)
    for pattern in (*read, *edit):
      if not fnmatch.filter(observer.seen, pattern):
        raise ValueError(
          f'{pattern!r} matches no site: there are {", ".join(sorted(observer.seen))}'
        )
    return result, observer.values

  return observed


Edit = dict[str, Callable[[Array], Array]]


def zero_heads(layer: str, heads: Sequence[int], *, attention: str = 'attention') -> Edit:
  """Return the edit that sets the output of some heads to 0 (ablation).

  Args:
    layer: a layer or a pattern, such as 'blocks.1' or 'decoder.blocks.*'.
    heads: numbers of the heads, from 0.
    attention: 'attention', or 'cross' for cross-attention.
  """
  chosen = jnp.asarray(heads)
  return {f'{layer}.{attention}.heads': lambda x: x.at[:, :, chosen].set(0)}


def patch(values: Mapping[str, Array], positions: Sequence[int] | None = None) -> Edit:
  """Return the edit that replaces values by those of another run (activation patching).

  Meng et al. 2022, https://arxiv.org/abs/2202.05262, section 2.1.

  Args:
    values: {name of a site: value}, as `observe` returns them.
    positions: the positions (axis 1) to replace, all if None.
  """

  def replace_by(value):
    if positions is None:
      return lambda x: jnp.broadcast_to(value, x.shape).astype(x.dtype)
    where = jnp.asarray(positions)
    return lambda x: x.at[:, where].set(value[:, where])

  return {name: replace_by(value) for name, value in values.items()}


def steer(name: str, vector: Float[Array, ' D'], positions: Sequence[int] | None = None) -> Edit:
  """Return the edit that adds a vector to a value, such as the residual stream (steering).

  Turner et al. 2023, https://arxiv.org/abs/2308.10248.

  Args:
    name: name of the site, such as 'blocks.3.output'.
    vector: the vector to add.
    positions: the positions (axis 1) to add it to, all if None.
  """
  where = slice(None) if positions is None else jnp.asarray(positions)
  return {name: lambda x: x.at[:, where].add(vector.astype(x.dtype))}


KINDS = {'output': 'states', 'attention.weights': 'self', 'cross.weights': 'cross'}


def capture(
  f: Callable, kinds: Mapping[str, str] = KINDS
) -> Callable[..., tuple[Any, dict[str, dict[str, Array]]]]:
  """Return a function that calls f and also returns values of all layers, stacked.

  Args:
    f: as in `observe`.
    kinds: maps the sites of a layer to read to their names in the result.

  Returns:
    A function of f's arguments that returns (f's result, {stack: {name: values}}). The stacks are
    'encoder' and 'decoder', or '' if there is one only. With the default `kinds` the values are
    'states' [L, B, T, D] after each layer, the attention weights 'self' [L, B, H, T, S], and with
    cross-attention 'cross' [L, B, H, T, S].
  """

  def captured(*args, **kwargs):
    outer = _observer.get() or _Observer((), {}, '', {}, set())  # captures may be nested
    patterns = (*(f'*blocks.*.{site}' for site in kinds), *outer.read)
    with _active(_Observer(patterns, outer.edit, '', {}, set())) as observer:
      result = f(*args, **kwargs)
    if _observer.get() is not None:
      outer.seen.update(observer.seen)
      record({name: x for name, x in observer.values.items() if _fits(name, outer.read)})
    layers: dict[str, dict[str, list]] = {}
    for name, value in observer.values.items():
      stack, _, rest = name.rpartition('blocks.')
      site = rest.partition('.')[2]
      if site in kinds:
        of_stack = layers.setdefault(stack.rstrip('.'), {})
        of_stack.setdefault(kinds[site], []).append(value)
    return result, jax.tree.map(jnp.stack, layers, is_leaf=lambda x: isinstance(x, list))

  return captured


def site(name: str, value: Any) -> Any:
  """Return the value at a site, after the caller's edits; record it if the caller reads it."""
  observer = _observer.get()
  if observer is None:
    return value
  name = observer.prefix + name
  observer.seen.add(name)
  for pattern, function in observer.edit.items():
    if fnmatch.fnmatchcase(name, pattern):
      value = function(value)
  if _fits(name, observer.read):
    observer.values[name] = value
  return value


def reads(name: str) -> bool:
  """Return whether a caller reads this site, so that its value must be computed."""
  observer = _observer.get()
  return observer is not None and _fits(observer.prefix + name, observer.read)


def edits(name: str) -> bool:
  """Return whether a caller replaces the value at this site."""
  observer = _observer.get()
  return observer is not None and _fits(observer.prefix + name, observer.edit)


def observing() -> bool:
  """Return whether a call of `observe` is running, so that layers must run one by one."""
  return _observer.get() is not None


def within(prefix: str, f: Callable) -> Callable[..., tuple[Any, dict[str, Array]]]:
  """Return f with a prefix for the names of its sites; it returns (f's result, the values read).

  The values are a result and not a side effect, so that f may be transformed, as by
  `jax.checkpoint`. Pass them to `record`.
  """

  def scoped(*args, **kwargs):
    observer = _observer.get()
    if observer is None:
      return f(*args, **kwargs), {}
    with _active(observer._replace(prefix=observer.prefix + prefix, values={})) as inner:
      return f(*args, **kwargs), inner.values

  return scoped


def record(values: dict[str, Array]):
  """Add values, as from `within`, to those that `observe` returns."""
  if (observer := _observer.get()) is not None:
    observer.values.update(values)


@contextlib.contextmanager
def _active(observer):
  token = _observer.set(observer)
  try:
    yield observer
  finally:
    _observer.reset(token)


def _fits(name, patterns):
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
