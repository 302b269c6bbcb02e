"""What GGUF metadata means for every architecture: types, ranges, old and implied forms, keys that nothing reads."""

import types

import numpy as np
import pytest

from massive_jax import zoo
from massive_jax.weights.source import TensorInfo
from massive_jax.zoo import gguf_metadata

NAN, INF = float("nan"), float("inf")
RMS = {"attention.layer_norm_rms_epsilon": 1e-5}
LAYER = {"attention.layer_norm_epsilon": 1e-5}
SHARED = {
    **{"context_length": 64, "embedding_length": 32, "block_count": 3, "feed_forward_length": 48},
    **{"attention.head_count": 4, "attention.head_count_kv": 2, "vocab_size": 61},
}
OF_ARCHITECTURE = {
    "llama": RMS,
    "gemma": RMS,
    "gemma2": RMS,
    "gemma3": {**RMS, "attention.sliding_window": 5},
    "qwen2": RMS,
    "qwen3": RMS,
    "olmo2": RMS,
    "gpt-oss": {
        **RMS,
        **{"attention.sliding_window": 5, "expert_feed_forward_length": 48},
        **{"expert_count": 4, "expert_used_count": 2},
    },
    "phi2": LAYER,
    "falcon": LAYER,
    "gptneox": {**LAYER, "attention.head_count_kv": 4, "use_parallel_residual": True},
    "gpt2": {**LAYER, "attention.head_count_kv": 4},
    "mpt": {**LAYER, "attention.max_alibi_bias": 8.0},
}
FAMILIES = {family.gguf_architecture: family for family in zoo.FAMILIES.values() if family.gguf_architecture}
ROTARY = sorted(FAMILIES.keys() - {"gpt2", "mpt"})
WINDOWED = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2}


def source(architecture, *, without=(), more=None, tensors=None, shape=(61, 32), **keys):
    """A GGUF file, as the zoo sees one; `keys` have "__" for a dot, `more` is without the architecture's name."""
    named = {
        "token_embd.weight": shape,
        **{f"blk.{layer}.attn_norm.weight": (32,) for layer in range(3)},
        **(tensors or {}),
    }
    if architecture == "gpt-oss" or "expert_count" in (more or {}):
        named.setdefault("blk.0.ffn_gate_inp.weight", (4, 32))
    own = SHARED | OF_ARCHITECTURE[architecture] | (more or {})
    metadata = {f"{architecture}.{name}": value for name, value in own.items() if name not in without}
    return types.SimpleNamespace(
        format="gguf",
        location="model.gguf",
        config={"general.architecture": architecture, **metadata, **{k.replace("__", "."): v for k, v in keys.items()}},
        tensors={name: TensorInfo(x.shape if isinstance(x, np.ndarray) else x, "float32") for name, x in named.items()},
        read=lambda name: named[name],
    )


def config(architecture, **options):
    return zoo.describe(source(architecture, **options))[0]


def test_every_architecture_is_here():
    assert OF_ARCHITECTURE.keys() == FAMILIES.keys()


@pytest.mark.parametrize("architecture", ROTARY)
@pytest.mark.parametrize(
    ("keys", "kind", "factor"),
    [
        ({}, "default", 1.0),
        ({"scale_linear": 4.0}, "linear", 4.0),
        ({"scaling.factor": 4.0}, "linear", 4.0),
        ({"scaling.factor": 4.0, "scale_linear": 2.0}, "linear", 4.0),
        ({"scaling.type": "linear", "scaling.factor": 4.0}, "linear", 4.0),
        ({"scaling.type": "linear", "scale_linear": 4.0}, "linear", 4.0),
        ({"scaling.type": "linear"}, "default", 1.0),
        ({"scaling.factor": 0.0}, "default", 1.0),
        ({"scaling.type": "none", "scaling.factor": 4.0}, "default", 1.0),
        ({"scaling.type": "none", "scale_linear": 4.0, "scaling.finetuned": True}, "default", 1.0),
        ({"scaling.type": "yarn"}, "default", 1.0),
        ({"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 16}, "yarn", 4.0),
        ({"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.yarn_ext_factor": 1.0}, "yarn", 4.0),
    ],
)
def test_scaled_positions(architecture, keys, kind, factor):
    """As `llama_model::load_hparams`: the type is linear where there is none, and the old key stands for the new."""
    rope = config(architecture, more={f"rope.{name}": value for name, value in keys.items()}).rope
    assert (rope.kind, rope.factor) == (kind, factor)
    if kind == "yarn":
        assert rope.original_max_position == keys.get("scaling.original_context_length", 64)


@pytest.mark.parametrize("architecture", ROTARY)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rope.scaling.type", "longrope"),
        ("rope.scaling.type", 1),
        ("rope.scaling.factor", -2.0),
        ("rope.scaling.factor", NAN),
        ("rope.scaling.factor", "4"),
        ("rope.scale_linear", INF),
        ("rope.scaling.attn_factor", 2.0),
        ("rope.scaling.yarn_attn_factor", 2.0),
        ("rope.scaling.yarn_ext_factor", 1.0),
        ("rope.scaling.yarn_log_multiplier", 0.1),
        ("rope.scaling.yarn_beta_fast", NAN),
        ("rope.scaling.alpha", 2.0),
        ("rope.freq_base", 0.0),
        ("rope.freq_base", True),
        ("rope.freq_base", 1e-45),
        ("rope.scaling.factor", 1e38),
        ("rope.scaling.factor", 1e-45),
        ("rope.dimension_count", 7),
        ("rope.dimension_count", 10),
        ("rope.dimension_sections", [2, 2, 2, 2]),
    ],
)
def test_positions_that_are_refused(architecture, name, value):
    with pytest.raises(ValueError, match=rf"^model\.gguf: .*{architecture}\.{name}.*$") as caught:
        config(architecture, more={name: value})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("architecture", ["gpt2", "mpt"])
def test_models_without_a_rotary_embedding_do_not_mind_its_keys(architecture):
    changed = config(architecture, more={"rope.scaling.factor": 4.0, "rope.dimension_count": 3})
    assert changed == config(architecture)


@pytest.mark.parametrize("architecture", ["phi2", "gptneox"])
@pytest.mark.parametrize("head_dim", [8, 98])
def test_every_even_width_of_a_partial_rotary_embedding(architecture, head_dim):
    for width in range(2, head_dim + 1, 2):
        made = config(
            architecture,
            shape=(61, 4 * head_dim),
            more={"embedding_length": 4 * head_dim, "rope.dimension_count": width},
        )
        assert (made.rope.rotary_dim or head_dim) == width


def test_frequency_factors_go_with_a_linear_factor():
    factors = np.array([1.0, 2.0, 3.0, 8.0], np.float32)
    more = {"rope.scaling.factor": 2.0}
    rope = config("llama", tensors={"rope_freqs.weight": factors}, more=more).rope
    assert rope.factors == (2.0, 4.0, 6.0, 16.0)
    with pytest.raises(ValueError, match=r"rope\.scaling\.type is 'yarn'; expected none or linear beside"):
        config("llama", tensors={"rope_freqs.weight": factors}, more=more | {"rope.scaling.type": "yarn"})


@pytest.mark.parametrize(
    "factors", [np.zeros(4), np.ones(5), np.ones((2, 2)), np.array([1, -1, 1, 1.0]), np.full(4, NAN)]
)
def test_frequency_factors_that_are_refused(factors):
    with pytest.raises(ValueError, match=r"^model\.gguf: the tensor rope_freqs\.weight .*expected 4 finite factors"):
        config("llama", tensors={"rope_freqs.weight": factors})


@pytest.mark.parametrize("architecture", WINDOWED)
@pytest.mark.parametrize(
    ("pattern", "windowed"),
    [
        (0, [True, True, True]),
        (1, [False, False, False]),
        (2, [True, False, True]),
        (3, [True, True, False]),
        ([False, True, False], [False, True, False]),
        ([0, 0, 1], [False, False, True]),
        ([True, True, True], [True, True, True]),
    ],
)
def test_which_layers_have_the_window(architecture, pattern, windowed):
    made = config(architecture, more={"attention.sliding_window": 5, "attention.sliding_window_pattern": pattern})
    assert made.window == (5 if any(windowed) else None)
    if any(windowed):
        assert list(made.window_layers or [True] * 3) == windowed


@pytest.mark.parametrize(("architecture", "period"), WINDOWED.items())
def test_which_layers_have_the_window_where_the_file_does_not_say(architecture, period):
    made = config(architecture)
    assert list(made.window_layers or [True] * 3) == [layer % period < period - 1 for layer in range(3)]
    assert made.window == (4096 if architecture == "gemma2" else 5)


@pytest.mark.parametrize("architecture", WINDOWED)
@pytest.mark.parametrize("pattern", [-1, "6", 2.0, True, [True], [True] * 4, [0, 1, 2], ["a"] * 3, [None, 0, 1], []])
def test_patterns_that_are_refused(architecture, pattern):
    with pytest.raises(ValueError, match=rf"{architecture}\.attention\.sliding_window_pattern is "):
        config(architecture, more={"attention.sliding_window_pattern": pattern})


@pytest.mark.parametrize("architecture", sorted(FAMILIES.keys() - WINDOWED.keys()))
def test_a_window_that_is_not_implemented_is_refused_by_name(architecture):
    if architecture == "llama":
        assert config(architecture, more={"attention.sliding_window": 5}).model_type == "mistral"
        experts = {"expert_count": 4, "expert_used_count": 2}
        assert config(architecture, more={"attention.sliding_window": 5} | experts).window == 5
    else:
        with pytest.raises(ValueError, match=rf"{architecture}\.attention\.sliding_window"):
            config(architecture, more={"attention.sliding_window": 5})
    assert config(architecture, more={"attention.sliding_window": 0}) == config(architecture)


@pytest.mark.parametrize("architecture", ["gemma2", "gpt-oss"])
def test_a_base_of_the_windowed_layers(architecture):
    assert config(architecture, more={"rope.freq_base_swa": 10000.0}) == config(architecture)
    with pytest.raises(ValueError, match=rf"{architecture}\.rope\.freq_base_swa is 5000\.0; expected 10000\.0"):
        config(architecture, more={"rope.freq_base_swa": 5000.0})


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("name", ["attention.head_count", "attention.head_count_kv", "feed_forward_length"])
def test_arrays_in_place_of_numbers(architecture, name):
    """Uniform ones are numbers; others are refused."""
    number = (SHARED | OF_ARCHITECTURE[architecture])[name]
    assert config(architecture, more={name: [number] * 3}) == config(architecture)
    for value in ([number] * 2, [number, number, 2 * number], [number, 0, number], [True] * 3, ["4"] * 3, []):
        with pytest.raises(ValueError, match=rf"{architecture}\.{name} is \["):
            config(architecture, more={name: value})


SIZES = ["context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"]


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("name", [*SIZES, "attention.head_count_kv", "vocab_size"])
@pytest.mark.parametrize("value", [0, -1, 2**31, 4.0, "4", True, [4], NAN])
def test_sizes_that_are_refused(architecture, name, value):
    with pytest.raises(ValueError, match=rf"^model\.gguf: {architecture}\.{name} is .*; expected .*$"):
        config(architecture, more={name: value})


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("name", [*SIZES, "epsilon"])
def test_sizes_that_are_missing(architecture, name):
    missing = next(key for key in (SHARED | OF_ARCHITECTURE[architecture]) if key.endswith(name))
    if (architecture, name) == ("gpt-oss", "feed_forward_length"):
        assert config(architecture, without=[name]) == config(architecture)
        return
    with pytest.raises(ValueError, match=rf"^model\.gguf: the GGUF metadata has no {architecture}\.{missing},"):
        config(architecture, without=[missing])


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("value", [NAN, INF, -1e-5, "1e-5", [1e-5], True])
def test_epsilons_that_are_refused(architecture, value):
    name = next(key for key in OF_ARCHITECTURE[architecture] if key.endswith("epsilon"))
    with pytest.raises(ValueError, match=rf"^model\.gguf: {architecture}\.{name} is .*finite number"):
        config(architecture, more={name: value})


@pytest.mark.parametrize(
    ("architecture", "name", "value"),
    [
        ("gemma2", "attn_logit_softcapping", 0.0),
        ("gemma2", "final_logit_softcapping", NAN),
        ("gemma3", "final_logit_softcapping", -1.0),
        ("gemma3", "rope.freq_base_swa", 0.0),
        ("gemma3", "attention.sliding_window", -1),
        ("gptneox", "use_parallel_residual", 1),
        ("mpt", "attention.max_alibi_bias", NAN),
        ("mpt", "attention.max_alibi_bias", 0.0),
        ("mpt", "attention.clamp_kqv", -1.0),
        ("gpt-oss", "expert_used_count", 5),
        ("gpt-oss", "expert_count", 10**9),
        ("gpt-oss", "expert_feed_forward_length", 0),
        ("llama", "expert_count", -1),
        ("llama", "attention.sliding_window", "5"),
        ("llama", "expert_count", 8),
        ("llama", "attention.head_count_kv", 3),
        ("llama", "attention.head_count", 64),
        ("llama", "attention.value_length", 4),
        ("llama", "attention.key_length", 16.0),
        ("phi2", "attention.key_length", 16),
        ("falcon", "attention.value_length", 16),
        ("gpt2", "attention.head_count_kv", 2),
        ("gptneox", "attention.head_count_kv", 2),
        ("llama", "attention.causal", False),
        ("llama", "attention.scale", 0.1),
        ("qwen2", "attn_logit_softcapping", 30.0),
        ("qwen3", "expert_count", 8),
        ("falcon", "logit_scale", 0.5),
        ("gpt2", "attention.max_alibi_bias", 8.0),
        ("olmo2", "attention.clamp_kqv", 8.0),
        ("gemma", "made_up", False),
    ],
)
def test_settings_that_are_refused(architecture, name, value):
    with pytest.raises(ValueError, match=rf"^model\.gguf: .*{architecture}\.{name} (is|=) .*$"):
        config(architecture, more={name: value})


@pytest.mark.parametrize("architecture", FAMILIES)
def test_keys_that_change_nothing(architecture):
    more = {
        **{"attention.causal": True, "logit_scale": 0.0, "tensor_data_layout": "Meta AI original pth"},
        **{"pooling_type": 1, "expert_group_count": 1, "nextn_predict_layers": 0},
    }
    assert config(architecture, more=more, general__name="A model", other__key=3) == config(architecture)


def test_all_keys_that_nothing_reads_are_named_in_one_line():
    more = {"ssm.conv_kernel": 4, "residual_scale": 0.5, "a\nb": ["x" * 1000]}
    with pytest.raises(
        ValueError, match=r"^model\.gguf: .*a\\nb = .*residual_scale = 0\.5.*conv_kernel = 4.*$"
    ) as caught:
        config("llama", more=more)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("said", "tokens", "rows", "expected"),
    [
        (61, None, 61, 61),
        (None, 61, 61, 61),
        (60, 61, 61, 61),  # tokens were added
        (1, 61, 61, 61),
        (60, None, 61, 61),
        (None, None, 61, 61),
        (64, 61, 64, 64),  # rows to spare
        (62, 61, 61, "vocab_size is 62; expected at most 61"),
        (61, 61, 60, "vocab_size is 61; expected at most 60"),
        (None, 62, 61, "62 tokens and token_embd.weight 61 rows"),
        (60, 62, 61, "62 tokens and token_embd.weight 61 rows"),
        (None, 60, 61, "60 tokens and token_embd.weight 61 rows"),
    ],
)
@pytest.mark.parametrize("architecture", FAMILIES)
def test_size_of_the_vocabulary(architecture, said, tokens, rows, expected):
    """llama.cpp counts the tokens, whatever `vocab_size` says."""
    keys = {} if tokens is None else {"tokenizer__ggml__tokens": [str(i) for i in range(tokens)]}
    changes = (
        {"shape": (rows, 32), "more": {"vocab_size": said}}
        if said
        else {"shape": (rows, 32), "without": ["vocab_size"]}
    )
    if isinstance(expected, int):
        assert config(architecture, **changes, **keys).vocab_size == expected
    else:
        with pytest.raises(ValueError, match=expected):
            config(architecture, **changes, **keys)


@pytest.mark.parametrize(
    ("architecture", "name", "tensor", "shape"),
    [
        ("llama", "feed_forward_length", "blk.0.ffn_down.weight", (32, 64)),
        ("llama", "attention.head_count", "blk.0.attn_output.weight", (32, 40)),
        ("llama", "attention.head_count_kv", "blk.0.attn_k.weight", (32, 32)),
        ("falcon", "attention.head_count_kv", "blk.0.attn_qkv.weight", (96, 32)),
        ("gpt2", "context_length", "position_embd.weight", (128, 32)),
        ("gpt-oss", "expert_count", "blk.0.ffn_gate_inp.weight", (8, 32)),
        ("gpt-oss", "expert_feed_forward_length", "blk.0.ffn_down_exps.weight", (4, 32, 64)),
    ],
)
def test_sizes_that_the_tensors_have_not(architecture, name, tensor, shape):
    with pytest.raises(ValueError, match=rf"^model\.gguf: {architecture}\.{name} is \d+; expected .*{tensor} \["):
        config(architecture, tensors={tensor: shape})


def test_experts_that_the_file_has_not():
    changed = source("llama", more={"expert_used_count": 2}, llama__expert_count=4)
    with pytest.raises(ValueError, match=r"llama\.expert_count is 4; expected 0 or none"):
        zoo.describe(changed)


def test_a_matrix_that_is_none_is_left_to_the_loader():
    assert config("llama", tensors={"blk.0.ffn_down.weight": (1536,), "token_embd.weight": (8,)}).vocab_size == 61


def test_the_number_of_blocks_is_that_of_the_tensors():
    with pytest.raises(ValueError, match=r"llama\.block_count is 1000000000; expected 3, as many blocks"):
        config("llama", more={"block_count": 10**9})
    with pytest.raises(ValueError, match=r"llama\.embedding_length is 64; expected 32, as token_embd"):
        config("llama", more={"embedding_length": 64})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"general__type": "adapter"}, "general.type is 'adapter'"),
        ({"general__architecture": "mamba"}, "GGUF architecture 'mamba' is not supported"),
        ({"general__architecture": 3}, "GGUF architecture 3 is not supported"),
        ({"general__architecture": "x" * 999}, "is not supported"),
    ],
)
def test_what_is_no_model_of_the_zoo(keys, message):
    with pytest.raises(ValueError, match=message) as caught:
        config("llama", **keys)
    assert len(str(caught.value)) < 400


def test_blocks_of_another_quantisation_version_are_refused():
    old = source("llama", general__quantization_version=1)
    assert gguf_metadata.read_config(old, FAMILIES["llama"].gguf_config)["vocab_size"] == 61
    old.tensors["blk.0.attn_norm.weight"] = TensorInfo((32,), "Q8_0")
    with pytest.raises(ValueError, match=r"general\.quantization_version is 1; expected 2"):
        gguf_metadata.read_config(old, FAMILIES["llama"].gguf_config)
