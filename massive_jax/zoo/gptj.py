"""GPT-J: attention and MLP read one norm; rotary embedding of neighbouring dims; biases in the MLP and the head."""

from __future__ import annotations

from typing import Any

from massive_jax.models.config import NormConfig, RopeConfig, TransformerConfig
from massive_jax.weights.table import Row, WeightTable
from massive_jax.zoo import inverse
from massive_jax.zoo.family import Family, Preset
from massive_jax.zoo.fields import Fields


def config(fields: Fields) -> TransformerConfig:
    """Maps `GPTJConfig` to a TransformerConfig. A null `rotary_dim` turns whole heads."""
    blocks = fields.blocks("n_embd", "n_layer", "n_head")
    fields.only("rotary", True)
    fields.only("scale_attn_weights", True)
    return TransformerConfig(
        vocab_size=fields.size("vocab_size"),
        **blocks,
        intermediate_size=fields.size("n_inner", 4 * blocks["hidden_size"]),
        max_position=fields.integer("n_positions", 2048, least=1),
        norm=NormConfig("layer", fields.number("layer_norm_epsilon", 1e-5, least=0)),
        residual="parallel_shared_norm",
        rope=RopeConfig(rotary_dim=fields.optional_integer("rotary_dim", 64), interleaved=True),
        mlp="plain",
        activation=fields.activation("gelu_new", "activation_function"),
        mlp_bias=True,
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        head_bias=True,
        model_type="gptj",
    )


def fields_of(config: TransformerConfig) -> dict[str, Any]:
    """Gives the fields of a `GPTJConfig`: the inverse of `config`."""
    return {
        "model_type": "gptj",
        "architectures": ["GPTJForCausalLM"],
        "vocab_size": config.vocab_size,
        **inverse.blocks(config, "n_embd", "n_layer", "n_head"),
        "n_inner": config.intermediate_size,
        "n_positions": config.max_position,
        "layer_norm_epsilon": config.norm.eps,
        "rotary_dim": config.rope.rotary_dim,
        **inverse.activation(config, "activation_function"),
        "tie_word_embeddings": config.tie_embeddings,
    }


_LAYER = "transformer.h.{l}."

TABLE = WeightTable(
    rows=(
        Row("transformer.wte.weight", "embedding"),
        Row("transformer.ln_f.weight", "norm/scale"),
        Row("transformer.ln_f.bias", "norm/bias"),
        Row("lm_head.weight", "head"),
        Row("lm_head.bias", "head_bias"),
        Row(_LAYER + "ln_1.weight", "layers/attn_norm/scale"),
        Row(_LAYER + "ln_1.bias", "layers/attn_norm/bias"),
        Row(_LAYER + "attn.q_proj.weight", "layers/attn/query/kernel", "(HN)D->DHN"),
        Row(_LAYER + "attn.k_proj.weight", "layers/attn/key/kernel", "(KN)D->DKN"),
        Row(_LAYER + "attn.v_proj.weight", "layers/attn/value/kernel", "(KN)D->DKN"),
        Row(_LAYER + "attn.out_proj.weight", "layers/attn/out/kernel", "D(HN)->HND"),
        Row(_LAYER + "mlp.fc_in.weight", "layers/mlp/up/kernel", "FD->DF"),
        Row(_LAYER + "mlp.fc_in.bias", "layers/mlp/up/bias"),
        Row(_LAYER + "mlp.fc_out.weight", "layers/mlp/down/kernel", "DF->FD"),
        Row(_LAYER + "mlp.fc_out.bias", "layers/mlp/down/bias"),
    ),
    ignored=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias|embed_positions)",),
    tied={"lm_head.weight": "embedding"},
)

_SIX_BILLION = {
    **{"model_type": "gptj", "n_layer": 28, "n_embd": 4096, "n_head": 16, "rotary_dim": 64},
    **{"vocab_size": 50400, "n_positions": 2048, "tie_word_embeddings": False},
}

FAMILY = Family(
    model_type="gptj",
    mapping=config,
    fields_of=fields_of,
    table=TABLE,
    presets={"gptj_6b": Preset("EleutherAI/gpt-j-6b", 6_050_882_784, "Apache-2.0", _SIX_BILLION)},
)
