"""A person's own functions of tensors: how they are called, and what is wrong with one, before anything is compiled.

Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from massive_jax.arguments import shown

Function = Callable[[Any, Any], Any]
"""Makes of x and the arrays of an edit the new x, of the same shape and dtype."""


@dataclasses.dataclass(frozen=True)
class PerToken:
    """Makes of a function of one token the operation of an `Edit` on every token, in one pass.

    What it does to a token cannot depend on the others: so it is the same in a padded batch and while text is
    generated, where a function of whole tensors is refused.

    Attributes:
      fn: takes x, of one token of one sequence ([D] for block_out, [H, N] for head_out), and the edit's `value`; gives
        the new x.

    Examples:
      >>> import jax.numpy as jnp
      >>> def without(x, direction):  # a direction of norm 1 is taken out
      ...     return x - jnp.dot(x, direction) * direction
      >>> direction = np.ones(576, np.float32) / 24
      >>> tokens, mask = model.tokenize_batch(["Summer is warm.", "Winter"])
      >>> edit = mj.Edit("block_out", layer=5, op=mj.PerToken(without), value=direction)
      >>> model(tokens, mask=mask, edits=edit).logits.shape
      (2, 64, 49152)
    """

    fn: Function

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise ValueError(f"PerToken: fn is {shown(self.fn)}; give a function of x, of one token, and value.")


def call(fn: Function | PerToken, x: Any, value: Any, axes: str) -> Any:
    """Gives what `fn` makes of `x`, whose axes these are (the batch first)."""
    if not isinstance(fn, PerToken):
        return fn(x, value)
    tokens = functools.partial(_swapped, fn.fn, value)
    for axis in axes:
        if axis in "TP":
            tokens = jax.vmap(tokens, in_axes=axes.index(axis) - 1, out_axes=axes.index(axis) - 1)
    return jax.vmap(tokens)(x)


def check_function(fn: Function | PerToken, axes: str, shape: tuple[int, ...], dtype: Any, value: Any) -> None:
    """Checks that `fn` makes of an x with these axes another of the same shape and dtype.

    It is traced once for each function and shapes, and nothing is computed.

    Raises:
      ValueError: it cannot be hashed; `value` holds something else than arrays and numbers; it fails, leaves jax, or
        gives another shape or dtype.
    """
    try:
        hash(fn)
    except TypeError:
        raise ValueError(f"op is {shown(fn)}, which cannot be hashed; give a function made with def.") from None
    leaves, tree = jax.tree.flatten(array_shapes("value", value))
    problem = _problem(fn, axes, jax.ShapeDtypeStruct(shape, dtype), tree, tuple(leaves))
    if problem:
        raise ValueError(problem)


def result_shapes(fn: Callable[..., Any], *args: Any) -> Any:
    """Gives the shapes of what `fn` makes of arguments of these shapes; ValueError of one line where it fails."""
    try:
        return jax.eval_shape(fn, *args)
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        leaves = isinstance(error, jax.errors.TracerArrayConversionError | jax.errors.ConcretizationTypeError)
        hint = "; stay in jax: jax.numpy for numpy, jnp.where for if" if leaves else ""
        raise ValueError(f"fails with {type(error).__name__}: {shown_line(first)}{hint}") from None


def array_shapes(name: str, given: Any) -> Any:
    """Gives the shapes of arrays and numbers, in a tuple or a dict, say; ValueError where something else is."""

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        try:
            kind = jax.typeof(leaf)
            return jax.ShapeDtypeStruct(kind.shape, kind.dtype, weak_type=kind.weak_type)
        except (TypeError, ValueError, AttributeError):
            raise ValueError(
                f"{name} holds {shown(leaf)}; give a function arrays, in a tuple or a dict, say."
            ) from None

    return jax.tree.map(shape, given)


def shown_line(text: str, limit: int = 160) -> str:
    """Gives a text on one line, of at most `limit` letters, without the full stop."""
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


@functools.lru_cache(maxsize=256)
def _problem(fn: Any, axes: str, x: Any, tree: Any, leaves: tuple[Any, ...]) -> str | None:
    """What is wrong with the function; None for nothing."""
    expected = f"{_shape(x)} ({', '.join(axes)})"
    try:
        found = result_shapes(functools.partial(call, fn, axes=axes), x, jax.tree.unflatten(tree, leaves))
    except ValueError as error:
        return f"the function, given x {expected}, {error}."
    if not hasattr(found, "shape") or (found.shape, found.dtype) != (x.shape, x.dtype):
        return f"the function gives {_shape(found)}; it has to give what it gets as x, {expected}."
    return None


def _shape(array: Any) -> str:
    if not hasattr(array, "shape"):
        return shown(array)
    return f"{jnp.dtype(array.dtype).name}{list(array.shape)}"


def _swapped(fn: Function, value: Any, x: Any) -> Any:
    return fn(x, value)
