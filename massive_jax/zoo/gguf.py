"""What GGUF files of Llama's relatives have in common: their metadata, and their weight table."""

from __future__ import annotations

from massive_jax.weights.table import Row, WeightTable
from massive_jax.zoo.gguf_metadata import Metadata

__all__ = ["Metadata", "decoder_table"]

_BLOCK = "blk.{l}."


def decoder_table(*, interleaved: bool = False, full_qk_norm: bool = False) -> WeightTable:
    """Gives the table of a decoder with a gated MLP and RMS norms, wherever they are.

    Args:
      interleaved: llama.cpp turns neighbouring dims in files of this architecture: its converter interleaved the two
        halves of every head, which is undone here. Files of the others are as Hugging Face's.
      full_qk_norm: the norms of queries and keys are over all heads together.
    """

    def head(letter: str, after: str) -> str:
        """Axes of a query or key projection's kernel (after "D") or bias (after "")."""
        inside, split = ("(RP)", f"{letter}PR") if interleaved else ("N", f"{letter}N")
        return f"({split}){after}->{after}{letter}{inside}"

    return WeightTable(
        rows=(
            Row("token_embd.weight", "embedding", "VD->VD"),
            Row("output_norm.weight", "norm/scale"),
            Row("output.weight", "head", "VD->VD"),
            Row(_BLOCK + "attn_norm.weight", "layers/attn_norm/scale"),
            Row(_BLOCK + "attn_q.weight", "layers/attn/query/kernel", head("H", "D")),
            Row(_BLOCK + "attn_k.weight", "layers/attn/key/kernel", head("K", "D")),
            Row(_BLOCK + "attn_v.weight", "layers/attn/value/kernel", "(KN)D->DKN"),
            Row(_BLOCK + "attn_output.weight", "layers/attn/out/kernel", "D(HN)->HND"),
            Row(_BLOCK + "attn_q.bias", "layers/attn/query/bias", head("H", "")),
            Row(_BLOCK + "attn_k.bias", "layers/attn/key/bias", head("K", "")),
            Row(_BLOCK + "attn_v.bias", "layers/attn/value/bias", "(KN)->KN"),
            Row(_BLOCK + "attn_output.bias", "layers/attn/out/bias"),
            Row(_BLOCK + "attn_q_norm.weight", "layers/attn/query_norm/scale", "(HN)->HN" if full_qk_norm else None),
            Row(_BLOCK + "attn_k_norm.weight", "layers/attn/key_norm/scale", "(KN)->KN" if full_qk_norm else None),
            Row(_BLOCK + "post_attention_norm.weight", "layers/attn_out_norm/scale"),
            Row(_BLOCK + "ffn_norm.weight", "layers/mlp_norm/scale"),
            Row(_BLOCK + "ffn_gate.weight", "layers/mlp/gate/kernel", "FD->DF"),
            Row(_BLOCK + "ffn_up.weight", "layers/mlp/up/kernel", "FD->DF"),
            Row(_BLOCK + "ffn_down.weight", "layers/mlp/down/kernel", "DF->FD"),
            Row(_BLOCK + "ffn_gate.bias", "layers/mlp/gate/bias"),
            Row(_BLOCK + "ffn_up.bias", "layers/mlp/up/bias"),
            Row(_BLOCK + "ffn_down.bias", "layers/mlp/down/bias"),
            Row(_BLOCK + "post_ffw_norm.weight", "layers/mlp_out_norm/scale"),
            Row(_BLOCK + "ffn_gate_inp.weight", "layers/experts/router/kernel", "ED->DE"),
            Row(_BLOCK + "ffn_gate_inp.bias", "layers/experts/router/bias"),
            Row(_BLOCK + "ffn_gate_exps.weight", "layers/experts/gate", "EFD->EDF"),
            Row(_BLOCK + "ffn_up_exps.weight", "layers/experts/up", "EFD->EDF"),
            Row(_BLOCK + "ffn_down_exps.weight", "layers/experts/down", "EDF->EFD"),
            Row(_BLOCK + "ffn_gate_exps.bias", "layers/experts/gate_bias"),
            Row(_BLOCK + "ffn_up_exps.bias", "layers/experts/up_bias"),
            Row(_BLOCK + "ffn_down_exps.bias", "layers/experts/down_bias"),
            # A tensor an expert, as converters before April 2024 wrote them.
            Row(_BLOCK + "ffn_gate.{e}.weight", "layers/experts/gate", "FD->DF"),
            Row(_BLOCK + "ffn_up.{e}.weight", "layers/experts/up", "FD->DF"),
            Row(_BLOCK + "ffn_down.{e}.weight", "layers/experts/down", "DF->FD"),
        ),
        ignored=(r"rope_freqs\.weight",),
    )
