"""Qwen2 and 2.5 (arXiv 2407.10671, 2412.15115): Llama with biases in query, key and value."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from massive_jax.models.config import TransformerConfig
from massive_jax.zoo import gguf, inverse, llama
from massive_jax.zoo.family import Family, Preset
from massive_jax.zoo.fields import Fields


def windows(fields: Fields, num_layers: int) -> dict[str, Any]:
    """Gives the window of Qwen2 and Qwen3: only with `use_sliding_window`, and not in the first `max_window_layers`."""
    window, first = fields.optional_integer("sliding_window", 4096), fields.integer("max_window_layers", 28)
    if not fields.flag("use_sliding_window", False):
        window = None
    return fields.windows(num_layers, window, [window is not None and i >= first for i in range(num_layers)])


def window_fields(config: TransformerConfig) -> dict[str, Any]:
    """Gives the fields that `windows` reads."""
    return {"use_sliding_window": any(config.windowed_layers), **inverse.windows(config)}


def config(fields: Fields) -> TransformerConfig:
    """Maps `Qwen2Config` to a TransformerConfig."""
    fields.assume(max_position_embeddings=32768, num_key_value_heads=32)
    base = llama.config(fields)
    return dataclasses.replace(
        base, qkv_bias=True, out_bias=False, model_type="qwen2", **windows(fields, base.num_layers)
    )


def fields_of(config: TransformerConfig) -> dict[str, Any]:
    """Gives the fields of a `Qwen2Config`: the inverse of `config`."""
    return {
        "model_type": "qwen2",
        **llama.decoder_fields(config, "Qwen2ForCausalLM"),
        **inverse.rope(config),
        **window_fields(config),
    }


def gguf_config(metadata: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Maps the metadata of a `qwen2` GGUF file to the fields of a `Qwen2Config`. llama.cpp knows no window here."""
    return gguf.Metadata(metadata, names).decoder("qwen2")


def _shape(*sizes: int, **more: Any) -> dict[str, Any]:
    fixed = {"model_type": "qwen2", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "max_position_embeddings": 32768}
    return llama.shape(*sizes, **fixed | more)


_TIED = {"vocab_size": 151936, "tie_word_embeddings": True}
_0B5, _1B5 = _shape(896, 4864, 24, 14, 2, **_TIED), _shape(1536, 8960, 28, 12, 2, **_TIED)
_3B = _shape(2048, 11008, 36, 16, 2, **_TIED)
_7B = _shape(3584, 18944, 28, 28, 4, vocab_size=152064)
_LONG = {"max_position_embeddings": 131072}

PRESETS = {
    "qwen2_0.5b": Preset("Qwen/Qwen2-0.5B", 494_032_768, "Apache-2.0", _0B5 | _LONG),
    "qwen2_1.5b": Preset("Qwen/Qwen2-1.5B", 1_543_714_304, "Apache-2.0", _1B5 | _LONG),
    "qwen2_7b": Preset("Qwen/Qwen2-7B", 7_615_616_512, "Apache-2.0", _7B | _LONG),
    "qwen2.5_0.5b": Preset("Qwen/Qwen2.5-0.5B", 494_032_768, "Apache-2.0", _0B5),
    "qwen2.5_0.5b_instruct": Preset("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768, "Apache-2.0", _0B5),
    "qwen2.5_1.5b": Preset("Qwen/Qwen2.5-1.5B", 1_543_714_304, "Apache-2.0", _1B5 | _LONG),
    "qwen2.5_3b": Preset("Qwen/Qwen2.5-3B", 3_085_938_688, "Qwen Research", _3B),
    "qwen2.5_7b": Preset("Qwen/Qwen2.5-7B", 7_615_616_512, "Apache-2.0", _7B | _LONG),
    "qwen2.5_7b_instruct": Preset("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512, "Apache-2.0", _7B),
}

FAMILY = Family(
    model_type="qwen2",
    mapping=config,
    fields_of=fields_of,
    table=llama.TABLE,
    presets=PRESETS,
    gguf_architecture="qwen2",
    gguf_config=gguf_config,
    gguf_table=gguf.decoder_table(),
)
