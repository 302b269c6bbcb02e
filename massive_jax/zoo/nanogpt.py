"""nanoGPT: GPT-2 as `model.py` of karpathy/nanoGPT trains it, its state dict saved as safetensors.

`config.json` holds the `model_args` of its checkpoint and `"model_type": "nanogpt"`.
"""

from __future__ import annotations

import dataclasses
import re

from massive_jax.models.config import NormConfig, TransformerConfig
from massive_jax.weights.table import Row
from massive_jax.zoo import gpt2
from massive_jax.zoo.family import Family
from massive_jax.zoo.fields import Fields


def config(fields: Fields) -> TransformerConfig:
    """Maps `GPTConfig` of nanoGPT to a TransformerConfig. Its GELU is the exact one."""
    blocks, bias = fields.blocks("n_embd", "n_layer", "n_head"), fields.flag("bias", True)
    return TransformerConfig(
        vocab_size=fields.size("vocab_size"),
        **blocks,
        intermediate_size=4 * blocks["hidden_size"],
        max_position=fields.integer("block_size", least=1),
        norm=NormConfig("layer", 1e-5, bias=bias),
        position="learned",
        qkv_bias=bias,
        out_bias=bias,
        mlp="plain",
        activation=fields.activation("gelu", "activation_function"),
        mlp_bias=bias,
        tie_embeddings=True,
        model_type="nanogpt",
    )


def _linear(row: Row) -> Row:
    """A row of GPT-2's table for a projection stored [out, in]."""
    if not row.path.endswith("/kernel") or row.axes is None:
        return row
    before, after = row.axes.split("->")
    return dataclasses.replace(row, axes="".join(reversed(re.findall(r"\(\w+\)|\w", before))) + "->" + after)


FAMILY = Family(
    model_type="nanogpt",
    mapping=config,
    fields_of=gpt2.fields_of,  # transformers has no nanoGPT
    table=dataclasses.replace(
        gpt2.TABLE,
        rows=tuple(_linear(row) for row in gpt2.TABLE.rows),
        ignored=(r"transformer\.h\.\d+\.attn\.bias",),
    ),
)
