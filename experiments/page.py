"""What the report's page explores: inputs looked at closely, and a text under edits; and what all of it was made of."""

from __future__ import annotations

import base64
import datetime
import io
import math
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

import massive_jax as mj
from experiments import common
from massive_jax.analysis import Thresholds, massive_tokens
from massive_jax.checksums import model_checksum
from massive_jax.evaluate import (
    Explored,
    Images,
    Place,
    explore,
    hidden_state,
    input_length,
    most_images,
    most_tokens,
    outcomes,
    run_images,
)
from massive_jax.evaluate.batches import Progress
from massive_jax.forward import left_pad
from massive_jax.probe import Edit
from massive_jax.report import Section, Table, label
from massive_jax.report.results import (
    ControlPlace,
    ExploredAttention,
    ExploredImage,
    ExploredInput,
    ExploredLayer,
    ExploredMap,
    Intervention,
    Likely,
    TextSource,
    WhatIf,
    WhatIfEdit,
    WhatIfOutcome,
)

_NUMBERS = 400_000  # of the attention maps of a model's inputs, together; more tokens share a cell
_SIDE = 64  # cells of the map of tokens and dims, each way
_IMAGES = 2
_CLASSES = 5
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
    numbers = _NUMBERS // len(rows)
    return tuple(
        _input(model, ids, one, name, layer, numbers) for ids, one, name in zip(rows, found, names, strict=False)
    )


def images_shown(model: mj.ImageModel, images: Images) -> Images:
    """The first images, as many as a page shows; ValueError where the attention maps of one do not fit in memory."""
    tokens = input_length(model, images.inputs)
    count = min(_IMAGES, most_images(model, tokens))
    if not count:
        raise ValueError(
            f"images of {tokens:,} tokens are too large to look at the attention of every layer and head: give a "
            "smaller --image_size."
        )
    return Images(images.inputs[:count], images.names[:count])


def images_of(model: mj.ImageModel, images: Images, layer: int, thresholds: Thresholds) -> tuple[ExploredInput, ...]:
    """The same of images, each with its picture; `images` as `images_shown` gives."""
    found, many = explore(model, images.inputs, thresholds=thresholds), len(images.names)
    names = [f"{i}: {name}" for i, name in enumerate(images.names, 1)] if many > 1 else images.names
    pictures = [_picture(model, image) for image in images.inputs]
    return tuple(
        _input(model, image, one, name, layer, _NUMBERS // many, picture)
        for image, one, name, picture in zip(images.inputs, found, names, pictures, strict=True)
    )


def _picture(model: mj.ImageModel, image: np.ndarray) -> ExploredImage:
    """What the model sees of an image [height, width, 3]: whole patches."""
    from PIL import Image

    (rows, columns), side = model.config.grid(*image.shape[:2]), model.config.patch_size
    written = io.BytesIO()
    pixels = model.pixels(image[None, : rows * side, : columns * side])[0]
    Image.fromarray(pixels).save(written, "JPEG", quality=90, subsampling=0)
    data = base64.b64encode(written.getvalue()).decode("ascii")
    return ExploredImage(picture=f"data:image/jpeg;base64,{data}", grid=(rows, columns))


def _input(
    model: mj.Model,
    inputs: np.ndarray,
    found: Explored,
    name: str,
    layer: int,
    numbers: int,
    image: ExploredImage | None = None,
) -> ExploredInput:
    texts = tuple(model.token_texts(inputs))
    bias = {} if found.bias is None else vars(found.bias)
    grid = None if image is None else image.grid
    return ExploredInput(
        model=model.title,
        input=name,
        tokens=texts,
        labels=_written(texts),
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
        attention=_attention(found.probs[..., : len(texts)], model.config.causal, numbers, grid),
        map=_map(np.abs(found.states[layer - 1]), layer, grid),
        image=image,
    )


def _written(texts: Sequence[str]) -> tuple[str, ...]:
    """Tokens as a page shows them."""
    return tuple(label(text, font=False) for text in texts)


def _rounded(value: float) -> float:
    """Six digits: what is drawn, and a page holds, is as exact."""
    return float(f"{value:.6g}")


def _cells(T: int, grid: tuple[int, int] | None, fits: Callable[[int], bool]) -> np.ndarray:
    """The cell that each token is in, int [T], of as few tokens as make a number of cells that `fits`.

    Tokens in a row share one; on a grid the patches of a square do, and what is before the patches has a cell each.
    """
    rows, columns = grid or (1, T)
    prefix = T - rows * columns
    down, across = np.divmod(np.arange(rows * columns), columns)
    for side in range(1, max(rows, columns) + 1):
        squares = down // side * -(-columns // side) + across // side
        cells = np.concatenate([np.arange(prefix), prefix + squares])
        if fits(cells[-1] + 1):
            break
    return cells


def _attention(probs: np.ndarray, causal: bool, numbers: int, grid: tuple[int, int] | None) -> ExploredAttention:
    """[L, H, T, T], in cells where these are more than `numbers`."""
    L, H, T, _ = probs.shape
    cells = _cells(T, grid, lambda count: L * H * count * (count + causal) // (1 + causal) <= numbers)
    member = np.equal.outer(np.arange(cells[-1] + 1), cells).astype(np.float32)  # [cells, T]
    summed = member @ (probs @ member.T)
    shares = np.rint(1000 * summed / member.sum(axis=1)[:, None]).astype(int)
    rows = [[[_row(row, i, causal) for i, row in enumerate(head)] for head in layer] for layer in shares]
    maps = tuple(tuple(map(tuple, layer)) for layer in rows)
    return ExploredAttention(cells=tuple(cells.tolist()), causal=causal, maps=maps)


def _row(row: np.ndarray, query: int, causal: bool) -> tuple[int, ...]:
    return tuple(row[: query + 1 if causal else None].tolist())


def _map(sizes: np.ndarray, layer: int, grid: tuple[int, int] | None) -> ExploredMap:
    """Magnitudes [T, D]: the largest of each cell."""
    T, D = sizes.shape
    before = 0 if grid is None else T - math.prod(grid)
    cells = _cells(T, grid, lambda count: count - before <= _SIDE)
    order, dims = np.argsort(cells, kind="stable"), np.unique(np.linspace(0, D, _SIDE, endpoint=False).astype(int))
    starts = np.searchsorted(cells[order], np.arange(cells[-1] + 1))
    rows = np.maximum.reduceat(np.maximum.reduceat(sizes[order], dims, axis=1), starts, axis=0)
    return ExploredMap(
        layer=layer,
        cells=tuple(cells.tolist()),
        dims=tuple(dims.tolist()),
        rows=tuple(tuple(float(f"{size:.4g}") for size in row) for row in rows),
    )


def what_if(model: mj.Model, inputs: np.ndarray, changed: Intervention, thresholds: Thresholds) -> WhatIf:
    """Up to 64 edits of the first of some windows, or images: some layers × places × operations.

    Args:
      model: the model.
      inputs: tokens of the windows, int [W, T], or images [B, height, width, 3].
      changed: of the same: its places are changed, and a control; where it has none, the largest of that input.
      thresholds: the definition of massive.
    """
    source, is_text = changed.source, isinstance(changed.source, TextSource)
    inputs = inputs[:1, :_WHAT_IF_TOKENS] if is_text else inputs[:1]
    T, texts = input_length(model, inputs), model.token_texts(inputs[0])
    at = changed.found_at or int(changed.layer)
    named = _places(model, inputs, changed, at, thresholds)
    operations = list(_OPERATIONS)[: 2 if len(named) > 2 else 4]
    layers = _layers(model.config.num_layers, at, _EDITS // (len(named) * len(operations)))
    cells = [(layer, p, o) for layer in layers for p in range(len(named)) for o in range(len(operations))]
    most = max(map(len, named.values()))
    groups = list(named.values())
    # As many edits in each, so that one program runs all: the last is made again, times 1.
    edits = [_edits(groups[0], most, at, 1.0)]
    edits += [_edits(groups[p], most, layer, _OPERATIONS[operations[o]]) for layer, p, o in cells]
    with common.progress(T * len(edits), "what if") as progress:
        if isinstance(model, mj.ImageModel):
            metric, (unedited, *found) = "cosine_similarity", _of_image(model, inputs, edits, progress)
        else:
            model = mj.TextModel.of(model)
            metric, (unedited, *found) = "perplexity", _of_text(model, inputs, edits, progress)
    if isinstance(source, TextSource):
        ending = "".join(_written(texts[-8:]))
        about: dict[str, Any] = {"text": source.text or "", "bos": source.bos, "ending": ending}
    else:
        about = {"image": source.images[0]}
    return WhatIf(
        model=model.title,
        metric=metric,
        **about,
        tokens=T,
        places=tuple(named),
        operations=tuple(operations),
        unedited=unedited,
        edits=tuple(
            WhatIfEdit(layer=layer, place=p, operation=o, **vars(one))
            for (layer, p, o), one in zip(cells, found, strict=True)
        ),
    )


def _of_text(
    model: mj.TextModel, tokens: np.ndarray, edits: Sequence[Sequence[Edit]], progress: Progress | None
) -> list[WhatIfOutcome]:
    """What it predicts, under each of the interventions."""
    return [
        _outcome(one.perplexity, _written(model.token_texts(np.array(one.next_ids))), one.next_probabilities)
        for one in outcomes(model, tokens, edits, progress=progress)
    ]


def _of_image(
    model: mj.ImageModel, image: np.ndarray, edits: Sequence[Sequence[Edit]], progress: Progress | None
) -> list[WhatIfOutcome]:
    """How its feature stays as under the first of the interventions, and its classes."""
    outputs = []
    for each in edits:
        outputs.append(run_images(model, [(slice(0, 1), image)], each))
        if progress is not None:
            progress(input_length(model, image))
    found = []
    for one in outputs:
        logits = np.zeros(0) if one.logits is None else one.logits[0].astype(np.float64)
        likely = np.argsort(-logits)[:_CLASSES]
        shares = np.exp(logits[likely] - np.logaddexp.reduce(logits))
        found.append(_outcome(one.cosine(outputs[0]), [f"class {i}" for i in likely], shares))
    return found


def _outcome(value: float, names: Sequence[str], probabilities: Sequence[float] | np.ndarray) -> WhatIfOutcome:
    top = zip(names, probabilities, strict=True)
    return WhatIfOutcome(
        value=_rounded(value),
        top=tuple(Likely(name=name, probability=_rounded(p)) for name, p in top),
    )


def _places(
    model: mj.Model, inputs: np.ndarray, changed: Intervention, at: int, thresholds: Thresholds
) -> dict[str, list[Place]]:
    """Words -> places: the two largest, all together, and one of median size."""
    delimiter = isinstance(model, mj.TextModel) and int(model.first_delimiter(inputs)[0]) >= 0
    T, names = input_length(model, inputs), model.token_texts(inputs[0])

    def there(found: Sequence[ControlPlace]) -> list[Place]:
        places = [Place(one.position, one.dim) for one in found]
        return [p for p in places if (delimiter if isinstance(p.position, str) else p.position < T)]

    def in_words(place: Place) -> str:
        if isinstance(model, mj.ImageModel):
            return f"{names[int(place.position)]}, dim {place.dim}"
        return f"position {str(place.position).replace('_', ' ')}, dim {place.dim}"

    ordered = sorted(changed.sites, key=lambda site: -abs(site.value_mean))
    sites, kind = there(ordered), "massive"
    if not sites:
        sites, massive = _largest(hidden_state(model, inputs, at)[0], thresholds)
        kind = "massive" if massive else "largest"
    named = {f"{kind}: {in_words(site)}": [site] for site in sites[:2]}
    if len(sites) > 1:
        named[f"{kind}: all {len(sites)} together"] = sites
    for control in there(changed.controls)[:1]:
        named[f"control of median size: {in_words(control)}"] = [control]
    return named


def _largest(state: np.ndarray, thresholds: Thresholds) -> tuple[list[Place], bool]:
    """Of the three tokens of a state [T, D] with the largest, those that are massive, and True; all, and False."""
    sizes, dims = np.abs(state).max(axis=1), np.abs(state).argmax(axis=1)
    found = np.argsort(-sizes)[:3]
    massive = massive_tokens(sizes, np.median(np.abs(state)), thresholds)
    some = bool(massive[found[0]])
    return [Place(int(p), int(dims[p])) for p in found if massive[p] or not some], some


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
