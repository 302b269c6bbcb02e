"""The options of a transformer, as data. A model family is a mapping from its own config to this one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from massive_jax.dtypes import check_dtype
from massive_jax.models.attention_bias import AttentionBias
from massive_jax.models.kernels import AttentionKernel, refusals
from massive_jax.models.norms import NormConfig
from massive_jax.models.options import Count, DType, Positive, Size, check_options
from massive_jax.models.positions import AlibiConfig, RopeConfig
from massive_jax.probe import EXPERT_SITES, VISION_SITES

Activation: TypeAlias = Literal["silu", "gelu", "gelu_tanh", "gelu_quick", "relu", "relu2"]
NormPlacement: TypeAlias = Literal["pre", "after_residual", "output", "pre_and_output"]
Residual: TypeAlias = Literal["serial", "parallel", "parallel_shared_norm"]
Position: TypeAlias = Literal["rope", "learned", "alibi"]
QKNorm: TypeAlias = Literal[None, "head", "full"]
MLPKind: TypeAlias = Literal["gated", "plain", "experts"]
ValueScale: TypeAlias = Literal[None, "fixed", "learned"]


@dataclasses.dataclass(frozen=True)
class ExpertsConfig:
    """Configures a mixture of experts in place of the MLP."""

    num_experts: Size
    """E, of which every token goes to some."""
    num_chosen: Size
    """How many experts each token goes to."""
    clamped: bool = False
    """Whether experts are clamped SwiGLU with biases, (up + 1) · gate · sigmoid(alpha · gate), and the router has a
    bias; otherwise they are SwiGLU. In both, the weights of the chosen are the softmax of their logits.
    """
    swiglu_limit: Positive = 7.0
    """Where clamped, gates are clipped to at most this, the linear half to ± this."""
    swiglu_alpha: float = 1.702
    """Where clamped, the alpha above."""

    def __post_init__(self) -> None:
        check_options(self, "experts", self._inconsistencies())

    def _inconsistencies(self) -> Iterator[str]:
        if self.num_chosen > self.num_experts:
            yield f"{self.num_chosen} experts a token of {self.num_experts}: expected 1 to that many"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Configures the blocks: shape and options that a language model and a vision model have in common."""

    hidden_size: Size
    """D, the width of the residual stream."""
    num_layers: Size
    """L, the number of blocks."""
    num_heads: Size
    """H, the query heads of a block."""
    num_kv_heads: Size
    """K, the key and value heads; each serves H / K query heads (grouped-query attention)."""
    head_dim: Size
    """N, the width of a head; H·N need not equal D."""
    intermediate_size: Size
    """F, the MLP's width."""
    dtype: DType = "float32"
    """Dtype of the activations. With 16 bits norms, softmax and logits are float32; statistics are always."""
    norm: NormConfig = dataclasses.field(default_factory=NormConfig)
    """What every norm of the model is."""
    norm_placement: NormPlacement = "pre"
    """Where norms are: "pre" (before attention and MLP), "after_residual" (post-norm: after each residual addition),
    "output" (on what attention and MLP add to the stream, OLMo-2), "pre_and_output" (Gemma 2 and 3).
    """
    residual: Residual = "serial"
    """How they add to the stream: "serial" (attention, then MLP), "parallel" (both read the block's input, each through
    its own norm) or "parallel_shared_norm" (through one norm).
    """
    position: Position = "rope"
    """How positions enter: "rope" (rotary), "learned" (a table added to the embedding) or "alibi" (a linear bias of the
    logits).
    """
    rope: RopeConfig = dataclasses.field(default_factory=RopeConfig)
    """The rotary embedding, for position "rope"."""
    causal: bool = True
    """Whether a token attends to itself and those before it; else to all."""
    qkv_bias: bool = False
    """Biases in the query, key and value projections."""
    key_bias: bool = True
    """With `qkv_bias`, whether the key projection has one too."""
    out_bias: bool = False
    """Bias in the attention's output projection."""
    qk_norm: QKNorm = None
    """Norm of queries and keys: None, "head" (each head) or "full" (all heads together)."""
    clip_qkv: Positive | None = None
    """Queries, keys and values are clipped to ± this."""
    value_scale: ValueScale = None
    """V-scale (arXiv 2603.17771): a token's value of a key/value head, v, becomes v · ‖v‖² / (‖v‖² + C), so that small
    values, as those of attention sinks are, pass little gradient on. C = D · N · 0.02² · λ, with λ 1 ("fixed") or
    exp θ of a learned θ a head that starts at 0 ("learned", what the paper trains); None for none. The site `value` is
    what comes of it. Values of an attention bias's own are as they are learned.
    """
    attention_scale: float | None = None
    """Multiplies q·k; None for 1/√N."""
    attention_scale_by_layer: bool = False
    """Whether q·k of layer l (1-based) is divided by l besides (Stanford CRFM's GPT-2 models)."""
    attention_softcap: Positive | None = None
    """Logits become softcap · tanh(logits / softcap)."""
    attention_bias: AttentionBias | None = None
    """Explicit attention bias; None for none. Slots are the last keys of the attention sites."""
    window: Size | None = None
    """Sliding window: a token attends to itself and the window - 1 tokens before it; None for all."""
    window_layers: tuple[bool, ...] | None = None
    """Which layers have the window, L booleans; None for all of them."""
    mlp: MLPKind = "gated"
    """Which MLP: "gated" (down(act(gate) · up)), "plain" (down(act(up))) or "experts"."""
    activation: Activation = "silu"
    """Activation of the MLP."""
    mlp_bias: bool = False
    """Biases in the MLP's projections."""
    experts: ExpertsConfig | None = None
    """Mixture of experts, for mlp "experts"."""
    clip_residual: Positive | None = None
    """The residual stream is clipped to ± this after each addition in a block, where no gradient passes then; None for
    no clipping. (Clipping outliers while the norms stay costs loss: arXiv 2601.22966.)
    """
    layer_scale: bool = False
    """Whether what attention and MLP add to the stream is multiplied by a learned vector (arXiv 2103.17239)."""
    final_norm: bool = True
    """Whether there is a norm after the last block."""
    attention_kernel: AttentionKernel = "xla"
    """Where probabilities are not asked for: "xla" writes the logits out, "cudnn" is its fused kernel
    (`jax.nn.dot_product_attention`), which needs a GPU and a 16-bit dtype, "splash" is the one for a TPU
    (`massive_jax.models.splash`), slow elsewhere. `massive_jax.models.kernels.KERNELS` says what each takes; for what
    it does not, a config is refused or the logits are written out.
    """
    model_type: str = "llama"
    """The family, as its Hugging Face config names it."""

    def __post_init__(self) -> None:
        check_options(self, "config", self._inconsistencies())

    def _inconsistencies(self) -> Iterator[str]:
        """Options that are fine each by itself and not together."""
        if self.num_heads % self.num_kv_heads:
            yield f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
        for rope in self._ropes() if self.position == "rope" else ():
            rotary = rope.rotary_dim or self.head_dim
            if rotary % 2 or rotary > self.head_dim:
                yield f"rotary_dim {rotary} must be even and at most head_dim {self.head_dim}"
            if rope.kind == "dynamic" and rotary == 2:
                yield "rope scaling 'dynamic' needs a rotary_dim above 2"
            if rope.factors is not None and len(rope.factors) != rotary // 2:
                yield f"rope has {len(rope.factors)} factors, expected rotary_dim / 2 = {rotary // 2}"
        if self.window_layers is not None and len(self.window_layers) != self.num_layers:
            yield f"window_layers has {len(self.window_layers)} entries for {self.num_layers} layers"
        if (self.mlp == "experts") != (self.experts is not None):
            yield "mlp 'experts' and the option experts go together"
        if self.residual != "serial" and self.norm_placement != "pre":
            yield f"residual {self.residual!r} needs norm_placement 'pre', not {self.norm_placement!r}"
        yield from refusals(self)
        if self.window is not None and not self.causal:
            yield "a window is of causal attention"

    def _ropes(self) -> Iterator[RopeConfig]:
        """Every rotary embedding of the model."""
        yield self.rope

    @property
    def jnp_dtype(self) -> Any:
        """Gives the activations' dtype as jax has it.

        Raises:
          ValueError: float64 where jax has not been told of it.
        """
        check_dtype(self.dtype)
        return jnp.dtype(self.dtype)

    @property
    def num_slots(self) -> int:
        """Says how many keys the attention bias adds."""
        return 0 if self.attention_bias is None else self.attention_bias.num_slots

    @property
    def windowed_layers(self) -> tuple[bool, ...]:
        """Says which layers have the window, L booleans."""
        return self.window_layers or (self.window is not None,) * self.num_layers

    @property
    def gate_axes(self) -> str | None:
        """Gives the axes of the gates on the heads' outputs; None without any."""
        return None if self.attention_bias is None else self.attention_bias.traits.gate

    @property
    def attention_weights(self) -> Callable[[jax.Array], jax.Array] | None:
        """Gives what turns logits into the weights of values in place of the softmax; None for the softmax."""
        return None if self.attention_bias is None else self.attention_bias.traits.weights

    @property
    def scale(self) -> float:
        """Says what q·k is multiplied by."""
        return 1 / math.sqrt(self.head_dim) if self.attention_scale is None else self.attention_scale

    @property
    def absent_sites(self) -> frozenset[str]:
        """Names the sites that a model of this config does not have."""
        return frozenset({"mlp_hidden"} if self.experts else EXPERT_SITES)

    def sizes(self, B: int, T: int, S: int | None = None) -> dict[str, int]:
        """Gives a size for every axis letter of `massive_jax.probe.sites`, for B × T tokens and S keys (None: T).

        The slots of the attention bias are keys too: "S" counts them.
        """
        return {
            "B": B,
            "T": T,
            "S": (T if S is None else S) + self.num_slots,
            "D": self.hidden_size,
            "H": self.num_heads,
            "K": self.num_kv_heads,
            "N": self.head_dim,
            "F": self.intermediate_size,
            "E": self.experts.num_experts if self.experts else 0,
            "L": self.num_layers,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(BlockConfig):
    """Configures a decoder-only language model: the options of `BlockConfig`, and what is around the blocks."""

    vocab_size: Size
    """V, the number of tokens that there are."""
    max_position: Size
    """Longest sequence the model takes, in tokens."""
    local_rope: RopeConfig | None = None
    """Rotary embedding of the windowed layers, where it differs (Gemma 3)."""
    alibi: AlibiConfig | None = None
    """The linear bias, for position "alibi"."""
    position_offset: Count = 0
    """First row of the learned table that is used (OPT: 2)."""
    embedding_size: Size | None = None
    """Width of the token embedding where it is not D (projected in and out)."""
    embedding_scale: float | None = None
    """Multiplies the embedding, in the activations' dtype."""
    tie_embeddings: bool = False
    """Whether the output head is the token embedding."""
    head_bias: bool = False
    """Bias in the output head."""
    logit_scale: float | None = None
    """Multiplies the logits."""
    logit_softcap: Positive | None = None
    """As `attention_softcap`, for the logits of the output head."""

    def _inconsistencies(self) -> Iterator[str]:
        """Options that are fine each by itself and not together."""
        yield from super()._inconsistencies()
        if (self.position == "alibi") != (self.alibi is not None):
            yield "position 'alibi' and the option alibi go together"
        if not self.causal:
            yield "a language model is causal"
        if self.prefix_length >= self.max_position:
            yield f"a prefix of {self.prefix_length} tokens leaves nothing of max_position {self.max_position}"

    def _ropes(self) -> Iterator[RopeConfig]:
        """Every rotary embedding of the model."""
        yield from super()._ropes()
        if self.local_rope is not None:
            yield self.local_rope

    @property
    def context_length(self) -> int:
        """Gives the longest sequence accepted, in tokens: dynamic rope scaling stretches `max_position`."""
        return int(self.max_position * (self.rope.factor if self.rope.kind == "dynamic" else 1)) - self.prefix_length

    @property
    def prefix_length(self) -> int:
        """Gives the position of the first token: that many places before it are the attention bias's."""
        bias = self.attention_bias
        # Sink tokens have no place in a table of learned positions (paper's released code).
        placed = bias is not None and (bias.prefix or (bias.traits.tokens and self.position != "learned"))
        return self.num_slots if placed else 0

    def scaled_at(self, length: int) -> bool:
        """Tells whether the rotary embedding of a sequence of `length` tokens is another one than of a shorter one."""
        return any(
            rope.kind == "dynamic" and length + self.prefix_length > (rope.original_max_position or 1)
            for rope in (self._ropes() if self.position == "rope" else ())
        )

    @property
    def absent_sites(self) -> frozenset[str]:
        """Names the sites that a model of this config does not have."""
        return super().absent_sites | frozenset(VISION_SITES)

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        """Gives the shape and dtype of an input, for shape inference."""
        return jax.ShapeDtypeStruct((1, 1), jnp.int32)

    def input_sizes(self, shape: Sequence[int]) -> dict[str, int]:
        """Gives a size for every axis letter, for tokens of `shape` [B, T]."""
        return self.sizes(*shape)

    def sizes(self, B: int, T: int, S: int | None = None) -> dict[str, int]:
        """Gives a size for every axis letter of `massive_jax.probe.sites`, for tokens [B, T] and S keys (None: T)."""
        return super().sizes(B, T, S) | {"V": self.vocab_size, "W": self.embedding_size or self.hidden_size}
