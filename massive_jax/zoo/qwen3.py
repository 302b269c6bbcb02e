"""Qwen3 (arXiv 2505.09388): Llama with a norm of every query and key head, and no biases."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from massive_jax.models.config import TransformerConfig
from massive_jax.zoo import gguf, inverse, llama, qwen2
from massive_jax.zoo.family import Family, Preset
from massive_jax.zoo.fields import Fields


def config(fields: Fields) -> TransformerConfig:
    """Maps `Qwen3Config` to a TransformerConfig."""
    fields.assume(max_position_embeddings=32768, num_key_value_heads=32, head_dim=128)
    base = llama.config(fields)
    return dataclasses.replace(base, qk_norm="head", model_type="qwen3", **qwen2.windows(fields, base.num_layers))


def fields_of(config: TransformerConfig) -> dict[str, Any]:
    """Gives the fields of a `Qwen3Config`: the inverse of `config`."""
    return {
        "model_type": "qwen3",
        **llama.decoder_fields(config, "Qwen3ForCausalLM"),
        **inverse.rope(config),
        **llama.biases(config),
        **qwen2.window_fields(config),
    }


def gguf_config(metadata: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Maps the metadata of a `qwen3` GGUF file to the fields of a `Qwen3Config`. llama.cpp knows no window here."""
    return gguf.Metadata(metadata, names).decoder("qwen3")


def _shape(*sizes: int, **more: Any) -> dict[str, Any]:
    fixed = {"vocab_size": 151936, "head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0}
    return llama.shape(*sizes, model_type="qwen3", **fixed, **more)


_CHAT, _BASE = {"max_position_embeddings": 40960}, {"max_position_embeddings": 32768}
_0B6 = _shape(1024, 3072, 28, 16, 8, tie_word_embeddings=True)
_1B7 = _shape(2048, 6144, 28, 16, 8, tie_word_embeddings=True)
_4B = _shape(2560, 9728, 36, 32, 8, tie_word_embeddings=True)
_8B, _14B = _shape(4096, 12288, 36, 32, 8), _shape(5120, 17408, 40, 40, 8)
_32B = _shape(5120, 25600, 64, 64, 8)

# The files of 0.6B and 1.7B hold the tied head a second time, which counts them 751,632,384 and 2,031,739,904.
PRESETS = {
    "qwen3_0.6b": Preset("Qwen/Qwen3-0.6B", 596_049_920, "Apache-2.0", _0B6 | _CHAT),
    "qwen3_0.6b_base": Preset("Qwen/Qwen3-0.6B-Base", 596_049_920, "Apache-2.0", _0B6 | _BASE),
    "qwen3_1.7b": Preset("Qwen/Qwen3-1.7B", 1_720_574_976, "Apache-2.0", _1B7 | _CHAT),
    "qwen3_4b": Preset("Qwen/Qwen3-4B", 4_022_468_096, "Apache-2.0", _4B | _CHAT),
    "qwen3_8b": Preset("Qwen/Qwen3-8B", 8_190_735_360, "Apache-2.0", _8B | _CHAT),
    "qwen3_8b_base": Preset("Qwen/Qwen3-8B-Base", 8_190_735_360, "Apache-2.0", _8B | _BASE),
    "qwen3_14b": Preset("Qwen/Qwen3-14B", 14_768_307_200, "Apache-2.0", _14B | _CHAT),
    "qwen3_32b": Preset("Qwen/Qwen3-32B", 32_762_123_264, "Apache-2.0", _32B | _CHAT),
}

FAMILY = Family(
    model_type="qwen3",
    mapping=config,
    fields_of=fields_of,
    table=llama.TABLE,
    presets=PRESETS,
    gguf_architecture="qwen3",
    gguf_config=gguf_config,
    gguf_table=gguf.decoder_table(),
)
