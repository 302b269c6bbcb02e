"""`ActivationStore`: reads what `collect_activations` wrote. n rows of a shard, b rows of a batch, M marked layers."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from massive_jax.arguments import seed_number, several, shown, whole_number, yes_or_no
from massive_jax.collect.places import KeptSite
from massive_jax.collect.shards import AGAIN, DROPPED, FORMAT, INDEX, UNFINISHED, map_shard, shard_of
from massive_jax.files import Path, existing, listed, read_json

WHERE = ("all", "normal", "massive", "sink")
"""Which rows: all; those that are neither massive nor sinks; massive ones; sinks. In any of the marked layers."""
COLUMNS = ("token", "position", "window", "massive", "sink")
_OPEN = 64  # shards that are read side by side


class ActivationStore:
    r"""Reads a directory of activations, a row a token: memory-mapped safetensors, and no pickle.

    Row r of the store is the token `token` at `position` of window `window`, wherever it was shuffled to. Without BOS
    that is token `window * context + position` of the text.

    Attributes:
      directory: where it is.
      sites: what it keeps, by name ("block_out.12").
      dtype: of the rows.
      layers: M of them, 1-based, whose massive and sink tokens are marked.
      index: what `index.json` says, the counts and the quantiles of the norms among it.

    Examples:
      >>> import tempfile
      >>> from massive_jax.collect import ActivationStore, collect_activations
      >>> from massive_jax.data import cut_windows, load_text
      >>> windows, directory = cut_windows(model, load_text("python"), windows=4, context=32), tempfile.mkdtemp()
      >>> _ = collect_activations(model, windows, directory, mj.Capture("block_out", layers=12))
      >>> store = ActivationStore(directory)
      >>> len(store), store.shapes, store.count("massive")
      (128, {'block_out.12': (576,)}, 4)
      >>> batch = next(store.batches(16, seed=0, where="normal"))
      >>> batch["block_out.12"].shape, bool(batch["massive"].any())
      ((16, 576), False)
    """

    def __init__(self, directory: str | os.PathLike[str]):
        """Opens the store; ValueError where there is none, or where a shard is missing or has another size."""
        self.directory = existing(directory, "Activation store")
        self.index = _read_index(self.directory)
        try:
            sites = [KeptSite(s["site"], s["layer"], tuple(s["shape"])) for s in self.index["sites"]]
            self._shards = tuple(shard_of(stored) for stored in self.index["shards"])
            self.layers = tuple(int(layer) for layer in self.index["layers"])
            self.dtype = np.dtype(self.index["about"]["dtype"])
            self._counts = {where: int(self.index["counts"][where]) for where in self._wheres()}
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{self.directory / INDEX} is damaged, or of another version; {AGAIN}") from None
        self.sites: Mapping[str, KeptSite] = {site.name: site for site in sites}
        if problems := [problem for shard in self._shards if (problem := shard.problem(self.directory))]:
            raise ValueError(f"{listed(problems, 5)}: {AGAIN}")
        self._starts = np.cumsum([0, *(shard.rows for shard in self._shards)])
        self._map = functools.lru_cache(maxsize=_OPEN)(self._mapped)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        names = ", ".join(f"{name} {list(site.shape)}" for name, site in self.sites.items())
        return f"ActivationStore({str(self.directory)!r}: {len(self):,} rows of {names}, {self.dtype})"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Gives the shape of a row of each site, by name."""
        return {name: site.shape for name, site in self.sites.items()}

    @property
    def num_shards(self) -> int:
        """Counts the shards."""
        return len(self._shards)

    def count(self, where: str = "all") -> int:
        """Counts the rows that are `where` (see `WHERE`)."""
        return self._counts[self._checked(where)]

    def shard(self, number: int) -> dict[str, np.ndarray]:
        """Gives the rows of a shard, views of the file: name -> [n, …].

        Beside the sites "token", "position", "window" int32 [n]; "massive" and "sink" bool [n, M], by `layers`; and
        "norm.NAME" float32 [n], of each site's rows before they were rounded.
        """
        return dict(self._map(whole_number("number", number, 0, self.num_shards - 1)))

    def mask(self, where: str) -> np.ndarray:
        """Tells which rows are `where` (see `WHERE`), in any of the marked layers: bool [len(store)]."""
        self._checked(where)
        return np.concatenate([rows_where(self._map(i), where) for i in range(self.num_shards)] or [np.zeros(0, bool)])

    def batches(
        self,
        batch_size: int,
        seed: int | None = None,
        where: str = "normal",
        sites: str | Sequence[str] | None = None,
        drop_last: bool = False,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Gives all rows that are `where`, each once, `batch_size` at a time.

        Args:
          batch_size: b.
          seed: of a random order: of all rows, or in a store of more than 64 shards of those of 64 at a time, which are
            drawn too. None for the order in which they are stored.
          where: which rows: "normal", "all", "massive" or "sink" (see `WHERE`).
          sites: names of the sites wanted; None for all.
          drop_last: leaves out a last batch that is smaller.

        Returns:
          An iterator of name -> [b, …]: the sites, and "token", "position", "window", "massive", "sink" (see `shard`).

        Raises:
          ValueError: a number that is none, a name that is not there; no rows to give.
        """
        size, drop_last = whole_number("batch_size", batch_size, 1), yes_or_no("drop_last", drop_last)
        seed = None if seed is None else seed_number(seed)
        wanted = (sites,) if isinstance(sites, str) else tuple(self.sites) if sites is None else several(sites)
        if not wanted or (unknown := [name for name in wanted if name not in list(self.sites)]):
            what = shown(unknown[0]) if wanted else shown(sites)
            raise ValueError(f"{self.directory} has no site {what}; it has {', '.join(self.sites)}.")
        if not self.count(where):
            raise ValueError(f"{self.directory} has no rows that are {where}; it has {self._counts}.")
        return self._batches(size, seed, where, wanted, drop_last)

    def check(self) -> None:
        """Reads every shard, and compares its checksum; ValueError that names those that are damaged."""
        if problems := [problem for shard in self._shards if (problem := shard.problem(self.directory, whole=True))]:
            raise ValueError(f"{listed(problems, 5)}: {AGAIN}")

    def _batches(
        self, size: int, seed: int | None, where: str, sites: Sequence[str], drop_last: bool
    ) -> Iterator[dict[str, np.ndarray]]:
        names = (*sites, *(name for name in COLUMNS if name in self._map(0)))
        left = np.zeros(0, np.int64)
        for rows in self._orders(seed, where):
            order = np.concatenate([left, rows])
            whole = len(order) - len(order) % size
            for start in range(0, whole, size):
                yield self._take(order[start : start + size], names)
            left = order[whole:]
        if len(left) and not drop_last:
            yield self._take(left, names)

    def _orders(self, seed: int | None, where: str) -> Iterator[np.ndarray]:
        """The numbers of the rows that are `where`, as they come: those of some shards at a time."""
        random, numbers = None if seed is None else np.random.default_rng(seed), np.arange(self.num_shards)
        if random is not None:
            random.shuffle(numbers)
        for first in range(0, len(numbers), _OPEN):
            some = numbers[first : first + _OPEN]
            masks = {int(i): rows_where(self._map(int(i)), where) for i in some}
            rows = np.concatenate([self._starts[i] + np.flatnonzero(mask) for i, mask in masks.items()])
            if random is not None:
                random.shuffle(rows)
            yield rows

    def _take(self, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Rows of the store, by their numbers."""
        which = np.searchsorted(self._starts, rows, side="right") - 1
        found: dict[str, np.ndarray] = {}
        for number in np.unique(which):
            arrays, here = self._map(int(number)), np.flatnonzero(which == number)
            inside = rows[here] - self._starts[number]
            for name in names:
                if name not in found:
                    found[name] = np.empty((len(rows), *arrays[name].shape[1:]), arrays[name].dtype)
                found[name][here] = arrays[name][inside]
        return found

    def _mapped(self, number: int) -> dict[str, np.ndarray]:
        shard = self._shards[number]
        arrays = map_shard(self.directory / shard.file)
        expected = {name: (shard.rows, *site.shape) for name, site in self.sites.items()}
        if any(name not in arrays or arrays[name].shape != shape for name, shape in expected.items()):
            raise ValueError(f"{self.directory / shard.file} does not hold what {INDEX} says; {AGAIN}")
        return {name: array for name, array in arrays.items() if not name.startswith(DROPPED)}

    def _wheres(self) -> tuple[str, ...]:
        return WHERE if self.index["about"]["sinks"] is not None else WHERE[:-1]

    def _checked(self, where: str) -> str:
        if not isinstance(where, str) or where not in self._counts:
            why = " (it was collected without sinks)" if where == "sink" else ""
            raise ValueError(f"where is {shown(where)}; this store tells {', '.join(self._counts)}{why}.")
        return where


def rows_where(arrays: Mapping[str, np.ndarray], where: str) -> np.ndarray:
    """Tells which rows of a shard are `where` (see `WHERE`): bool [n]."""
    if where == "all":
        return np.ones(len(arrays["token"]), bool)
    if where != "normal":
        return np.any(arrays[where], axis=1)
    odd = [np.any(arrays[name], axis=1) for name in ("massive", "sink") if name in arrays]
    return ~np.logical_or.reduce(odd)


def _read_index(directory: Path) -> dict[str, Any]:
    if not (directory / INDEX).is_file():
        if (directory / UNFINISHED).is_file():
            raise ValueError(
                f"the activations in {directory} are not all collected: collect them again with the same arguments, "
                "and the rest is added."
            )
        raise ValueError(f"{directory} is no activation store: it has no {INDEX}. See massive_jax.collect.")
    index = read_json(directory / INDEX)
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"{directory / INDEX} is none of an activation store, or of another version of one.")
    return index
