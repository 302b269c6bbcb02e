"""Reading a Hugging Face config strictly: every field is of its type, and used, known not to matter, or refused."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from massive_jax.files import listed, shown
from massive_jax.models.config import Activation, RopeConfig
from massive_jax.weights.source import TensorInfo

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
        *("_commit_hash", "unsloth_fixed", "unsloth_version"),
    }
)

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "quick_gelu": "gelu_quick",
}


_LARGEST = 2**31 - 1  # of an integer: what indexes a jax array
_SMALLEST_NUMBER, _LARGEST_NUMBER = 1.2e-38, 3.4e38  # in float32, above 0
_MOST_LAYERS = 100_000  # where no tensors say it

# Settings of every kind of rotary scaling, and which of them it has to have.
ROPE_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "factors": ("factors",),
}
_ROPE_REQUIRED: Mapping[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "factors": ("factors",),
}


def _is_integer(value: Any) -> bool:
    """Whether a config's value is an integer, which true and false are not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """Whether it is a number that float32 has, too: not NaN or infinite."""
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return is_number and bool(-_LARGEST_NUMBER <= value <= _LARGEST_NUMBER)


class Fields:
    """Checks what is read of a config dict, and remembers it, so that nothing is passed over in silence.

    The readers (`size`, `integer`, `number`, `flag`, `text`, …) take a field that is null as one that is absent, and
    note a value of a wrong type or out of range instead of raising: `check` and `finish` raise, with all there are.
    Until then such a field has its default, or 1.
    """

    def __init__(self, config: Mapping[str, Any], location: str, tensors: Mapping[str, TensorInfo] | None = None):
        """Wraps `config`.

        Args:
          config: the fields.
          location: names their file in messages.
          tensors: the weights beside it, which bound what it can ask for; None where there are none.
        """
        self._config = config
        self.location = location
        self._tensors = tensors
        self._prefix = ""  # of its fields' names in messages
        self._read: set[str] = set()
        self._wrong: set[str] = set()
        self._parts: list[Fields] = []
        self._problems: list[tuple[str, str]] = []  # location, what is wrong there; shared with the parts

    # What is wrong.

    def problem(self, text: str) -> None:
        """Notes what is wrong with the config, for `check` to raise."""
        self._problems.append((self.location, text))

    def check(self) -> None:
        """Raises the problems there are.

        Raises:
          ValueError: one line with all of them.
        """
        if self._problems:
            by_place: dict[str, list[str]] = {}
            for place, text in dict.fromkeys(self._problems):
                by_place.setdefault(place, []).append(text)
            raise ValueError(" ".join(f"{place}: {'; '.join(texts)}." for place, texts in by_place.items()))

    def _expected(self, name: str, value: Any, expected: str) -> None:
        """Notes that the field is not what it must be."""
        self._wrong.add(name)
        self.problem(f"{self._prefix}{name} = {shown(value)}: must be {expected}")

    # Fields of any type.

    def assume(self, **defaults: Any) -> None:
        """Puts the defaults of the Hugging Face class in place of fields that the config does not have."""
        self._config = {**defaults, **self._config}

    def part(self, name: str) -> Fields:
        """Gives the fields of a config inside this one, such as `text_config`; `finish` looks at them too."""
        found = self.mapping(name)
        if found is None:
            if name not in self._wrong:
                self._missing(name)
            self.check()
        part = self.inside(name, found or {})
        part.location, part._prefix = f"{self.location}, {name}", ""
        return part

    def inside(self, name: str, config: Mapping[str, Any]) -> Fields:
        """Gives the settings `config`, which are, or are made of, the field `name`; `finish` looks at them too."""
        part = Fields(config, self.location, self._tensors)
        part._prefix = f"{self._prefix}{name}."
        part._problems = self._problems
        self._parts.append(part)
        return part

    def get(self, name: str, default: Any = None) -> Any:
        """Gives the field, of whatever type, or `default` where it is absent or null."""
        self._read.add(name)
        value = self._config.get(name)
        return default if value is None else value

    def only(self, name: str, *allowed: Any) -> None:
        """Accepts the field when absent or one of `allowed`; refuses any other value by name."""
        value = self.get(name, allowed[0])
        if not any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in allowed):
            self._wrong.add(name)
            self.problem(f"{self._prefix}{name} = {shown(value)} is not implemented (only {allowed[0]!r})")

    def ignore(self, *names: str) -> None:
        """Names fields of this family that do not change what a forward pass computes."""
        self._read.update(names)

    def ignore_rest(self) -> None:
        """Accepts all fields that no one asks for, now or later."""
        self.ignore(*self._config)

    # Fields of one type. Without a default the field has to be there.

    def integer(
        self, name: str, default: int | None = None, *, least: int = 0, most: int = _LARGEST, why: str = ""
    ) -> int:
        """Gives an integer from `least` to `most`; `why` says where the bound comes from."""
        value = self._value(name, default)
        if value is None:
            return max(1, least)
        if not _is_integer(value) or not least <= value <= most:
            self._expected(name, value, f"an integer from {least} to {most}{why}")
            return max(1, least) if default is None else default
        return int(value)

    def optional_integer(self, name: str, absent: int | None = None, *, least: int = 1) -> int | None:
        """Reads as `integer`, or None where the field is null; `absent` where the config does not have it."""
        return None if self._nothing(name, absent) else self.integer(name, absent or least, least=least)

    def size(self, name: str, default: int | None = None) -> int:
        """Gives the size of something that the weights have an axis for, at least 1."""
        most = max((math.prod(info.shape) for info in (self._tensors or {}).values()), default=0)
        if not 0 < most < _LARGEST:
            return self.integer(name, default, least=1)
        return self.integer(name, default, least=1, most=most, why=", the size of the largest tensor of the weights")

    def layers(self, name: str, default: int | None = None) -> int:
        """Gives the number of layers, at least 1; each has a tensor."""
        most = len(self._tensors or {})
        if not 0 < most < _MOST_LAYERS:
            return self.integer(name, default, least=1, most=_MOST_LAYERS)
        return self.integer(name, default, least=1, most=most, why=", the number of tensors of the weights")

    def number(
        self, name: str, default: float | None = None, *, positive: bool = False, least: float | None = None
    ) -> float:
        """Gives a finite number, as float; above 0 if `positive`, at least `least`."""
        value = self._value(name, default)
        if value is None:
            return 1.0
        too_small = _is_number(value) and (
            (positive and value < _SMALLEST_NUMBER) or (least is not None and value < least)
        )
        if too_small or not _is_number(value):
            bound = "" if least is None else f" of at least {least:g}"
            self._expected(name, value, f"{'positive, ' if positive else ''}a finite number{bound}")
            return 1.0 if default is None else default
        return float(value)

    def optional_number(self, name: str, absent: float | None = None, *, positive: bool = False) -> float | None:
        """Reads as `number`, or None where the field is null; `absent` where the config does not have it."""
        return None if self._nothing(name, absent) else self.number(name, absent or 1.0, positive=positive)

    def flag(self, name: str, default: bool) -> bool:
        """Reads true or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            self._expected(name, value, "true or false")
            return default
        return value

    def text(self, name: str, default: str | None = None, known: Collection[str] = ()) -> str:
        """Gives a string; one of `known`, if there are any."""
        value = self._value(name, default)
        if isinstance(value, str) and (not known or value in known):
            return value
        if isinstance(value, str):
            self._wrong.add(name)
            self.problem(f"{self._prefix}{name} {shown(value)} is not implemented; known: {', '.join(known)}")
        elif value is not None:
            self._expected(name, value, f"one of {', '.join(known)}" if known else "a string")
        return default if default is not None else next(iter(known), "")

    def texts(self, name: str) -> list[str] | None:
        """Gives a list of strings; None where there is none."""
        value = self.get(name)
        if value is not None and not (isinstance(value, list | tuple) and all(isinstance(x, str) for x in value)):
            self._expected(name, value, "a list of strings")
            return None
        return None if value is None else list(value)

    def positive_numbers(self, name: str) -> tuple[float, ...]:
        """Gives a list of finite numbers above 0."""
        value = self.get(name)
        if not isinstance(value, list | tuple) or not all(_is_number(x) and x > 0 for x in value):
            self._expected(name, value, "a list of positive numbers")
            return ()
        return tuple(float(x) for x in value)

    def sizes(self, name: str, default: int | tuple[int, ...], *, most: int) -> tuple[int, ...]:
        """Gives an integer from 1 to `most`; or as many of them, in a list, as `default` has."""
        value = self.get(name, default)
        found, wanted = (x if isinstance(x, list | tuple) else [x] for x in (value, default))
        if len(found) != len(wanted) or not all(_is_integer(size) and 1 <= size <= most for size in found):
            many = f"{len(wanted)} integers" if len(wanted) > 1 else "an integer"
            self._expected(name, value, f"{many} from 1 to {most}")
            return tuple(wanted)
        return tuple(int(size) for size in found)

    def mapping(self, name: str) -> Mapping[str, Any] | None:
        """Gives a JSON object; None where there is none."""
        value = self.get(name)
        if value is not None and not isinstance(value, Mapping):
            self._expected(name, value, "an object {…}")
            return None
        return value

    def _value(self, name: str, default: Any) -> Any:
        """The field or its default; where there is neither, notes that it is missing, and gives None."""
        value = self.get(name, default)
        if value is None:
            self._missing(name)
        return value

    def _missing(self, name: str) -> None:
        self._wrong.add(name)
        self.problem(f"the config has no {self._prefix + name!r}, which this model needs")

    def _nothing(self, name: str, absent: Any) -> bool:
        self._read.add(name)
        return self._config.get(name, absent) is None

    # Fields that several families have.

    def activation(self, default: str, field: str = "hidden_act") -> Activation:
        """Gives the MLP's activation, in this project's names."""
        name = self.get(field, default)
        if not isinstance(name, str) or name not in ACTIVATIONS:
            self._wrong.add(field)
            self.problem(f"{field}: activation {shown(name)} is not implemented; known: {', '.join(ACTIVATIONS)}")
            name = default
        return ACTIVATIONS[name]

    def multiple(self, name: str, of: str, value: int, divisor: int) -> None:
        """Notes where the field `name`, `value`, is not a multiple of the field `of`, `divisor`."""
        if value % divisor and not {name, of} & self._wrong:
            self.problem(f"{name} {value} is not a multiple of {of} {divisor}")

    def blocks(
        self,
        width: str = "hidden_size",
        layers: str = "num_hidden_layers",
        heads: str = "num_attention_heads",
        *,
        kv_heads: str | None = None,
        head_dim: str | None = None,
    ) -> dict[str, Any]:
        """Gives `hidden_size`, `num_layers`, `num_heads`, `num_kv_heads` and `head_dim` of a config.

        Args:
          width: the field that holds D.
          layers: the field that holds L.
          heads: the field that holds H.
          kv_heads: the field that holds K, of which H is a multiple; H where there is none.
          head_dim: the field that holds N; where there is none, the heads share the width: N = D / H.
        """
        D, L, H = self.size(width), self.layers(layers), self.size(heads)
        K, N = H, max(1, D // H)
        if kv_heads is not None:
            K = self.size(kv_heads, H)
            self.multiple(heads, kv_heads, H, K)
        if head_dim is not None and self.get(head_dim) is not None:
            N = self.size(head_dim)
        else:
            self.multiple(width, heads, D, H)
        return {"hidden_size": D, "num_layers": L, "num_heads": H, "num_kv_heads": K, "head_dim": N}

    def windows(self, num_layers: int, window: int | None, windowed: Sequence[bool]) -> dict[str, Any]:
        """Gives `window` and `window_layers` of a TransformerConfig.

        Args:
          num_layers: L.
          window: the sliding window, None for none.
          windowed: which layers have it where the config does not list them in `layer_types`.
        """
        types = self.texts("layer_types")
        if types is not None:
            if len(types) != num_layers or not {"sliding_attention", "full_attention"}.issuperset(types):
                many = f"expected {num_layers} times 'full_attention' or 'sliding_attention'"
                self.problem(f"layer_types is {shown(types, 120)}; {many}")
                return {"window": None}
            windowed = [kind == "sliding_attention" for kind in types]
        if not any(windowed):
            return {"window": None}
        if window is None:
            self.problem("layers have sliding attention, and there is no sliding window (sliding_window)")
            return {"window": None}
        return {"window": window, "window_layers": None if all(windowed) else tuple(windowed)}

    def rope(
        self,
        max_position: int,
        *,
        head_dim: int | None = None,
        theta: float = 10000.0,
        theta_field: str = "rope_theta",
        partial: float = 1.0,
        partial_field: str = "partial_rotary_factor",
        settings: Mapping[str, Any] | None = None,
        default: Mapping[str, Any] | None = None,
    ) -> RopeConfig:
        """Reads rotary settings, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).

        As transformers 5 has it: a `rope_scaling` that is not empty counts in place of all of `rope_parameters`; what
        the one that counts does not say of base and turned part, the fields outside of it do.

        Args:
          max_position: longest sequence of the model, in tokens.
          head_dim: N, for families that can turn only the first dims of a head; None for the others.
          theta: where the config has none.
          theta_field: what the family calls it outside of `rope_parameters`.
          partial: how much of a head is turned, where the config does not say.
          partial_field: what the family calls it outside of `rope_parameters`.
          settings: `rope_parameters` themselves, where the config has several (one a layer type).
          default: `rope_parameters` where the config has none.
        """
        if settings is None:
            scaling, parameters = self.mapping("rope_scaling"), self.mapping("rope_parameters")
            parameters = (default or {}) if parameters is None else parameters
            given = self.inside("rope_scaling", scaling) if scaling else self.inside("rope_parameters", parameters)
        else:
            given = self.inside("rope_scaling" if self.get("rope_scaling") else "rope_parameters", settings)
        # A field of the usual name says the same, in a family that has another one.
        for field, usual in ((theta_field, "rope_theta"), (partial_field, "partial_rotary_factor")):
            if field != usual and self.get(usual) is not None:
                self.only(usual, self.get(field, theta if usual == "rope_theta" else partial))
        theta = given.number("rope_theta", self.number(theta_field, theta, positive=True), positive=True)
        partial = given.number(
            "partial_rotary_factor", self.number(partial_field, partial, positive=True), positive=True
        )
        if partial > 1.0 or (partial != 1.0 and head_dim is None):
            self.problem(f"partial_rotary_factor {partial} is not implemented for this family")
            partial = 1.0
        rotary_dim = None if head_dim is None or partial == 1.0 else int(head_dim * partial)
        if rotary_dim is not None and rotary_dim < 2:
            self.problem(f"partial_rotary_factor {partial:g} of a head of {head_dim} is less than a pair of dims")
            rotary_dim = None
        # Beside settings for several types of layers transformers does not look at it: it is refused there, as unread.
        original = None if settings is not None else self.optional_integer("original_max_position_embeddings")
        return RopeConfig(theta=theta, rotary_dim=rotary_dim, **given._rope_scaling(max_position, original))

    def _rope_scaling(self, max_position: int, original: int | None) -> dict[str, Any]:
        """Kind and settings of a RopeConfig; `original` context length as the config says it outside of these."""
        given, older = self.get("rope_type"), self.get("type")
        if given is not None and older is not None and given != older:
            self.problem(f"rope_type {shown(given)} and type {shown(older)} contradict each other")
        kind = self.text("rope_type" if given is not None else "type", "default")
        if kind not in ROPE_SETTINGS:
            self.problem(f"rope scaling {shown(kind)} is not implemented; known: {', '.join(ROPE_SETTINGS)}")
            kind = "default"
        inner = self.optional_integer("original_max_position_embeddings")
        if kind not in ("llama3", "yarn") or (original := original or inner) is None:
            original = max_position
        self.ignore("finetuned")  # in configs of YaRN's authors
        if kind == "default":  # settings of the others do nothing
            self.ignore(*(name for names in ROPE_SETTINGS.values() for name in names))
        settings = {name: self._rope_setting(name) for name in ROPE_SETTINGS[kind] if self.get(name) is not None}
        for name in _ROPE_REQUIRED.get(kind, ()):
            if name not in settings:
                self.problem(f"rope scaling {kind!r} has no {name}")
        low, high = (settings.get(f"{name}_freq_factor", default) for name, default in (("low", 1.0), ("high", 4.0)))
        if high <= low:
            self.problem(f"high_freq_factor {high:g} is not above low_freq_factor {low:g}")
        if unknown := self._unknown():
            self.problem(f"unknown settings of rope scaling {kind!r}: {shown(unknown, 200)} ({self._prefix[:-1]})")
            self._read.update(unknown)
        if kind == "yarn":
            settings.setdefault("factor", max_position / original)
        return {"kind": kind, "original_max_position": original, **settings}

    def _rope_setting(self, name: str) -> Any:
        """A setting of a RopeConfig, of its type."""
        if name == "truncate":
            return self.flag(name, True)
        return self.positive_numbers(name) if name == "factors" else self.number(name, positive=True)

    def _unknown(self) -> dict[str, Any]:
        """The fields that nothing read and that are not switched off."""
        return {
            name: value
            for name, value in self._config.items()
            if name not in self._read and value is not None and value is not False
        }

    def finish(self) -> None:
        """Refuses fields that nothing read, unless they are known to have no effect or are null or false.

        Raises:
          ValueError: there are such fields, or `check` has something.
        """
        self._finish()
        self.check()

    def _finish(self) -> None:
        for part in self._parts:
            part._finish()
        self.texts("architectures")
        self.text("model_type", "")
        quantization = self.mapping("quantization_config")
        if quantization is not None:
            method = quantization.get("quant_method", "unknown")
            if method != "mxfp4":  # which the source unpacks
                self.problem(
                    f"the weights are quantised ({shown(method).strip(chr(39))}), which is not supported "
                    "(quantization_config); use the original checkpoint, or a GGUF file"
                )
        unknown = {name: value for name, value in self._unknown().items() if name not in _NO_EFFECT}
        if unknown:
            each = listed((f"{self._prefix}{name} = {shown(value)}" for name, value in sorted(unknown.items())), 12)
            self.problem(
                f"config fields that are not implemented and could change the result: {each}. "
                "Remove them from config.json if you know that they have no effect"
            )
