"""What the report's page explores: inputs looked at closely, and a text under edits; and what all of it was made of."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

import massive_jax as mj
from experiments import common
from massive_jax.analysis import Thresholds
from massive_jax.checksums import model_checksum
from massive_jax.evaluate import Explored, Outcome, Place, explore, hidden_state, most_tokens, outcomes
from massive_jax.forward import left_pad
from massive_jax.probe import Edit
from massive_jax.report import Section, Table, label
from massive_jax.report.results import (
    ControlPlace,
    ExploredAttention,
    ExploredInput,
    ExploredLayer,
    ExploredMap,
    Intervention,
    NextToken,
    TextSource,
    WhatIf,
    WhatIfEdit,
    WhatIfOutcome,
)

_NUMBERS = 200_000  # of an input's attention maps; more tokens share a cell
_CELLS = 64  # of the map of tokens and dims, each way
_EDITS = 64
_WHAT_IF_TOKENS = 64
_OPERATIONS = {"set to zero": 0.0, "halved": 0.5, "doubled": 2.0, "sign changed": -1.0}  # all are scales


def inputs_of(
    model: mj.TextModel, tokens: np.ndarray, bos: bool, layer: int, thresholds: Thresholds
) -> tuple[ExploredInput, ...]:
    """A text, int [1, T], as it is and, where the tokenizer has one, with BOS the other way round.

    Args:
      model: the model.
      tokens: of the text.
      bos: whether BOS is in front of it.
      layer: which is drawn over tokens and dims.
      thresholds: the definition of massive.
    """
    rows = [tokens[0][: most_tokens(model) - 1]]
    start = None if model.tokenizer is None else model.tokenizer.bos_id
    if start is not None and (len(rows[0]) > 1 or not bos):
        rows.append(rows[0][1:] if bos else np.concatenate([[start], rows[0]]))
    padded, mask = left_pad(rows)
    found = explore(model, padded, mask if len(rows) > 1 else None, thresholds=thresholds)
    names = ("BOS in front", "no BOS") if bos else ("no BOS", "BOS in front")
    return tuple(_input(model, ids, one, name, layer) for ids, one, name in zip(rows, found, names, strict=False))


def _input(model: mj.Model, ids: np.ndarray, found: Explored, name: str, layer: int) -> ExploredInput:
    texts = tuple(model.token_texts(ids))
    bias = {} if found.bias is None else vars(found.bias)
    return ExploredInput(
        model=model.title,
        input=name,
        tokens=texts,
        labels=tuple(label(text, font=False) for text in texts),
        massive=found.massive,
        layers=tuple(
            ExploredLayer(
                layer=i + 1,
                median=_rounded(found.median[i]),
                values=tuple(map(_rounded, found.values[i])),
                dims=tuple(found.dims[i].tolist()),
                **{of: _rounded(values[i]) for of, values in bias.items()},
            )
            for i in range(len(found.values))
        ),
        attention=_attention(found.probs[..., : len(texts)], model.config.causal),
        map=_map(np.abs(found.states[layer - 1]), layer),
    )


def _rounded(value: float) -> float:
    """Six digits: what is drawn, and a page holds, is as exact."""
    return float(f"{value:.6g}")


def _attention(probs: np.ndarray, causal: bool) -> ExploredAttention:
    """[L, H, T, T], in cells where these are too many."""
    L, H, T, _ = probs.shape
    cell = next(n for n in range(1, T + 1) if L * H * (T / n) * (T / n + 1) / (1 + causal) <= _NUMBERS or n == T)
    starts = np.arange(0, T, cell)
    summed = np.add.reduceat(np.add.reduceat(probs, starts, axis=3), starts, axis=2)
    queries = np.diff(np.append(starts, T))
    shares = np.rint(1000 * summed / queries[:, None]).astype(int)
    rows = [[[_row(row, i, causal) for i, row in enumerate(head)] for head in layer] for layer in shares]
    return ExploredAttention(cell=cell, causal=causal, maps=tuple(tuple(map(tuple, layer)) for layer in rows))


def _row(row: np.ndarray, query: int, causal: bool) -> tuple[int, ...]:
    return tuple(row[: query + 1 if causal else None].tolist())


def _map(sizes: np.ndarray, layer: int) -> ExploredMap:
    """Magnitudes [T, D]: the largest of each cell."""
    T, D = sizes.shape
    cell = -(-T // _CELLS)
    starts, dims = np.arange(0, T, cell), np.unique(np.linspace(0, D, _CELLS, endpoint=False).astype(int))
    rows = np.maximum.reduceat(np.maximum.reduceat(sizes, dims, axis=1), starts, axis=0)
    return ExploredMap(
        layer=layer,
        cell=cell,
        dims=tuple(dims.tolist()),
        rows=tuple(tuple(float(f"{size:.4g}") for size in row) for row in rows),
    )


def what_if(model: mj.TextModel, tokens: np.ndarray, changed: Intervention) -> WhatIf:
    """Up to 64 edits of the first of some windows: some layers × places × operations.

    Args:
      model: the model.
      tokens: of the windows, int [W, T].
      changed: of the same text: its places are changed, and a control; where it has none, the largest of that window.
    """
    source = changed.source
    assert isinstance(source, TextSource)
    tokens = tokens[:1, :_WHAT_IF_TOKENS]
    at = changed.found_at or int(changed.layer)
    named = _places(model, tokens, changed, at)
    operations = list(_OPERATIONS)[: 2 if len(named) > 2 else 4]
    layers = _layers(model.config.num_layers, at, _EDITS // (len(named) * len(operations)))
    cells = [(layer, p, o) for layer in layers for p in range(len(named)) for o in range(len(operations))]
    most = max(map(len, named.values()))
    groups = list(named.values())
    # As many edits in each, so that one program runs all: the last is made again, times 1.
    edits = [_edits(groups[0], most, at, 1.0)]
    edits += [_edits(groups[p], most, layer, _OPERATIONS[operations[o]]) for layer, p, o in cells]
    with common.progress(tokens.size * len(edits), "what if") as progress:
        unedited, *found = outcomes(model, tokens, edits, progress=progress)
    texts = model.token_texts(tokens[0])
    return WhatIf(
        model=model.title,
        text=source.text or "",
        bos=source.bos,
        tokens=tokens.shape[1],
        ending="".join(label(one, font=False) for one in texts[-8:]),
        places=tuple(named),
        operations=tuple(operations),
        unedited=WhatIfOutcome(**_outcome(model, unedited)),
        edits=tuple(
            WhatIfEdit(layer=layer, place=p, operation=o, **_outcome(model, one))
            for (layer, p, o), one in zip(cells, found, strict=True)
        ),
    )


def _places(model: mj.TextModel, tokens: np.ndarray, changed: Intervention, at: int) -> dict[str, list[Place]]:
    """Words -> places: the two largest, all together, and one of median size."""

    def there(found: Sequence[ControlPlace]) -> list[Place]:
        delimiter = int(model.first_delimiter(tokens)[0]) >= 0
        places = [Place(one.position, one.dim) for one in found]
        return [p for p in places if (delimiter if isinstance(p.position, str) else p.position < tokens.shape[1])]

    ordered = sorted(changed.sites, key=lambda site: -abs(site.value_mean))
    sites = there(ordered)
    kind = "massive"
    if not sites:
        state, kind = np.abs(hidden_state(model, tokens, at)[0]), "largest"
        dims = state.argmax(axis=1)
        sites = [Place(int(p), int(dims[p])) for p in np.argsort(-state.max(axis=1))[:3]]
    named = {f"{kind}: {_in_words(site)}": [site] for site in sites[:2]}
    if len(sites) > 1:
        named[f"{kind}: all {len(sites)} together"] = sites
    for control in there(changed.controls)[:1]:
        named[f"control of median size: {_in_words(control)}"] = [control]
    return named


def _in_words(place: Place) -> str:
    return f"position {str(place.position).replace('_', ' ')}, dim {place.dim}"


def _layers(count: int, at: int, most: int) -> list[int]:
    """Some of the layers, evenly, `at` among them."""
    if count <= most:
        return list(range(1, count + 1))
    found = np.unique(np.linspace(1, count, most).round().astype(int))
    found[np.abs(found - at).argmin()] = at
    return sorted({*found.tolist()})


def _edits(places: Sequence[Place], count: int, layer: int, scale: float) -> list[Edit]:
    values = [(place, scale) for place in places] + [(places[-1], 1.0)] * (count - len(places))
    return [
        Edit("block_out", layer=layer, position=place.position, dim=place.dim, op="scale", value=value)
        for place, value in values
    ]


def _outcome(model: mj.TextModel, found: Outcome) -> dict[str, Any]:
    texts = model.token_texts(np.array(found.next_ids))
    return {
        "perplexity": _rounded(found.perplexity),
        "next": tuple(
            NextToken(token=label(text, font=False), probability=_rounded(p))
            for text, p in zip(texts, found.next_probabilities, strict=True)
        ),
    }


def about(model: mj.Model) -> str:
    """Which model it is: its name, numbers, origin and checksum."""
    words = [model.name, f"computed in {model.config.dtype}"]
    if (weights := common.stored_as(model)) is not None:
        words.append(f"weights stored as {weights}")
    if model.origin is not None:
        words.append(f"from {model.origin.place}")
    return "; ".join([*words, f"xxh3-128 of options and weights {model_checksum(model.config, model.params)}"])


def provenance(models: Sequence[str], seed: int) -> Mapping[str, str]:
    """Of what and by what a result was made, in words; `models` as `about` says them."""
    found = {"Model" if len(models) == 1 else f"Model {i}": words for i, words in enumerate(models, 1)}
    versions = {"massive_jax": mj.__version__, "jax": jax.__version__, "numpy": np.__version__}
    # Where it was written is nothing to whom the page is shown.
    given = [flag for flag in sorted(flags.FLAGS) if flags.FLAGS[flag].present and flag != "workdir"]
    seconds = os.environ.get("SOURCE_DATE_EPOCH")
    date = datetime.datetime.now(datetime.UTC)
    if seconds is not None and seconds.isdecimal():
        date = datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
    return found | {
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items())
        + f", Python {platform.python_version()}, on {jax.default_backend()}",
        "Command": " ".join(
            ["python", "-m", f"experiments.{os.path.basename(sys.argv[0]).removesuffix('.py')}"]
            + [flags.FLAGS[name].serialize() for name in given]
        ),
        "Seed": str(seed),
        "Date": f"{date:%Y-%m-%d %H:%M} UTC",
    }


def origin(found: Mapping[str, str]) -> Section:
    """The report's section of `provenance`."""
    return Section(
        "Provenance", "What this report was made of, and how.", table=Table(("What", "Which"), [*found.items()])
    )
