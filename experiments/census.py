"""The census of a model: which tokens have massive activations, how constant, where born, and what attention does.

  python -m experiments.census --windows=32 --context=64 --workdir=results
  python -m experiments.census --text=FILE --windows=1000 --context=512 --bos --models=A,B
  python -m experiments.census --model=dinov2_reg_large --images=FOLDER

Statistics of a model and not of a prompt (paper, sections 2 to 4, and what came after): any number of windows, in
constant memory. Writes census.json (`massive_jax.report.results.ModelCensus`) and census.png; of several --models, in
a directory each. On the default model 32 windows of 64 tokens take some 20 s; expect dim 507 of position 0 at about
23,000 from layer 12 on, a sink rate of 70 to 80 %, and an update by position 0 three times as constant as by chance.

Windows are consecutive, non-overlapping runs of --context tokens from the start of the text; --bos puts one more token
in front of each, which then is position 0. A census that is killed goes on where it was when it is started again with
the same flags, and gives the same numbers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags

import massive_jax as mj
from experiments import common
from experiments.flags import definition, images, model, models, seed, text
from massive_jax.analysis import (
    CLASSES,
    SINK,
    Places,
    Sums,
    Thresholds,
    full_size_layer,
    null_interval,
    steps,
    uniform_sink_mass,
)
from massive_jax.data import Windows, load_text
from massive_jax.evaluate import Counted, Images, input_length, take_census
from massive_jax.files import Path, make_directory, write_json
from massive_jax.report import as_json, label, plot_census
from massive_jax.report import number as in_words
from massive_jax.report.results import (
    BlockStep,
    Life,
    MassivePlace,
    ModelCensus,
    ModelCensusLayer,
    Null,
    ResidualSink,
    Spread,
)

_PLACES = flags.DEFINE_integer("most_places", 40, "Most places that are listed of a layer.", lower_bound=1)
_FIRST = 3  # dims of position 0 that are listed
_LIVES = 6  # massive dims of a token that are followed through the layers
LEAST = 4  # tokens of a window
_STATE = ".census.state.npz"

if __name__ == "__main__":
    for module in (common, model, models, text, definition, seed):
        flags.adopt_module_key_flags(module)
    for name in ("images", "num_images", "image_size"):
        flags.declare_key_flag(name)


def run(
    model: mj.Model,
    data: Windows | Images,
    workdir: Path,
    thresholds: Thresholds,
    *,
    source: str | Sequence[str],
    seed: int = 0,
    places: int = 40,
) -> ModelCensus:
    """Takes the census (or goes on with one that was killed), writes census.json and .png, and returns the result."""
    make_directory(workdir)
    about: dict[str, Any] = {"text": source if isinstance(source, str) else "images"}
    if isinstance(data, Windows):
        about |= {"bos": data.bos, "windows": len(data.tokens), "context": data.context}
    tokens = len(data.inputs) * input_length(model, data.inputs)
    with common.progress(tokens, f"census of {model.title}") as progress:
        counted = take_census(
            model,
            data,
            thresholds=thresholds,
            seed=seed,
            progress=progress,
            state=workdir / _STATE,
            about=about,
        )
    result = record(model, data, counted, thresholds, source=source, seed=seed, places=places)
    write_json(workdir / "census.json", as_json(result))
    plot_census(result, workdir / "census.png")
    return result


def record(
    model: mj.Model,
    data: Windows | Images,
    counted: Counted,
    thresholds: Thresholds,
    *,
    source: str | Sequence[str],
    seed: int = 0,
    places: int = 40,
) -> ModelCensus:
    """The result that `counted` is."""
    table = _Table(model, data, counted, thresholds)
    layers = tuple(table.layer(index, places) for index in range(model.config.num_layers))
    lives = tuple(table.lives())
    large = [place for layer in layers for place in layer.classes if place.massive]
    largest = max(lives, key=lambda life: abs(life.largest), default=None)
    return ModelCensus(
        **common.header(model, data.inputs, source, data.bos if isinstance(data, Windows) else None),
        thresholds=thresholds,
        seed=seed,
        count=None if isinstance(data, Windows) else len(data.inputs),
        finding=_finding(layers, lives, large, thresholds),
        massive=bool(large),
        birth=None if largest is None else largest.full_size,
        sink_rate=float(np.mean([layer.sink_rate for layer in layers])),
        layers=layers,
        lives=lives,
    )


class _Table:
    """What was counted, as a result has it."""

    def __init__(self, model: mj.Model, data: Windows | Images, counted: Counted, thresholds: Thresholds):
        self._model, self._counted, self._thresholds = model, counted, thresholds
        self._length = input_length(model, data.inputs)
        self._names = model.token_texts(data.inputs[0]) if isinstance(model, mj.ImageModel) else None
        _, kinds, tokens, _ = counted.tokens.parts()
        self._there = {
            (int(k), int(t)): int(n) for k, t, n in zip(kinds, tokens, counted.tokens.sums[:, 0], strict=True)
        }
        self._of_kind = np.bincount(kinds, weights=counted.tokens.sums[:, 0], minlength=len(CLASSES)).astype(int)
        self._parts = np.stack(counted.places.parts())

    def layer(self, index: int, places: int) -> ModelCensusLayer:
        """One layer, from 0."""
        sums, config = self._counted.sums, self._model.config
        windowed = getattr(config, "window", None) if config.windowed_layers[index] else None
        mass = sums["sink_mass"].mean[index]
        row = sums["row_block_out"]
        largest = np.argsort(-np.abs(row.mean[index, 0]), kind="stable")[:_FIRST]
        ranked, by_kind = self._places(index)
        names = ("median", "bias_spread", "rest_spread", "value_norm_ratio", "entropy")
        means = {name: float(sums[name].mean[index]) for name in names}
        bounds = {
            name: tuple(float(bound[index]) for bound in sums[of].interval)
            for name, of in (*((name, name) for name in names), ("sink_mass", "sink_mass_of_layer"))
        }
        first, sizes = self._counted.largest[index].T
        tokens = first.sum()
        return ModelCensusLayer(
            layer=index + 1,
            **means,
            first=tuple(
                Spread(dim=int(d), mean=float(row.mean[index, 0, d]), std=float(row.std[index, 0, d])) for d in largest
            ),
            places=tuple(ranked[:places]),
            classes=tuple(by_kind),
            sink_rate=float(np.mean(mass > SINK)),
            sink_mass=float(mass.mean()),
            sink_mass_by_head=tuple(mass.tolist()),
            sink_mass_uniform=uniform_sink_mass(self._length, causal=config.causal, window=windowed),
            intervals=bounds,
            random_spread=_null(sums["random_spread"], index),
            random_value_norm_ratio=_null(sums["random_ratio"], index),
            residual_sinks=tuple(
                ResidualSink(dim=int(d), share=float(first[d] / tokens), mean=float(sizes[d] / first[d]))
                for d in np.flatnonzero(first > tokens / 2)
            ),
        )

    def lives(self) -> Iterator[Life]:
        """Massive dims of the first token and of the first delimiter, through the layers; largest first."""
        sums = self._counted.sums
        for row, place in enumerate(("start", "first_delimiter")):
            kinds = {place, "class_token"} if row == 0 else {place}
            # An image's first token is its class token.
            massive = {
                p.dim
                for index in range(self._model.config.num_layers)
                for p in self._places(index)[1]
                if p.massive and p.kind in kinds
            }
            mean, attention, mlp = (sums[f"row_{site}"].mean[:, row] for site in ("block_out", "attn_out", "mlp_out"))
            for dim in sorted(massive, key=lambda d: -np.abs(mean[:, d]).max())[:_LIVES]:
                found = steps(mean[:, dim], attention[:, dim], mlp[:, dim])
                at = int(np.abs(mean[:, dim]).argmax())
                up, down = (
                    tuple(
                        BlockStep(layer=step.layer, change=step.change, attention=step.attention, mlp=step.mlp)
                        for step in found
                        if step.up == grows
                    )
                    for grows in (True, False)
                )
                size, peak = full_size_layer(np.abs(mean[:, dim])), float(mean[at, dim])
                yield Life(place=place, dim=dim, largest=peak, layer=at + 1, full_size=size, up=up, down=down)

    def _places(self, index: int) -> tuple[list[MassivePlace], list[MassivePlace]]:
        """The places of a layer, from 0, most important first: by token, and by class of token."""
        here = np.flatnonzero(self._parts[0] == index)
        _, kinds, tokens, dims = self._parts[:, here]
        sums = self._counted.places.sums[here]
        found = [
            self._place(CLASSES[kind], int(token), int(dim), total, self._there[int(kind), int(token)])
            for kind, token, dim, total in zip(kinds, tokens, dims, sums, strict=True)
        ]
        together: dict[tuple[int, int], np.ndarray] = {}
        for kind, dim, total in zip(kinds, dims, sums, strict=True):
            together[int(kind), int(dim)] = together.get((int(kind), int(dim)), np.zeros(sums.shape[1])) + total
        grouped = [
            self._place(CLASSES[kind], None, dim, total, int(self._of_kind[kind]))
            for (kind, dim), total in together.items()
        ]
        return tuple(sorted(places, key=_importance) for places in (found, grouped))  # type: ignore[return-value]

    def _place(self, kind: str, token: int | None, dim: int, total: np.ndarray, there: int) -> MassivePlace:
        of = Places(np.zeros(1, np.int64), total[None], self._counted.places.sizes)
        count, mean, ratio = int(total[0]), float(of.means[0]), float(of.ratios[0])
        size = (np.abs(mean) > self._thresholds.magnitude) and ratio > self._thresholds.ratio
        where: dict[str, Any] = {}
        if kind == "start":
            where = {"position": 0}
        elif token is not None:
            where = {"token": self._text(token)}
        return MassivePlace(
            **where,
            kind=kind,
            dim=dim,
            count=count,
            share=count / there,
            mean=mean,
            std=float(of.stds[0]),
            ratio=ratio,
            massive=bool(size),
        )

    def _text(self, token: int) -> str:
        return self._model.token_texts([token])[0] if self._names is None else self._names[token]


def _importance(place: MassivePlace) -> tuple[bool, float]:
    """Sorts: the first token before others; then by how large and how frequent."""
    return place.kind not in ("start", "class_token"), -place.count * abs(place.mean)


def _null(draws: Sums, index: int) -> Null:
    """What random tokens give in one layer."""
    found = null_interval(draws.mean[index])
    return Null(**{name: float(value) for name, value in found.items()})


def _finding(
    layers: Sequence[ModelCensusLayer], lives: Sequence[Life], large: Sequence[MassivePlace], thresholds: Thresholds
) -> str:
    """The census in one sentence."""
    definition = f"above {in_words(thresholds.magnitude)} and {in_words(thresholds.ratio)} times the median"
    if not large:
        top = max((abs(layer.first[0].mean), layer.layer) for layer in layers)
        return (
            f"no massive activations: nothing is {definition} (position 0's largest: {in_words(top[0])} at layer "
            f"{top[1]})"
        )
    parts = []
    for place, words in (("start", "position 0"), ("first_delimiter", "the first delimiter")):
        dims = [life for life in lives if life.place == place]
        if dims:
            peak = layers[dims[0].layer - 1]
            std = next((s.std for s in peak.first if s.dim == dims[0].dim and place == "start"), None)
            size = in_words(dims[0].largest) + ("" if std is None else f" ± {in_words(std)}")
            up = dims[0].up
            born = f"born in block {up[0].layer}" if up else f"at full size from layer {dims[0].full_size} on"
            parts.append(f"{words} in dim {', '.join(str(life.dim) for life in dims)} ({size}, {born})")
    others = sorted(
        {p.kind.replace("_", " ") for p in large if p.kind not in ("start", "first_delimiter", "class_token")}
    )
    if others:
        parts.append(f"{' and '.join(others)} tokens")
    return f"massive activations at {'; '.join(parts)}"


def show(result: ModelCensus) -> None:
    """Prints the finding and the table: a line a layer."""
    columns = (
        *("layer", "first token's largest (dim)", "± std", "median", "sink mass", "sink rate"),
        *("bias spread", "by chance", "rest spread", "value norm", "entropy", "others' places (token, dim)"),
    )
    rows = []
    for layer in result.layers:
        top = layer.first[0]
        others = [p for p in layer.places if p.position is None][:2]
        rows.append(
            (
                layer.layer,
                f"{in_words(top.mean)} ({top.dim})",
                top.std,
                layer.median,
                layer.sink_mass,
                layer.sink_rate,
                layer.bias_spread,
                f"{layer.random_spread.low:.2f} to {layer.random_spread.high:.2f}",
                layer.rest_spread,
                layer.value_norm_ratio,
                layer.entropy,
                ", ".join(f"{label(p.token or '')} {p.dim} ×{p.count}" for p in others),
            )
        )
    common.print_table(columns, rows)
    print(f"{result.model}: {result.finding}; sink rate {100 * result.sink_rate:.1f} %")


def folder(name: str) -> str:
    """A directory's name made of a model's."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", mj.files.short_name(name)).strip("._") or "model"
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def main() -> None:
    """Runs the binary."""
    common.check_inputs()
    names, out = models.names(), common.workdir()
    content = None if images.IMAGES.value is not None else load_text(text.name())
    for name in names:
        found = common.load_model(name)
        data: Windows | Images
        source: str | Sequence[str]
        if common.takes_images(found):
            data = common.images(found)
            source = data.names
        else:
            assert content is not None  # `takes_images` has refused --images
            data, source = common.windows(found, content, LEAST), text.name()
        where = out if len(names) == 1 else out / folder(name)
        result = run(
            found,
            data,
            where,
            definition.thresholds(),
            source=source,
            seed=seed.SEED.value,
            places=_PLACES.value,
        )
        show(result)
        print(f"wrote {where / 'census.json'} and census.png")


if __name__ == "__main__":
    common.run_experiment(main)
