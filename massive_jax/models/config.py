"""The options of a transformer, as data. A model family is a mapping from its own config to this one."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

DTYPES = ("float32", "bfloat16", "float16")
ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "factors")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
ATTENTION_KERNELS = ("xla", "cudnn")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (arXiv 2104.09864) and its context extensions.

    Attributes:
      theta: base of the geometric series of wavelengths.
      kind: "default"; "linear" (positions divided by `factor`); "dynamic" (NTK-aware: the base grows once the
        sequence is longer than `original_max_position`); "llama3" (wavelengths beyond the original context stretched
        by `factor`, smoothly); "yarn" (arXiv 2309.00071); "factors" (frequencies divided by the given `factors`).
      factor: context extension factor.
      original_max_position: context length before the extension, in tokens.
      low_freq_factor: llama3: wavelengths longer than original_max_position / this are stretched in full.
      high_freq_factor: llama3: wavelengths shorter than original_max_position / this are left alone.
      beta_fast: yarn: rotations over the original context above which a frequency is left alone.
      beta_slow: yarn: rotations below which a frequency is stretched in full.
      attention_factor: yarn: multiplies cos and sin; None for the paper's 0.1·ln(factor) + 1.
      mscale: yarn: with `mscale_all_dim`, the attention factor is a ratio of two such logarithms.
      mscale_all_dim: see `mscale`.
      truncate: yarn: round the bounds of the ramp to whole frequencies.
      factors: "factors": one divisor a frequency, head_dim / 2 of them.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    original_max_position: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    factors: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in ROPE_KINDS:
            raise ValueError(f"rope scaling {self.kind!r} is not implemented; known: {', '.join(ROPE_KINDS)}.")
        if self.kind in ("dynamic", "llama3", "yarn") and not self.original_max_position:
            raise ValueError(f"rope scaling {self.kind!r} needs original_max_position (got none).")
        if self.theta <= 0 or self.factor <= 0:
            raise ValueError(f"rope theta and factor must be positive; got {self.theta} and {self.factor}.")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape and options of a decoder-only language model.

    Attributes:
      vocab_size: V.
      hidden_size: D, the width of the residual stream.
      num_layers: L.
      num_heads: H.
      num_kv_heads: K; each serves H / K query heads (grouped-query attention).
      head_dim: N; H·N need not equal D.
      intermediate_size: F, the MLP's width.
      max_position: longest sequence the model takes, in tokens.
      norm_eps: added to the mean square in RMSNorm.
      activation: of the gated MLP.
      rope: rotary embedding.
      qkv_bias: biases in the query, key and value projections.
      out_bias: bias in the attention's output projection.
      mlp_bias: biases in the MLP's three projections.
      tie_embeddings: the output head is the token embedding.
      window: sliding window: a token attends to itself and the window - 1 tokens before it; None for all.
      dtype: of the activations. Norms, softmax, logits and statistics are float32 whatever it is.
      attention_kernel: of `jax.nn.dot_product_attention`, where probabilities are not asked for. "cudnn" needs a GPU
        and a 16-bit dtype.
      model_type: the family, as its Hugging Face config names it.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position: int
    norm_eps: float
    activation: str = "silu"
    rope: RopeConfig = dataclasses.field(default_factory=RopeConfig)
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tie_embeddings: bool = False
    window: int | None = None
    dtype: str = "float32"
    attention_kernel: str = "xla"
    model_type: str = "llama"

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)!r}, expected a positive integer"
            for name in (
                *("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim"),
                *("intermediate_size", "max_position"),
            )
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1
        ]
        if self.window is not None and (not isinstance(self.window, int) or self.window < 1):
            problems.append(f"window is {self.window!r}, expected a positive integer or None")
        if not problems and self.num_heads % self.num_kv_heads:
            problems.append(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if not problems and self.head_dim % 2:
            problems.append(f"head_dim {self.head_dim} is odd; the rotary embedding turns pairs of dims")
        if self.rope.factors is not None and len(self.rope.factors) != self.head_dim // 2:
            problems.append(f"rope has {len(self.rope.factors)} factors, expected head_dim / 2 = {self.head_dim // 2}")
        for name, known in (
            ("dtype", DTYPES),
            ("activation", ACTIVATIONS),
            ("attention_kernel", ATTENTION_KERNELS),
        ):
            if getattr(self, name) not in known:
                problems.append(f"{name} {getattr(self, name)!r} is not one of {', '.join(known)}")
        if self.attention_kernel == "cudnn" and self.dtype == "float32":
            problems.append("attention_kernel 'cudnn' needs dtype bfloat16 or float16")
        if problems:
            raise ValueError("config: " + "; ".join(problems) + ".")

    @property
    def jnp_dtype(self) -> Any:
        """The activations' dtype as jax has it."""
        return jnp.dtype(self.dtype)

    @property
    def context_length(self) -> int:
        """Longest sequence accepted, in tokens: dynamic rope scaling stretches `max_position` by its factor."""
        return int(self.max_position * (self.rope.factor if self.rope.kind == "dynamic" else 1))

    def sizes(self, B: int, T: int) -> dict[str, int]:
        """A size for every axis letter of `massive_jax.probe.sites`, for tokens [B, T]."""
        return {
            "B": B,
            "T": T,
            "S": T,
            "D": self.hidden_size,
            "H": self.num_heads,
            "K": self.num_kv_heads,
            "N": self.head_dim,
            "F": self.intermediate_size,
            "V": self.vocab_size,
            "L": self.num_layers,
        }
