"""What GGUF files of Llama's relatives have in common: their metadata in Hugging Face's words, and their weight table.

After llama.cpp's converter (`convert_hf_to_gguf.py`), which writes the metadata under the architecture's name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from massive_jax.weights.table import Row, WeightTable


class Metadata:
    """GGUF metadata, read under its architecture's name."""

    def __init__(self, metadata: Mapping[str, Any]):
        """Wraps the whole of a file's metadata."""
        self._metadata = metadata
        self._architecture = metadata["general.architecture"]

    def get(self, name: str, default: Any = None) -> Any:
        """The value of `name` of this architecture, such as "attention.head_count"."""
        return self._metadata.get(f"{self._architecture}.{name}", default)

    def require(self, name: str) -> Any:
        """The value; ValueError where there is none."""
        value = self.get(name)
        if value is None:
            raise ValueError(f"the GGUF metadata has no {self._architecture}.{name}, which this model needs.")
        return value

    @property
    def vocab_size(self) -> int:
        """V: what the file says, or how many tokens its tokenizer has."""
        tokens = self._metadata.get("tokenizer.ggml.tokens", ())
        return self.get("vocab_size") or len(tokens) or self.require("vocab_size")

    def rope(self) -> dict[str, Any]:
        """`rope_parameters`. Llama 3's scaled frequencies are a tensor, which the loader puts among the metadata."""
        rope: dict[str, Any] = {"rope_theta": self.get("rope.freq_base", 10000.0), "rope_type": "default"}
        scaling = self.get("rope.scaling.type", "none")
        if scaling not in ("none", "linear", "yarn"):
            raise ValueError(f"the GGUF file has rope scaling {scaling!r}; known: none, linear, yarn.")
        factors = self._metadata.get("rope_freqs.weight")
        if scaling != "none":
            rope |= {"rope_type": scaling, "factor": self.require("rope.scaling.factor")}
        elif factors is not None:
            rope |= {"rope_type": "factors", "factors": tuple(float(f) for f in factors)}
        if scaling == "yarn":
            rope["original_max_position_embeddings"] = self.require("rope.scaling.original_context_length")
            for name in ("beta_fast", "beta_slow"):
                if (value := self.get(f"rope.scaling.yarn_{name}")) is not None:
                    rope[name] = value
            for name in ("attn_factor", "ext_factor", "log_multiplier"):
                if self.get(f"rope.scaling.yarn_{name}") is not None:
                    raise ValueError(f"the GGUF file has rope.scaling.yarn_{name}, which is not implemented.")
        return rope

    def decoder(self, model_type: str, names: Collection[str]) -> dict[str, Any]:
        """The fields of a `LlamaConfig`, for `model_type`.

        llama.cpp stores no tying flag and no bias flags: the tensors present (`names`) say it.
        """
        hidden_size, num_heads = self.require("embedding_length"), self.require("attention.head_count")
        head_dim = self.get("attention.key_length", hidden_size // num_heads)
        widths = {self.get(name, head_dim) for name in ("rope.dimension_count", "attention.value_length")}
        if widths != {head_dim}:
            raise ValueError(
                "the GGUF file has a rotary or value width that differs from the key width: not implemented."
            )
        return {
            "model_type": model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": hidden_size,
            "num_hidden_layers": self.require("block_count"),
            "num_attention_heads": num_heads,
            "num_key_value_heads": self.get("attention.head_count_kv", num_heads),
            "head_dim": head_dim,
            "intermediate_size": self.require("feed_forward_length"),
            "max_position_embeddings": self.require("context_length"),
            "rms_norm_eps": self.require("attention.layer_norm_rms_epsilon"),
            "rope_parameters": self.rope(),
            "attention_bias": "blk.0.attn_q.bias" in names,
            "mlp_bias": "blk.0.ffn_gate.bias" in names,
            "tie_word_embeddings": "output.weight" not in names,
        }

    def experts(self) -> dict[str, Any]:
        """The fields of a mixture of experts."""
        return {
            "num_local_experts": self.require("expert_count"),
            "num_experts_per_tok": self.require("expert_used_count"),
        }


_BLOCK = "blk.{l}."


def decoder_table(*, interleaved: bool = False, full_qk_norm: bool = False) -> WeightTable:
    """The table of a decoder with a gated MLP and RMS norms, wherever they are.

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
