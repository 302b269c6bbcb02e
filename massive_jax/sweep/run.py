"""`sweep`: a metric of a model's output under each of many interventions.

Of what the interventions leave as it is nothing is computed again: an edit in block l changes no stream before it, and
one at position p nothing before p. So a batch of them is taken up where the first of them begins, at that block and
that chunk of positions, with the unedited run's stream, keys and values. Where that is, is data: one program runs all.
Axis letters: see `massive_jax.probe.sites`; N units of a batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from massive_jax.arguments import shown
from massive_jax.cards import Card
from massive_jax.checksums import checksum, model_checksum
from massive_jax.dtypes import product_precision
from massive_jax.files import locked
from massive_jax.forward import forward, own_positions
from massive_jax.models import LanguageModel, Resume, TransformerConfig, head_logits, head_of, last_of
from massive_jax.models.loss import logits_nll, sequence_nll
from massive_jax.parallel import fetch, mesh_of_params, mesh_set
from massive_jax.probe import Capture, CapturePlan, Coordinates, Edit, EditCollection, Tap, compile_captures
from massive_jax.probe.functions import result_shapes
from massive_jax.sweep import plan as planning
from massive_jax.sweep.grid import EditGrid
from massive_jax.sweep.metrics import Metric, find_metric
from massive_jax.sweep.store import Store, checked_path
from massive_jax.sweep.units import Units, as_units, program_text, stacked

if TYPE_CHECKING:
    from massive_jax.model import Model, TextModel

Progress = Callable[[int], Any]


@dataclasses.dataclass(frozen=True, repr=False)
class Sweep(Card):
    """Holds what a metric is under each unit of a sweep.

    Attributes:
      metric: what it is called.
      unedited: of the run without an edit: a number, or float32 [B] of a function that gives one a sequence.
      values: float32 [units], or along the axes of an `EditGrid`; [..., B] where there is one a sequence.
      axes: of an `EditGrid`, "layer", "position", … -> the places along it; None of a list.
    """

    metric: str
    unedited: Any
    values: np.ndarray
    axes: dict[str, tuple[Any, ...]] | None = None

    @property
    def effects(self) -> np.ndarray:
        """Gives the values less that of the run without an edit."""
        return self.values - self.unedited


def sweep(
    model: Model,
    tokens: Any,
    edits: Sequence[Edit | Sequence[Edit]] | EditGrid,
    metric: str | Callable[..., Any],
    *,
    data: Any = None,
    mask: Any = None,
    batch: int | None = None,
    memory: int | None = None,
    progress: bool | Progress = False,
    path: Any = None,
) -> Sweep:
    r"""Measures a metric of the output under each of many interventions, each by itself.

    One program runs all units that have one form (the same sites, axes and about as many edits), whatever their
    layers, places, operations and values are.

    Args:
      model: a language model.
      tokens: int [B, T].
      edits: a list with an `Edit`, or a list of edits, for each unit; or an `EditGrid`.
      metric: "loss" or "perplexity" of the tokens; of the next token, as a mean over sequences, "logit",
        "logit_difference", "log_probability", "probability", or "kl" from the unedited run; or a function of an
        `Output`, and of `data` where it is given, that gives a number or one a sequence [B], as `Model.gradient` takes.
        Those of the next token are the fastest, and take the least memory: one row of logits a sequence.
      data: a token ("logit", "log_probability", "probability"), two of them ("logit_difference"), by id or text, each
        one for all sequences or one a sequence; for a function arrays, in a tuple or a dict, say.
      mask: bool [B, T], False for padding; None for none.
      batch: how many units run together at most; None for what is fast.
      memory: bytes that a batch may take at most, beside the parameters; None for a fourth of the device's.
      progress: shows a progress bar; or is called with the number of units done.
      path: of an .npz file that values are written to every few seconds, and which another call with the same model,
        tokens, edits and metric goes on from; None for none.

    Raises:
      ValueError: as `Model.__call__` and `Edit`; no unit, one without edits, two that are the same, a value that is not
        finite; an unknown metric, or data that it does not take; a function that fails, leaves jax, or gives something
        else; a memory that one unit does not fit in; a file of another sweep; the unedited run's metric is not finite.

    Examples:
      >>> tokens = model.tokenize("The capital of France is")
      >>> grid = mj.EditGrid("block_out", layers=[5, 20], positions=[3, 4], op="scale", value=0.5)
      >>> found = model.sweep(tokens, grid, "probability", data=" Paris")
      >>> found.values.shape, found.axes
      ((2, 2), {'layer': (5, 20), 'position': (3, 4)})
    """
    batch, memory = planning.check_limits(batch, memory)
    checked_path(path)
    units = edits if isinstance(edits, EditGrid) else as_units(edits)
    edited = units.value if isinstance(units, EditGrid) else [edit.value for unit in units for edit in unit]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((model.params, tokens, mask, data, edited))):
        raise ValueError("sweep is compiled itself and cannot run under a jax transform; see Model.gradient for that.")
    tokens = np.asarray(model.check_inputs(tokens, mask)[0])
    mask = None if mask is None else np.asarray(mask)
    config = cast("TransformerConfig", model.config)
    found_metric, data = find_metric(metric, data, cast("TextModel", model), len(tokens))
    lengths = np.full(len(tokens), tokens.shape[1]) if mask is None else mask.sum(axis=1)
    if found_metric.of == "text" and lengths.min() < 2:
        raise ValueError(f"metric {metric} needs at least two tokens a sequence: the first is not predicted.")
    axes = None
    if isinstance(units, EditGrid):
        axes = units.axes(config.input_sizes(tokens.shape), int(lengths.min()))
        units = [(edit,) for edit in units.cells(axes)]
    run = _Run.of(model, tokens, mask, units, found_metric, data, batch, memory, path)
    values, unedited = run.values(progress)
    if axes is not None:
        values = values.reshape(*(len(places) for places in axes.values()), *values.shape[1:])
    return Sweep(found_metric.title, unedited if unedited.ndim else float(unedited), values, axes)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Unedited:
    """Holds the unedited run.

    Attributes:
      streams: [L + 1, B, T, D], the embedding and every block's output.
      keys: [L, B, T, K, N], the site `key`; None where no part of a sequence is left out.
      values: likewise.
      hidden: [B, T, W], after the final norm.
    """

    streams: jax.Array
    keys: jax.Array | None
    values: jax.Array | None
    hidden: jax.Array


@dataclasses.dataclass(frozen=True)
class _Given:
    """Holds what all units of a form are run on.

    Attributes:
      unedited: the unedited run.
      tokens: int [B, pad + T].
      positions: int [B, pad + T], as for `LanguageModel`; None for no padding.
      own: int [B, T], without what is in front; None for no padding.
      pad: columns in front, to a multiple of `chunk`.
      chunk: columns that are run at a time.
    """

    unedited: Unedited
    tokens: np.ndarray
    positions: np.ndarray | None
    own: np.ndarray | None
    pad: int
    chunk: int


@dataclasses.dataclass(frozen=True)
class _Run:
    """A sweep that is checked."""

    model: Model
    units: Units
    edits: Sequence[tuple[Edit, ...]]
    found: Sequence[Any]
    metric: Metric
    data: Any
    sizes: dict[bool, int]  # whether all columns are run at once -> how many units run together
    path: Any

    @classmethod
    def of(
        cls,
        model: Model,
        tokens: np.ndarray,
        mask: np.ndarray | None,
        edits: Sequence[tuple[Edit, ...]],
        metric: Metric,
        data: Any,
        batch: int | None,
        memory: int | None,
        path: Any,
    ) -> _Run:
        """Checks all units and the limits; nothing is compiled yet."""
        units = Units(model, tokens, mask)
        found = units.look_at(edits, len(edits))
        if metric.of == "output":
            _check_function(model, tokens.shape, metric, data)
        config, (B, T) = cast("TransformerConfig", model.config), tokens.shape
        sizes = {}
        for whole in {unit.whole for unit in found}:
            its = [unit for unit in found if unit.whole is whole]
            chunk = T if whole else planning.chunk_size(T)
            need = planning.Memory(config, metric, B, -(-T // chunk) * chunk, chunk)
            sizes[whole] = need.batch(batch, memory, max(unit.nbytes for unit in its), len(its))
        return cls(model, units, edits, found, metric, data, sizes, path)

    def values(self, progress: bool | Progress) -> tuple[np.ndarray, np.ndarray]:
        """Gives float [units, …], and the value of the unedited run."""
        tokens, mask, config = self.units.tokens, self.units.mask, self.model.config
        held = contextlib.nullcontext() if self.path is None else locked(self.path)
        with held, mesh_set(mesh_of_params(self.model.params)), _shown(progress, len(self.edits)) as done:
            shape, dtype = self._value_shape()
            store = Store.open(self.path, self._marks(), (len(self.edits), *shape), dtype)
            chunk = planning.chunk_size(tokens.shape[1])
            pad = -tokens.shape[1] % chunk
            plain = None if mask is None else own_positions(mask)
            every = np.ones(tokens.shape, bool) if mask is None else mask
            padded, own = (np.pad(x, ((0, 0), (pad, 0))) for x in (tokens, every))
            positions = own_positions(own)
            unedited, params, data = _unedited(self.model, padded, positions), self.model.params, self.data
            if self.metric.beside:
                data = _last_logits(config, params, unedited.hidden[:, pad:], plain)
            before = fetch(_value_of(config, self.metric, params, unedited.hidden[:, pad:], tokens, plain, data))
            if not np.isfinite(before).all():
                raise ValueError(f"{self.model.name}: the {self.metric.title} of the unedited model is {before}.")
            done(int(store.done.sum()))
            try:
                for numbers in planning.by_form(self.found):
                    if self.found[numbers[0]].whole:
                        given = _Given(_without_cache(unedited, pad), tokens, plain, plain, 0, tokens.shape[1])
                    else:
                        given = _Given(unedited, padded, positions, plain, pad, chunk)
                    for its in self._batches(numbers, given):
                        if not store.done[list(its.units)].all():
                            store.put(its.units, self._measured(its, given, len(numbers), data))
                            done(len(its.units))
            finally:
                store.write()
        return store.values, before

    def _batches(self, numbers: Sequence[int], given: _Given) -> list[planning.Batch]:
        """The batches of units of one form: the same whether some are done or none, so that numbers are, too."""
        moved = {i: dataclasses.replace(self.found[i], column=self.found[i].column + given.pad) for i in numbers}
        size, length = self._size(numbers[0], len(numbers)), given.tokens.shape[1]
        return planning.batches(moved, numbers, size, given.chunk, length, self.model.config.num_layers)

    def _size(self, unit: int, count: int) -> int:
        return min(self.sizes[self.found[unit].whole], count)

    def _measured(self, its: planning.Batch, given: _Given, count: int, data: Any) -> np.ndarray:
        """The values of a batch, of those of the `count` units of its form."""
        compiled = [self.units.compiled(self.edits[i]) for i in its.units]
        # The last one is filled up: another number of units would be another program.
        compiled += [compiled[-1]] * (self._size(its.units[0], count) - len(compiled))
        values = _swept(
            cast("LanguageModel", self.model.module),
            self.metric,
            given.chunk,
            given.pad,
            self.found[its.units[0]].whole,
            self.model.params,
            given.unedited,
            stacked(compiled),
            np.int32(its.layer),
            np.int32(its.chunk),
            given.tokens,
            given.positions,
            given.own,
            data,
        )
        return fetch(values)[: len(its.units)]

    def _value_shape(self) -> tuple[tuple[int, ...], Any]:
        if self.metric.of != "output":
            return (), np.dtype(np.float64 if self.model.config.dtype == "float64" else np.float32)
        found = _check_function(self.model, self.units.tokens.shape, self.metric, self.data)
        return found.shape, np.dtype(found.dtype)

    def _marks(self) -> dict[str, str]:
        """What makes this sweep another, where there is a file."""
        if self.path is None:
            return {}
        metric = self.metric.title
        if self.metric.of == "output":
            metric += program_text(*_function_args(self.model, self.units.tokens.shape, self.metric, self.data))
        mask = "no mask" if self.units.mask is None else self.units.mask
        return {
            "model": model_checksum(self.model.config, self.model.params),
            "tokens": checksum(self.units.tokens, mask),
            "edits": checksum([unit.digest for unit in self.found]),
            "metric": checksum(metric, self.data),
        }


@contextlib.contextmanager
def _shown(progress: bool | Progress, total: int) -> Iterator[Progress]:
    """What is told how many units are done."""
    if callable(progress):
        yield progress
        return
    if not isinstance(progress, bool):
        raise ValueError(f"progress is {shown(progress)}; give True, False, or a function of the number of units done.")
    import tqdm

    with tqdm.tqdm(total=total, desc="sweep", unit="edit", delay=2.0, disable=None if progress else True) as bar:
        yield bar.update


def _function_args(model: Model, shape: tuple[int, ...], metric: Metric, data: Any) -> tuple[Any, ...]:
    """The function of a metric, and what stands for its arguments."""
    config, wide = cast("TransformerConfig", model.config), np.float32
    logits = jax.ShapeDtypeStruct((*shape, config.vocab_size), np.float64 if config.dtype == "float64" else wide)
    hidden = jax.ShapeDtypeStruct((*shape, config.embedding_size or config.hidden_size), config.jnp_dtype)
    return metric.output, logits, hidden, data


def _check_function(model: Model, shape: tuple[int, ...], metric: Metric, data: Any) -> Any:
    """The shape of what a function gives; ValueError of one line where it is none."""
    try:
        found = result_shapes(*_function_args(model, shape, metric, data))
    except ValueError as error:
        raise ValueError(f"metric {metric.title}: it {error}.") from None
    if found.shape not in ((), shape[:1]) or not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(
            f"metric {metric.title} gives {found.dtype}{list(found.shape)}; it has to give a float, or one a sequence, "
            f"[{shape[0]}]."
        )
    return found


def _unedited(model: Model, tokens: np.ndarray, positions: np.ndarray) -> Unedited:
    plan = compile_captures(Capture(("embed", "block_out", "key", "value")), model.config.num_layers)
    out = forward(model.module, model.params, {}, plan, tokens, logits=False, positions=positions)
    kept = out.intermediates
    streams = jnp.concatenate([kept["embed"][None], kept["block_out"]])
    return Unedited(streams, kept["key"], kept["value"], out.last_hidden)


def _without_cache(unedited: Unedited, pad: int) -> Unedited:
    return Unedited(unedited.streams[:, :, pad:], None, None, unedited.hidden[:, pad:])


@functools.partial(jax.jit, static_argnames=("module", "metric", "chunk", "pad", "whole"))
def _swept(
    module: LanguageModel,
    metric: Metric,
    chunk: int,
    pad: int,
    whole: bool,
    params: Any,
    unedited: Unedited,
    edits: EditCollection,
    layer: jax.Array,
    first: jax.Array,
    tokens: jax.Array,
    positions: jax.Array | None,
    own: jax.Array | None,
    data: Any,
) -> jax.Array:
    """The metric under each of N units, [N] or [N, B]; see `_Given` and `Resume`."""
    at_logits = {name: rows for name, rows in edits.items() if name == "logits"}
    before = {name: rows for name, rows in edits.items() if name != "logits"}
    run = jnp.arange(tokens.shape[1])[:, None] >= first * chunk
    padded: dict[str, Any] = {} if positions is None else {"positions": positions}

    def last_hidden(edits: EditCollection) -> jax.Array:
        resume = Resume(layer, unedited.streams[layer], first, unedited.keys, unedited.values, chunk)
        _, hidden = module.apply({"params": params, "edits": edits}, tokens, resume=resume, logits=False, **padded)
        return jnp.where(run, jnp.asarray(hidden), unedited.hidden)[:, pad:]

    def value(hidden: jax.Array, edits: EditCollection) -> jax.Array:
        return _value(module.config, metric, params, hidden, edits, whole, tokens[:, pad:], own, data)

    hidden = jax.vmap(last_hidden, axis_size=len(jax.tree.leaves(edits)[0]))(before)
    if metric.of == "last" and not (at_logits and whole):
        return jax.vmap(value)(hidden, at_logits)
    return lax.map(lambda its: value(*its), (hidden, at_logits))


def _value(
    config: TransformerConfig,
    metric: Metric,
    params: Any,
    hidden: jax.Array,
    edits: EditCollection,
    whole: bool,
    tokens: jax.Array,
    positions: jax.Array | None,
    data: Any,
) -> jax.Array:
    """The metric of one unit, from what the final norm gave [B, T, W], and edits of the logits."""
    head, (B, T) = head_of(config, params), tokens.shape

    def logits_of(x: jax.Array, positions: jax.Array | None) -> jax.Array:
        coordinates = Coordinates() if positions is None else Coordinates({"T": positions})
        with product_precision(config.dtype):
            return Tap(edits, CapturePlan(), coordinates=coordinates)("logits", head_logits(config, x, head))

    if metric.of == "last" and not (edits and whole):
        places = jnp.broadcast_to(jnp.arange(T), (B, T)) if positions is None else positions
        return metric.last(logits_of(last_of(hidden, positions), last_of(places, positions))[:, 0], data)
    if metric.of == "text" and not edits:
        nll = sequence_nll(config, hidden, head, tokens, positions)
    else:
        logits = logits_of(hidden, positions)
        if metric.of == "last":
            return metric.last(last_of(logits, positions)[:, 0], data)
        if metric.of == "output":
            return metric.output(logits, hidden, data)
        nll = logits_nll(logits, tokens, positions)
    return metric.text(nll, jnp.asarray(B * (T - 1)) if positions is None else jnp.sum(positions > 0))


@functools.partial(jax.jit, static_argnames=("config", "metric"))
def _value_of(
    config: TransformerConfig, metric: Metric, params: Any, hidden: Any, tokens: Any, positions: Any, data: Any
) -> jax.Array:
    return _value(config, metric, params, hidden, {}, False, tokens, positions, data)


@functools.partial(jax.jit, static_argnames="config")
def _last_logits(config: TransformerConfig, params: Any, hidden: Any, positions: Any) -> jax.Array:
    with product_precision(config.dtype):
        return head_logits(config, last_of(hidden, positions), head_of(config, params))[:, 0]
