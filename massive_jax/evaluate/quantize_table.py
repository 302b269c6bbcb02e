"""What quantisation costs a model, by setting and by what is done against it.

Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from massive_jax.analysis import DEFINITION, Thresholds
from massive_jax.arguments import number, seed_number, several, shown
from massive_jax.data.windows import Windows
from massive_jax.evaluate.agreement import Images, check_data
from massive_jax.evaluate.batches import Progress
from massive_jax.evaluate.quantize_variant import UNQUANTISED, Variant
from massive_jax.evaluate.super_weights import measure_super_weights
from massive_jax.model import Model, TextModel
from massive_jax.models.mlp_weights import mlp_weights, with_down
from massive_jax.parallel import mesh_of_params, mesh_set
from massive_jax.quantize import (
    SCALES,
    InputShape,
    Outcome,
    Quantization,
    Setting,
    SuperWeightAt,
    check_methods,
    parse_setting,
    round_weights,
    untie,
    why_not_rotated,
    why_not_smoothed,
)


def measure_quantization(
    model: Model,
    data: Windows | Images,
    settings: Sequence[str],
    methods: Sequence[str] = ("plain",),
    *,
    scales: Sequence[str] = ("tensor",),
    alpha: float = 0.5,
    thresholds: Thresholds = DEFINITION,
    seed: int = 0,
    progress: Progress | None = None,
) -> Quantization:
    """Measures what every setting costs, with every kind of scales, after every method; and the inputs' outliers.

    Methods change parameters, and settings are data: one compiled program gives all of it, and a second one what
    follows "absorb". With BOS in front of the windows the first token of the text is not counted, as it has no other in
    front of it once BOS is absorbed; so all perplexities are over the same tokens.

    Args:
      model: a language or a vision model.
      data: windows of one length, or images.
      settings: as `massive_jax.quantize.parse_setting` reads them.
      methods: names in `massive_jax.quantize.METHODS`, or several joined by "+". Rotation comes first, then "absorb",
        then smoothing.
      scales: names in `massive_jax.quantize.SCALES`.
      alpha: of the smoothing, calibrated on the data.
      thresholds: what a massive activation is, for "zero" and "apart".
      seed: of the rotation.
      progress: called with the number of tokens; see `quantization_passes`.

    Raises:
      ValueError: unknown settings, methods or scales, or one twice; a method that the model cannot take, or that needs
        BOS; windows of different lengths; no super weight where "super" is asked for. See also `perplexity`.

    Examples:
      >>> from massive_jax.data import cut_windows, load_text
      >>> from massive_jax.evaluate import measure_quantization
      >>> windows = cut_windows(model, load_text("python"), windows=2, context=24)
      >>> found = measure_quantization(model, windows, ["W8A8"])
      >>> found.outcomes[0].cost.value > 0.1  # nats a token
      True
    """
    parsed, parts, kinds = check_table(settings, methods, scales)
    alpha, seed = number("alpha", alpha, 0, 1), seed_number(seed)
    model = Model.of(model)
    check_data(model, data)
    for part in dict.fromkeys(part for method in parts for part in method):
        if why := why_not_taken(model, data, part):
            raise ValueError(f"{model.name} cannot take the method {part!r}: {why}; leave it out.")
    if isinstance(data, Windows) and data.mask is not None:
        raise ValueError("a quantisation is measured on windows of one length; cut them with cut_windows.")
    if isinstance(data, Windows) and data.tokens.shape[1] < 3:
        raise ValueError(f"windows have {data.tokens.shape[1]} tokens; give 3 at least.")

    kept = _super_weight(model, data, progress) if any("super" in method for method in parts) else None
    start = Variant(untie(model) if isinstance(model, TextModel) else model, data, thresholds)
    unquantised = start.run(start.model, UNQUANTISED, "tensor", progress)
    outcomes: list[Outcome] = []
    inputs: list[InputShape] = []
    for method in parts:
        name = "+".join(method)
        variant = start.after(method, seed, alpha, progress)
        inputs += variant.input_shapes(name, progress)
        for kind in kinds:
            bits, rounded = -1, variant.model
            for setting in sorted(parsed, key=lambda setting: setting.weights):  # one rounding serves its neighbours
                if setting.weights != bits:
                    bits = setting.weights
                    rounded = _rounded(variant.model, bits, kind, kept if "super" in method else None)
                found = variant.run(rounded, setting, kind, progress)
                outcomes.append(Outcome(setting.name, kind, name, *variant.judge(found, unquantised)))
    order = [setting.name for setting in parsed]
    outcomes.sort(key=lambda outcome: (kinds.index(outcome.scales), order.index(outcome.setting)))
    score, _ = start.judge(unquantised, unquantised)
    return Quantization(start.metric, score, tuple(outcomes), tuple(inputs), kept)


def quantization_passes(settings: int, methods: Sequence[str], scales: int) -> int:
    """Counts how often `measure_quantization` runs over the data, but for the search of a super weight."""
    parts = [method.split("+") for method in methods]
    return 1 + sum(settings * scales + 1 + ("apart" in its) + ("smooth" in its) for its in parts)


def check_table(
    settings: Sequence[str], methods: Sequence[str], scales: Sequence[str]
) -> tuple[list[Setting], tuple[tuple[str, ...], ...], list[str]]:
    """Gives settings, the parts of methods, and scales, read.

    Raises:
      ValueError: none of one of them; an unknown one; one twice; parts of a method that do not go together.
    """
    names, kinds = several(settings), list(several(scales) or ())
    if not names:
        raise ValueError(f"settings is {shown(settings)}; give some, as W8A8 or KV4.")
    parsed = [parse_setting(name) for name in names]
    if len({dataclasses.astuple(setting)[1:] for setting in parsed}) < len(parsed):
        raise ValueError(f"settings {', '.join(names)}: one is there twice.")
    parts = check_methods(methods)
    if not kinds or any(kind not in SCALES for kind in kinds) or len(set(kinds)) < len(kinds):
        raise ValueError(f"scales is {shown(scales)}; give some of {', '.join(SCALES)}, each once.")
    return parsed, parts, kinds


def why_not_taken(model: Model, data: Windows | Images, part: str) -> str | None:
    """Says why a part of a method is not for a model and its data; None where it is."""
    bos = data.bos if isinstance(data, Windows) else None
    if part == "rotate":
        return why_not_rotated(model.config)
    if part == "smooth":
        return why_not_smoothed(model.config)
    if part == "absorb" and bos is None:
        return "what its massive activations stand on differs from image to image, so no fixed slot can be it"
    if part == "absorb" and not bos:
        return "BOS is what becomes the attention bias, and there is none in front of the windows (--bos)"
    if part == "absorb" and model.config.attention_bias is not None:
        return "it has an attention bias already"
    if part == "super" and bos is None:
        return "super weights are looked for in language models"
    if part == "super":
        try:
            mlp_weights(model.config, model.params)
        except ValueError as error:
            return str(error).rstrip(".")
    return None


def _super_weight(model: Model, data: Any, progress: Progress | None) -> SuperWeightAt:
    """The one whose loss costs most, by the first window."""
    first = dataclasses.replace(data, tokens=data.tokens[:1])
    found = measure_super_weights(model, first, others=1, tested=1)
    if progress is not None:
        progress(first.tokens.size)
    if not found.tested:
        raise ValueError(f"{model.name} has no super weight: nothing that its MLPs add is massive; leave super out.")
    return SuperWeightAt(found.tested[0].layer, found.tested[0].unit, found.tested[0].dim)


def _rounded(model: Model, bits: int, scales: str, kept: SuperWeightAt | None) -> Model:
    """The model with rounded weights, one of which has no part in it."""
    if not bits or kept is None:
        return round_weights(model, bits, scales) if bits else model
    at = kept.layer - 1, kept.unit, kept.dim
    weight = mlp_weights(model.config, model.params).down[at]
    found = round_weights(_with_weight(model, at, 0.0), bits, scales)
    return _with_weight(found, at, weight)


def _with_weight(model: Model, at: tuple[int, int, int], weight: Any) -> Model:
    with mesh_set(mesh_of_params(model.params)):
        down = _set(mlp_weights(model.config, model.params).down, *at, weight)
    return dataclasses.replace(model, params=with_down(model.config, model.params, down))


@jax.jit
def _set(kernel: jax.Array, layer: Any, unit: Any, dim: Any, weight: Any) -> jax.Array:
    return kernel.at[layer, unit, dim].set(weight)
