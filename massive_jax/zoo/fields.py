"""Reading a Hugging Face config strictly: every field is used, known not to matter, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        *("dropout", "activation_dropout", "layerdrop", "attention_probs_dropout_prob", "hidden_dropout_prob"),
        *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
        *(
            "init_std",
            "gradient_checkpointing",
            "output_past",
            "tie_encoder_decoder",
            "pruned_heads",
            "tf_legacy_loss",
            "use_bfloat16",
            "attn_implementation",
        ),
        *("_attn_implementation", "_attn_implementation_autoset", "transformers.js_config", "cache_implementation"),
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
    "quick_gelu": "gelu_quick",
}


class Fields:
    """A config dict that remembers which fields were read, so that none is passed over in silence."""

    def __init__(self, config: Mapping[str, Any], location: str):
        """Wraps `config`; `location` names its file in messages."""
        self._config = config
        self.location = location
        self._read: set[str] = set()
        self._parts: list[Fields] = []

    def assume(self, **defaults: Any) -> None:
        """Fills in fields that the config does not have: the defaults of the Hugging Face class."""
        self._config = {**defaults, **self._config}

    def part(self, name: str) -> Fields:
        """The fields of a config inside this one, such as `text_config`; `finish` looks at them too."""
        part = Fields(self.require(name), f"{self.location}, {name}")
        self._parts.append(part)
        return part

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
            raise ValueError(f"{self.location}: the config has no {name!r}, which this model needs.")
        return value

    def activation(self, default: str, field: str = "hidden_act") -> str:
        """The MLP's activation, in this project's names."""
        name = self.get(field, default)
        if name not in ACTIVATIONS:
            raise ValueError(
                f"{self.location}: activation {name!r} is not implemented; known: {', '.join(ACTIVATIONS)}."
            )
        return ACTIVATIONS[name]

    def windows(self, num_layers: int, window: int | None, windowed: Sequence[bool]) -> dict[str, Any]:
        """`window` and `window_layers` of a TransformerConfig.

        Args:
          num_layers: L.
          window: the sliding window, None for none.
          windowed: which layers have it where the config does not list them in `layer_types`.
        """
        types = self.get("layer_types")
        if types is not None:
            if len(types) != num_layers or not {"sliding_attention", "full_attention"}.issuperset(types):
                raise ValueError(
                    f"{self.location}: layer_types is {types!r}; expected {num_layers} times 'full_attention' or "
                    "'sliding_attention'."
                )
            windowed = [kind == "sliding_attention" for kind in types]
        if not any(windowed):
            return {"window": None}
        if window is None:
            raise ValueError(f"{self.location}: layers have sliding attention, and there is no sliding window.")
        return {"window": window, "window_layers": None if all(windowed) else tuple(windowed)}

    def rope(
        self,
        max_position: int,
        *,
        head_dim: int | None = None,
        theta: float = 10000.0,
        partial: float = 1.0,
        settings: Mapping[str, Any] | None = None,
    ) -> RopeConfig:
        """Rotary settings, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).

        Args:
          max_position: longest sequence of the model, in tokens.
          head_dim: N, for families that can turn only the first dims of a head; None for the others.
          theta: where the config has none.
          partial: how much of a head is turned, where the config does not say.
          settings: `rope_parameters` themselves, where the config has several (one a layer type).
        """
        if settings is None:
            settings = self.get("rope_parameters") or self.get("rope_scaling") or {}
            self.get("rope_scaling")
        given = dict(settings)
        theta = self.get("rope_theta", theta)
        theta = given.pop("rope_theta", theta)
        kind = given.pop("rope_type", given.pop("type", "default"))
        given.pop("type", None)
        partial = given.pop("partial_rotary_factor", self.get("partial_rotary_factor", partial))
        if partial != 1.0 and head_dim is None:
            raise ValueError(f"{self.location}: partial_rotary_factor {partial} is not implemented for this family.")
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
            raise ValueError(f"{self.location}: rope scaling {kind!r} is not implemented; known: {', '.join(names)}.")
        settings = {name: given.pop(name) for name in names[kind] if given.get(name) is not None}
        # Settings that the kind does not have do nothing; but those of other layer types, inside these, would.
        unknown = {
            name: value
            for name, value in given.items()
            if value is not None and (kind != "default" or isinstance(value, Mapping))
        }
        if unknown:
            raise ValueError(f"{self.location}: unknown settings of rope scaling {kind!r}: {unknown}.")
        if kind == "yarn":
            settings.setdefault("factor", max_position / original)
        elif kind != "factors" and kind != "default" and "factor" not in settings:
            raise ValueError(f"{self.location}: rope scaling {kind!r} has no factor.")
        rotary_dim = None if head_dim is None or partial == 1.0 else int(head_dim * partial)
        return RopeConfig(
            theta=float(theta), kind=kind, original_max_position=int(original), rotary_dim=rotary_dim, **settings
        )

    def only(self, name: str, *allowed: Any) -> None:
        """Accepts the field when absent or one of `allowed`; refuses any other value by name."""
        value = self.get(name, allowed[0])
        if value not in allowed:
            raise ValueError(f"{self.location}: {name} = {value!r} is not implemented (only {allowed[0]!r}).")

    def ignore(self, *names: str) -> None:
        """Fields of this family that do not change what a forward pass computes."""
        self._read.update(names)

    def finish(self) -> None:
        """Refuses fields that nothing read, unless they are known to have no effect or are switched off."""
        for part in self._parts:
            part.finish()
        method = (self.get("quantization_config") or {}).get("quant_method", "unknown")
        if self.get("quantization_config") and method != "mxfp4":  # which the source unpacks
            raise ValueError(
                f"{self.location}: the weights are quantised ({method}), which is not supported; use the original "
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
                f"{self.location}: config fields that are not implemented and could change the result: {listed}. "
                "Remove them from config.json if you know that they have no effect."
            )
