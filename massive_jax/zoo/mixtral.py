"""Mixtral (arXiv 2401.04088): Mistral with a mixture of experts for an MLP."""

from __future__ import annotations

import dataclasses
from typing import Any

from massive_jax.models.config import ExpertsConfig, TransformerConfig
from massive_jax.weights.table import Row
from massive_jax.zoo import inverse, llama
from massive_jax.zoo.family import Family, Preset
from massive_jax.zoo.fields import Fields


def config(fields: Fields) -> TransformerConfig:
    """Maps `MixtralConfig` to a TransformerConfig. Defaults are those of the Hugging Face class."""
    fields.assume(num_key_value_heads=8, max_position_embeddings=4096 * 32, rms_norm_eps=1e-5)
    fields.ignore("router_aux_loss_coef", "router_jitter_noise", "output_router_logits")
    experts = ExpertsConfig(fields.size("num_local_experts", 8), fields.integer("num_experts_per_tok", 2, least=1))
    window = fields.optional_integer("sliding_window")
    rope = fields.rope(fields.integer("max_position_embeddings", 4096 * 32, least=1), theta=1e6)
    return dataclasses.replace(
        llama.config(fields, rope), mlp="experts", experts=experts, window=window, model_type="mixtral"
    )


def experts_fields(config: TransformerConfig) -> dict[str, Any]:
    """Gives the fields of how many experts there are, and how many a token goes to."""
    experts = config.experts or ExpertsConfig(1, 1)
    return {"num_local_experts": experts.num_experts, "num_experts_per_tok": experts.num_chosen}


def fields_of(config: TransformerConfig) -> dict[str, Any]:
    """Gives the fields of a `MixtralConfig`: the inverse of `config`."""
    return {
        "model_type": "mixtral",
        **llama.decoder_fields(config, "MixtralForCausalLM"),
        **inverse.rope(config),
        **experts_fields(config),
        "sliding_window": config.window,
    }


_LAYER = "model.layers.{l}."
_EXPERT = _LAYER + "block_sparse_moe.experts.{e}."

# Files have a tensor an expert, also those that transformers 5 writes; a tensor of all experts is how it holds them.
TABLE = dataclasses.replace(
    llama.TABLE,
    rows=(
        *llama.TABLE.rows,
        Row(_LAYER + "block_sparse_moe.gate.weight", "layers/experts/router/kernel", "ED->DE"),
        Row(_EXPERT + "w1.weight", "layers/experts/gate", "FD->DF"),
        Row(_EXPERT + "w3.weight", "layers/experts/up", "FD->DF"),
        Row(_EXPERT + "w2.weight", "layers/experts/down", "DF->FD"),
        Row(_LAYER + "mlp.gate.weight", "layers/experts/router/kernel", "ED->DE"),
        Row(_LAYER + "mlp.experts.gate_up_proj", "layers/experts/gate", "E(UF)D->EDF", ("U", "0")),
        Row(_LAYER + "mlp.experts.gate_up_proj", "layers/experts/up", "E(UF)D->EDF", ("U", "1")),
        Row(_LAYER + "mlp.experts.down_proj", "layers/experts/down", "EDF->EFD"),
    ),
)


def _config(*sizes: int, **more: Any) -> dict[str, Any]:
    fixed = {"model_type": "mixtral", "vocab_size": 32000, "rms_norm_eps": 1e-5, "rope_theta": 1e6}
    return llama.shape(*sizes, **fixed | more, num_local_experts=8, num_experts_per_tok=2, sliding_window=None)


_8X7B = _config(4096, 14336, 32, 32, 8, max_position_embeddings=32768)
_8X22B = _config(6144, 16384, 56, 48, 8, max_position_embeddings=65536)
_8X22B_INSTRUCT = _config(6144, 16384, 56, 48, 8, max_position_embeddings=65536, vocab_size=32768)

# llama.cpp writes Mixtral as architecture `llama` with experts: see `massive_jax.zoo.llama.gguf_config`.
FAMILY = Family(
    model_type="mixtral",
    mapping=config,
    fields_of=fields_of,
    table=TABLE,
    presets={
        "mixtral_8x7b": Preset("mistralai/Mixtral-8x7B-v0.1", 46_702_792_704, "Apache-2.0", _8X7B),
        "mixtral_8x7b_instruct": Preset("mistralai/Mixtral-8x7B-Instruct-v0.1", 46_702_792_704, "Apache-2.0", _8X7B),
        "mixtral_8x22b": Preset("mistralai/Mixtral-8x22B-v0.1", 140_620_634_112, "Apache-2.0", _8X22B),
        "mixtral_8x22b_instruct": Preset(
            "mistralai/Mixtral-8x22B-Instruct-v0.1", 140_630_071_296, "Apache-2.0", _8X22B_INSTRUCT
        ),
    },
)
