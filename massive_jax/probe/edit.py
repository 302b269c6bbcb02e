"""Interventions as a person writes them: `Edit`. `massive_jax.probe.packing` makes data of them.

Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any, TypeAlias

import jax
import numpy as np

from massive_jax.arguments import several, shown
from massive_jax.probe.functions import Function, PerToken
from massive_jax.probe.places import PositionRule

Places: TypeAlias = int | Sequence[int] | AbstractSet[int] | slice | np.ndarray
"""One place along an axis, or several."""


@dataclasses.dataclass(frozen=True)
class Edit:
    r"""Describes one intervention, as data.

    Edits apply in the order given; what a site captures is what is left after its edits. Other numbers, and among
    several places another number of them, are never another compilation.

    Attributes:
      site: where (see `massive_jax.probe.sites.ALL_SITES`).
      layer: 1-based: an int, a list or slice of several, or "all"; None (or 0) for the sites that are not in a block:
        embed, final_norm, logits.
      position: token position(s) to edit, in a sequence's own tokens: None for all; an int (negative from the end); a
        list, set or slice, those of every sequence; an int array [B], one a sequence (-1 for none); a bool array
        [B, T], as the tokens are; a rule's name ("first", "last"; language models also know "first_delimiter") or a
        function tokens [B, T] -> int [B] or bool [B, T].
      dim: along the last axis (width, head width, MLP width or vocabulary): an int, a list or slice of several, a bool
        array of all; None for all.
      op: "set" (x ← value), "scale" (x ← value·x), "add" (x ← x + value), "noise" (x ← x + value·N(0, 1), the same
        numbers at the same position of every sequence), "shuffle" (x ← the same dims at another position, by a random
        cyclic permutation of the positions), "quantize" (x ← the nearest of 2^value - 1 evenly spaced numbers from
        -max|x| to max|x|, with one max for what is edited of a sequence: absmax quantisation with a scale per tensor)
        or "move" (position `value` takes the largest of the other positions' x, which become 0; for one dim, without a
        position). Or a function fn(x, value) -> x of all that is edited, [B, …] (the site's axes but for those that
        one number names), in float32; or `PerToken` of one, which a padded batch and generation want. Of axes along
        which several places are named it takes all, and only those places are changed. It is traced once for each
        function and shape: define it outside of loops.
      value: a number, or an array with the axes of what is edited, as numpy broadcasts, each of its size or 1: for
        block_out [D], [T, D], [B, 1, D] or [B, T, D], and at one position [D] or [B, D]. Along a list of n places it
        may have n entries, in that order. An array with all axes of the site is taken from where the edit is: so what
        a capture gave is put back at any place. Noise: the standard deviation. Quantize: the number of bits, from 2 to
        16. Move: the position that it moves to (negative from the end). Unused by shuffle. A function's: arrays, in a
        tuple or a dict, say.
      head: for the sites that have heads, as `dim`.
      key: key position for attn_logits and attn_probs: an int (negative from the end), a list or slice; None for all.
        After a sequence's tokens come the slots of an attention bias.
      seed: seed of noise and shuffle.

    Examples:
      >>> tokens = model.tokenize("Summer is warm. Winter is cold.\n")
      >>> zero = mj.Edit("block_out", layer=12, position=0, dim=507, op="set", value=0.0)
      >>> out = model(tokens, edits=zero, capture=mj.Capture("block_out", layers=12, max=True))
      >>> round(float(out.intermediates["block_out"].max[0, 0]))  # 23147 without the edit
      1693

      What another run had there is put back, out of its whole tensor.

      >>> clean = model(tokens, capture=mj.Capture("block_out", layers=12)).intermediates["block_out"][0]
      >>> patch = mj.Edit("block_out", layer=12, position=[0, 3, 4], value=clean)
      >>> bool(np.allclose(model(tokens, edits=[zero, patch]).logits, model(tokens).logits, atol=1e-3))
      True
    """

    site: str
    layer: Places | str | None = None
    position: Places | str | PositionRule | None = None
    dim: Places | None = None
    op: str | Function | PerToken = "set"
    value: Any = 0.0
    head: Places | None = None
    key: Places | None = None
    seed: int = 0


def as_edits(edits: Any) -> tuple[Edit, ...]:
    """Gives `edits`, None, one or several, as a tuple; ValueError where one of them is something else."""
    found = () if edits is None else (edits,) if isinstance(edits, Edit) else several(edits)
    if found is None or not all(isinstance(edit, Edit) for edit in found):
        raise ValueError(f"edits is {shown(edits)}; give an Edit, several in a list, or None.")
    return found


def describe(edit: Edit) -> str:
    """Gives the fields of `edit` that are not at their default, for messages."""
    fields = []
    for field in dataclasses.fields(edit):
        given: Any = getattr(edit, field.name)
        default: Any = field.default
        plain = type(given) is type(default) and not isinstance(given, np.ndarray | jax.Array)
        if field.name == "site" or (given is not default and not (plain and given == default)):
            fields.append(f"{field.name}={_short(given)}")
    return ", ".join(fields)


def _short(given: Any) -> str:
    """A field, with the shapes of arrays in place of many numbers."""
    if callable(given):
        return getattr(given, "__name__", None) or shown(given)
    if isinstance(given, np.ndarray | jax.Array) and (isinstance(given, jax.core.Tracer) or given.size > 40):
        return f"{given.dtype}{list(given.shape)}"
    if isinstance(given, tuple | list | dict) and not all(isinstance(i, int | float) for i in given):
        return shown(
            jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else leaf, given)
        )
    return shown(given)
