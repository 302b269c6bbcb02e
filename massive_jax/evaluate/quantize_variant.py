"""A model after what is done against the loss of a quantisation: what it is run on, edited by, and judged by.

Axis letters: see `massive_jax.probe.sites`; W windows or images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from massive_jax.analysis import Interval, Thresholds
from massive_jax.bias import absorb_prefix
from massive_jax.data.windows import Windows
from massive_jax.evaluate.agreement import Images, cosine_similarity
from massive_jax.evaluate.batches import Progress, batches, input_length
from massive_jax.evaluate.perplexity import token_nll
from massive_jax.evaluate.scores import Scores
from massive_jax.model import ImageModel, Model, TextModel
from massive_jax.parallel import fetch
from massive_jax.probe import Edit, Measure
from massive_jax.probe.order_statistics import median_magnitude
from massive_jax.quantize import LINEAR_INPUTS, InputShape, Setting, input_edits, rotate, smooth

UNQUANTISED = Setting("W16A16")
_SITES = LINEAR_INPUTS[:-1]  # those of a block
_SMOOTHED = ("attn_norm", "mlp_norm", "mlp_hidden")


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model after a method, what it is run on, and what the edits of the method need."""

    model: Model
    data: Windows | Images
    thresholds: Thresholds
    zero: bool = False
    apart: np.ndarray | None = None  # bool [W, T]
    absorbed: bool = False

    def after(self, method: Sequence[str], seed: int, alpha: float, progress: Progress | None) -> Variant:
        """What comes of a method's parts."""
        found, straight = self, self
        if "rotate" in method:
            found = dataclasses.replace(self, model=rotate(TextModel.of(self.model), seed))
        if "absorb" in method:
            found, straight = found._without_bos(), self._without_bos()
        found = dataclasses.replace(found, zero="zero" in method)
        if "apart" in method:  # a rotation does not change which tokens these are, but it hides them
            found = dataclasses.replace(found, apart=np.asarray(straight._survey(progress)["massive"].any(axis=0)))
        if "smooth" in method:
            survey = found._survey(progress)
            largest = {site: survey[site].max(axis=1) for site in _SMOOTHED}
            found = dataclasses.replace(found, model=smooth(found.model, largest, alpha))
        return found

    @property
    def metric(self) -> str:
        """What the model is judged by: see `Scores`."""
        if isinstance(self.data, Windows):
            return "perplexity"
        return "top1_agreement" if ImageModel.of(self.model).config.num_classes else "cosine_similarity"

    def run(self, model: Model, setting: Setting, scales: str, progress: Progress | None) -> np.ndarray:
        """What a model with these parameters gives: of a text the negative log-likelihood of each window [W], of the
        tokens after BOS and another one where there is BOS; of images logits or pooled features [W, V].
        """
        found = []
        skip = int(isinstance(self.data, Windows) and self.data.bos and not self.absorbed)
        for rows, inputs in self._batches(progress):
            edits = self._edits(rows, setting, scales)
            if isinstance(self.data, Windows):
                nll = token_nll(model, inputs, edits)
                found.append(np.sum(nll[:, skip:], axis=1, dtype=np.float64))
            else:
                out = model(inputs, edits=edits)
                found.append(np.asarray(fetch(out.pooled if out.logits is None else out.logits), np.float64))
        return np.concatenate(found)

    def judge(self, found: np.ndarray, unquantised: np.ndarray) -> tuple[Interval, Interval]:
        """What a run scores, and what it costs: see `Outcome`."""
        from scipy.special import log_softmax

        if isinstance(self.data, Windows):
            counts = self.data.lengths - 1 - int(self.data.bos and not self.absorbed)
            ours, theirs = (Scores("perplexity", sums, counts) for sums in (found, unquantised))
            return ours.estimate(), ours.mean_difference(theirs)
        if self.metric == "top1_agreement":
            agreement = (found.argmax(axis=-1) == unquantised.argmax(axis=-1)).astype(np.float64)
            log_p, log_q = (log_softmax(x, axis=-1) for x in (unquantised, found))
            cost = np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)
        else:
            agreement = cosine_similarity(found, unquantised)
            cost = 1 - agreement
        ones = np.ones(len(found), int)
        return Scores(self.metric, agreement, ones).estimate(), Scores("cost", cost, ones).estimate()

    def input_shapes(self, method: str, progress: Progress | None) -> list[InputShape]:
        """How far inputs have outliers, nothing rounded."""
        found = self._survey(progress)
        sites = [site for site in _SITES if site not in self.model.config.absent_sites]
        of = {
            site: [float(found[f"{site} {name}"].mean(axis=1).max()) for name in ("kurtosis", "ratio")]
            for site in sites
        }
        return [InputShape(method, site, kurtosis, ratio) for site, (kurtosis, ratio) in of.items()]

    def _without_bos(self) -> Variant:
        assert isinstance(self.data, Windows)
        model = TextModel.of(self.model)
        config, params = absorb_prefix(model.config, model.params, [model.bos_id()])
        windows = dataclasses.replace(self.data, tokens=self.data.tokens[:, 1:], bos=False)
        return dataclasses.replace(self, model=model.with_params(config, params), data=windows, absorbed=True)

    def _batches(self, progress: Progress | None) -> Any:
        return batches(self.data.inputs, progress, input_length(self.model, self.data.inputs))

    def _edits(self, rows: slice, setting: Setting, scales: str) -> list[Edit]:
        value = {
            "on": np.bool_(self.zero),
            "magnitude": np.float32(self.thresholds.magnitude),
            "ratio": np.float32(self.thresholds.ratio),
        }
        inputs = self.data.inputs
        apart = np.zeros((len(inputs), input_length(self.model, inputs)), bool) if self.apart is None else self.apart
        return [
            Edit("block_out", layer="all", op=_without_massive, value=value),
            *input_edits(self.model.config, setting.inputs, setting.cache, scales, apart[rows]),
        ]

    def _survey(self, progress: Progress | None) -> dict[str, np.ndarray]:
        """Of every layer, by window [L, W, …], nothing rounded: see `_of_block`."""
        sites = [site for site in _SITES if site not in self.model.config.absent_sites]
        data = np.array([self.thresholds.magnitude, self.thresholds.ratio], np.float32)
        measure = Measure("survey", (*sites, "block_out"), _of_block, data)
        found: list[Mapping[str, Any]] = []
        for rows, inputs in self._batches(progress):
            edits = self._edits(rows, UNQUANTISED, "tensor")[:1]
            found.append(fetch(self.model(inputs, edits=edits, capture=measure, logits=False).intermediates["survey"]))
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
