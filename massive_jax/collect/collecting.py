"""`collect_activations`: runs a model over windows of a text and writes rows of its sites, a shard at a time.

A shard is all rows of a fixed number of windows, whichever of them are kept, and is written whole or not at all: one
that is killed goes on with the first shard that is not there, and gives the same bytes.
Axis letters: see `massive_jax.probe.sites`; W windows, n rows of a shard.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

import massive_jax as mj
from massive_jax.analysis import DEFINITION, SINK, Thresholds
from massive_jax.arguments import number, seed_number, shown, whole_number, yes_or_no
from massive_jax.checksums import model_checksum
from massive_jax.collect.masks import mask_measures, masks_of
from massive_jax.collect.places import KeptSite, captures_of, kept_sites, masked_layers, shortened
from massive_jax.collect.quantiles import QUANTILES, quantiles_of
from massive_jax.collect.shards import (
    DROPPED,
    FORMAT,
    INDEX,
    STORED_DTYPES,
    UNFINISHED,
    Shard,
    map_shard,
    shard_of,
    write_shard,
)
from massive_jax.collect.store import WHERE, ActivationStore, rows_where
from massive_jax.data.windows import Windows
from massive_jax.evaluate.batches import TOKENS_A_BATCH, Progress, not_finite
from massive_jax.evaluate.perplexity import check_windows
from massive_jax.files import Path, check_same, locked, read_json, user_path, write_json
from massive_jax.model import Model, TextModel
from massive_jax.parallel import check_shared, from_first, is_first, once, whole
from massive_jax.probe import Captures

_AHEAD = 2  # batches that wait to be written while the next is computed
_SHARD_ROWS, _SHARD_BYTES = 32_768, 256 << 20
_LEFT = ".*.tmp.*"  # what a writer that was killed leaves


def collect_activations(
    model: Model,
    windows: Windows,
    directory: str | os.PathLike[str],
    captures: Captures,
    *,
    dtype: str = "float32",
    rows: str = "all",
    shuffle: bool = False,
    seed: int = 0,
    shard_rows: int | None = None,
    sinks: bool = True,
    thresholds: Thresholds = DEFINITION,
    sink_share: float = SINK,
    about: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> ActivationStore:
    """Writes a row for every token of `windows` of each site that `captures` ask for: an `ActivationStore`.

    A token is massive at layer l where its largest magnitude in the output of block l meets the definition; it is a
    sink there where it gets more than `sink_share` of the attention of the queries after it in block l, mean over
    heads (of at least 8 such queries). What comes before the blocks has the marks of block 1, what comes after them
    those of the last block. Blocks after the last layer that is kept are not run.

    Args:
      model: a language model.
      windows: of one length.
      directory: of the store; one that is there goes on where it stopped, if it was begun with the same arguments.
      captures: `Capture(site, layers=…)`, one or several in a list, without reductions.
      dtype: of the rows, "float32", "bfloat16" or "float16".
      rows: "all", or "normal" to leave out tokens that are massive or sinks in a layer that is kept.
      shuffle: whether windows come in random order, and the rows within a shard.
      seed: of that order.
      shard_rows: rows of a shard, about: whole batches of windows. Two shards are in memory at one time. None for
        32,768, or for fewer where those would have more than 256 MiB.
      sinks: whether sinks are told. That needs attention's probabilities, which costs time.
      thresholds: what is massive.
      sink_share: what is a sink.
      about: what the text is, in words that JSON can hold, for the index.
      progress: called with the number of tokens after every batch.

    Raises:
      ValueError: data, sites or options that the model or the store cannot take; a directory that holds something
        else, or a store of other arguments, the difference named; an activation that is not finite, or too large for
        `dtype`.
    """
    plan = _Plan.of(model, windows, captures, dtype, rows, shuffle, seed, shard_rows, sinks, thresholds, sink_share)
    path, described = _path(directory), plan.about(about)
    if progress is not None and not callable(progress):
        raise ValueError(f"progress is {shown(progress)}; give a function of the number of tokens done.")
    unfinished = {"format": FORMAT, "about": described, "versions": _versions()}
    shards: list[Shard] = []  # of several processes process 0 has and writes them
    check_shared(path)
    with contextlib.ExitStack() as held:

        def begin() -> int:
            held.enter_context(locked(path))
            there = _begun(path, described)
            if there is None:
                return -1
            shards.extend(there)
            write_json(path / UNFINISHED, unfinished | {"shards": shards})  # now it is known what the files are
            return len(shards)

        def finish() -> None:
            write_json(path / INDEX, unfinished | _summary(plan, path, shards))
            (path / UNFINISHED).unlink()

        done = from_first(once(begin, f"write activations to {path}") or 0)
        if progress is not None:
            before = done * plan.windows_a_shard * plan.length
            progress(windows.tokens.size if done < 0 else min(before, windows.tokens.size))
        if done >= 0:
            for shard in _collect(plan, path, done, progress):
                shards.append(shard)
                write_json(path / UNFINISHED, unfinished | {"shards": shards})
            once(finish, f"write the index of {path}")
    return ActivationStore(path)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is collected, and in which pieces.

    Attributes:
      batch: windows that are run together.
      windows_a_shard: how many windows a shard has, a multiple of `batch`; the last may have fewer.
    """

    model: Model
    windows: Windows
    kept: tuple[KeptSite, ...]
    layers: tuple[int, ...]
    dtype: np.dtype
    rows: str
    seed: int | None
    sink_share: float | None
    thresholds: Thresholds
    batch: int
    windows_a_shard: int

    @classmethod
    def of(
        cls,
        model: Model,
        windows: Windows,
        captures: Captures,
        dtype: str,
        rows: str,
        shuffle: bool,
        seed: int,
        shard_rows: int | None,
        sinks: bool,
        thresholds: Thresholds,
        sink_share: float,
    ) -> _Plan:
        """Checks everything, before anything is compiled or written."""
        TextModel.of(model)
        check_windows(model, windows)
        if windows.mask is not None:
            raise ValueError("a store is of windows of one length; cut them with cut_windows.")
        W, T = windows.tokens.shape
        kept = kept_sites(model, captures, T)
        if dtype not in STORED_DTYPES:
            raise ValueError(f"dtype is {shown(dtype)}; a store has {', '.join(STORED_DTYPES)}.")
        if rows not in WHERE[:2]:
            raise ValueError(f"rows is {shown(rows)}; give 'all' or 'normal'.")
        if not isinstance(thresholds, Thresholds):
            raise ValueError(f"thresholds is {shown(thresholds)}; give Thresholds(magnitude, ratio).")
        shuffle, sinks = yes_or_no("shuffle", shuffle), yes_or_no("sinks", sinks)
        sink_share, seed = number("sink_share", sink_share, 0, 1), seed_number(seed)
        if shard_rows is None:
            row = sum(math.prod(site.shape) for site in kept) * np.dtype(dtype).itemsize
            shard_rows = max(1, min(_SHARD_ROWS, _SHARD_BYTES // row))
        most = max(1, min(TOKENS_A_BATCH, whole_number("shard_rows", shard_rows, 1)) // T)
        batch = math.ceil(W / math.ceil(W / most))  # as even as their number allows
        return cls(
            model,
            windows,
            kept,
            masked_layers(kept, model.config.num_layers),
            np.dtype(dtype),
            rows,
            seed if shuffle else None,
            sink_share if sinks else None,
            thresholds,
            batch,
            max(1, shard_rows // (T * batch)) * batch,
        )

    @property
    def length(self) -> int:
        """T."""
        return self.windows.tokens.shape[1]

    @property
    def order(self) -> np.ndarray:
        """The windows, as they come."""
        W = len(self.windows.tokens)
        return np.arange(W) if self.seed is None else np.random.default_rng(self.seed).permutation(W)

    def about(self, text: Mapping[str, Any] | None) -> dict[str, Any]:
        """What the store is of: where one differs, it is another."""
        tokens = self.windows.tokens
        try:
            json.dumps(text, allow_nan=False)
            text = dict(text or {})
        except (TypeError, ValueError):
            raise ValueError(f"about is {shown(text)}; give what JSON can hold, by name.") from None
        return json.loads(
            json.dumps(
                {
                    **text,
                    "model": self.model.name,
                    "weights": model_checksum(self.model.config, self.model.params),
                    "model_dtype": self.model.config.dtype,
                    "sites": [site.name for site in self.kept],
                    "dtype": self.dtype.name,
                    "windows": len(tokens),
                    "context": self.windows.context,
                    "bos": self.windows.bos,
                    "contents": hashlib.sha256(tokens.tobytes()).hexdigest(),
                    "rows": self.rows,
                    "shuffle": self.seed is not None,
                    "seed": self.seed,
                    "windows_a_shard": self.windows_a_shard,
                    "batch": self.batch,
                    "massive": dataclasses.asdict(self.thresholds),
                    "sinks": self.sink_share,
                }
            )
        )


def _path(directory: Any) -> Path:
    if not isinstance(directory, str | os.PathLike) or not str(directory) or "\0" in str(directory):
        raise ValueError(f"directory is {shown(directory)}; give the path of one.")
    return user_path(directory)


def _begun(path: Path, about: Mapping[str, Any]) -> list[Shard] | None:
    """The shards that are there already; None where all are."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; give a directory for the activations.")
    for name in (INDEX, UNFINISHED):
        if (path / name).is_file():
            before = read_json(path / name)
            if not isinstance(before, dict) or before.get("format") != FORMAT or "about" not in before:
                raise ValueError(f"{path / name} is none of an activation store; give another directory.")
            again = "Give the same again, or another directory."
            check_same(before["about"], about, f"the activations in {path} are", "these would be", again)
            if name == INDEX:
                return None
            _clear(path)
            began = f"the beginning of the activations in {path} is"
            check_same(before.get("versions"), _versions(), began, "the rest would be", again)
            return _whole(path, before.get("shards"))
    if path.is_dir() and {file.name for file in path.iterdir()} - {file.name for file in path.glob(_LEFT)}:
        raise ValueError(f"{path} holds other files and no activations; give a directory that is empty or not there.")
    _clear(path)
    return []


def _clear(path: Path) -> None:
    """Removes what a writer that was killed left."""
    for left in path.glob(_LEFT):
        left.unlink()


def _whole(path: Path, stored: Any) -> list[Shard]:
    """Of shards that were written those before the first that is not as it was."""
    found: list[Shard] = []
    for each in stored if isinstance(stored, list) else []:
        try:
            shard = shard_of(each)
        except TypeError:
            break
        if shard.problem(path, whole=True):
            break
        found.append(shard)
    return found


def _versions() -> dict[str, str]:
    return {"massive_jax": mj.__version__, "jax": jax.__version__, "numpy": np.__version__}


def _collect(plan: _Plan, path: Path, done: int, progress: Progress | None) -> Iterator[Shard]:
    """Writes the shards from number `done` on. While one batch is computed, those before it are being written."""
    model = shortened(plan.model, plan.layers[-1])
    measures = mask_measures(model.config, plan.layers, plan.length, plan.sink_share is not None)
    capture = model.compile_captures([*captures_of(plan.kept), *measures.values()])
    order, waiting = plan.order, collections.deque[Future[Shard | None]]()
    with ThreadPoolExecutor(1) as writer:
        try:
            for first in range(done * plan.windows_a_shard, len(order), plan.windows_a_shard):
                of_shard = order[first : first + plan.windows_a_shard]
                shard = _Rows(plan, first // plan.windows_a_shard)
                for start in range(0, len(of_shard), plan.batch):
                    which = of_shard[start : start + plan.batch]
                    # Full in every batch: one program, and a window's place in its batch is the same after a kill.
                    inputs = np.resize(plan.windows.tokens[which], (plan.batch, plan.length))
                    # Gathered here, not in the thread: several processes do it in one order.
                    found = whole(model(inputs, capture=capture, logits=False).intermediates)
                    last = start + plan.batch >= len(of_shard)
                    if is_first():
                        waiting.append(writer.submit(shard.take, found, measures, which, path if last else None))
                    if len(waiting) > _AHEAD and (written := waiting.popleft().result()):
                        yield written
                    if progress is not None:
                        progress(which.size * plan.length)
            while waiting:
                if written := waiting.popleft().result():
                    yield written
        except BaseException:
            writer.shutdown(wait=False, cancel_futures=True)
            raise


class _Rows:
    """The rows of a shard, as they come."""

    def __init__(self, plan: _Plan, number: int):
        self._plan, self._number = plan, number
        self._kept: list[dict[str, np.ndarray]] = []
        self._dropped: list[dict[str, np.ndarray]] = []

    def take(
        self, found: Mapping[str, Any], measures: Mapping[str, Any], which: np.ndarray, path: Path | None
    ) -> Shard | None:
        """Takes a batch of the windows `which`; writes the shard into `path` where this is its last batch."""
        plan, T = self._plan, self._plan.length
        found = jax.device_get(found)
        count = which.size * T
        share = SINK if plan.sink_share is None else plan.sink_share
        try:
            masks = masks_of(found, measures, plan.layers, plan.thresholds, share)
        except FloatingPointError as error:
            raise not_finite(plan.model, str(error)) from None
        columns = {
            "token": plan.windows.tokens[which].reshape(-1).astype(np.int32),
            "position": np.tile(np.arange(T, dtype=np.int32), which.size),
            "window": np.repeat(which.astype(np.int32), T),
            **{name: mask.reshape(-1, mask.shape[-1])[:count] for name, mask in masks.items()},
        }
        rows = self._rows(found, count)
        columns |= {f"norm.{name}": self._norms(name, array) for name, array in rows.items()}
        keep = rows_where(columns, plan.rows)
        stored = {name: self._rounded(name, array[keep]) for name, array in rows.items()}
        self._kept.append(stored | {name: array[keep] for name, array in columns.items()})
        self._dropped.append({name: array[~keep] for name, array in columns.items()})
        return None if path is None else self._write(path)

    def _rows(self, found: Mapping[str, Any], count: int) -> dict[str, np.ndarray]:
        at: dict[str, int] = {}
        rows = {}
        for site in sorted(self._plan.kept, key=lambda site: (site.site, site.layer or 0)):
            tensor = np.asarray(found[site.site])
            if site.layer is not None:
                tensor = tensor[at.setdefault(site.site, 0)]
                at[site.site] += 1
            rows[site.name] = site.rows(tensor)[:count]
        return {site.name: rows[site.name] for site in self._plan.kept}

    def _norms(self, name: str, rows: np.ndarray) -> np.ndarray:
        """The norms of rows, float32; an error where one is not finite."""
        flat = rows.reshape(len(rows), -1).astype(np.float64)
        norms = np.sqrt(np.einsum("nF,nF->n", flat, flat))
        if not np.isfinite(norms).all():
            raise not_finite(self._plan.model, f"site {name}")
        return norms.astype(np.float32)

    def _rounded(self, name: str, rows: np.ndarray) -> np.ndarray:
        dtype = self._plan.dtype
        if rows.dtype == dtype:
            return rows
        with np.errstate(over="ignore"):  # it is told below
            stored = rows.astype(dtype)
        if not (finite := np.isfinite(stored)).all():
            largest = float(np.abs(rows[~finite]).max())
            raise ValueError(
                f"{name} has a value of {largest:,.0f}, which {dtype.name} cannot hold: collect bfloat16 or float32, "
                "or rows='normal' where only massive tokens are that large."
            )
        return stored

    def _write(self, path: Path) -> Shard:
        kept, dropped = (
            {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            for parts in (self._kept, self._dropped)
        )
        n, missing = len(kept["token"]), len(dropped["token"])
        self._kept, self._dropped = [], []
        if self._plan.seed is not None:
            order = np.random.default_rng((self._plan.seed, self._number)).permutation(n)
            for name in kept:  # one at a time, so that no second shard is in memory
                kept[name] = kept[name][order]
        if missing:
            kept |= {DROPPED + name: array for name, array in dropped.items()}
        return write_shard(path / f"rows-{self._number:05d}.safetensors", kept, n, missing)


def _summary(plan: _Plan, path: Path, shards: Sequence[Shard]) -> dict[str, Any]:
    """What the index says beside what the store is of: counts, and quantiles of the norms with and without the odd."""
    wheres = WHERE if plan.sink_share is not None else WHERE[:-1]

    def parts() -> Iterator[dict[str, np.ndarray]]:
        """Shards' columns, and those of the tokens that were dropped."""
        for shard in shards:
            arrays = map_shard(path / shard.file)
            yield arrays
            if shard.dropped:
                yield {name.removeprefix(DROPPED): a for name, a in arrays.items() if name.startswith(DROPPED)}

    def norms(name: str, where: str) -> Iterator[np.ndarray]:
        for arrays in parts():
            yield arrays[f"norm.{name}"][rows_where(arrays, where)]

    counts = dict.fromkeys(wheres, 0)
    for shard in shards:
        arrays = map_shard(path / shard.file)
        for where in wheres:
            counts[where] += int(rows_where(arrays, where).sum())
    of_norms = {
        site.name: {where: quantiles_of(functools.partial(norms, site.name, where)) for where in ("all", "normal")}
        for site in plan.kept
    }
    return {
        "sites": [{"site": site.site, "layer": site.layer, "shape": site.shape} for site in plan.kept],
        "layers": plan.layers,
        "counts": counts,
        "tokens": sum(shard.rows + shard.dropped for shard in shards),
        "quantiles": QUANTILES,
        "norms": of_norms,
        "shards": shards,
    }
