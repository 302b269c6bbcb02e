"""gpt-oss (arXiv 2508.10925): a learned sink a head, every other layer with a window, many experts with biases."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from massive_jax.models.config import AttentionBias, ExpertsConfig, TransformerConfig
from massive_jax.weights.table import Row
from massive_jax.zoo import gguf, inverse, llama, mixtral
from massive_jax.zoo.family import Family, Preset
from massive_jax.zoo.fields import Fields

_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def config(fields: Fields) -> TransformerConfig:
    """Maps `GptOssConfig` to a TransformerConfig. Defaults are those of the Hugging Face class."""
    fields.assume(head_dim=64, num_key_value_heads=8, max_position_embeddings=131072, rms_norm_eps=1e-5)
    fields.assume(attention_bias=True)
    # `initial_context_length` and `experts_per_token` repeat what the fields that are read say.
    fields.ignore("initial_context_length", "experts_per_token")
    fields.ignore("router_aux_loss_coef", "router_jitter_noise", "output_router_logits")
    num_layers = fields.layers("num_hidden_layers")
    experts = ExpertsConfig(
        fields.size("num_local_experts", 128),
        fields.integer("num_experts_per_tok", 4, least=1),
        clamped=True,
        swiglu_limit=fields.number("swiglu_limit", 7.0, positive=True),
        swiglu_alpha=fields.number("swiglu_alpha", 1.702),
    )
    alternating = [layer % 2 == 0 for layer in range(num_layers)]
    windows = fields.windows(num_layers, fields.optional_integer("sliding_window", 128), alternating)
    rope = fields.rope(fields.integer("max_position_embeddings", 131072, least=1), theta=150000.0, default=_YARN)
    return dataclasses.replace(
        llama.config(fields, rope),
        **windows,
        mlp="experts",
        experts=experts,
        attention_bias=AttentionBias("sink"),
        model_type="gpt_oss",
    )


def _plain_rope(config: TransformerConfig) -> dict[str, Any]:
    """Settings without scaling, which have to be said: the class has YaRN where nothing is."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": config.rope.theta}}


def fields_of(config: TransformerConfig) -> dict[str, Any]:
    """Gives the fields of a `GptOssConfig`: the inverse of `config`."""
    experts = config.experts or ExpertsConfig(1, 1)
    return {
        "model_type": "gpt_oss",
        **llama.decoder_fields(config, "GptOssForCausalLM"),
        **(inverse.rope(config) if config.rope.kind != "default" else _plain_rope(config)),
        **llama.biases(config),
        **mixtral.experts_fields(config),
        "swiglu_limit": experts.swiglu_limit,
        "swiglu_alpha": experts.swiglu_alpha,
        **inverse.windows(config),
    }


_LAYER = "model.layers.{l}."
_EXPERTS = _LAYER + "mlp.experts."

# Gate and linear half are neighbours along the last axis. The published checkpoints hold these tensors in MXFP4, which
# the source unpacks (see `massive_jax.weights.mxfp4`).
TABLE = dataclasses.replace(
    llama.TABLE,
    rows=(
        *llama.TABLE.rows,
        Row(_LAYER + "self_attn.sinks", "layers/attn/slots/logit"),
        Row(_LAYER + "mlp.router.weight", "layers/experts/router/kernel", "ED->DE"),
        Row(_LAYER + "mlp.router.bias", "layers/experts/router/bias"),
        Row(_EXPERTS + "gate_up_proj", "layers/experts/gate", "ED(FU)->EDF", ("U", "0")),
        Row(_EXPERTS + "gate_up_proj", "layers/experts/up", "ED(FU)->EDF", ("U", "1")),
        Row(_EXPERTS + "down_proj", "layers/experts/down"),
        Row(_EXPERTS + "gate_up_proj_bias", "layers/experts/gate_bias", "E(FU)->EF", ("U", "0")),
        Row(_EXPERTS + "gate_up_proj_bias", "layers/experts/up_bias", "E(FU)->EF", ("U", "1")),
        Row(_EXPERTS + "down_proj_bias", "layers/experts/down_bias"),
    ),
)


def gguf_config(metadata: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Maps the metadata of a `gpt-oss` GGUF file to the fields of a `GptOssConfig`."""
    values = gguf.Metadata(metadata, names)
    fields = values.decoder("gpt_oss", feed_forward="expert_feed_forward_length") | values.experts()
    values.per_layer("feed_forward_length", None)  # as Hugging Face's config has it, which is the experts'
    values.integer("attention.sliding_window")  # there is one in every file
    rope = fields["rope_parameters"]
    values.only("rope.freq_base_swa", rope["rope_theta"])
    if rope["rope_type"] == "yarn":
        rope["truncate"] = False  # not stored: this is how the model was trained
    return fields | values.windows(period=2)


GGUF_TABLE = gguf.decoder_table(
    Row(gguf.BLOCK + "attn_sinks.weight", "layers/attn/slots/logit"),
    Row(gguf.BLOCK + "post_attention_norm.weight", "layers/mlp_norm/scale"),
)


def _config(layers: int, experts: int) -> dict[str, Any]:
    fixed = {"model_type": "gpt_oss", "vocab_size": 201088, "head_dim": 64, "max_position_embeddings": 131072}
    more = {"num_local_experts": experts, "num_experts_per_tok": 4, "sliding_window": 128, "rope_scaling": _YARN}
    return llama.shape(2880, 2880, layers, 64, 8, **fixed, **more)


FAMILY = Family(
    model_type="gpt_oss",
    mapping=config,
    fields_of=fields_of,
    table=TABLE,
    presets={
        "gpt_oss_20b": Preset("openai/gpt-oss-20b", 20_914_757_184, "Apache-2.0", _config(24, 32)),
        "gpt_oss_120b": Preset("openai/gpt-oss-120b", 116_829_156_672, "Apache-2.0", _config(36, 128)),
    },
    gguf_architecture="gpt-oss",
    gguf_config=gguf_config,
    gguf_table=GGUF_TABLE,
)
