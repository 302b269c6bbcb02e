"""OLMo 2 (arXiv 2501.00656): norms on what attention and MLP add, and over all queries and keys at once.

The negative control: OLMo-2-7B has no massive activations (arXiv 2503.22329).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from massive_jax.models.config import TransformerConfig
from massive_jax.zoo import gguf, inverse, llama
from massive_jax.zoo.family import Family, Preset
from massive_jax.zoo.fields import Fields


def config(fields: Fields) -> TransformerConfig:
    """Maps `Olmo2Config` to a TransformerConfig."""
    fields.assume(rms_norm_eps=1e-5)
    return dataclasses.replace(llama.config(fields), norm_placement="output", qk_norm="full", model_type="olmo2")


def fields_of(config: TransformerConfig) -> dict[str, Any]:
    """Gives the fields of a `Olmo2Config`: the inverse of `config`."""
    return {
        "model_type": "olmo2",
        **llama.decoder_fields(config, "Olmo2ForCausalLM"),
        **inverse.rope(config),
        **llama.biases(config),
    }


def gguf_config(metadata: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Maps the metadata of an `olmo2` GGUF file to the fields of an `Olmo2Config`. OLMo 3's windows are refused."""
    values = gguf.Metadata(metadata, names)
    if values.integer("attention.sliding_window", 0, least=0):
        raise ValueError(
            f"the GGUF file is an OLMo 3 (it has a sliding window, {values.key('attention.sliding_window')}), which is"
            " not implemented."
        )
    return values.decoder("olmo2")


def _shape(*sizes: int) -> dict[str, Any]:
    fixed = {"vocab_size": 100352, "rms_norm_eps": 1e-6, "rope_theta": 500000.0, "max_position_embeddings": 4096}
    return llama.shape(*sizes, model_type="olmo2", **fixed)


_7B, _13B = _shape(4096, 11008, 32, 32, 32), _shape(5120, 13824, 40, 40, 40)

PRESETS = {
    "olmo2_1b": Preset("allenai/OLMo-2-0425-1B", 1_484_916_736, "Apache-2.0", _shape(2048, 8192, 16, 16, 16)),
    "olmo2_7b": Preset("allenai/OLMo-2-1124-7B", 7_298_617_344, "Apache-2.0", _7B),
    "olmo2_7b_instruct": Preset("allenai/OLMo-2-1124-7B-Instruct", 7_298_617_344, "Apache-2.0", _7B),
    "olmo2_13b": Preset("allenai/OLMo-2-1124-13B", 13_716_198_400, "Apache-2.0", _13B),
    "olmo2_32b": Preset("allenai/OLMo-2-0325-32B", 32_234_279_936, "Apache-2.0", _shape(5120, 27648, 64, 40, 8)),
}

FAMILY = Family(
    model_type="olmo2",
    mapping=config,
    fields_of=fields_of,
    table=llama.decoder_table(output_norms=True, full_qk_norm=True),
    presets=PRESETS,
    gguf_architecture="olmo2",
    gguf_config=gguf_config,
    gguf_table=gguf.decoder_table(full_qk_norm=True),
)
