"""One attention, several implementations: which computes it, and why not another.

The equation is always that of `attention`. `IMPLEMENTATIONS` is the table: for each implementation
the function, and the function that says why it cannot compute a call. A new kernel is one entry.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transformer.functional import blockwise as blocks
from transformer.functional import platforms
from transformer.functional.attention import multi_head_attention, multi_head_attention_weights
from transformer.functional.masks import AttentionMask
from transformer.functional.sequence import sequence_attention, shards
from transformer.functional.splash import splash_attention

# With at least so many targets and sources, blocks are faster than the whole scores, or need a
# fraction of their memory: see experiments/benchmarks/attention.py
LONG = 2048


class Call(NamedTuple):
  """The arguments of one attention, from which an implementation is chosen while tracing.

  Attributes:
    q: [B, T, H, K].
    k, v: [B, S, G, K] and [B, S, G, V].
    mask: an empty one if every target may attend to every source.
    bias: added to the scores, broadcast to [B, H, T, S].
    scale: multiplies the scores; 1 / sqrt K if None.
    platform: what the program is compiled for; see `platforms`.
    assume_finite, soft_cap: as in `attention`.
    sinks: of each head, if any; as in `attention`.
  """

  q: Array
  k: Array
  v: Array
  mask: AttentionMask
  bias: Array | None
  scale: float | None
  platform: str
  assume_finite: bool
  soft_cap: float = 0.0
  sinks: Array | None = None

  @property
  def of_scores(self) -> dict[str, Any]:
    """The arguments about scores that every implementation but cuDNN's has."""
    return dict(scale=self.scale, soft_cap=self.soft_cap, sinks=self.sinks)


class Implementation(NamedTuple):
  """One way to compute attention.

  Attributes:
    compute: the call's result.
    why_not: why it cannot compute a call, as a text, or '' if it can.
    why_slower: why the ones below it are faster for a call, as a text, or '' if they are not.
  """

  compute: Callable[[Call], Array]
  why_not: Callable[[Call], str]
  why_slower: Callable[[Call], str] = lambda call: ''


def dot_product_attention(
  q: Float[Array, 'B T H K'],
  k: Float[Array, 'B S G K'],
  v: Float[Array, 'B S G V'],
  mask: AttentionMask | None = None,
  *,
  bias: Float[Array, '#B #H #T #S'] | None = None,
  scale: float | None = None,
  soft_cap: float = 0.0,
  sinks: Float[Array, 'H'] | None = None,
  implementation: str = 'auto',
  platform: str | None = None,
  assume_finite: bool = False,
) -> Float[Array, 'B T H V']:
  """Return `multi_head_attention`, by the fastest implementation that can compute it.

  Args:
    q, k, v, bias, scale, soft_cap, sinks: as in `multi_head_attention`.
    mask: which sources a target may attend to; all if None.
    implementation: a name of IMPLEMENTATIONS, or 'auto' for the first that can compute the call and
      is worth it; the log says once which it is and why no other.
    platform: what the program is compiled for, such as 'cuda'; that of JAX's default device if
      None.
    assume_finite: no masked row of k or v holds a NaN or Inf; see `attention`. Kernels always
      assume it: there a NaN or Inf behind the mask may spoil the rows of its example and head.

  Returns:
    The weighted values, in v's dtype. A target that may attend to nothing gets exactly 0.

  Raises:
    ValueError: an unknown implementation, or one that cannot compute the call; says why.

  >>> x = jnp.ones((2, 5, 4, 8))
  >>> dot_product_attention(x, x[:, :, :2], x[:, :, :2], AttentionMask(causal=True)).shape
  (2, 5, 4, 8)
  """
  call = Call(
    *(q, k, v, mask or AttentionMask(), bias, scale),
    platform=platforms.resolve(platform),
    assume_finite=assume_finite,
    soft_cap=soft_cap,
    sinks=sinks,
  )
  if implementation == 'auto':
    return IMPLEMENTATIONS[choose(call)].compute(call)
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f'implementation={implementation!r} is none of auto, {", ".join(IMPLEMENTATIONS)}'
    )
  if reason := IMPLEMENTATIONS[implementation].why_not(call):
    raise ValueError(f'{implementation} cannot compute this attention: {reason}')
  return IMPLEMENTATIONS[implementation].compute(call)


def attention_weights_of(
  q: Float[Array, 'B T H K'],
  k: Float[Array, 'B S G K'],
  mask: AttentionMask,
  **kwargs: Any,
) -> Float[Array, 'B H T S']:
  """Return the weights that `dot_product_attention` gives the values, by the equation."""
  return multi_head_attention_weights(q, k, mask=_array(mask, q, k), **kwargs)


def _array(mask, q, k):
  """The mask over [B, H, T, S]; None if it allows everything."""
  if mask.is_static and not mask.ordered:
    return None
  array = mask.dense(q.shape[1], k.shape[1])
  return array.reshape((1,) * (4 - array.ndim) + array.shape)


def choose(call: Call) -> str:
  """Return the name of the first implementation that is to compute the call, and log it once."""
  reasons = {}
  for name, implementation in IMPLEMENTATIONS.items():
    reasons[name] = implementation.why_not(call) or implementation.why_slower(call)
    if not reasons[name]:
      break
  # of a mesh that does not divide rows nothing needs to be said
  others = [
    f'not {other}: {reason}' for other, reason in reasons.items() if reason not in ('', NO_MESH)
  ]
  _log_once('; '.join([f'attention on {call.platform} is computed by {name}', *others]))
  return name


@functools.cache
def _log_once(text):
  logging.getLogger(__name__).info(text)


def reference(call: Call) -> Array:
  """The equation itself, on any platform, for any mask."""
  return multi_head_attention(
    *(call.q, call.k, call.v),
    mask=_array(call.mask, call.q, call.k),
    bias=call.bias,
    assume_finite=call.assume_finite,
    **call.of_scores,
  )


def cudnn(call: Call, *, backend: Literal['cudnn', 'xla'] = 'cudnn') -> Array:
  """cuDNN's attention, which never stores the scores; forward and backward.

  A causal mask or a causal window is passed as such, any other mask as an array [B, 1, T, S]. There
  cuDNN averages all values where a row allows nothing: such rows are set to 0 here, and so are
  their gradients. A training step of cuDNN takes an array for even T and S only: odd ones are
  padded.

  Args:
    call: 16-bit arrays, and otherwise as `why_not_cudnn` says.
    backend: 'xla' computes the same anywhere, for tests.

  Dao 2023, https://arxiv.org/abs/2307.08691.
  """
  q, k, v, mask = call.q, call.k, call.v, call.mask
  T, S = q.shape[1], k.shape[1]
  attend = functools.partial(jax.nn.dot_product_attention, scale=call.scale, implementation=backend)
  if mask.is_static and _has_setting(mask, T, S):
    window = mask.reach and (mask.reach[0], 0)
    return attend(q, k, v, is_causal=mask.causal, local_window_size=window)
  array = _array(call.mask, call.q, call.k)
  sees = jnp.any(array, axis=-1).swapaxes(1, 2)[..., None]  # [B, T, H, 1]
  q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
  array = jnp.pad(array, ((0, 0), (0, 0), (0, T % 2), (0, S % 2)))
  # the array holds all conditions; is_causal also says which half of the work can be skipped
  causal = mask.causal and mask.positions is None and not mask.prefix and T == S
  y = attend(q, k, v, mask=array, is_causal=causal)
  return jnp.where(sees, y[:, :T], 0)


def _has_setting(mask, T, S):
  """Whether cuDNN has a setting for the mask: it counts columns from the upper left corner."""
  return not mask.ordered or (mask.causal and not mask.prefix and T == S)


def why_not_cudnn(call: Call) -> str:
  """Return why cuDNN cannot compute the call, or ''."""
  q, k, v = call.q, call.k, call.v
  if platforms.compute_capability(call.platform) < 8:
    return f'{call.platform} is no NVIDIA GPU of compute capability 8.0 or more'
  if q.dtype not in (jnp.bfloat16, jnp.float16) or not q.dtype == k.dtype == v.dtype:
    return f'it takes 16-bit numbers, not {q.dtype}: set model.dtype to bfloat16'
  K, V = q.shape[-1], v.shape[-1]
  if K != V or K > 128 or K % 8:
    return f'it takes heads of a multiple of 8 up to 128, not {K} and {V}'
  if call.bias is not None:
    return 'scores have a bias (relative or alibi positions)'
  if call.soft_cap or call.sinks is not None:
    return 'scores have a soft cap, or heads have sinks'
  if q.shape[1] == 1:
    return 'one target, as in a decoding step, reads its keys once anyway'
  return ''


def splash(call: Call, *, interpret: bool = False) -> Array:
  """JAX's kernel for TPUs; see `splash_attention`."""
  return splash_attention(call.q, call.k, call.v, call.mask, **call.of_scores, interpret=interpret)


def why_not_splash(call: Call) -> str:
  """Return why splash attention cannot compute the call, or ''."""
  T, S, mask = call.q.shape[1], call.k.shape[1], call.mask
  if call.platform != 'tpu':
    return f'{call.platform} is no TPU'
  if reason := why_not_blockwise(call):
    return reason
  if mask.positions is not None or mask.explicit is not None or mask.prefix:
    return 'the mask has positions of its own, a prefix or an array'
  if mask.ordered and T > S:
    return f'{T} targets are more than the {S} sources, so that some see nothing'
  return ''


def why_slower_splash(call: Call) -> str:
  """Return why auto is to leave the call to another, or ''."""
  T, S = call.q.shape[1], call.k.shape[1]
  if min(T, S) < 256:
    return 'fewer scores than 256 x 256'
  if platforms.several_devices() and jax.sharding.get_abstract_mesh().empty:
    return 'there are several devices, and a kernel must know their mesh: call it in jax.set_mesh'
  return ''


def blockwise(call: Call, *, block: int = 0) -> Array:
  """Blocks of queries and keys in plain JAX, on any platform; see `blockwise_attention`."""
  return blocks.blockwise_attention(
    call.q, call.k, call.v, call.mask, **call.of_scores, block=block
  )


def why_not_blockwise(call: Call) -> str:
  """Return why blocks cannot compute the call, or ''."""
  if call.bias is not None:
    return 'scores have a bias (relative or alibi positions)'
  if not all(isinstance(n, int) for n in (*call.q.shape, *call.k.shape)):
    return 'a length is not known while compiling'
  return ''


def why_slower_blockwise(call: Call) -> str:
  """Return why blocks are not worth it for the call, or ''."""
  T, S = call.q.shape[1], call.k.shape[1]
  return '' if min(T, S) >= LONG else f'fewer scores than {LONG} x {LONG}'


NO_MESH = 'no mesh divides the positions of a row'


def sequence(call: Call) -> Array:
  """Each device its own targets, where a mesh divides rows; see `sequence_attention`."""
  return sequence_attention(call.q, call.k, call.v, call.mask, **call.of_scores)


def why_not_sequence(call: Call) -> str:
  """Return why devices cannot share the targets of the call, or ''."""
  T, S, count = call.q.shape[1], call.k.shape[1], shards()
  if count == 1:
    return NO_MESH
  if T % count or S % count:
    return f'{count} devices do not divide {T} targets and {S} sources'
  return why_not_blockwise(call)


IMPLEMENTATIONS = {
  'sequence': Implementation(sequence, why_not_sequence),
  'cudnn': Implementation(cudnn, why_not_cudnn),
  'splash': Implementation(splash, why_not_splash, why_slower_splash),
  'blockwise': Implementation(blockwise, why_not_blockwise, why_slower_blockwise),
  'reference': Implementation(reference, lambda call: ''),
}
