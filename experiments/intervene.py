"""Perplexity, or how far an image model stays itself, with massive activations set to zero, their mean or otherwise.

  python -m experiments.intervene --layer=12 --places=0:507,0:247,0:14 --ops=zero,mean --workdir=results
  python -m experiments.intervene --model=dinov2_reg_large --images=FOLDER --ops=zero,mean

Writes intervene.json and intervene.png. On the default model with four windows of 512 tokens about two minutes on two
cores (--draws=1: one); expect a perplexity above 100,000 for zero, four fifths and more of it (in nats) for dim 507
alone, and the original's within 1 % for mean and the controls (paper, section 3.1).

Every operation is made at all places at once, of the output of block --layer: zero; mean: each place's own mean over
the windows, unedited; set=X; scale=X: times X; add=X; noise=X: plus X · N(0, 1); shuffle: the same dim of another
position. With --layer=all it is made in the output of every block, with that block's mean, at the places of the layer
that 'auto' finds; with --sweep at every layer in turn, too. A position may be a rule, worked out for each window:
'delim' (its first delimiter), 'first', 'last'.

The operation that changes the model most is looked at more closely: at each place alone (of many, the 8 of largest
magnitude), and at controls, each drawn --draws times: as many entries of median magnitude, other dims of the same
positions, other positions of the same dims. Intervals are 95 % of a percentile bootstrap over windows (or images),
1,000 draws; differences to the unedited model are paired by window. With one window there are none.

Windows are consecutive, non-overlapping runs of --context tokens from the start of the text, tokenised whole and
without special tokens (--bos puts one in front of each: its position is 0). Perplexity is exp(total negative
log-likelihood / predicted tokens).

A vision model runs --images and is compared with itself unedited: top1_agreement, the share of images whose most likely
class stays, where it has a head; otherwise cosine_similarity of the pooled features, averaged over the images.

intervene.json: `massive_jax.report.results.Intervention`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

import massive_jax as mj
from experiments import common
from experiments.flags import definition, images, layer, model, seed, text
from massive_jax.data import Windows, load_text
from massive_jax.evaluate import (
    CONTROLS,
    KNOWN,
    Closer,
    Images,
    Operation,
    Place,
    check_places,
    find_places,
    input_length,
    measure_effects,
    parse_places,
)
from massive_jax.files import Path, write_json
from massive_jax.report import about_intervals, as_json, intervention_of, intervention_rows, plot_intervention
from massive_jax.report import number as in_words
from massive_jax.report.results import Intervention

_EVERY_DRAW = 8

_PLACES = flags.DEFINE_string(
    "places",
    "auto",
    "POS:DIM,…: places in the residual stream; POS a token position or a rule: 'delim' (each window's first "
    "delimiter), 'first' or 'last'. 'auto': those that meet the definition at the layer.",
)
flags.DEFINE_alias("sites", "places")
_OPS = flags.DEFINE_list("ops", ["zero", "mean"], f"Any of {KNOWN}.")
_CONTROLS = flags.DEFINE_bool(
    "controls",
    True,
    "Does the same to as many places drawn at random: of median magnitude, in other dims of the same positions, at "
    "other positions of the same dims.",
)
_DRAWS = flags.DEFINE_integer(
    "draws",
    None,
    f"How often controls of each kind are drawn (default {_EVERY_DRAW}; reproduce: once, of the first kind).",
    lower_bound=1,
)
_SWEEP = flags.DEFINE_bool("sweep", False, "Does the same at every layer in turn: the effect by layer.")


def reads(parse: Callable[[Any], Any]) -> Callable[[Any], bool]:
    """Gives a flag's validator: `parse` takes its value."""

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


flags.register_validator(_OPS, reads(_parse_operations))
flags.register_validator(_PLACES, reads(_parse_places))

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
    workdir: Path,
    *,
    source: str | Sequence[str],
    closer: Closer,
    everywhere: bool = False,
    seed: int = 0,
) -> Intervention:
    """Measures, writes intervene.json and intervene.png, and returns what was written."""
    passes = closer.passes(model, len(places), len(operations), everywhere)
    with common.progress(_tokens(model, data) * passes, "interventions") as progress:
        effects = measure_effects(
            *(model, data, number, places, operations),
            everywhere=everywhere,
            closer=closer,
            seed=seed,
            progress=progress,
        )
    result = intervention_of(
        effects,
        common.header(model, data.inputs, source, data.bos if isinstance(data, Windows) else None),
        seed=seed,
        predicted_tokens=data.num_predicted if isinstance(data, Windows) else None,
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
    at = f"every layer (places of layer {result.found_at})" if result.layer == "all" else f"layer {result.layer}"
    print(f"{at}, places position:dim {places}")
    metric = result.metric.replace("_", " ")
    rows = [(row.key, row.value, row.interval) for row in intervention_rows(result)]
    common.print_table(("intervention", metric, "95 % interval"), rows)
    print(about_intervals(result))
    if (found := result.carrier) is not None:
        print(f"{found} alone has {found.share:.0%} of the effect of all {len(result.sites)}.")


def closer(quick: bool) -> Closer:
    """How closely the flags ask to look; `quick`: what is not asked for is left out."""
    kinds = tuple(CONTROLS) if _DRAWS.value or not quick else tuple(CONTROLS)[:1]
    draws = _DRAWS.value or (1 if quick else _EVERY_DRAW)
    return Closer(controls=kinds if _CONTROLS.value else (), draws=draws, sweep=_SWEEP.value)


def check_effect() -> None:
    """ValueError where --seed or --draws is given and nothing is drawn at random."""
    if not _CONTROLS.value:
        common.without_effect(("draws",), "with --nocontrols")
    drawn = _CONTROLS.value or any(operation.drawn for operation in _parse_operations(_OPS.value))
    if not drawn:
        common.without_effect(("seed",), "with --nocontrols and without noise or shuffle in --ops")


def check_flags(model: mj.Model, data: Windows | Images) -> None:
    """ValueError where --places names a place that the model or the inputs do not have."""
    check_places(model, data, _parse_places(_PLACES.value) or [])


def from_flags(
    model: mj.Model, data: Windows | Images, workdir: Path, *, required: bool = True, quick: bool = False
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
        closer=closer(quick),
        everywhere=layer.everywhere(),
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
