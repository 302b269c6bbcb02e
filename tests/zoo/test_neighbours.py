"""A checkpoint under a neighbour's model type is refused, and the error names what gives it away."""

import pytest
import transformers

from tests.fixtures import decoders, parity
from tests.fixtures import hf_reference as hf
from tests.fixtures.hf_reference import Reference

MODELS = {
    "gemma": (transformers.GemmaForCausalLM, transformers.GemmaConfig),
    "gemma2": (transformers.Gemma2ForCausalLM, transformers.Gemma2Config),
    "gemma3_text": (transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig),
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig),
    "mistral": (transformers.MistralForCausalLM, transformers.MistralConfig),
    "olmo2": (transformers.Olmo2ForCausalLM, transformers.Olmo2Config),
    "qwen2": (transformers.Qwen2ForCausalLM, transformers.Qwen2Config),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config),
}
Q_NORM = r"in the checkpoint but not in this model:[^§]*layers\.0\.self_attn\.q_norm\.weight \[8\]"
# (what it is, what its config says, the error, what the config loses so that the weights are looked at)
WRONG = [
    ("gemma2", "gemma", r"query_pre_attn_scalar = 256", ()),
    ("gemma2", "gemma3_text", r"rope_parameters is .* expected those of full_attention", ()),
    ("gemma2", "gemma3_text", r"attn_logit_softcapping = 50", ("rope_parameters",)),
    ("gemma2", "gemma3_text", r"q_norm\.weight -> ", ("attn_logit_softcapping", "rope_parameters")),
    ("gemma3_text", "gemma2", r"unknown settings of rope scaling 'default': .*'sliding_attention'", ()),
    ("gemma3_text", "gemma2", Q_NORM, ("rope_parameters", "_sliding_window_pattern")),
    ("llama", "olmo2", r"q_norm\.weight -> [^§]*layers\.0\.input_layernorm\.weight \[32\]", ()),
    ("llama", "qwen2", r"9 missing from the checkpoint:[^§]*q_proj\.bias -> ", ()),
    ("llama", "qwen3", r"6 missing from the checkpoint:[^§]*q_norm\.weight -> ", ()),
    ("mistral", "llama", r"sliding_window = 4096", ()),
    ("olmo2", "llama", r"input_layernorm\.weight -> [^§]*post_feedforward_layernorm\.weight", ()),
    ("olmo2", "gemma2", r"pre_feedforward_layernorm\.weight -> ", ()),
    ("qwen2", "llama", r"layer_types = .*max_window_layers = 28", ()),
    ("qwen2", "llama", r"q_proj\.bias \[32\]", ("max_window_layers", "layer_types")),
    ("qwen2", "qwen3", r"q_norm\.weight -> [^§]*q_proj\.bias \[32\]", ()),
    ("qwen3", "qwen2", r"q_proj\.bias -> [^§]*q_norm\.weight \[8\]", ()),
]


@pytest.mark.parametrize(("actual", "claimed", "message", "without"), WRONG)
def test_a_neighbours_checkpoint_is_refused(tmp_path, actual, claimed, message, without):
    model_class, config_class = MODELS[actual]
    config = config_class(**decoders.SHAPE, **({} if actual == "olmo2" else {"head_dim": 8}))
    decoders.build(Reference(model_class, {}), config, tmp_path)
    hf.change_config(tmp_path, {"model_type": claimed, "head_dim": 8} | dict.fromkeys(without))
    with pytest.raises(ValueError, match=message):
        parity.load(tmp_path)
