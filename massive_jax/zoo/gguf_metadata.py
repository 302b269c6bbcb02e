"""GGUF metadata in Hugging Face's words: typed, complete, and what it leaves out as llama.cpp fills it in.

After llama.cpp's converter (`convert_hf_to_gguf.py`), which writes it under the architecture's name, and its reader
(`src/llama-model.cpp` and `src/models/`), which says what absent, old and implied forms mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from massive_jax import files
from massive_jax.weights.source import Source

_LARGEST = 2**31 - 1
_TINY, _HUGE = 1e-12, 1e12
_MAX_EXPERTS = 1024
_SCALINGS = ("none", "linear", "yarn")
_REQUIRED: Any = object()

# Keys of an architecture that change nothing of what a forward pass computes here; llama.cpp does not read them, or for
# other things (embeddings, reports).
_NO_EFFECT = frozenset(
    {
        *("tensor_data_layout", "pooling_type", "rope.scaling.finetuned", "decoder_start_token_id"),
        *("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"),  # of the norm that the model has not
    }
)
# Keys that change nothing where they have one of these values, which stand for "no" or "as usual".
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attention.sliding_window_pattern": (0, 1),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_weights_scale": (0, 1),
    "expert_gating_func": (0, 1),  # softmax
    "leading_dense_block_count": (0,),
    "interleave_moe_layer_step": (0, 1),
    "nextn_predict_layers": (0,),
    "rope.scaling.alpha": (0,),
    "rope.scaling.attn_factor": (1,),
}


class Metadata:
    """Reads the metadata of one file, under its architecture's name.

    Every value that is read is checked: a wrong type, NaN, a number out of range are errors that name the key, the
    value and what is allowed.
    """

    def __init__(self, metadata: Mapping[str, Any], tensors: Collection[str] = ()):
        """Wraps the whole of a file's metadata.

        Args:
          metadata: keys as in the file.
          tensors: the names of its tensors; where it is a mapping to `TensorInfo`, sizes are compared with theirs.
        """
        self._metadata = metadata
        self._architecture = metadata["general.architecture"]
        self.tensors = tensors
        known = tensors.items() if isinstance(tensors, Mapping) else ()
        self._shapes: dict[str, tuple[int, ...]] = {name: info.shape for name, info in known}

    def key(self, name: str) -> str:
        """Gives the name of `name` in the file."""
        return f"{self._architecture}.{name}"

    def get(self, name: str) -> Any:
        """Gives the value of `name` ("attention.head_count") of this architecture, as stored; None where absent."""
        return self._metadata.get(self.key(name))

    def integer(self, name: str, default: Any = _REQUIRED, *, least: int = 1, most: int = _LARGEST) -> Any:
        """Gives a whole number from `least` to `most`; `default` where there is none."""
        return self._checked(
            name,
            default,
            lambda x: isinstance(x, int) and not isinstance(x, bool) and least <= x <= most,
            f"a whole number from {least} to {most}",
        )

    def number(self, name: str, default: Any = _REQUIRED, *, zero: bool = False, least: float = _TINY) -> Any:
        """Reads a number from `least` to 10¹² (or, with `zero`, 0); `default` where there is none."""

        def sound(x: Any) -> bool:
            real = isinstance(x, int | float) and not isinstance(x, bool)
            return real and (least <= x <= _HUGE or (zero and x == 0))

        return self._checked(
            name, default, sound, f"a finite number from {least:g} to {_HUGE:g}{', or 0' if zero and least else ''}"
        )

    def flag(self, name: str, default: Any = _REQUIRED) -> Any:
        """Gives a boolean; `default` where there is none."""
        return self._checked(name, default, lambda x: isinstance(x, bool), "a boolean")

    def per_layer(self, name: str, default: Any = _REQUIRED) -> Any:
        """Gives a whole number, or an array of L of them that are all the same, which newer converters write."""
        value = self.get(name)
        if not isinstance(value, list):
            return self.integer(name, default)
        whole = all(isinstance(x, int) and not isinstance(x, bool) and 1 <= x <= _LARGEST for x in value)
        if not whole or len(value) != self.num_layers:
            raise self.refused(name, f"a whole number from 1 to {_LARGEST}, or {self.num_layers} of them (one a layer)")
        if len(set(value)) > 1:
            raise self.refused(name, "the same for every layer: layers of different shapes are not implemented")
        return value[0]

    def only(self, name: str, *allowed: Any) -> None:
        """Accepts the key when absent or one of `allowed`; refuses any other value by name."""
        value = self.get(name)
        if value is not None and not any(_equal(value, x) for x in allowed):
            raise self.refused(name, f"{' or '.join(map(repr, allowed))}; others are not implemented")

    def ignore(self, prefix: str) -> None:
        """Accepts keys that begin with `prefix`: they change nothing of what such a model computes."""
        for key in self._metadata:
            if key.startswith(self.key(prefix)):
                self._metadata.get(key)

    def refused(self, name: str, expected: str) -> ValueError:
        """Gives the error for the value of `name`."""
        return ValueError(f"{self.key(name)} is {files.shown(self.get(name))}; expected {expected}.")

    def _checked(self, name: str, default: Any, sound: Callable[[Any], bool], expected: str) -> Any:
        value = self.get(name)
        if value is None:
            if default is _REQUIRED:
                raise ValueError(f"the GGUF metadata has no {self.key(name)}, which this model needs.")
            return default
        if not sound(value):
            raise self.refused(name, expected)
        return value

    @property
    def num_layers(self) -> int:
        """Reads L, `block_count`, which has to be how many blocks there are tensors of."""
        count = self.integer("block_count")
        blocks = {name.split(".")[1] for name in self.tensors if name.startswith("blk.")}
        if self._shapes and count != len(blocks):
            raise self.refused("block_count", f"{len(blocks)}, as many blocks as the file has tensors of")
        return count

    @property
    def width(self) -> int:
        """Reads D, `embedding_length`."""
        return self._fitting("embedding_length", self.integer("embedding_length"), ("token_embd.weight",))

    def feed_forward(self, name: str = "feed_forward_length") -> int:
        """Reads F, under `name`."""
        tensors = [f"blk.0.ffn_down{kind}.weight" for kind in ("", ".0", "_exps")]
        return self._fitting(name, self.per_layer(name), tensors)

    @property
    def max_position(self) -> int:
        """Gives `context_length`, which a table of learned positions has as many rows as."""
        return self._fitting("context_length", self.integer("context_length"), ("position_embd.weight",), axis=0)

    @property
    def vocab_size(self) -> int:
        """Counts V, the rows of the embedding.

        llama.cpp counts the tokens where the file lists them, whatever `vocab_size` says: it is stale in files to which
        tokens were added. One that says more than there are rows is refused.
        """
        tokens = self._metadata.get("tokenizer.ggml.tokens")
        count = len(tokens) if isinstance(tokens, list) else 0
        said = self.integer("vocab_size", None)
        if (rows := self._size("token_embd.weight", 0)) is None:
            return count or said or self.integer("vocab_size")
        if said is not None and said > rows:
            raise self.refused("vocab_size", f"at most {rows}, the rows of token_embd.weight")
        if count and count != rows and not (count < rows and said == rows):
            raise ValueError(
                f"tokenizer.ggml.tokens has {count} tokens and token_embd.weight {rows} rows"
                + ("" if said is None else f" ({self.key('vocab_size')} is {said})")
                + "; expected as many. Convert the model again."
            )
        return rows

    @property
    def heads(self) -> tuple[int, int]:
        """Reads H and K."""
        heads = self.per_layer("attention.head_count")
        shared = self.per_layer("attention.head_count_kv", heads)
        if heads % shared:
            raise self.refused("attention.head_count_kv", f"a divisor of {self.key('attention.head_count')}, {heads}")
        if heads > self.width:
            raise self.refused("attention.head_count", f"at most {self.key('embedding_length')}, {self.width}")
        width = self.integer("attention.key_length", self.width // heads)
        for name, number, tensor, axis in (
            ("attention.head_count", heads, "blk.0.attn_output.weight", -1),
            ("attention.head_count_kv", shared, "blk.0.attn_k.weight", 0),
            ("attention.head_count_kv", heads + 2 * shared, "blk.0.attn_qkv.weight", 0),
        ):
            size = self._size(tensor, axis)
            if size is not None and size != number * width:
                raise self.refused(
                    name, f"what {tensor} {list(self._shapes[tensor])} has, with heads that are {width} wide"
                )
        return heads, shared

    def plain_heads(self) -> int:
        """Reads H of a model whose heads have keys and values of their own, D / H wide."""
        heads, shared = self.heads
        if shared != heads:
            raise self.refused("attention.head_count_kv", f"{heads}, as {self.key('attention.head_count')}")
        self.head_dim(given=False, partial=True)
        return heads

    def norm_eps(self, kind: str) -> float:
        """Says what a norm of `kind`, "rms" or "layer", adds to the mean square."""
        return self.number(f"attention.layer_norm_{'rms_' if kind == 'rms' else ''}epsilon", least=0)

    def head_dim(self, *, given: bool = True, partial: bool = False) -> int:
        """Reads N, `key_length`, else D / H. Values have the same; and so has the rotary embedding.

        Args:
          given: whether N can be another than D / H.
          partial: the rotary embedding may turn less of a head; see `rope`.
        """
        usual = self.width // self.heads[0]
        head_dim = self.integer("attention.key_length", usual)
        if not given and head_dim != usual:
            raise self.refused("attention.key_length", f"{usual}, the width by the number of heads")
        same = ["attention.value_length", "attention.key_length_swa", "attention.value_length_swa"]
        for name in same if partial else [*same, "rope.dimension_count", "rope.dimension_count_swa"]:
            if self.integer(name, head_dim) != head_dim:
                raise self.refused(
                    name, f"{head_dim}: a rotary or value width that is not the heads' is not implemented"
                )
        return head_dim

    def _rotary_dim(self, head_dim: int) -> int:
        """How many dims of a head are turned: all where the file does not say."""
        dims = self.integer("rope.dimension_count", head_dim, most=head_dim)
        if dims % 2:
            raise ValueError(
                f"{self.key('rope.dimension_count')} is {dims}, of heads that are {head_dim} wide; expected an even"
                " number."
            )
        return dims

    def rope(self, head_dim: int, *, partial: bool = False, theta: float = 10000.0) -> dict[str, Any]:
        """Gives `rope_parameters`, with `partial_rotary_factor` for `partial`.

        The type is linear where none is given, and a factor of 0 or none is 1. Llama 3's scaled frequencies are a
        tensor, whose divisors `read_config` puts among the metadata; they go with any linear factor.
        """
        rope: dict[str, Any] = {"rope_theta": self.number("rope.freq_base", theta), "rope_type": "default"}
        rotary_dim = self._rotary_dim(head_dim)
        if partial:
            rope["partial_rotary_factor"] = quotient(rotary_dim, head_dim)
        scaling = self.get("rope.scaling.type")
        scaling = "linear" if scaling is None else scaling
        if scaling not in _SCALINGS:
            raise self.refused(
                "rope.scaling.type", f"one of {', '.join(_SCALINGS)}; other rope scaling is not implemented"
            )
        old = self.number("rope.scale_linear", 0, zero=True)
        factor = self.number("rope.scaling.factor", old, zero=True) or 1.0
        if scaling == "none":  # whatever the factor
            factor = 1.0
        original = self.integer("rope.scaling.original_context_length", None)
        yarn = {name: self.number(f"rope.scaling.yarn_{name}", None) for name in ("beta_fast", "beta_slow")}
        self.only("rope.scaling.yarn_attn_factor", 1)
        self.only("rope.scaling.yarn_log_multiplier", 0)
        self.only("rope.scaling.yarn_ext_factor", 1 if scaling == "yarn" else 0, -1)
        factors = self._frequency_factors(rotary_dim)
        if factors is not None and scaling == "yarn" and factor != 1:
            raise self.refused("rope.scaling.type", "none or linear beside the tensor rope_freqs.weight")
        if factors is not None:
            rope |= {"rope_type": "factors", "factors": tuple(f * factor for f in factors)}
        elif factor != 1:
            rope |= {"rope_type": scaling, "factor": float(factor)}
        if rope["rope_type"] == "yarn":
            rope["original_max_position_embeddings"] = original or self.integer("context_length")
            rope |= {name: value for name, value in yarn.items() if value is not None}
        return rope

    def windows(self, period: int, window: int | None = None) -> dict[str, Any]:
        """Gives `sliding_window` and `layer_types`.

        Args:
          period: the last of so many layers sees the whole text, where `sliding_window_pattern` does not say which.
          window: where the file does not say; None for no window then.
        """
        width = self.integer("attention.sliding_window", window, least=0) or None
        pattern, name = self.get("attention.sliding_window_pattern"), "attention.sliding_window_pattern"
        layers = self.num_layers
        if isinstance(pattern, list):
            if len(pattern) != layers or any(x not in (0, 1) for x in pattern):
                raise self.refused(name, f"a period, or {layers} booleans (one a layer, true for a window)")
            windowed = [bool(x) for x in pattern]
        else:
            period = self.integer(name, period, least=0)
            windowed = [period == 0 or layer % period < period - 1 for layer in range(layers)]
        if width is None:
            windowed = [False] * layers
        types = ["sliding_attention" if x else "full_attention" for x in windowed]
        return {"sliding_window": width, "layer_types": types}

    def decoder(self, model_type: str, *, feed_forward: str = "feed_forward_length") -> dict[str, Any]:
        """Gives the fields of a `LlamaConfig`, for `model_type`.

        llama.cpp stores no tying flag and no bias flags: the tensors present say it. `feed_forward` is the key of F.
        """
        (num_heads, num_kv_heads), head_dim = self.heads, self.head_dim()
        return {
            "model_type": model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.width,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_kv_heads,
            "head_dim": head_dim,
            "intermediate_size": self.feed_forward(feed_forward),
            "max_position_embeddings": self.max_position,
            "rms_norm_eps": self.norm_eps("rms"),
            "rope_parameters": self.rope(head_dim),
            "attention_bias": "blk.0.attn_q.bias" in self.tensors,
            "mlp_bias": "blk.0.ffn_gate.bias" in self.tensors,
            "tie_word_embeddings": "output.weight" not in self.tensors,
        }

    def experts(self) -> dict[str, Any]:
        """Gives the fields of a mixture of experts."""
        count = self.integer("expert_count", most=_MAX_EXPERTS)
        if self._shapes and "blk.0.ffn_gate_inp.weight" not in self._shapes:
            raise self.refused("expert_count", "0 or none, as the file has no tensors of experts")
        self._fitting("expert_count", count, ("blk.0.ffn_gate_inp.weight",), axis=0)
        return {"num_local_experts": count, "num_experts_per_tok": self.integer("expert_used_count", most=count)}

    def _size(self, tensor: str, axis: int) -> int | None:
        """The size of an axis of a tensor, where it is known."""
        shape = self._shapes.get(tensor, ())
        return shape[axis] if len(shape) > 1 else None  # the loader refuses a matrix that is none

    def _fitting(self, name: str, value: int, tensors: Collection[str], axis: int = -1) -> int:
        """`value`, that of `name`, once it is known to be the size of an axis of those `tensors` that there are."""
        for tensor in tensors:
            size = self._size(tensor, axis)
            if size is not None and size != value:
                raise self.refused(name, f"{size}, as {tensor} {list(self._shapes[tensor])} has it")
        return value

    def _frequency_factors(self, rotary_dim: int) -> list[float] | None:
        factors = self._metadata.get("rope_freqs.weight")
        if factors is None:
            return None
        factors = np.asarray(factors)
        if factors.shape != (rotary_dim // 2,) or not (np.isfinite(factors) & (factors > 0)).all():
            raise ValueError(
                f"the tensor rope_freqs.weight {list(factors.shape)} is {files.shown(factors.ravel()[:8].tolist())};"
                f" expected {rotary_dim // 2} finite factors above 0, one a rotary frequency."
            )
        return [float(f) for f in factors]


def read_config(
    source: Source, mapping: Callable[[Mapping[str, Any], Collection[str]], dict[str, Any]]
) -> dict[str, Any]:
    """Maps the metadata of a GGUF file to a config in Hugging Face's field names.

    Args:
      source: the file.
      mapping: a family's `gguf_config`.

    Raises:
      ValueError: a value of the wrong type or out of range, or a key of the architecture that `mapping` did not look at
        and that could change the result.
    """
    try:
        metadata = _Noted(source.config)
        if source.config.get("general.type", "model") != "model":
            raise ValueError(f"general.type is {files.shown(source.config['general.type'])}; expected 'model'.")
        if (info := source.tensors.get("rope_freqs.weight")) is not None:
            if math.prod(info.shape) > _LARGEST // 2**10:
                raise ValueError(f"the tensor rope_freqs.weight has shape {list(info.shape)}; expected [N / 2].")
            metadata.more["rope_freqs.weight"] = source.read("rope_freqs.weight").astype(np.float64)
        version = source.config.get("general.quantization_version", 2)
        if version != 2 and any(info.dtype.startswith(("Q", "IQ", "TQ")) for info in source.tensors.values()):
            raise ValueError(
                f"general.quantization_version is {files.shown(version)}; expected 2. Convert the model again."
            )
        config = mapping(metadata, source.tensors)
        unread = sorted(_unread(metadata, config))
        if unread:
            raise ValueError(
                "GGUF metadata that is not implemented for this architecture and could change the result: "
                + files.listed((f"{files.printable(key)} = {files.shown(metadata[key])}" for key in unread), 5)
                + ". Use the Hugging Face checkpoint of this model."
            )
    except ValueError as error:
        raise ValueError(f"{source.location}: {error}") from None
    return config


def _unread(metadata: _Noted, config: Mapping[str, Any]) -> Iterator[str]:
    """Keys of the architecture that nothing looked at and that could change the result."""
    prefix = f"{metadata['general.architecture']}."
    for key in metadata:
        name = key.removeprefix(prefix)
        if name == key or key in metadata.seen or name in _NO_EFFECT:
            continue
        value = metadata.more.get(key, metadata.given[key])
        longest = config.get("max_position_embeddings")
        if name == "attention.sliding_window" and isinstance(value, int) and longest and value >= longest:
            continue  # a window as long as the context
        if not any(_equal(value, x) for x in _NEUTRAL.get(name, ())):
            yield key


class _Noted(Mapping[str, Any]):
    """Metadata that remembers which keys were looked up, so that none is passed over in silence."""

    def __init__(self, given: Mapping[str, Any]):
        self.given, self.more, self.seen = given, dict[str, Any](), set[str]()

    def __getitem__(self, key: str) -> Any:
        self.seen.add(key)
        return self.more[key] if key in self.more else self.given[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.given)

    def __len__(self) -> int:
        return len(self.given)


def _equal(value: Any, expected: Any) -> bool:
    """Equality of numbers that does not take True for 1."""
    return (
        isinstance(value, int | float) and isinstance(value, bool) == isinstance(expected, bool) and value == expected
    )


def quotient(part: int, whole: int) -> float:
    """Gives a factor f for which int(whole · f) is `part`, as Hugging Face works it out."""
    factor = part / whole
    return factor if int(whole * factor) == part else math.nextafter(factor, 2)
