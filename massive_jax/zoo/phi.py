"""Phi-1, 1.5 and 2 (arXiv 2306.11644, 2309.05463): attention and MLP in parallel behind one norm, partial rotary."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from massive_jax.models.config import NormConfig, TransformerConfig
from massive_jax.weights.table import Row, WeightTable
from massive_jax.zoo import gguf, inverse
from massive_jax.zoo.family import Family, Preset
from massive_jax.zoo.fields import Fields


def config(fields: Fields) -> TransformerConfig:
    """Maps `PhiConfig` to a TransformerConfig. Defaults are those of the Hugging Face class."""
    max_position = fields.integer("max_position_embeddings", 2048, least=1)
    blocks = fields.blocks(kv_heads="num_key_value_heads")
    return TransformerConfig(
        vocab_size=fields.size("vocab_size"),
        **blocks,
        intermediate_size=fields.size("intermediate_size"),
        max_position=max_position,
        norm=NormConfig("layer", fields.number("layer_norm_eps", 1e-5, least=0)),
        residual="parallel_shared_norm",
        rope=fields.rope(max_position, head_dim=blocks["head_dim"], partial=0.5),
        qkv_bias=True,
        out_bias=True,
        qk_norm="head" if fields.flag("qk_layernorm", False) else None,
        mlp="plain",
        activation=fields.activation("gelu_new"),
        mlp_bias=True,
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        head_bias=True,
        model_type="phi",
    )


def fields_of(config: TransformerConfig) -> dict[str, Any]:
    """Gives the fields of a `PhiConfig`: the inverse of `config`."""
    return {
        "model_type": "phi",
        "architectures": ["PhiForCausalLM"],
        "vocab_size": config.vocab_size,
        **inverse.blocks(config, kv_heads="num_key_value_heads"),
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position,
        "layer_norm_eps": config.norm.eps,
        **inverse.rope(config, partial_field="partial_rotary_factor"),
        "qk_layernorm": config.qk_norm is not None,
        **inverse.activation(config),
        "tie_word_embeddings": config.tie_embeddings,
    }


_LAYER = "model.layers.{l}."

TABLE = WeightTable(
    rows=(
        Row("model.embed_tokens.weight", "embedding"),
        Row("model.final_layernorm.weight", "norm/scale"),
        Row("model.final_layernorm.bias", "norm/bias"),
        Row("lm_head.weight", "head"),
        Row("lm_head.bias", "head_bias"),
        Row(_LAYER + "input_layernorm.weight", "layers/attn_norm/scale"),
        Row(_LAYER + "input_layernorm.bias", "layers/attn_norm/bias"),
        Row(_LAYER + "self_attn.q_proj.weight", "layers/attn/query/kernel", "(HN)D->DHN"),
        Row(_LAYER + "self_attn.k_proj.weight", "layers/attn/key/kernel", "(KN)D->DKN"),
        Row(_LAYER + "self_attn.v_proj.weight", "layers/attn/value/kernel", "(KN)D->DKN"),
        Row(_LAYER + "self_attn.dense.weight", "layers/attn/out/kernel", "D(HN)->HND"),
        Row(_LAYER + "self_attn.q_proj.bias", "layers/attn/query/bias", "(HN)->HN"),
        Row(_LAYER + "self_attn.k_proj.bias", "layers/attn/key/bias", "(KN)->KN"),
        Row(_LAYER + "self_attn.v_proj.bias", "layers/attn/value/bias", "(KN)->KN"),
        Row(_LAYER + "self_attn.dense.bias", "layers/attn/out/bias"),
        Row(_LAYER + "self_attn.q_layernorm.weight", "layers/attn/query_norm/scale"),
        Row(_LAYER + "self_attn.q_layernorm.bias", "layers/attn/query_norm/bias"),
        Row(_LAYER + "self_attn.k_layernorm.weight", "layers/attn/key_norm/scale"),
        Row(_LAYER + "self_attn.k_layernorm.bias", "layers/attn/key_norm/bias"),
        Row(_LAYER + "mlp.fc1.weight", "layers/mlp/up/kernel", "FD->DF"),
        Row(_LAYER + "mlp.fc2.weight", "layers/mlp/down/kernel", "DF->FD"),
        Row(_LAYER + "mlp.fc1.bias", "layers/mlp/up/bias"),
        Row(_LAYER + "mlp.fc2.bias", "layers/mlp/down/bias"),
    ),
    ignored=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    tied={"lm_head.weight": "embedding"},
)


def gguf_config(metadata: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Maps the metadata of a `phi2` GGUF file to the fields of a `PhiConfig`."""
    fields = gguf.Metadata(metadata, names)
    num_heads, num_kv_heads = fields.heads
    return {
        "model_type": "phi",
        "vocab_size": fields.vocab_size,
        "hidden_size": fields.width,
        "num_hidden_layers": fields.num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "intermediate_size": fields.feed_forward(),
        "max_position_embeddings": fields.max_position,
        "layer_norm_eps": fields.norm_eps("layer"),
        "rope_parameters": fields.rope(fields.head_dim(given=False, partial=True), partial=True),
        "tie_word_embeddings": "output.weight" not in names,
    }


_PHI_1 = {
    "model_type": "phi",
    "vocab_size": 51200,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "qk_layernorm": False,
    "tie_word_embeddings": False,
}
_PHI_2 = _PHI_1 | {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "partial_rotary_factor": 0.4,
}

FAMILY = Family(
    model_type="phi",
    mapping=config,
    fields_of=fields_of,
    table=TABLE,
    presets={
        "phi_1": Preset("microsoft/phi-1", 1_418_270_720, "MIT", _PHI_1),
        "phi_1.5": Preset("microsoft/phi-1_5", 1_418_270_720, "MIT", _PHI_1),
        "phi_2": Preset("microsoft/phi-2", 2_779_683_840, "MIT", _PHI_2),
    },
    gguf_architecture="phi2",
    gguf_config=gguf_config,
    # Files made from Microsoft's first layout have one projection.
    gguf_table=gguf.decoder_table(projections="either"),
)
