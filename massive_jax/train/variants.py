"""What is said to prevent attention sinks or massive activations, as changes of a training: a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from massive_jax.models import AttentionBias
from massive_jax.models.attention_bias import ATTENTION_BIASES
from massive_jax.train.config import TrainConfig
from massive_jax.train.presets import with_options

_PAPER = "arXiv 2402.17762"
_CLIP = 1.0  # tens of medians of what `--preset=emergence` trains: room for all but massive activations
_SGD = 50.0  # times Adam's rate: 0.1 to 0.2 with the presets', what is usual of SGD


@dataclasses.dataclass(frozen=True)
class Variant:
    """Describes how a training differs from the preset's.

    Attributes:
      words: what is different.
      source: who proposed it, or tried it.
      model: other options of the model, as `massive_jax.train.presets.with_options` takes them.
      optimizer: other fields of its `OptimizerConfig`.
      rate: what both learning rates are multiplied by; weight decay, which is times the rate, is divided by it.
    """

    words: str
    source: str
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    optimizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rate: float = 1.0

    def of(self, config: TrainConfig) -> TrainConfig:
        """Gives `config` with these changes.

        Raises:
          ValueError: options that do not go together with those of `config`.
        """
        of_preset, rate = config.optimizer, self.rate
        optimizer = dataclasses.replace(
            of_preset,
            learning_rate=rate * of_preset.learning_rate,
            final_learning_rate=rate * of_preset.final_learning_rate,
            weight_decay=of_preset.weight_decay / rate,
        )
        return dataclasses.replace(
            config,
            model=with_options(config.model, self.model),
            optimizer=dataclasses.replace(optimizer, **self.optimizer),
        )


def _bias(kind: str, source: str) -> Variant:
    return Variant(ATTENTION_BIASES[kind].words, source, {"attention_bias": AttentionBias(kind)})


VARIANTS: Mapping[str, Variant] = {
    "none": Variant("the preset as it is", _PAPER),
    "sink_token": _bias("sink_token", f"{_PAPER}, section 5"),
    "kv": _bias("kv", f"{_PAPER}, section 5"),
    "k": _bias("k", "arXiv 2410.10781"),
    "v": _bias("v", "arXiv 2410.10781"),
    "softmax1": _bias("softmax1", "arXiv 2410.17174"),
    "sink": _bias("sink", "gpt-oss, arXiv 2508.10925"),
    "gate_head": _bias("gate_head", "arXiv 2505.06708"),
    "gate_element": _bias("gate_element", "arXiv 2505.06708"),
    "sigmoid": _bias("sigmoid", "arXiv 2410.10781"),
    "post_norm": Variant("norms after each addition", "arXiv 1706.03762", {"norm_placement": "after_residual"}),
    "sandwich": Variant("norms before and after", "arXiv 2105.13290", {"norm_placement": "pre_and_output"}),
    "output_norm": Variant(
        "norms on what attention and MLP add, none before", "arXiv 2501.00656", {"norm_placement": "output"}
    ),
    "dynamic_tanh": Variant("tanh(α·x) in place of every norm", "arXiv 2503.10622", {"norm": {"kind": "dynamic_tanh"}}),
    "single_scale": Variant("norms with one scale for all dims", "arXiv 2506.19697", {"norm": {"single_scale": True}}),
    "value_scale": Variant("values scaled by their norm (V-scale)", "arXiv 2603.17771", {"value_scale": "learned"}),
    "clip": Variant(f"the residual stream clipped to ± {_CLIP:g}", "arXiv 2601.22966", {"clip_residual": _CLIP}),
    "muon": Variant("Muon for the matrices", "arXiv 2502.16982", optimizer={"kind": "muon"}),
    "sgd": Variant("SGD with momentum in place of Adam", "arXiv 2410.13835", optimizer={"kind": "sgd"}, rate=_SGD),
}
"""Name -> variant."""


def variants_named(names: Sequence[str]) -> dict[str, Variant]:
    """Gives the variants called `names`, in that order; those of "all" are every one.

    Raises:
      ValueError: no names; names that there are not, with those that there are; one that is given twice; "all" and
        others.
    """
    names = list(VARIANTS) if list(names) == ["all"] else list(names)
    if not names:
        raise ValueError(f"no variants; give some of {', '.join(VARIANTS)}, or all.")
    if "all" in names:
        raise ValueError("variants all and others; give all alone, or names.")
    if unknown := [name for name in names if name not in VARIANTS]:
        raise ValueError(f"no variants {', '.join(map(repr, unknown))}; there are {', '.join(VARIANTS)}, and all.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"variants given twice: {', '.join(twice)}; give each once.")
    return {name: VARIANTS[name] for name in names}
