"""The units of a sweep, checked: what each is as data, and what of the unedited run it leaves as it is.

Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import xxhash

from massive_jax.arguments import shown
from massive_jax.dtypes import wide
from massive_jax.files import listed
from massive_jax.probe import ALL_SITES, OPERATIONS, OPS, Edit, EditCollection, EditRows, PerToken, as_edits
from massive_jax.probe.edit import describe
from massive_jax.probe.functions import call
from massive_jax.probe.places import ALL_LAYERS, NO_LAYER
from massive_jax.probe.sites import WIDE_SITES, Site

if TYPE_CHECKING:
    from massive_jax.model import Model

_SHOWN = 8  # problems of units in one message
_LOOKED_AT = 64  # units with a problem: of a grid all have the same
_OTHERS = " The same of other units."


@dataclasses.dataclass(frozen=True)
class Unit:
    """Holds what is known of one unit of a sweep, but for its arrays.

    Attributes:
      layer: how many blocks it leaves as they are.
      column: how many columns, from the first on.
      form: what units that run together have in common: structure and shapes of their arrays.
      whole: whether what it does to a token may depend on later ones, so that all must be run at once.
      digest: of its arrays.
      nbytes: of them.
    """

    layer: int
    column: int
    form: Hashable
    whole: bool
    digest: str
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Units:
    """Compiles units of a sweep.

    Attributes:
      model: a language model.
      tokens: int [B, T].
      mask: bool [B, T]; None for none.
    """

    model: Model
    tokens: np.ndarray
    mask: np.ndarray | None

    def compiled(self, unit: tuple[Edit, ...]) -> EditCollection:
        """Gives a unit's edits as arrays, without rows that edit nothing."""
        found = self.model.compile_edits(unit, self.tokens, self.mask)
        return {name: tuple(map(_trimmed, rows)) for name, rows in found.items()}

    @functools.cached_property
    def columns(self) -> np.ndarray:
        """Says where each position of a sequence is: int [B, T], T where there is none."""
        B, T = self.tokens.shape
        if self.mask is None:
            return np.broadcast_to(np.arange(T), (B, T))
        order = np.argsort(~self.mask, axis=1, stable=True)
        return np.where(np.arange(T) < self.mask.sum(axis=1)[:, None], order, T)

    def look_at(self, units: Iterable[tuple[Edit, ...]], count: int) -> list[Unit]:
        """Checks all units.

        Args:
          units: the edits of each.
          count: how many there are.

        Raises:
          ValueError: what `compile_edits` refuses, with the number of the unit; a value that is not finite; two units
            that are the same.
        """
        found: list[Unit] = []
        problems: dict[str, str] = {}  # what is wrong -> the message, with the first unit of which it is
        seen: dict[str, int] = {}
        failed = 0
        for number, unit in enumerate(units):
            try:
                for edit in unit:
                    check_finite(edit.value, describe(edit))
                its = self._one(self.compiled(unit))
            except ValueError as error:
                failed += 1
                several = "" if count == 1 else f"unit {number}: "
                for line in str(error).splitlines():
                    reason = line.rpartition("): ")[2]
                    if not (known := problems.setdefault(reason, several + line)).startswith(several):
                        problems[reason] = known.removesuffix(_OTHERS) + _OTHERS
                if len(problems) > _SHOWN or failed >= _LOOKED_AT:
                    break
                continue
            if (first := seen.setdefault(its.digest, number)) != number:
                line = f"units {first} and {number} are the same: {'; '.join(map(describe, unit))}; leave one out."
                problems[line] = line
            found.append(its)
        if problems:
            lines = list(problems.values())
            raise ValueError("\n".join(lines[:_SHOWN] + ["…"] * (len(lines) > _SHOWN)))
        return found

    def _one(self, compiled: EditCollection) -> Unit:
        cfg = self.model.config
        layer, column, whole = cfg.num_layers, self.tokens.shape[1], not cfg.causal
        digest = xxhash.xxh3_128()
        nbytes = 0
        for name, all_rows in compiled.items():
            for rows in all_rows:
                layer = min(layer, _first_layer(ALL_SITES[name], rows, cfg.num_layers))
                column = min(column, self._first_column(rows))
                whole = whole or _looks_ahead(ALL_SITES[name], rows)
                kind = f"{name} {sorted(rows.index)} {sorted(rows.chosen)} {self._function(name, rows)}"
                digest.update(kind.encode())
                for leaf in jax.tree.leaves(rows):
                    array = np.ascontiguousarray(leaf)
                    digest.update(f"{array.dtype}{array.shape}".encode())
                    digest.update(array.tobytes())
                    nbytes += array.nbytes
        leaves, structure = jax.tree.flatten(compiled)
        form = (structure, tuple((np.shape(leaf), np.result_type(leaf)) for leaf in leaves), whole)
        return Unit(layer, 0 if whole else column, form, whole, digest.hexdigest(), nbytes)

    def _first_column(self, rows: EditRows) -> int:
        T = self.tokens.shape[1]
        if "T" in rows.index:
            index = np.asarray(rows.index["T"])  # [K, B]
            here = np.take_along_axis(self.columns, np.maximum(index, 0).T, axis=1).T
            return int(np.where(index < 0, T, here).min())
        if "T" in rows.chosen:
            chosen = np.asarray(rows.chosen["T"]).any(axis=0)  # [B, T]
            return int(np.where(chosen, self.columns, T).min())
        return int(self.columns.min())

    def _function(self, name: str, rows: EditRows) -> str:
        """What the function of a row does, as text; nothing for a row without one."""
        if rows.fn is None:
            return ""
        site, cfg = ALL_SITES[name], self.model.config
        axes = "".join(axis for axis in site.axes if axis not in rows.index)
        sizes = cfg.input_sizes(self.tokens.shape)
        x = jax.ShapeDtypeStruct(
            tuple(sizes[axis] for axis in axes), wide(np.float32 if name in WIDE_SITES else cfg.jnp_dtype)
        )
        leaves, tree = jax.tree.flatten(rows.value)
        structs = tuple(jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.result_type(leaf)) for leaf in leaves)
        return _function_text(rows.fn, axes, x, tree, structs)


@functools.lru_cache(maxsize=64)
def _function_text(fn: Any, axes: str, x: Any, tree: Any, leaves: tuple[Any, ...]) -> str:
    return program_text(lambda x, value: call(fn, x, value, axes), x, jax.tree.unflatten(tree, leaves))


def program_text(fn: Callable[..., Any], *args: Any) -> str:
    """Gives what a function does with arguments of these shapes, as text, constants and all."""
    traced = jax.make_jaxpr(fn)(*args)
    constants = xxhash.xxh3_128()
    for constant in traced.consts:
        constants.update(np.asarray(constant).tobytes())
    return re.sub(r"0x[0-9a-f]+", "", str(traced.jaxpr)) + constants.hexdigest()


def stacked(units: Sequence[EditCollection]) -> Any:
    """Stacks units of one form along a new first axis."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *units)


def as_units(edits: Any) -> list[tuple[Edit, ...]]:
    """Gives a list of edits, or of lists of them, as a list of tuples.

    Raises:
      ValueError: something else; no unit; a unit without edits.
    """
    if isinstance(edits, Edit | str | Mapping) or not np.iterable(edits):
        raise ValueError(
            f"edits is {shown(edits)}; give a list of Edits or of lists of them, one a unit, or an EditGrid."
        )
    units = list(edits)
    if not units:
        raise ValueError("edits is empty: there is nothing to sweep; give a list of Edits, or an EditGrid.")
    found = [as_edits(unit) for unit in units]
    if empty := [number for number, unit in enumerate(found) if not unit]:
        raise ValueError(f"units {listed(empty)} have no edit; the unedited run is measured without being asked for.")
    return found


def _trimmed(rows: EditRows) -> EditRows:
    """The rows that edit something, to a power of two: each costs its time in every block."""
    if rows.fn is not None:
        return rows
    there = np.flatnonzero(np.asarray(rows.layer) != NO_LAYER)
    K = 1 << (int(there[-1]) if len(there) else 0).bit_length()
    return jax.tree.map(lambda leaf: leaf[:K], rows)


def _first_layer(site: Site, rows: EditRows, num_layers: int) -> int:
    """How many blocks there are before what is edited; of a block's output that block is one of them."""
    layers = np.asarray(rows.layer)
    layers = layers[layers != NO_LAYER]
    if not site.per_layer:
        return 0 if site.name == "embed" else num_layers
    if (layers == ALL_LAYERS).any():
        chosen = rows.chosen.get("L")
        return 0 if chosen is None else int(np.flatnonzero(np.asarray(chosen).any(axis=0))[0])
    return int(layers.min()) - (site.name != "block_out")


def _looks_ahead(site: Site, rows: EditRows) -> bool:
    """Whether what is done to a token may depend on those after it."""
    # Probabilities that are made may be of keys after the query.
    made = site.name == "attn_probs"
    if rows.fn is not None:
        inside = {*site.axes} - {*rows.index}
        return made or "S" in inside or ("T" in inside and not isinstance(rows.fn, PerToken))
    ops = {OPS[op] for op in np.asarray(rows.op).tolist()}
    return (made and ops != {"scale"}) or any(OPERATIONS[op].whole_sequence for op in ops)


def check_finite(value: Any, what: str) -> None:
    """Raises a ValueError where the value of an edit is NaN or infinite; `what` is the edit, in words."""
    for leaf in jax.tree.leaves(value):
        try:
            array = np.asarray(leaf)
            bad = jnp.issubdtype(array.dtype, jnp.floating) and not np.isfinite(array).all()
        except (TypeError, ValueError):  # `compile_edits` says what is wrong with it
            continue
        if bad:
            raise ValueError(f"{what}: value holds NaN or infinity; give finite numbers.")
