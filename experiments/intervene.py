"""Perplexity, or how far an image model stays itself, with massive activations set to zero, their mean or otherwise.

  python -m experiments.intervene --layer=12 --places=0:507,0:247,0:14 --ops=zero,mean --workdir=results
  python -m experiments.intervene --model=dinov2_reg_large --images=FOLDER --ops=zero,mean

Writes intervene.json and intervene.png. On the default model with four windows of 512 tokens about 30 s; expect a
perplexity above 100,000 for zero and the original's within 1 % for mean and the controls (paper, section 3.1).

Every operation is made at all places at once, of the output of block --layer: zero; mean: each place's own mean over
the windows, unedited; set=X; scale=X: times X; add=X; noise=X: plus X · N(0, 1); shuffle: the same dim of another
position.

Windows are consecutive, non-overlapping runs of --context tokens from the start of the text, tokenised whole and
without special tokens (--bos puts one in front of each: its position is 0). Perplexity is exp(total negative
log-likelihood / predicted tokens).

A vision model runs --images and is compared with itself unedited: top1_agreement, the share of images whose most likely
class stays, where it has a head; otherwise cosine_similarity of the pooled features, averaged over the images.

intervene.json: `massive_jax.report.results.Intervention`.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

import massive_jax as mj
from experiments import common
from experiments.flags import definition, images, layer, model, seed, text
from massive_jax.analysis import median_places
from massive_jax.data import Windows, load_text
from massive_jax.evaluate import (
    KNOWN,
    Images,
    Operation,
    Place,
    check_places,
    find_places,
    hidden_state,
    input_length,
    intervene,
    measure_of,
    nowhere,
    parse_places,
    place_means,
)
from massive_jax.evaluate.batches import batches
from massive_jax.files import write_json
from massive_jax.report import as_json, plot_intervention
from massive_jax.report import number as in_words
from massive_jax.report.results import ControlPlace, EditedPlace, Intervention

_PLACES = flags.DEFINE_string(
    "places",
    "auto",
    "POS:DIM,…: places in the residual stream; POS a token position or 'delim', each window's first delimiter. 'auto': "
    "those that meet the definition at the layer.",
)
flags.DEFINE_alias("sites", "places")
_OPS = flags.DEFINE_list("ops", ["zero", "mean"], f"Any of {KNOWN}.")
_CONTROLS = flags.DEFINE_bool(
    "controls", True, "Does the same to as many random places whose magnitude is close to the median."
)


def _reads(parse: Callable[[Any], Any]) -> Callable[[Any], bool]:
    """A flag's validator: `parse` takes its value."""

    def validate(value: Any) -> bool:
        try:
            parse(value)
        except ValueError as error:
            raise flags.ValidationError(str(error)) from None
        return True

    return validate


def _parse_places(text: str) -> list[Place] | None:
    return None if text == "auto" else parse_places(text)


def _parse_operations(names: Sequence[str]) -> list[Operation]:
    operations = list(dict.fromkeys(Operation.parse(name.strip()) for name in names))
    if not operations:
        raise ValueError("name at least one operation: zero, say.")
    return operations


flags.register_validator(_OPS, _reads(_parse_operations))
flags.register_validator(_PLACES, _reads(_parse_places))

if __name__ == "__main__":
    for module in (common, model, text, layer, definition, seed):
        flags.adopt_module_key_flags(module)
    for name in ("images", "num_images", "image_size"):
        flags.declare_key_flag(name)


def run(
    model: mj.Model,
    data: Windows | Images,
    number: int,
    places: Sequence[Place],
    operations: Sequence[Operation],
    workdir: pathlib.Path,
    *,
    source: str | Sequence[str],
    controls: bool = True,
    seed: int = 0,
) -> Intervention:
    """Measures, writes intervene.json and intervene.png, and returns what was written."""
    passes = 1 + 1 + len(operations) * (2 if controls else 1)
    with common.progress(_tokens(model, data) * passes, "interventions") as progress:
        means = place_means(model, data, number, places, progress)
        metric, measure = measure_of(model, data, progress)
        # Of images the unedited model has been run, and agrees with itself.
        untouched = nowhere(model, data, number, places)
        found = {"original": 1.0 if isinstance(data, Images) else measure(untouched, progress)}
        if not math.isfinite(found["original"]):
            raise ValueError(f"{model.name}: the perplexity of the unedited model is {found['original']} on this text.")
        found |= intervene(model, data, number, places, operations, means, progress, seed, measure)
        control: list[Place] = []
        if controls:
            # Of a whole batch, though one is used: that program is there.
            _, first = next(batches(data.inputs, None, input_length(model, data.inputs)))
            hidden = hidden_state(model, first, number)[0]
            taken = [(place.position, place.dim) for place in places if isinstance(place.position, int)]
            control = [Place(*c) for c in median_places(hidden, len(places), exclude=taken, seed=seed)]
            control_means = place_means(model, data, number, control)
            changed = intervene(model, data, number, control, operations, control_means, progress, seed, measure)
            found |= {f"random_{name}": value for name, value in changed.items()}
    measured: dict[str, Any] = {metric: found}
    result = Intervention(
        **common.header(model, data.inputs, source),
        layer=number,
        sites=tuple(
            EditedPlace(position=place.position, dim=place.dim, value_mean=mean)
            for place, mean in zip(places, means, strict=True)
        ),
        mean_values=tuple(means),
        controls=tuple(ControlPlace(position=place.position, dim=place.dim) for place in control),
        seed=seed,
        predicted_tokens=data.num_predicted if isinstance(data, Windows) else None,
        **measured,
    )
    write_json(workdir / "intervene.json", as_json(result))
    plot_intervention(result, workdir / "intervene.png")
    return result


def _tokens(model: mj.Model, data: Windows | Images) -> int:
    """How many tokens one pass over `data` is."""
    return len(data.inputs) * input_length(model, data.inputs)


def show(result: Intervention) -> None:
    """Prints the places and what the interventions did."""
    places = ", ".join(f"{s.position}:{s.dim} (mean {in_words(s.value_mean)})" for s in result.sites)
    print(f"layer {result.layer}, places position:dim {places}")
    common.print_table(("intervention", result.metric.replace("_", " ")), list(result.measured.items()))


def check_effect() -> None:
    """ValueError where --seed is given and nothing is drawn at random."""
    drawn = _CONTROLS.value or any(operation.drawn for operation in _parse_operations(_OPS.value))
    if not drawn:
        common.without_effect(("seed",), "with --nocontrols and without noise or shuffle in --ops")


def check_flags(model: mj.Model, data: Windows | Images) -> None:
    """ValueError where --places names a place that the model or the inputs do not have."""
    check_places(model, data, _parse_places(_PLACES.value) or [])


def from_flags(
    model: mj.Model, data: Windows | Images, workdir: pathlib.Path, *, required: bool = True
) -> Intervention:
    """`run` with what the flags say; where no place is found and none is `required`, the original only."""
    with common.progress(_tokens(model, data), "finding places") as progress:
        number, places = find_places(
            model,
            data,
            layer.parse_layer(model.config.num_layers),
            _parse_places(_PLACES.value),
            thresholds=definition.thresholds(),
            required=required,
            progress=progress,
        )
    return run(
        model,
        data,
        number,
        places,
        _parse_operations(_OPS.value) if places else [],
        workdir,
        source=data.names if isinstance(data, Images) else text.name(),
        controls=_CONTROLS.value and bool(places),
        seed=seed.SEED.value,
    )


def main() -> None:
    """Runs the binary."""
    common.check_inputs()
    check_effect()
    if _PLACES.value != "auto":
        common.without_effect(("massive_magnitude", "massive_ratio"), "where --places (also --sites) names the places")
    out = common.workdir()
    content = "" if images.IMAGES.value is not None else load_text(text.name())
    found = common.load_model()
    data = common.images(found) if common.takes_images(found) else common.windows(found, content, least=2)
    result = from_flags(found, data, out)
    show(result)
    print(f"wrote {out / 'intervene.json'} and {out / 'intervene.png'}")


if __name__ == "__main__":
    common.run_experiment(main)
