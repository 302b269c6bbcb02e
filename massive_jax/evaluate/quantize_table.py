"""What quantisation costs a language model, by setting and by what is done against it.

Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from massive_jax.analysis import DEFINITION, Thresholds
from massive_jax.arguments import number, seed_number, several, shown
from massive_jax.bias import absorb_prefix
from massive_jax.data.windows import Windows
from massive_jax.evaluate.batches import Progress, batches
from massive_jax.evaluate.perplexity import check_windows, token_nll
from massive_jax.evaluate.scores import Scores
from massive_jax.evaluate.super_weights import measure_super_weights
from massive_jax.model import TextModel
from massive_jax.models.mlp_weights import mlp_weights, with_down
from massive_jax.parallel import fetch, mesh_of_params, mesh_set
from massive_jax.probe import Edit, Measure
from massive_jax.probe.order_statistics import median_magnitude
from massive_jax.quantize import (
    LINEAR_INPUTS,
    SCALES,
    InputShape,
    Outcome,
    Quantization,
    Setting,
    SuperWeightAt,
    check_methods,
    input_edits,
    parse_setting,
    rotate,
    round_weights,
    smooth,
    untie,
    why_not_rotated,
    why_not_smoothed,
)

_SITES = LINEAR_INPUTS[:-1]  # those of a block
_SMOOTHED = ("attn_norm", "mlp_norm", "mlp_hidden")


def measure_quantization(
    model: TextModel,
    windows: Windows,
    settings: Sequence[str],
    methods: Sequence[str] = ("plain",),
    *,
    scales: Sequence[str] = ("tensor",),
    alpha: float = 0.5,
    thresholds: Thresholds = DEFINITION,
    seed: int = 0,
    progress: Progress | None = None,
) -> Quantization:
    """Measures perplexity at every setting, with every kind of scales, after every method; and the inputs' outliers.

    Methods change parameters, and settings are data: one compiled program gives all perplexities, and a second one
    those of "absorb". With BOS in front of the windows the first token of the text is not counted, as it has no other
    in front of it once BOS is absorbed; so all perplexities are over the same tokens.

    Args:
      model: a language model.
      windows: of one length.
      settings: as `massive_jax.quantize.parse_setting` reads them.
      methods: names in `massive_jax.quantize.METHODS`, or several joined by "+". Rotation comes first, then "absorb",
        then smoothing.
      scales: names in `massive_jax.quantize.SCALES`.
      alpha: of the smoothing, calibrated on these windows.
      thresholds: what a massive activation is, for "zero" and "apart".
      seed: of the rotation.
      progress: called with the number of tokens; see `quantization_passes`.

    Raises:
      ValueError: unknown settings, methods or scales; a method that the model cannot take, or that needs BOS; windows
        of different lengths; no super weight where "super" is asked for. See also `perplexity`.

    Examples:
      >>> from massive_jax.data import cut_windows, load_text
      >>> from massive_jax.evaluate import measure_quantization
      >>> windows = cut_windows(model, load_text("python"), windows=2, context=24)
      >>> found = measure_quantization(model, windows, ["W8A8"])
      >>> found.outcomes[0].nats.value > 0.1
      True
    """
    language = TextModel.of(model)
    parsed, parts = _settings(settings), check_methods(methods)
    kinds = several(scales)
    if not kinds or any(kind not in SCALES for kind in kinds) or len(set(kinds)) < len(kinds):
        raise ValueError(f"scales is {shown(scales)}; give some of {', '.join(SCALES)}, each once.")
    alpha, seed = number("alpha", alpha, 0, 1), seed_number(seed)
    _check_fits(language, windows, {part for method in parts for part in method})

    plain = untie(language)
    start = _Variant(plain, windows, thresholds)
    unquantised = start.scores(plain, Setting("W16A16"), "tensor", progress)
    kept = _super_weight(language, windows, progress) if any("super" in method for method in parts) else None
    outcomes: list[Outcome] = []
    inputs: list[InputShape] = []
    for method in parts:
        variant = start.after(method, seed, alpha, progress)
        inputs += variant.input_shapes("+".join(method), progress)
        for kind in kinds:
            rounded: dict[int, TextModel] = {}
            for setting in parsed:
                if setting.weights not in rounded:
                    whole = kept if "super" in method else None
                    rounded = {setting.weights: _rounded(variant.model, setting.weights, kind, whole)}
                found = variant.scores(rounded[setting.weights], setting, kind, progress)
                outcomes.append(
                    Outcome(setting.name, kind, "+".join(method), found.estimate(), found.mean_difference(unquantised))
                )
    return Quantization(unquantised.estimate(), tuple(outcomes), tuple(inputs), kept)


def quantization_passes(settings: int, methods: Sequence[str], scales: int) -> int:
    """Counts how often `measure_quantization` runs over the windows at most, for a progress bar."""
    return 1 + sum(settings * scales + 2 + ("apart" in method) for method in methods) + 3


def _settings(settings: Sequence[str]) -> list[Setting]:
    found = several(settings)
    if not found:
        raise ValueError(f"settings is {shown(settings)}; give some, as W8A8 or KV4.")
    parsed = [parse_setting(setting) for setting in found]
    if len({dataclasses.astuple(setting)[1:] for setting in parsed}) < len(parsed):
        raise ValueError(f"settings {', '.join(found)}: one is there twice.")
    return sorted(parsed, key=lambda setting: -setting.weights if setting.weights else -16)


def _check_fits(model: TextModel, windows: Windows, parts: set[str]) -> None:
    """ValueError where the model or its windows cannot take one of the parts of the methods."""
    check_windows(model, windows)
    if windows.mask is not None:
        raise ValueError("a quantisation is measured on windows of one length; cut them with cut_windows.")
    if windows.tokens.shape[1] < 3:
        raise ValueError(f"windows have {windows.tokens.shape[1]} tokens; give 3 at least.")
    for part, why in (("rotate", why_not_rotated), ("smooth", why_not_smoothed)):
        if part in parts and (reason := why(model.config)):
            raise ValueError(f"{model.name} cannot be {part.rstrip('e')}ed: {reason}; leave {part} out.")
    if "absorb" in parts and not windows.bos:
        raise ValueError("absorb takes BOS in front of the windows (--bos): it becomes the attention bias.")
    if "absorb" in parts and model.config.attention_bias is not None:
        raise ValueError(f"{model.name} has an attention bias already; leave absorb out.")
    if "super" in parts:
        mlp_weights(model.config, model.params)


@dataclasses.dataclass(frozen=True)
class _Variant:
    """A model after a method, what it is run on, and what the edits of the method need."""

    model: TextModel
    windows: Windows
    thresholds: Thresholds
    zero: bool = False
    apart: np.ndarray | None = None  # bool [W, T]
    absorbed: bool = False

    def after(self, method: Sequence[str], seed: int, alpha: float, progress: Progress | None) -> _Variant:
        """What comes of a method's parts."""
        found, straight = self, self
        if "rotate" in method:
            found = dataclasses.replace(self, model=rotate(self.model, seed))
        if "absorb" in method:
            found, straight = found._without_bos(), self._without_bos()
        found = dataclasses.replace(found, zero="zero" in method)
        if "apart" in method:  # a rotation does not change which tokens these are, but it hides them
            found = dataclasses.replace(found, apart=straight._survey(progress)["massive"].any(axis=0))
        if "smooth" in method:
            largest = found._survey(progress)
            found = dataclasses.replace(
                found, model=smooth(found.model, {site: largest[site].max(axis=1) for site in _SMOOTHED}, alpha)
            )
        return found

    def scores(self, model: TextModel, setting: Setting, scales: str, progress: Progress | None) -> Scores:
        """Negative log-likelihoods of a model with these parameters; those after BOS and a token where there is BOS."""
        skip = int(self.windows.bos and not self.absorbed)
        sums = []
        for rows, tokens in batches(self.windows.tokens, progress):
            nll = token_nll(model, tokens, self._edits(rows, setting, scales))
            sums.append(np.sum(nll[:, skip:], axis=1, dtype=np.float64))
        return Scores("perplexity", np.concatenate(sums), self.windows.lengths - 1 - skip)

    def input_shapes(self, method: str, progress: Progress | None) -> list[InputShape]:
        """How far inputs have outliers, nothing rounded."""
        found = self._survey(progress)
        sites = [site for site in _SITES if site not in self.model.config.absent_sites]
        of = {
            site: [float(found[f"{site} {name}"].mean(axis=1).max()) for name in ("kurtosis", "ratio")]
            for site in sites
        }
        return [InputShape(method, site, kurtosis, ratio) for site, (kurtosis, ratio) in of.items()]

    def _without_bos(self) -> _Variant:
        model = self.model
        config, params = absorb_prefix(model.config, model.params, [model.bos_id()])
        windows = dataclasses.replace(self.windows, tokens=self.windows.tokens[:, 1:], bos=False)
        return dataclasses.replace(self, model=model.with_params(config, params), windows=windows, absorbed=True)

    def _edits(self, rows: slice, setting: Setting, scales: str) -> list[Edit]:
        apart = np.zeros(self.windows.tokens.shape, bool) if self.apart is None else self.apart
        value = {
            "on": np.bool_(self.zero),
            "magnitude": np.float32(self.thresholds.magnitude),
            "ratio": np.float32(self.thresholds.ratio),
        }
        return [
            Edit("block_out", layer="all", op=_without_massive, value=value),
            *input_edits(self.model.config, setting.inputs, setting.cache, scales, apart[rows]),
        ]

    def _survey(self, progress: Progress | None) -> dict[str, np.ndarray]:
        """Of every layer, by window [L, W, …], nothing rounded: see `_of_block`."""
        sites = [site for site in _SITES if site not in self.model.config.absent_sites]
        data = np.float32([self.thresholds.magnitude, self.thresholds.ratio])
        measure = Measure("survey", (*sites, "block_out"), _of_block, data)
        found: list[Mapping[str, Any]] = []
        for rows, tokens in batches(self.windows.tokens, progress):
            edits = self._edits(rows, Setting("W16A16"), "tensor")[:1]
            found.append(fetch(self.model(tokens, edits=edits, capture=measure, logits=False).intermediates["survey"]))
        return {name: np.concatenate([part[name] for part in found], axis=1) for name in found[0]}


def _without_massive(x: jax.Array, value: Any) -> jax.Array:
    """The stream [B, T, D] with its massive activations 0, where that is on."""
    return jax.lax.cond(
        value["on"], lambda x: jnp.where(_massive(x, value["magnitude"], value["ratio"]), 0.0, x), lambda x: x, x
    )


def _massive(x: jax.Array, magnitude: jax.Array, ratio: jax.Array) -> jax.Array:
    median = median_magnitude(x)[:, None, None]
    return (jnp.abs(x) > magnitude) & (jnp.abs(x) > ratio * median)


def _of_block(tensors: Mapping[str, Any], data: Any) -> dict[str, jax.Array]:
    """Which tokens have massive activations [B, T]; of each input the largest magnitude of every channel [B, D], the
    kurtosis [B], and the largest over the median [B].
    """
    stream = tensors["block_out"].astype(jnp.float32)
    found = {"massive": _massive(stream, data[0], data[1]).any(axis=-1)}
    for site in _SITES:
        if site not in tensors:
            continue
        x = jnp.abs(tensors[site].astype(jnp.float32))
        axes = tuple(range(1, x.ndim))
        top, square = jnp.max(x, axis=axes, keepdims=True), jnp.square(x)
        if site in _SMOOTHED:
            found[site] = jnp.max(x, axis=1)
        # Over the largest first: fourth powers of massive numbers leave float32.
        square = square / jnp.maximum(jnp.square(top), jnp.finfo(jnp.float32).tiny)
        found[f"{site} kurtosis"] = jnp.mean(jnp.square(square), axis=axes) / jnp.square(jnp.mean(square, axis=axes))
        found[f"{site} ratio"] = top.reshape(-1) / median_magnitude(x)
    return found


def _super_weight(model: TextModel, windows: Windows, progress: Progress | None) -> SuperWeightAt:
    """The one whose loss costs most, by the first window."""
    first = dataclasses.replace(windows, tokens=windows.tokens[:1])
    found = measure_super_weights(model, first, others=1, tested=1)
    if progress is not None:
        progress(first.tokens.size)
    if not found.tested:
        raise ValueError(f"{model.name} has no super weight: nothing that its MLPs add is massive; leave super out.")
    return SuperWeightAt(found.tested[0].layer, found.tested[0].unit, found.tested[0].dim)


def _rounded(model: TextModel, bits: int, scales: str, kept: SuperWeightAt | None) -> TextModel:
    """The model with rounded weights, one of which has no part in it."""
    if kept is None or not bits:
        return model if not bits else round_weights(model, bits, scales)
    at = kept.layer - 1, kept.unit, kept.dim
    weight = mlp_weights(model.config, model.params).down[at]
    found = round_weights(_with_weight(model, at, 0.0), bits, scales)
    return _with_weight(found, at, weight)


def _with_weight(model: TextModel, at: tuple[int, int, int], weight: Any) -> TextModel:
    with mesh_set(mesh_of_params(model.params)):
        down = _set(mlp_weights(model.config, model.params).down, *at, weight)
    return dataclasses.replace(model, params=with_down(model.config, model.params, down))


@jax.jit
def _set(kernel: jax.Array, layer: Any, unit: Any, dim: Any, weight: Any) -> jax.Array:
    return kernel.at[layer, unit, dim].set(weight)
