"""What a quantisation costs, as numbers."""

from __future__ import annotations

import dataclasses

from massive_jax.analysis.bootstrap import Interval


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Holds what a model scores at one setting. Intervals are 95 %, by a bootstrap over windows or images.

    Attributes:
      setting: as `massive_jax.quantize.parse_setting` reads it.
      scales: what shares a scale, a name in `massive_jax.quantize.SCALES`.
      method: what was done beside rounding, parts joined by "+".
      score: perplexity of a text; of images the share whose most likely class stays ("top1_agreement") or, of a model
        without a head, the cosine similarity of pooled features with the unquantised model's.
      cost: how far the loss, in nats a token, is above the unquantised model's, paired over windows; of images how far
        the classes' probabilities are from the unquantised ones (Kullback and Leibler's divergence, in nats an image)
        or, without a head, 1 less the cosine similarity.
    """

    setting: str
    scales: str
    method: str
    score: Interval
    cost: Interval


@dataclasses.dataclass(frozen=True)
class InputShape:
    """Says how far the inputs of the linear maps of one kind have outliers, in the layer where it is most.

    Attributes:
      method: what was done; nothing is rounded.
      site: of the inputs.
      kurtosis: fourth moment over the squared second, about 0, of a sequence's tensor, mean over windows; 3 for a
        normal distribution.
      ratio: largest magnitude over the median one, likewise.
    """

    method: str
    site: str
    kurtosis: float
    ratio: float


@dataclasses.dataclass(frozen=True)
class SuperWeightAt:
    """Says which weight of the down projections was kept: layer (1-based), row and column."""

    layer: int
    unit: int
    dim: int


@dataclasses.dataclass(frozen=True)
class Quantization:
    """Holds what `massive_jax.evaluate.measure_quantization` finds.

    Attributes:
      metric: what scores are: "perplexity", "top1_agreement" or "cosine_similarity".
      unquantised: the model's score as it is.
      outcomes: by scales, setting, method.
      inputs: by method and site.
      super_weight: which was kept; None where none was asked for.
    """

    metric: str
    unquantised: Interval
    outcomes: tuple[Outcome, ...]
    inputs: tuple[InputShape, ...]
    super_weight: SuperWeightAt | None = None
