"""Multi-head attention by the fastest implementation for the platform, shapes and mask.

All implementations compute the equation of `attention`. IMPLEMENTATIONS lists them in order of
preference, each with a function that says why it cannot compute a call. A new kernel is one entry.
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

# From this many targets and sources on, `blockwise` is faster than computing all scores at once, or
# needs a fraction of their memory: see experiments/benchmarks/attention.py
LONG = 2048


class Call(NamedTuple):
  """The arguments of one attention, from which an implementation is chosen while tracing.

  Attributes:
    q: [B, T, H, K].
    k, v: [B, S, G, K] and [B, S, G, V].
    mask: `AttentionMask()` if every target may attend to every source.
    bias: added to the scores, broadcast to [B, H, T, S].
    scale: multiplies the scores; 1 / sqrt K if None.
    platform: the one that the program is compiled for; see `platforms`.
    assume_finite, soft_cap: as in `attention`.
    sinks: the sink of each head [H], if any; as in `attention`.
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
  def score_kwargs(self) -> dict[str, Any]:
    """The arguments about scores that every implementation except cuDNN takes."""
    return dict(scale=self.scale, soft_cap=self.soft_cap, sinks=self.sinks)


class Implementation(NamedTuple):
  """One way to compute attention.

  Attributes:
    compute: returns the result of a call.
    why_not: returns the reason why it cannot compute a call, or '' if it can.
    why_slower: returns the reason why a later implementation is faster, or '' if none is.
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
      is not slower than a later one. The choice is logged once, with the reasons.
    platform: the one that the program is compiled for, such as 'cuda'; that of JAX's default device
      if None.
    assume_finite: no masked row of k or v has a NaN or Inf; see `attention`. cuDNN and splash
      always assume it: a masked NaN or Inf may make other rows of its example and head NaN.

  Returns:
    The weighted values, in v's dtype. A target that may attend to nothing gets exactly 0.

  Raises:
    ValueError: an unknown implementation, or one that cannot compute the call.

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
  """Return the attention weights of `dot_product_attention`, computed by the equation.

  kwargs are those of `multi_head_attention_weights`.
  """
  return multi_head_attention_weights(q, k, mask=_array(mask, q, k), **kwargs)


def _array(mask, q, k):
  """Return the mask as an array broadcastable to [B, H, T, S]; None if it allows everything."""
  if mask.is_static and not mask.ordered:
    return None
  array = mask.dense(q.shape[1], k.shape[1])
  return array.reshape((1,) * (4 - array.ndim) + array.shape)


def choose(call: Call) -> str:
  """Return the name of the implementation that 'auto' takes for the call, and log it once."""
  reasons = {}
  for name, implementation in IMPLEMENTATIONS.items():
    reasons[name] = implementation.why_not(call) or implementation.why_slower(call)
    if not reasons[name]:
      break
  # few meshes divide the positions of a row: that this one does not is no news
  others = [
    f'not {other}: {reason}' for other, reason in reasons.items() if reason not in ('', NO_MESH)
  ]
  _log_once('; '.join([f'attention on {call.platform} is computed by {name}', *others]))
  return name


@functools.cache
def _log_once(text):
  logging.getLogger(__name__).info(text)


def reference(call: Call) -> Array:
  """Compute `multi_head_attention` itself: any platform, any mask."""
  return multi_head_attention(
    *(call.q, call.k, call.v),
    mask=_array(call.mask, call.q, call.k),
    bias=call.bias,
    assume_finite=call.assume_finite,
    **call.score_kwargs,
  )


def cudnn(call: Call, *, backend: Literal['cudnn', 'xla'] = 'cudnn') -> Array:
  """Compute attention by cuDNN, which never stores the scores, forward or backward.

  A causal mask or window is passed by its name, any other mask as an array [B, 1, T, S]. With an
  array cuDNN averages all values in a row that allows nothing; such rows and their gradients are
  set to 0 here. Its gradient takes an array of even T and S only; odd sizes are padded.

  Args:
    call: with 16-bit arrays; `why_not_cudnn` has all conditions.
    backend: 'xla' computes the same on any platform, for tests.

  Dao 2023, https://arxiv.org/abs/2307.08691.
  """
  q, k, v, mask = call.q, call.k, call.v, call.mask
  T, S = q.shape[1], k.shape[1]
  attend = functools.partial(jax.nn.dot_product_attention, scale=call.scale, implementation=backend)
  if mask.is_static and _has_setting(mask, T, S):
    window = mask.reach and (mask.reach[0], 0)
    return attend(q, k, v, is_causal=mask.causal, local_window_size=window)
  array = _array(call.mask, call.q, call.k)
  any_allowed = jnp.any(array, axis=-1).swapaxes(1, 2)[..., None]  # [B, T, H, 1]
  q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
  array = jnp.pad(array, ((0, 0), (0, 0), (0, T % 2), (0, S % 2)))
  # the array holds all conditions; is_causal tells cuDNN which half of it to skip
  causal = mask.causal and mask.positions is None and not mask.prefix and T == S
  y = attend(q, k, v, mask=array, is_causal=causal)
  return jnp.where(any_allowed, y[:, :T], 0)


def _has_setting(mask, T, S):
  """Return whether cuDNN's own arguments can express the mask; its target 0 is at source 0."""
  return not mask.ordered or (mask.causal and not mask.prefix and T == S)


def why_not_cudnn(call: Call) -> str:
  """Return why cuDNN cannot compute the call, or ''."""
  q, k, v = call.q, call.k, call.v
  if platforms.compute_capability(call.platform) < 8:
    return f'{call.platform} is no NVIDIA GPU of compute capability 8.0 or more'
  if q.dtype not in (jnp.bfloat16, jnp.float16) or not q.dtype == k.dtype == v.dtype:
    return f'it takes 16-bit arrays, not {q.dtype}: set model.dtype to bfloat16'
  K, V = q.shape[-1], v.shape[-1]
  if K != V or K > 128 or K % 8:
    return f'it takes head sizes K = V that are multiples of 8 up to 128, not {K} and {V}'
  if call.bias is not None:
    return 'scores have a bias (relative or alibi positions)'
  if call.soft_cap or call.sinks is not None:
    return 'scores have a soft cap, or heads have sinks'
  if q.shape[1] == 1:
    return 'with one target, as in a decoding step, it saves nothing'
  return ''


def splash(call: Call, *, interpret: bool = False) -> Array:
  """Compute attention by JAX's kernel for TPUs; see `splash_attention`."""
  return splash_attention(
    call.q, call.k, call.v, call.mask, **call.score_kwargs, interpret=interpret
  )


def why_not_splash(call: Call) -> str:
  """Return why splash attention cannot compute the call, or ''."""
  T, S, mask = call.q.shape[1], call.k.shape[1], call.mask
  if call.platform != 'tpu':
    return f'{call.platform} is no TPU'
  if reason := why_not_blockwise(call):
    return reason
  if mask.positions is not None or mask.explicit is not None or mask.prefix:
    return 'the mask has positions, a prefix or an array'
  if mask.ordered and T > S:
    return f'there are more targets ({T}) than sources ({S}), so that some attend to nothing'
  return ''


def why_slower_splash(call: Call) -> str:
  """Return why 'auto' should not take splash attention for the call, or ''."""
  T, S = call.q.shape[1], call.k.shape[1]
  if min(T, S) < 256:
    return 'fewer scores than 256 x 256'
  if platforms.several_devices() and jax.sharding.get_abstract_mesh().empty:
    return 'a kernel must know the mesh of the several devices: call it in jax.set_mesh'
  return ''


def blockwise(call: Call, *, block: int = 0) -> Array:
  """Compute attention by blocks in plain JAX, on any platform; see `blockwise_attention`."""
  return blocks.blockwise_attention(
    call.q, call.k, call.v, call.mask, **call.score_kwargs, block=block
  )


def why_not_blockwise(call: Call) -> str:
  """Return why attention by blocks cannot compute the call, or ''."""
  if call.bias is not None:
    return 'scores have a bias (relative or alibi positions)'
  if not all(isinstance(n, int) for n in (*call.q.shape, *call.k.shape)):
    return 'a length is symbolic (jax.export)'
  return ''


def why_slower_blockwise(call: Call) -> str:
  """Return why 'auto' should not take attention by blocks for the call, or ''."""
  T, S = call.q.shape[1], call.k.shape[1]
  return '' if min(T, S) >= LONG else f'fewer scores than {LONG} x {LONG}'


NO_MESH = 'no mesh divides the positions of a row'


def sequence(call: Call) -> Array:
  """Compute attention with rows divided between devices; see `sequence_attention`."""
  return sequence_attention(call.q, call.k, call.v, call.mask, **call.score_kwargs)


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
