"""What GGUF files have in common: their metadata, and their weight table. llama.cpp names tensors alike in all."""

from __future__ import annotations

from typing import Literal

from massive_jax.weights.table import Row, WeightTable, fused_rows
from massive_jax.zoo.gguf_metadata import Metadata

__all__ = ["BLOCK", "Metadata", "decoder_table"]

BLOCK = "blk.{l}."


def decoder_table(
    *more: Row,
    projections: Literal["split", "fused", "either"] = "split",
    interleaved: bool = False,
    full_qk_norm: bool = False,
) -> WeightTable:
    """Gives the table of a decoder, whatever its norms and MLPs are and wherever: a file has some of the tensors.

    Args:
      more: rows of the family's own; of several rows for one parameter they come first.
      projections: to queries, keys and values: "split" in three tensors, "fused" in one, all queries first, then all
        keys, then all values; or "either", by the file.
      interleaved: llama.cpp turns neighbouring dims in files of this architecture: its converter interleaved the two
        halves of every head, which is undone here. Files of the others are as Hugging Face's.
      full_qk_norm: the norms of queries and keys are over all heads together.
    """

    def head(letter: str, after: str) -> str:
        """Axes of a query or key projection's kernel (after "D") or bias (after "")."""
        inside, split = ("(RP)", f"{letter}PR") if interleaved else ("N", f"{letter}N")
        return f"({split}){after}->{after}{letter}{inside}"

    def normed(letter: str) -> str | None:
        """Axes of a norm of queries or keys."""
        return f"({letter}N)->{letter}N" if full_qk_norm else None

    split = (
        Row(BLOCK + "attn_q.weight", "layers/attn/query/kernel", head("H", "D")),
        Row(BLOCK + "attn_k.weight", "layers/attn/key/kernel", head("K", "D")),
        Row(BLOCK + "attn_v.weight", "layers/attn/value/kernel", "(KN)D->DKN"),
        Row(BLOCK + "attn_q.bias", "layers/attn/query/bias", head("H", "")),
        Row(BLOCK + "attn_k.bias", "layers/attn/key/bias", head("K", "")),
        Row(BLOCK + "attn_v.bias", "layers/attn/value/bias", "(KN)->KN"),
    )
    fused = tuple(fused_rows(BLOCK + "attn_qkv", "(YN)D->DYN", "(YN)->YN"))
    return WeightTable(
        rows=(
            *more,
            Row("token_embd.weight", "embedding", "VD->VD"),
            Row("position_embd.weight", "position_embedding"),
            Row("output_norm.weight", "norm/scale"),
            Row("output_norm.bias", "norm/bias"),
            Row("output.weight", "head", "VD->VD"),
            Row("output.bias", "head_bias"),
            Row(BLOCK + "attn_norm.weight", "layers/attn_norm/scale"),
            Row(BLOCK + "attn_norm.bias", "layers/attn_norm/bias"),
            *{"split": split, "fused": fused, "either": split + fused}[projections],
            Row(BLOCK + "attn_output.weight", "layers/attn/out/kernel", "D(HN)->HND"),
            Row(BLOCK + "attn_output.bias", "layers/attn/out/bias"),
            Row(BLOCK + "attn_q_norm.weight", "layers/attn/query_norm/scale", normed("H")),
            Row(BLOCK + "attn_q_norm.bias", "layers/attn/query_norm/bias", normed("H")),
            Row(BLOCK + "attn_k_norm.weight", "layers/attn/key_norm/scale", normed("K")),
            Row(BLOCK + "attn_k_norm.bias", "layers/attn/key_norm/bias", normed("K")),
            Row(BLOCK + "post_attention_norm.weight", "layers/attn_out_norm/scale"),
            Row(BLOCK + "ffn_norm.weight", "layers/mlp_norm/scale"),
            Row(BLOCK + "ffn_norm.bias", "layers/mlp_norm/bias"),
            Row(BLOCK + "ffn_gate.weight", "layers/mlp/gate/kernel", "FD->DF"),
            Row(BLOCK + "ffn_up.weight", "layers/mlp/up/kernel", "FD->DF"),
            Row(BLOCK + "ffn_down.weight", "layers/mlp/down/kernel", "DF->FD"),
            Row(BLOCK + "ffn_gate.bias", "layers/mlp/gate/bias"),
            Row(BLOCK + "ffn_up.bias", "layers/mlp/up/bias"),
            Row(BLOCK + "ffn_down.bias", "layers/mlp/down/bias"),
            Row(BLOCK + "post_ffw_norm.weight", "layers/mlp_out_norm/scale"),
            Row(BLOCK + "ffn_gate_inp.weight", "layers/experts/router/kernel", "ED->DE"),
            Row(BLOCK + "ffn_gate_inp.bias", "layers/experts/router/bias"),
            Row(BLOCK + "ffn_gate_exps.weight", "layers/experts/gate", "EFD->EDF"),
            Row(BLOCK + "ffn_up_exps.weight", "layers/experts/up", "EFD->EDF"),
            Row(BLOCK + "ffn_down_exps.weight", "layers/experts/down", "EDF->EFD"),
            Row(BLOCK + "ffn_gate_exps.bias", "layers/experts/gate_bias"),
            Row(BLOCK + "ffn_up_exps.bias", "layers/experts/up_bias"),
            Row(BLOCK + "ffn_down_exps.bias", "layers/experts/down_bias"),
            # A tensor an expert, as converters before April 2024 wrote them.
            Row(BLOCK + "ffn_gate.{e}.weight", "layers/experts/gate", "FD->DF"),
            Row(BLOCK + "ffn_up.{e}.weight", "layers/experts/up", "FD->DF"),
            Row(BLOCK + "ffn_down.{e}.weight", "layers/experts/down", "DF->FD"),
        ),
        ignored=(r"rope_freqs\.weight",),
        tied={"output.weight": "embedding"},  # older converters wrote it twice
    )
