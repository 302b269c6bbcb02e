"""What each attention kernel takes, in one table, and what is done with what it does not take.

A config that a kernel cannot do is refused when it is made (`refusals`), a machine that it does not run on before
anything is compiled. Where a call has what a kernel has no place for, the logits are written out (`takes`). Lengths and
widths are padded here, with zeros that nobody sees. Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from massive_jax.dtypes import DTYPES
from massive_jax.models import cudnn

if TYPE_CHECKING:
    from massive_jax.models.config import BlockConfig

AttentionKernel: TypeAlias = Literal["xla", "cudnn", "splash"]
Options: TypeAlias = tuple[tuple[str, Any], ...]  # of a kernel, static


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Says what a kernel takes.

    Of what it may not take, "refused" is a config that cannot be made, and "xla" writes the logits out.

    Attributes:
      dtypes: of queries, keys and values.
      head_dim: the widest heads; None for any.
      head_multiple: heads are padded to a multiple of it.
      lengths: numbers of queries and of keys are padded to a multiple of it where there is no gradient,
      gradient_lengths: and where there is one.
      mask: a mask that is known when the model runs only: padding, a cache.
      windows_by_layer: windows in some layers only, which are masks of that sort.
      alibi: the linear bias of ALiBi.
      other_weights: something else in place of the softmax, a sigmoid, say.
      softcap: of the logits.
      softcap_with_slots: likewise, with the slots of an attention bias.
      slots: where those that have keys go: "in front" of the tokens, or "merged" with what the kernel gives, as all
        others are, if its gradient takes one call then (`has_gradient_at`).
    """

    dtypes: tuple[str, ...] = DTYPES
    head_dim: int | None = None
    head_multiple: int = 1
    lengths: int = 1
    gradient_lengths: int = 1
    mask: Literal["yes", "xla"] = "yes"
    windows_by_layer: Literal["yes", "refused"] = "yes"
    alibi: Literal["yes", "refused"] = "yes"
    other_weights: Literal["yes", "xla", "refused"] = "yes"
    softcap: Literal["yes", "xla"] = "yes"
    softcap_with_slots: Literal["yes", "xla", "refused"] = "yes"
    slots: Literal["in front", "merged"] = "in front"


KERNELS: dict[AttentionKernel, Kernel] = {
    "xla": Kernel(),
    # As jax checks it when it traces (jax/_src/cudnn/fused_attention_stablehlo.py, 0.10 and 0.11). Its check of lengths
    # is meant for a bias, and made without one, too.
    "cudnn": Kernel(
        dtypes=("bfloat16", "float16"),
        head_dim=256,
        head_multiple=8,
        gradient_lengths=2,
        alibi="refused",  # it would be rounded to 16 bits
        other_weights="xla",
        softcap="xla",
        softcap_with_slots="xla",
        slots="in front",  # by 2 % of a training step of 16 × 1024 tokens on an H200; attention alone is faster merged
    ),
    # Pads lengths itself: see `massive_jax.models.splash`. The compiler for TPUs has no float16.
    "splash": Kernel(
        dtypes=("float32", "bfloat16"),
        mask="xla",
        windows_by_layer="refused",
        alibi="refused",
        other_weights="refused",
        softcap_with_slots="refused",  # its log-sum-exp then has no gradient
    ),
}
# Gradients at any output and log-sum-exp: see `massive_jax.models.cudnn.gradient_at`.
GRADIENTS_AT: dict[AttentionKernel, Callable[..., Any]] = {"cudnn": cudnn.gradient_at}
# Compute capabilities: the first with cuDNN's kernel, the first with wide heads in it.
_AMPERE, _HOPPER = (8, 0), (9, 0)
_NARROW = 128  # the widest heads before Hopper


def refusals(cfg: BlockConfig) -> Iterator[str]:
    """Says what of a config its kernel does not do, and what does; nothing if it does all."""
    name = cfg.attention_kernel
    kernel = KERNELS[name]
    softcap = cfg.attention_softcap is not None
    found = {
        f"dtype {cfg.dtype} but {' or '.join(kernel.dtypes)}": cfg.dtype not in kernel.dtypes,
        f"head_dim {cfg.head_dim} but at most {kernel.head_dim}": cfg.head_dim > (kernel.head_dim or cfg.head_dim),
        "window_layers, as a mask that differs by layer is not known when it is compiled": (
            kernel.windows_by_layer == "refused" and cfg.window_layers is not None
        ),
        f"attention bias {cfg.attention_bias and cfg.attention_bias.kind!r}": (
            kernel.other_weights == "refused" and cfg.attention_weights is not None
        ),
        "attention_softcap with slots": kernel.softcap_with_slots == "refused" and softcap and cfg.num_slots > 0,
        "position 'alibi'": kernel.alibi == "refused" and cfg.position == "alibi",
    }
    for what, is_so in found.items():
        if is_so:
            yield f"attention_kernel {name!r} does not take {what}; 'xla' does"


def takes(cfg: BlockConfig, masked: bool) -> bool:
    """Tells whether the config's kernel does a call; the logits are written out otherwise.

    Args:
      cfg: a config that is not refused.
      masked: whether there is a mask that is known when the model runs only.
    """
    kernel = KERNELS[cfg.attention_kernel]
    return cfg.attention_kernel != "xla" and not (
        (masked and kernel.mask == "xla")
        or (cfg.attention_weights is not None and kernel.other_weights == "xla")
        or (cfg.attention_softcap is not None and kernel.softcap == "xla")
    )


def fused_attention(options: Options, mask: jax.Array | None = None) -> Callable[..., Any]:
    """Gives a kernel as a function of query, key, value and `return_residual`.

    Args:
      options: static, as (name, value) pairs: "implementation", which is a name in `KERNELS`, and the options of
        `jax.nn.dot_product_attention`, "scale" among them, or of `massive_jax.models.splash.splash_attention`.
      mask: bool [B or 1, H or 1, T, S]; "splash" has none.

    Raises:
      ValueError: this machine does not have the kernel.
    """
    given = dict(options)
    if given.pop("implementation") == "splash":
        from massive_jax.models.splash import splash_attention  # Pallas takes a while to import

        assert mask is None
        return functools.partial(splash_attention, **given)

    def attend(query: jax.Array, key: jax.Array, value: jax.Array, return_residual: bool = False) -> Any:
        return _attend((*options, ("return_residual", return_residual)), query, key, value, mask)

    return attend


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(options: Options, query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None) -> Any:
    return _run(options, query, key, value, mask)


def _run(options: Options, query: Any, key: Any, value: Any, mask: Any) -> Any:
    given = dict(options)
    kernel = KERNELS[given["implementation"]]
    # With a log-sum-exp, it is the forward pass of a gradient.
    multiple = kernel.gradient_lengths if given["return_residual"] else kernel.lengths
    return _by_sequence(functools.partial(_padded, options, multiple))(query, key, value, mask)


def _forward(options: Options, query: Any, key: Any, value: Any, mask: Any) -> Any:
    multiple = KERNELS[dict(options)["implementation"]].gradient_lengths
    return jax.vjp(lambda q, k, v: _padded(options, multiple, q, k, v, mask), query, key, value)


def _backward(options: Options, pullback: Any, cotangent: Any) -> Any:
    return *pullback(cotangent), None


_attend.defvjp(_forward, _backward)


def attention_with_lse(
    options: Options, query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Computes a kernel's output [B, T, H, N] and log-sum-exp [B, T, H]; neither has a gradient, see `gradient_at`.

    It is one operation, with nothing around it, to a policy of `jax.checkpoint`, which may keep it.
    """
    return _run((*options, ("return_residual", True)), query, key, value, mask)


def has_gradient_at(name: AttentionKernel) -> bool:
    """Tells whether `gradient_at` takes a kernel."""
    return name in GRADIENTS_AT and (name != "cudnn" or cudnn.is_known())


def gradient_at(
    options: Options,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    out: jax.Array,
    lse: jax.Array,
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gives the tokens' part of the gradient of a softmax that has more entries than them, in one call of a kernel.

    Args:
      options: see `fused_attention`.
      query: [B, T, H, N].
      key: [B, S, K, N].
      value: [B, S, K, N].
      mask: bool [B or 1, H or 1, T, S]; None for none.
      out: [B, T, H, N], what all entries give.
      lse: float32 [B, T, H], the log-sum-exp of all logits.
      cotangent: of `out`.

    Returns:
      The gradients of query, key and value.
    """
    name = dict(options)["implementation"]
    multiple, at = KERNELS[name].gradient_lengths, GRADIENTS_AT[name]

    def gradient(
        query: Any, key: Any, value: Any, mask: Any, out: Any, lse: Any, cotangent: Any
    ) -> tuple[jax.Array, ...]:
        (T, N), S = (query.shape[1], query.shape[3]), key.shape[1]
        given, query, key, value, mask = _fitted(options, multiple, query, key, value, mask)
        more, wider = query.shape[1] - T, query.shape[3] - N
        # Cotangents of zero: queries that are only there for their number add nothing to any gradient.
        out, cotangent = (jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, wider))) for x in (out, cotangent))
        lse = jnp.pad(lse, ((0, 0), (0, more), (0, 0)))
        of_query, of_key, of_value = at(query, key, value, mask, out, lse, cotangent, given)
        return of_query[:, :T, :, :N], of_key[:, :S, :, :N], of_value[:, :S, :, :N]

    return _by_sequence(gradient)(query, key, value, mask, out, lse, cotangent)


def _by_sequence(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of arrays with an axis of sequences each, to which `vmap` adds more sequences.

    (cuDNN's own rule, up to jax 0.10, is for calls in which everything is mapped, which the keys of an edited query are
    not, nor a mask.)
    """
    run = custom_vmap(function)

    @run.def_vmap
    def _(size: int, mapped: Any, *arrays: Any) -> Any:
        def folded(x: jax.Array, is_mapped: bool) -> jax.Array:
            x = x if is_mapped else x[None]
            return jnp.broadcast_to(x, (size, B, *x.shape[2:])).reshape(size * B, *x.shape[2:])

        B = arrays[0].shape[1 if mapped[0] else 0]
        found = run(*jax.tree.map(folded, arrays, tuple(mapped)))
        return jax.tree.map(lambda x: x.reshape(size, B, *x.shape[1:]), found), jax.tree.map(lambda _: True, found)

    return run


def _padded(
    options: Options, multiple: int, query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None
) -> Any:
    """`jax.nn.dot_product_attention` of as many queries and keys as a multiple, and of heads as wide as it takes."""
    T, N = query.shape[1], query.shape[3]
    given, query, key, value, mask = _fitted(options, multiple, query, key, value, mask)
    found: Any
    if given["return_residual"] and given["implementation"] == "cudnn" and cudnn.is_known():
        found = cudnn.attention_with_lse(query, key, value, mask, given)
    else:
        found = jax.nn.dot_product_attention(query, key, value, mask=mask, **given)
    out, lse = found if given["return_residual"] else (found, None)
    out = out[:, :T, :, :N]
    return out if lse is None else (out, lse[:, :T])


def _fitted(
    options: Options, multiple: int, query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None
) -> tuple[dict[str, Any], jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """What `_padded` gives to a kernel: its options, queries, keys, values and mask."""
    given = dict(options)
    kernel = KERNELS[given["implementation"]]
    if given["implementation"] == "cudnn" and (problem := gpu_problem(query.shape[3])):
        raise ValueError(f"attention_kernel 'cudnn' {problem}: make the model with attention_kernel 'xla'.")
    T, S, N = query.shape[1], key.shape[1], query.shape[3]
    more_queries, more_keys, wider = -T % multiple, -S % multiple, -N % kernel.head_multiple
    if mask is None and more_keys and not given.get("is_causal"):  # else causality hides them from all that is kept
        # Sums with the data, since jax's own rule for `vmap` needs the lengths to be mapped with the rest.
        nothing = 0 * query[:, 0, 0, 0].astype(jnp.int32)
        given |= {"query_seq_lengths": nothing + (T + more_queries), "key_value_seq_lengths": nothing + S}
    if mask is not None:
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, more_queries), (0, more_keys)))
    query = jnp.pad(query, ((0, 0), (0, more_queries), (0, 0), (0, wider)))
    key, value = (jnp.pad(x, ((0, 0), (0, more_keys), (0, 0), (0, wider))) for x in (key, value))
    return given, query, key, value, mask


def gpu_problem(head_dim: int = 1) -> str | None:
    """Says what this machine lacks for cuDNN's kernel with heads of this width; None if it lacks nothing."""
    capability = cuda_capability()
    need = _AMPERE if head_dim <= _NARROW else _HOPPER
    if capability is not None and capability >= need:
        return None
    here = "has none" if capability is None else f"has one of {capability[0]}.{capability[1]}"
    wide = f" for head_dim {head_dim}" if head_dim > _NARROW else ""
    return f"needs an NVIDIA GPU of compute capability {need[0]}.{need[1]} or newer{wide}, and this process {here}"


def cuda_capability() -> tuple[int, int] | None:
    """Gives the compute capability of this process's NVIDIA GPU; None without one."""
    device = jax.local_devices()[0]
    major, _, minor = str(getattr(device, "compute_capability", "")).partition(".")
    return (int(major), int(minor)) if device.platform == "gpu" and major.isdigit() and minor.isdigit() else None
