"""The zoo: families by model type, presets by name, and the mapping of a checkpoint's config."""

from __future__ import annotations

import difflib
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from massive_jax import files
from massive_jax.models import TransformerConfig, VisionConfig
from massive_jax.weights.source import Source, TensorInfo
from massive_jax.weights.table import WeightTable
from massive_jax.zoo import (
    clip,
    dinov2,
    dinov3,
    falcon,
    gemma,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    gpt_oss,
    gptj,
    llama,
    mistral,
    mixtral,
    mpt,
    nanogpt,
    olmo2,
    opt,
    phi,
    qwen2,
    qwen3,
    timm,
    vit,
)
from massive_jax.zoo.family import Family, Preset, WheelFile
from massive_jax.zoo.fields import Fields
from massive_jax.zoo.gguf_metadata import read_config
from massive_jax.zoo.target import Target, differences

_LANGUAGE = (
    falcon.FAMILY,
    gemma.FAMILY,
    gemma2.FAMILY,
    gemma3.FAMILY,
    gemma3.MULTIMODAL,
    gpt2.FAMILY,
    gpt_neox.FAMILY,
    gpt_oss.FAMILY,
    gptj.FAMILY,
    llama.FAMILY,
    mistral.FAMILY,
    mixtral.FAMILY,
    mpt.FAMILY,
    nanogpt.FAMILY,
    olmo2.FAMILY,
    opt.FAMILY,
    phi.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
)
_VISION = (
    dinov2.FAMILY,
    dinov2.WITH_REGISTERS,
    dinov3.FAMILY,
    vit.FAMILY,
    vit.MAE,
    clip.CLIP,
    clip.CLIP_VISION,
    clip.SIGLIP,
    clip.SIGLIP_VISION,
    timm.FAMILY,
    timm.GATED,
)
FAMILIES: Mapping[str, Family] = {family.model_type: family for family in (*_LANGUAGE, *_VISION)}
PRESETS: Mapping[str, Preset] = {name: p for family in FAMILIES.values() for name, p in family.presets.items()}
DEFAULT_MODEL = "smollm2_135m_instruct_q4_1"

__all__ = [
    "DEFAULT_MODEL",
    "FAMILIES",
    "PRESETS",
    "Family",
    "Preset",
    "Target",
    "WheelFile",
    "describe",
    "full_name",
    "map_config",
    "near",
    "target",
]


def full_name(name: str) -> str:
    """Gives the name of a preset that says what it is: `name`, or the one that it is short for; others as they are."""
    preset = PRESETS.get(name)
    return name if preset is None or preset.alias_of is None else preset.alias_of


def near(name: str) -> list[str]:
    """Lists the zoo names that someone who wrote `name` may have meant, the likeliest first; the default one always."""
    written = re.sub(r"[\s-]", "_", pathlib.PurePath(name[:256]).name.lower())
    return list(dict.fromkeys([*difflib.get_close_matches(written, PRESETS, n=4), DEFAULT_MODEL]))


def describe(source: Source) -> tuple[TransformerConfig | VisionConfig, WeightTable]:
    """Gives the config of the model in `source`, and the table to read its weights by.

    Raises:
      ValueError: a model type or GGUF architecture no family has (the message lists those there are), or a config
        field that would change the result and is not implemented.
    """
    table: WeightTable | None
    if source.format == "gguf":
        architecture = source.config.get("general.architecture")
        families = {f.gguf_architecture: f for f in FAMILIES.values() if f.gguf_architecture}
        family = families.get(architecture) if isinstance(architecture, str) else None
        if family is None or family.gguf_config is None or family.gguf_table is None:
            raise ValueError(
                f"{source.location}: GGUF architecture {files.shown(architecture)} is not supported; supported: "
                f"{', '.join(sorted(map(str, families)))}."
            )
        config = read_config(source, family.gguf_config)
        table = family.gguf_table
    else:
        config, table = source.config, None
    mapped, family = map_config(config, source.location, source.tensors)
    return mapped, (table or family.table).spelled(source.tensors.keys())


def map_config(
    config: Mapping[str, Any], location: str, tensors: Mapping[str, TensorInfo] | None = None
) -> tuple[TransformerConfig | VisionConfig, Family]:
    """Gives the config of this project that a Hugging Face config says, and its family.

    Args:
      config: fields as in `config.json`.
      location: names their file in messages.
      tensors: the weights beside it, which bound what it can ask for; None where there are none.

    Raises:
      ValueError: as `describe`.
    """
    if "model_type" not in config and "architecture" in config:
        config = {**config, "model_type": timm.model_type(str(config["architecture"]))}
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(
            f"{location}: model_type {files.shown(model_type)} is not supported; supported: "
            f"{', '.join(sorted(FAMILIES))}."
        )
    fields, family = Fields(config, location, tensors), FAMILIES[model_type]
    mapped = family.config(fields)
    fields.finish()
    return mapped, family


def target(config: TransformerConfig | VisionConfig, name: str) -> Target:
    """Gives how a model of `config` is written for transformers: the inverse of `map_config`.

    The family is the config's own, or the first one that can say all of it.

    Args:
      config: of the model.
      name: of the model, for messages.

    Raises:
      ValueError: no class of transformers computes the same; it names the options that the nearest one does not have.
    """
    families = _VISION if isinstance(config, VisionConfig) else _LANGUAGE
    own = next((family for family in families if family.model_type == config.model_type), None)
    refused: list[tuple[int, str]] = []
    for family in sorted(families, key=lambda family: family is not own):
        if family.fields_of is None:
            continue
        fields = family.fields_of(config)
        try:
            found, read_by = map_config(fields, name)
        except ValueError as error:
            refused.append((len(fields), str(error)))  # of all its fields: the others tell more
            continue
        if not (cannot := differences(config, found)):
            return Target(fields, found, read_by.table.spelled(read_by.spelling(found)), read_by.unread)
        its_class = fields.get("architectures", ["the model"])[0]
        refused.append((len(cannot), f"{name}: transformers' {its_class} cannot say {files.listed(cannot, 8)}."))
    _, message = min(refused, key=lambda one: one[0])  # of as many its own, which is first
    if getattr(config, "attention_bias", None) is not None:
        message += " An attention bias stays in this project's own checkpoints (save), or remove_bias takes it out."
    raise ValueError(message)
