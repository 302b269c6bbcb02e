"""Reading a Hugging Face config strictly: every field is used, known not to matter, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from massive_jax.models.config import RopeConfig

# Fields of Hugging Face configs that do not change what a forward pass computes.
_NO_EFFECT = frozenset(
    {
        *("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "model_type"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id", "decoder_start_token_id"),
        *("attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout", "classifier_dropout"),
        *("initializer_range", "use_cache", "is_llama_config", "chunk_size_feed_forward", "is_encoder_decoder"),
        *("output_attentions", "output_hidden_states", "return_dict", "torchscript", "problem_type", "task"),
        *("id2label", "label2id", "num_labels", "finetuning_task", "task_specific_params", "tokenizer_class"),
        *("max_length", "min_length", "do_sample", "temperature", "top_k", "top_p", "num_beams", "prefix"),
        *("early_stopping", "num_beam_groups", "diversity_penalty", "typical_p", "repetition_penalty"),
        *("length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids"),
        *("num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id"),
        *("forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens"),
        *("begin_suppress_tokens", "cross_attention_hidden_size", "add_cross_attention", "is_decoder"),
        *("tie_encoder_decoder", "pruned_heads", "tf_legacy_loss", "use_bfloat16", "attn_implementation"),
        *("_attn_implementation", "_attn_implementation_autoset", "transformers.js_config"),
    }
)

ACTIVATIONS: Mapping[str, str] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}


class Fields:
    """A config dict that remembers which fields were read, so that none is passed over in silence."""

    def __init__(self, config: Mapping[str, Any], location: str):
        """Wraps `config`; `location` names its file in messages."""
        self._config = config
        self._location = location
        self._read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """The field, or `default` where it is absent or null."""
        self._read.add(name)
        value = self._config.get(name)
        return default if value is None else value

    def nullable(self, name: str, absent: Any) -> Any:
        """The field as it stands, null included; `absent` only where the config does not have it."""
        self._read.add(name)
        return self._config.get(name, absent)

    def require(self, name: str) -> Any:
        """The field; ValueError where it is absent."""
        value = self.get(name)
        if value is None:
            raise ValueError(f"{self._location}: the config has no {name!r}, which this model needs.")
        return value

    def activation(self, default: str) -> str:
        """The MLP's activation, in this project's names."""
        name = self.get("hidden_act", default)
        if name not in ACTIVATIONS:
            raise ValueError(
                f"{self._location}: activation {name!r} is not implemented; known: {', '.join(ACTIVATIONS)}."
            )
        return ACTIVATIONS[name]

    def rope(self, max_position: int) -> RopeConfig:
        """Rotary settings, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
        given = dict(self.get("rope_parameters") or self.get("rope_scaling") or {})
        self.get("rope_scaling")
        theta = self.get("rope_theta", 10000.0)
        theta = given.pop("rope_theta", theta)
        kind = given.pop("rope_type", given.pop("type", "default"))
        given.pop("type", None)
        partial = given.pop("partial_rotary_factor", self.get("partial_rotary_factor", 1.0))
        if partial != 1.0:
            raise ValueError(f"{self._location}: partial_rotary_factor {partial} is not implemented for this family.")
        original = given.pop("original_max_position_embeddings", None)
        original = self.get("original_max_position_embeddings", original)
        if kind == "dynamic" or original is None:
            original = max_position
        names = {
            "default": (),
            "linear": ("factor",),
            "dynamic": ("factor",),
            "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
            "yarn": (
                *("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
            ),
            "factors": ("factors",),
        }
        if kind not in names:
            raise ValueError(f"{self._location}: rope scaling {kind!r} is not implemented; known: {', '.join(names)}.")
        settings = {name: given.pop(name) for name in names[kind] if given.get(name) is not None}
        unknown = {name: value for name, value in given.items() if value is not None and kind != "default"}
        if unknown:
            raise ValueError(f"{self._location}: unknown settings of rope scaling {kind!r}: {unknown}.")
        if kind == "yarn":
            settings.setdefault("factor", max_position / original)
        elif kind != "factors" and kind != "default" and "factor" not in settings:
            raise ValueError(f"{self._location}: rope scaling {kind!r} has no factor.")
        return RopeConfig(theta=float(theta), kind=kind, original_max_position=int(original), **settings)

    def only(self, name: str, *allowed: Any) -> None:
        """Accepts the field when absent or one of `allowed`; refuses any other value by name."""
        value = self.get(name, allowed[0])
        if value not in allowed:
            raise ValueError(f"{self._location}: {name} = {value!r} is not implemented (only {allowed[0]!r}).")

    def finish(self) -> None:
        """Refuses fields that nothing read, unless they are known to have no effect or are switched off."""
        if self.get("quantization_config"):
            method = self._config["quantization_config"].get("quant_method", "unknown")
            raise ValueError(
                f"{self._location}: the weights are quantised ({method}), which is not supported; use the original "
                "checkpoint, or a GGUF file."
            )
        unknown = {
            name: value
            for name, value in self._config.items()
            if name not in self._read and name not in _NO_EFFECT and value not in (None, False, [], {})
        }
        if unknown:
            listed = ", ".join(f"{name} = {value!r}" for name, value in sorted(unknown.items()))
            raise ValueError(
                f"{self._location}: config fields that are not implemented and could change the result: {listed}. "
                "Remove them from config.json if you know that they have no effect."
            )
