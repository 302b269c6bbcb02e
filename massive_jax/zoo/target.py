"""How a model is written for transformers, and what of a config its class there cannot say."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from massive_jax.arguments import shown
from massive_jax.models import TransformerConfig, VisionConfig
from massive_jax.weights.table import WeightTable

# Options that a class may have and the model not: what they add is filled with zeros, which changes nothing. A norm's
# scale that is stored minus one is that scale minus one.
FILLED = ("qkv_bias", "key_bias", "out_bias", "mlp_bias", "head_bias", "norm.bias", "norm.unit_offset")
_CLOSE = 1e-12  # relative, of numbers that went through a formula and back


@dataclasses.dataclass(frozen=True)
class Target:
    """Describes how a model is written for transformers.

    Attributes:
      fields: of config.json, without dtype and special tokens.
      config: what they say here: the model's, but for options in `FILLED`.
      table: of the weights, a row a parameter.
      unread: tensors that are zeros, name -> axes (see `Family`).
    """

    fields: Mapping[str, Any]
    config: TransformerConfig | VisionConfig
    table: WeightTable
    unread: Mapping[str, str]


def differences(config: TransformerConfig | VisionConfig, found: TransformerConfig | VisionConfig) -> list[str]:
    """Lists the options of `config` that are others in `found`, and change what is computed."""
    ours, theirs = _said(config), _said(found)
    return [
        f"{name} {shown(value)} (only {shown(theirs.get(name))})"
        for name, value in ours.items()
        if not _same(value, theirs.get(name)) and not (name in FILLED and value is False)
    ]


def _said(config: TransformerConfig | VisionConfig) -> dict[str, Any]:
    """The options that count, "norm.eps" for one inside another; those without effect are left out."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "local_rope":
            value = value or config.rope
        if field.name in ("norm", "rope", "local_rope", "alibi", "experts") and value is not None:
            found |= {f"{field.name}.{inner.name}": getattr(value, inner.name) for inner in dataclasses.fields(value)}
        else:
            found[field.name] = value
    windowed = any(config.windowed_layers) and config.window is not None
    found |= {
        "attention_scale": config.scale,
        "key_bias": config.qkv_bias and config.key_bias,
        "norm.bias": config.norm.has_bias,
        "window": config.window if windowed else None,
        "window_layers": config.windowed_layers if windowed else None,
    }
    unused = ["dtype", "attention_kernel", "model_type"]
    unused += ["norm.alpha"] if config.norm.kind != "dynamic_tanh" else ["norm.eps"]
    unused += ["activation"] if config.experts is not None and config.experts.clamped else []
    for name, used in (("rope", True), ("local_rope", windowed)):
        if config.position != "rope" or not used:
            unused += [option for option in found if option.partition(".")[0] == name]
        elif found.get(f"{name}.kind") not in ("dynamic", "llama3", "yarn"):
            unused.append(f"{name}.original_max_position")
    if isinstance(config, VisionConfig) and config.position == "rope":
        unused += ["interpolation", "class_position"]
    return {name: value for name, value in found.items() if name not in unused}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float | int) and isinstance(b, float | int) and not isinstance(a, bool):
        return math.isclose(a, b, rel_tol=_CLOSE)
    return bool(a == b)
