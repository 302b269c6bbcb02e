"""The census: what every layer of a model does over many windows of a text, or over images, in constant memory.

Which tokens have large activations, at which places, how large and how constant; where they are born; what attention
does with them (paper, sections 2 to 4, as statistics). Definitions: `massive_jax.report.results.ModelCensus`.
Axis letters: see `massive_jax.probe.sites`; W windows, R rows followed, M random tokens, k values kept of each token.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from massive_jax.analysis import (
    CLASSES,
    DEFINITION,
    FIRST_DELIMITER,
    Places,
    Sums,
    Thresholds,
    class_of,
    matrix_entropy,
)
from massive_jax.arguments import seed_number, shown
from massive_jax.checksums import model_checksum
from massive_jax.data.windows import Windows
from massive_jax.evaluate.agreement import Images, check_data
from massive_jax.evaluate.batches import Progress, batches, input_length, not_finite
from massive_jax.files import Path, as_path, atomic_write, check_same
from massive_jax.model import ImageModel, Model, TextModel
from massive_jax.parallel import bytes_from_first, fetch, is_first, top_k
from massive_jax.probe import Measure
from massive_jax.probe.order_statistics import median_magnitude

_KEPT = 3  # largest of each token
_ROWS = ("start", FIRST_DELIMITER)  # the tokens whose every dim is followed
_DRAWS = 20  # random tokens of a window, for what the sink is held against
_LARGE = 50.0  # times the median: of which activations of a token are counted at all
_SAVE_EVERY = 2.0  # seconds
_LEAST = 4  # tokens
# Eigenvalues cost the cube of their number: of the larger ones only some windows' are computed, of the largest none.
_ALL_ENTROPIES, _SOME_ENTROPIES, _ENTROPY_WINDOWS = 128, 1024, 8
_SITES = ("value", "attn_probs", "attn_out", "mlp_out", "block_out")


@functools.cache
def _of_block(causal: bool) -> Callable[[Mapping[str, Any], Any], dict[str, jax.Array]]:
    """The function of a block that the census is made of; one object, so that it is traced once."""

    def of_block(tensors: Mapping[str, Any], data: Any) -> dict[str, jax.Array]:
        """Reduces a block's tensors to numbers a window; `data` are (rows [B, R], random tokens [B, M])."""
        rows, draws = data
        x = tensors["block_out"].astype(jnp.float32)
        T, D = x.shape[1:]
        _, dims = top_k(jnp.abs(x), _KEPT, "BTD")
        found = {
            "median": median_magnitude(x),
            "top_values": jnp.take_along_axis(x, dims, axis=2),
            "top_dims": dims.astype(jnp.int32),
        }
        if min(T, D) <= _SOME_ENTROPIES:
            narrow = x if T <= D else x.swapaxes(1, 2)
            found["gram"] = jnp.einsum("Bid,Bjd->Bij", narrow, narrow, precision=lax.Precision.HIGHEST)
        for name in ("block_out", "attn_out", "mlp_out"):
            at = jnp.maximum(rows, 0)[..., None]
            found[f"row_{name}"] = jnp.take_along_axis(tensors[name].astype(jnp.float32), at, axis=1)
        return found | _of_attention(tensors["attn_probs"], tensors["value"].astype(jnp.float32), draws, causal)

    return of_block


def _of_attention(probs: jax.Array, value: jax.Array, draws: jax.Array, causal: bool) -> dict[str, jax.Array]:
    """What attention does with token 0, and with random tokens in its place, as `ModelCensusLayer` defines it."""
    B, H, T, _ = probs.shape
    K = value.shape[2]
    tokens = jnp.concatenate([jnp.zeros((B, 1), draws.dtype), draws], axis=1)  # [B, 1 + M]
    norms = jnp.linalg.norm(value, axis=-1)  # [B, T, K]
    others = (jnp.sum(norms, axis=1, keepdims=True) - norms) / (T - 1)
    at = jnp.take_along_axis(norms, tokens[..., None], axis=1)
    ratio = jnp.mean(at, axis=-1) / jnp.mean(jnp.take_along_axis(others, tokens[..., None], axis=1), axis=-1)
    # Updates P_qi v_i of one token, heads concatenated: all along v_i in a head, so distances need its norm only.
    share = jnp.take_along_axis(probs, jnp.broadcast_to(tokens[:, None, None], (B, H, T, tokens.shape[1])), axis=-1)
    queries = jnp.arange(T)[:, None]
    sees = queries > tokens[:, None] if causal else queries != tokens[:, None]  # [B, T, 1 + M]
    weight = jnp.square(jnp.repeat(at, H // K, axis=2))  # [B, 1 + M, H]
    mean = jnp.mean(share, axis=2, where=sees[:, None])  # [B, H, 1 + M]
    far = jnp.sqrt(jnp.einsum("BHTM,BMH->BTM", jnp.square(share - mean[:, :, None]), weight))
    size = jnp.sqrt(jnp.einsum("BHM,BMH->BM", jnp.square(mean), weight))
    spread = jnp.mean(far, axis=1, where=sees) / size
    rest = probs[..., 1:T].reshape(B, K, H // K, T, T - 1)[:, :, :, 1:]
    updates = jnp.einsum("BKGTS,BSKN->BTKGN", rest, value[:, 1:], precision=lax.Precision.HIGHEST)
    centre = jnp.mean(updates, axis=1, keepdims=True)
    rest_far = jnp.sqrt(jnp.sum(jnp.square(updates - centre), axis=(2, 3, 4)))
    rest_size = jnp.sqrt(jnp.sum(jnp.square(centre), axis=(2, 3, 4)))
    return {
        "sink_mass": jnp.mean(probs[..., 0], axis=-1),
        "bias_spread": spread[:, 0],
        "random_spread": spread[:, 1:],
        "rest_spread": jnp.mean(rest_far / rest_size, axis=1),
        "value_norm_ratio": ratio[:, 0],
        "random_ratio": ratio[:, 1:],
    }


def census_measure(causal: bool, batch: int, data: tuple[Any, Any] | None = None) -> Measure:
    """Gives what a census asks of a forward pass over `batch` windows.

    Args:
      causal: whether a token sees those before it only.
      batch: B.
      data: rows that are followed, int32 [B, R], and random tokens, int32 [B, M]; None for zeros.
    """
    zeros = (np.zeros((batch, len(_ROWS)), np.int32), np.zeros((batch, _DRAWS), np.int32))
    return Measure("census", _SITES, _of_block(causal), data or zeros)


@dataclasses.dataclass
class Counted:
    """Holds what a census has counted so far.

    Attributes:
      windows: how many.
      sums: name -> sums over windows: "median", "entropy", "bias_spread", "rest_spread", "value_norm_ratio",
        "sink_mass_of_layer" [L]; "sink_mass" [L, H]; "random_spread", "random_ratio" [L, M]; "row_block_out",
        "row_attn_out", "row_mlp_out" [L, R, D], of the first token and the first delimiter.
      places: large activations by layer, kind of token, token and dim.
      tokens: how often each token of each kind was there: layer 0, dim 0.
      largest: float64 [L, D, 2]: of how many tokens each dim is the largest, and the sum of its magnitudes there.
    """

    windows: int
    sums: dict[str, Sums]
    places: Places
    tokens: Places
    largest: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """Gives all of it as named arrays."""
        parts = {f"sums/{name}/{f.name}": getattr(s, f.name) for name, s in self.sums.items() for f in _FIELDS}
        return parts | {
            "windows": np.int64(self.windows),
            "largest": self.largest,
            "places/keys": self.places.keys,
            "places/sums": self.places.sums,
            "tokens/keys": self.tokens.keys,
            "tokens/sums": self.tokens.sums,
        }

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], sizes: tuple[int, int, int, int]) -> Counted:
        """Makes it of what `arrays` gave."""
        names = {name.split("/")[1] for name in arrays if name.startswith("sums/")}
        return cls(
            int(arrays["windows"]),
            {name: Sums(*(arrays[f"sums/{name}/{field.name}"] for field in _FIELDS)) for name in sorted(names)},
            Places(arrays["places/keys"], arrays["places/sums"], sizes),
            Places(arrays["tokens/keys"], arrays["tokens/sums"], sizes),
            arrays["largest"],
        )


_FIELDS = dataclasses.fields(Sums)
_DAMAGE = (zipfile.BadZipFile, zlib.error)  # of an archive


class Kinds:
    """Says what kind of token each is, and which number stands for it among `CLASSES`' tokens."""

    def __init__(self, model: Model):
        """Knows the tokens of `model`, as they come."""
        self._model = model
        self._known: dict[int, int] = {}

    def __call__(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gives kinds [B, T], tokens [B, T] (an image's are their places) and followed rows [B, R], -1 for none."""
        B, T = len(inputs), input_length(self._model, inputs)
        rows = np.full((B, len(_ROWS)), -1, np.int32)
        rows[:, 0] = 0
        if isinstance(self._model, ImageModel):
            config = self._model.config
            kinds = np.full(T, CLASSES.index("patch"))
            kinds[: config.prefix] = CLASSES.index("register")
            kinds[: config.class_token] = CLASSES.index("class_token")
            return np.tile(kinds, (B, 1)), np.tile(np.arange(T), (B, 1)), rows
        for token in np.unique(inputs):
            if int(token) not in self._known:
                known = self._model.tokenizer is not None
                self._known[int(token)] = CLASSES.index(
                    class_of(self._model.token_texts([token])[0]) if known else "other"
                )
        kinds = np.vectorize(self._known.__getitem__, otypes=[int])(inputs)
        if self._model.tokenizer:
            rows[:, 1] = self._model.first_delimiter(inputs)
            has = np.flatnonzero(rows[:, 1] >= 0)
            kinds[has, rows[has, 1]] = CLASSES.index(FIRST_DELIMITER)
        kinds[:, 0] = CLASSES.index("start")
        tokens = inputs.astype(np.int64)
        tokens[:, 0] = 0  # one place, whatever token is there
        return kinds, tokens, rows


def take_census(
    model: Model,
    data: Windows | Images,
    *,
    thresholds: Thresholds = DEFINITION,
    seed: int = 0,
    progress: Progress | None = None,
    state: str | os.PathLike[str] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Counted:
    r"""Counts over all windows or images what `massive_jax.report.results.ModelCensus` is made of.

    Args:
      model: the model.
      data: windows of one length, of at least 4 tokens, or images.
      thresholds: what is massive; an activation is counted where it is above that magnitude, and above the ratio to the
        median magnitude or 50 times, whichever is less.
      seed: of the random tokens that the sink is held against.
      progress: called with the number of tokens after every batch.
      state: a file that keeps what is counted, so that a census that was killed goes on from it, with the same numbers;
        the file is removed at the end. None keeps nothing.
      about: what the census is of, in words that JSON can hold: one that was killed goes on with the same only.

    Raises:
      ValueError: data that the model cannot take, padded windows, windows of fewer than 4 tokens; an activation that
        is not finite; a state of another census, the difference named.

    Examples:
      >>> from massive_jax.data import cut_windows, load_text
      >>> from massive_jax.evaluate import take_census
      >>> counted = take_census(model, cut_windows(model, load_text("python"), windows=2, context=32))
      >>> counted.sums["sink_mass"].mean.shape  # layers, heads
      (30, 9)
    """
    check_data(model, data)
    if not isinstance(thresholds, Thresholds):
        raise ValueError(f"thresholds is {shown(thresholds)}; give Thresholds(magnitude, ratio).")
    if isinstance(data, Windows) and data.mask is not None:
        raise ValueError("a census is of windows of one length; cut them with cut_windows.")
    inputs, seed = data.inputs, seed_number(seed)
    config, T = model.config, input_length(model, inputs)
    if T < _LEAST:
        raise ValueError(f"windows of {T} tokens are too short for a census: give at least {_LEAST}.")
    tokens = model.config.vocab_size if isinstance(model, TextModel) else T
    sizes = (config.num_layers, len(CLASSES), tokens, config.hidden_size)
    about = {} if state is None else _about(model, data, thresholds, seed, about)
    path = None if state is None else as_path(state)
    counted = None if path is None else _restore(path, about, sizes)
    kinds, saved = Kinds(model), time.monotonic()
    size = None
    waiting: tuple[Any, ...] | None = None

    def done(found: Any, batch: np.ndarray, kind: np.ndarray, token: np.ndarray, rows: np.ndarray) -> None:
        nonlocal counted, saved
        host = jax.tree.map(lambda a: a[:, : len(batch)], fetch(found))
        counted = _add(counted, host, kind, token, rows, sizes, thresholds, model)
        if path is not None and time.monotonic() > saved + _SAVE_EVERY:
            _save(path, counted, about)
            saved = time.monotonic()

    for rows_of, batch in batches(inputs, progress, T):
        size = size or len(batch)
        if counted is not None and rows_of.stop <= counted.windows:
            continue
        kind, token, rows = kinds(batch)
        # The random tokens of a window are its own, whatever batch it comes in.
        draws = np.stack([_draw(seed, window, T, config.causal) for window in range(rows_of.start, rows_of.stop)])
        full, rows_of_all, draws = (np.resize(a, (size, *a.shape[1:])) for a in (batch, rows, draws))
        out = model(full, capture=census_measure(config.causal, size, (rows_of_all, draws)), logits=False)
        if waiting is not None:  # while the device works on this batch
            done(*waiting)
        waiting = (out.intermediates["census"], batch, kind, token, rows)
    if waiting is not None:
        done(*waiting)
    assert counted is not None
    if path is not None and is_first():
        path.unlink(missing_ok=True)
    return counted


def _about(
    model: Model, data: Windows | Images, thresholds: Thresholds, seed: int, about: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What a census is of: where one differs, it is another."""
    return {
        **(about or {}),
        "model": model.name,
        "weights": model_checksum(model.config, model.params),
        "dtype": model.config.dtype,
        "inputs": list(data.inputs.shape),
        "thresholds": dataclasses.asdict(thresholds),
        "seed": seed,
        "contents": hashlib.sha256(data.inputs.tobytes()).hexdigest(),
    }


def _draw(seed: int, window: int, T: int, causal: bool) -> np.ndarray:
    """Random tokens of a window, int32 [M]; those that at least half of the queries see."""
    return np.random.default_rng((seed, window)).integers(1, T // 2 if causal else T, _DRAWS, dtype=np.int32)


def _add(
    counted: Counted | None,
    found: dict[str, np.ndarray],
    kinds: np.ndarray,
    tokens: np.ndarray,
    rows: np.ndarray,
    sizes: tuple[int, int, int, int],
    thresholds: Thresholds,
    model: Model,
) -> Counted:
    """What was counted and a batch: `found` has leading axes [L, B]."""
    values, dims, median = found["top_values"], found["top_dims"], found["median"]
    finite = np.isfinite(values).all(axis=(1, 2, 3)) & np.isfinite(median).all(axis=1)
    if not finite.all():
        raise not_finite(model, f"block {int(np.argmin(finite)) + 1}")
    L, B = values.shape[:2]
    sums = {name: Sums.of(found[name]) for name in _SUMMED}
    sums["sink_mass_of_layer"] = Sums.of(found["sink_mass"].mean(axis=2))
    sums["entropy"] = Sums.of(_entropies(found.get("gram"), L, B, counted.windows if counted else 0))
    for name in ("row_block_out", "row_attn_out", "row_mlp_out"):
        sums[name] = Sums.of(found[name], where=(rows >= 0)[..., None])
    # In float64: where most of x is 0 so is its median, and the ratio above the largest float32.
    ratios = np.abs(values, dtype=np.float64) / np.maximum(median, np.finfo(np.float32).tiny)[..., None, None]
    large = (np.abs(values) > thresholds.magnitude) & (ratios > min(thresholds.ratio, _LARGE))
    layer, window, position, rank = np.nonzero(large)
    at = (layer, kinds[window, position], tokens[window, position], dims[layer, window, position, rank])
    nothing = Places.none(sizes)
    places = (counted.places if counted else nothing).add(at, values[large], ratios[large])
    zeros = np.zeros(tokens.size, int)
    seen = (zeros, kinds.ravel(), tokens.ravel(), zeros)
    there = (counted.tokens if counted else nothing).add(seen, zeros, zeros)
    largest = np.zeros((L, sizes[3], 2)) if counted is None else counted.largest.copy()
    first = dims[..., 0].reshape(L, -1)
    for of_layer, which, value in zip(largest, first, np.abs(values[..., 0]).reshape(L, -1), strict=True):
        of_layer[:, 0] += np.bincount(which, minlength=sizes[3])
        of_layer[:, 1] += np.bincount(which, weights=value, minlength=sizes[3])
    if counted is None:
        return Counted(B, sums, places, there, largest)
    return Counted(
        counted.windows + B, {name: counted.sums[name] + s for name, s in sums.items()}, places, there, largest
    )


def _entropies(gram: np.ndarray | None, L: int, B: int, before: int) -> np.ndarray:
    """The entropies of a batch's windows, [L, B], `before` which came so many; NaN where none is computed."""
    found = np.full((L, B), np.nan)
    if gram is not None:
        wanted = B if gram.shape[-1] <= _ALL_ENTROPIES else min(B, max(0, _ENTROPY_WINDOWS - before))
        if wanted:
            found[:, :wanted] = matrix_entropy(gram[:, :wanted])
    return found


_SUMMED = ("median", "sink_mass", "bias_spread", "random_spread", "rest_spread", "value_norm_ratio", "random_ratio")


def _save(path: Path, counted: Counted, about: Mapping[str, Any]) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        words = np.frombuffer(json.dumps(about).encode(), np.uint8)
        np.savez(file, allow_pickle=False, about=words, **{k.replace("/", ":"): v for k, v in counted.arrays().items()})


def _restore(path: Path, about: Mapping[str, Any], sizes: tuple[int, int, int, int]) -> Counted | None:
    """What a census that was killed had counted; None where there is nothing."""
    content = bytes_from_first(path.read_bytes() if is_first() and path.exists() else None)
    if content is None:
        return None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name.replace(":", "/"): file[name] for name in file.files}
        before = json.loads(bytes(arrays.pop("about")))
        counted = Counted.of(arrays, sizes)
    except (OSError, ValueError, KeyError, TypeError, EOFError, NotImplementedError, *_DAMAGE) as error:
        raise ValueError(f"{path} is no state of a census ({type(error).__name__}); remove it to begin anew.") from None
    began = f"the census in {path} that was cut short is"
    again = f"Give the same again, or remove {path} to begin anew."
    check_same(before, json.loads(json.dumps(about)), began, "this one", again)
    return counted
