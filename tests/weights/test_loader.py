"""Whole checkpoints: a Hugging Face directory or a GGUF file in, a model that computes what torch does out."""

import functools
import gc
import io
import math
import weakref

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import sentencepiece
import torch
import transformers

import massive_jax as mj
from massive_jax.loading import convert
from massive_jax.weights import numbers
from massive_jax.weights.safetensors_source import HuggingFaceSource
from tests.fixtures import hf_reference as hf
from tests.fixtures.gguf_files import sentencepiece_metadata, write_gguf
from tests.fixtures.hf_reference import LLAMA

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
TOKENS = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], size=(2, 11), dtype=np.int32)


def random_model(dtype=torch.float32, **changes):
    return hf.random_model(LLAMA, transformers.LlamaConfig(**SHAPE | changes), dtype=dtype)


def load(path, **options):
    return mj.load(str(path), progress=False, **options)


def assert_matches(path, model, tokens=TOKENS, tolerance=1e-5):
    ours = load(path)
    got = ours(tokens, capture=mj.Capture(("block_out", "final_norm", "logits"))).intermediates
    theirs = hf.run(LLAMA, model.float(), tokens)
    errors = hf.errors_by_site(got, {site: theirs[site] for site in got})
    assert max(max(error) for error in errors.values()) <= tolerance
    return ours


@pytest.fixture
def directory(tmp_path):
    """A float32 checkpoint in one file."""
    hf.save(random_model(), tmp_path)
    return tmp_path


def change_tensors(directory, tensors):
    """Replaces tensors of a checkpoint, or adds them; None removes one."""
    path = directory / "model.safetensors"
    stored = safetensors.torch.load_file(path) | tensors
    kept = {name: tensor.contiguous() for name, tensor in stored.items() if tensor is not None}
    safetensors.torch.save_file(kept, path, metadata={"format": "pt"})


def embedding_of(directory):
    return safetensors.torch.load_file(directory / "model.safetensors")["model.embed_tokens.weight"]


# Hugging Face directories


def test_an_untied_bfloat16_checkpoint_in_shards(tmp_path):
    model = random_model(torch.bfloat16)
    hf.save(model, tmp_path, max_shard_size="12KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 3
    ours = assert_matches(tmp_path, model)
    assert {leaf.dtype for leaf in jax.tree.leaves(ours.params)} == {jnp.dtype("float32")}
    assert ours.params["layers"]["attn"]["query"]["kernel"].shape == (3, 32, 4, 8)
    kept = load(tmp_path, dtype="bfloat16").params
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a, np.float32), b), kept, ours.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("bfloat16")}


def test_the_checkpoint_can_be_deleted_after_loading(directory):
    """Nothing of the model may still be a view of the file."""
    model = load(directory)
    before = np.asarray(model(TOKENS).logits)
    path = directory / "model.safetensors"
    path.write_bytes(b"\0" * path.stat().st_size)
    np.testing.assert_array_equal(model(TOKENS).logits, before)


def same_params(a, b):
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


@pytest.mark.parametrize(
    ("model", "config", "tied"),
    [
        (transformers.LlamaModel, transformers.LlamaConfig(**SHAPE), False),
        (transformers.LlamaModel, transformers.LlamaConfig(**SHAPE | {"tie_word_embeddings": True}), True),
        (transformers.GPT2Model, transformers.GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4), True),
    ],
)
def test_a_model_saved_without_its_head(tmp_path, model, config, tied):
    """Names without the prefix. A tied model is whole; of an untied one transformers would make up the head."""
    backbone = model(config).eval()
    backbone.save_pretrained(tmp_path)
    if not tied:
        with pytest.raises(ValueError, match=r"lm_head\.weight is missing from the checkpoint, .* without its"):
            load(tmp_path)
        return
    with torch.no_grad():
        want = backbone(torch.tensor(TOKENS, dtype=torch.long)).last_hidden_state
    np.testing.assert_allclose(load(tmp_path)(TOKENS).last_hidden, want, atol=1e-4)


def test_a_tied_checkpoint_that_holds_the_head_alone(tmp_path):
    hf.save(random_model(tie_word_embeddings=True), tmp_path)
    want = load(tmp_path)
    change_tensors(tmp_path, {"lm_head.weight": embedding_of(tmp_path), "model.embed_tokens.weight": None})
    same_params(load(tmp_path), want)
    hf.change_config(tmp_path, {"tie_word_embeddings": False})
    with pytest.raises(ValueError, match=r"1 missing from the checkpoint:\n\s+model\.embed_tokens\.weight"):
        load(tmp_path)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]
)
def test_types_that_hold_no_weights(directory, dtype, monkeypatch):
    monkeypatch.setattr(HuggingFaceSource, "read", lambda *args: pytest.fail("read a tensor"))
    name = "model.layers.0.mlp.up_proj.weight"
    change_tensors(directory, {name: torch.ones(48, 32).to(dtype)})
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=rf"1 tensors are of types that hold no weights.*: {name} \({kind}\)\. Load"):
        load(directory)


def test_a_tied_head_of_a_type_that_holds_no_weights(tmp_path):
    hf.save(random_model(tie_word_embeddings=True), tmp_path)
    change_tensors(tmp_path, {"lm_head.weight": embedding_of(tmp_path).to(torch.int32)})
    with pytest.raises(ValueError, match=r"no weights.*lm_head\.weight \(int32\)"):
        load(tmp_path)


@pytest.mark.parametrize("how", ["load", "convert"])
def test_weights_beyond_the_dtype(directory, tmp_path, how):
    def run(**options):
        if how == "load":
            return load(directory, **options)
        convert(str(directory), str(tmp_path / "out"), progress=False, **options)
        return None

    change_tensors(directory, {"model.norm.weight": torch.full((32,), -70000.0)})
    with pytest.raises(
        ValueError, match=r"1 tensors have values beyond float16, .* 65504: model\.norm\.weight \(-70000\)"
    ):
        run(dtype="float16")
    assert not (tmp_path / "out").exists()
    run(dtype="float16", allow_nonfinite=True)


def test_float64_weights_beyond_float32(directory):
    change_tensors(directory, {"model.norm.weight": torch.full((32,), 1e300, dtype=torch.float64)})
    with pytest.raises(ValueError, match=r"values beyond float32, .*\(1e\+300\)\. Load it in float64"):
        load(directory)


@pytest.mark.parametrize("how", ["load", "convert"])
def test_a_head_of_its_own_in_a_tied_checkpoint(tmp_path, how):
    hf.save(random_model(tie_word_embeddings=True), tmp_path)
    change_tensors(tmp_path, {"lm_head.weight": embedding_of(tmp_path) + 1e-3})
    run = functools.partial(load, tmp_path)
    if how == "convert":
        run = functools.partial(convert, str(tmp_path), str(tmp_path / "out"), progress=False)
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from embedding"):
        run()
    change_tensors(tmp_path, {"lm_head.weight": embedding_of(tmp_path).double()})  # equal in the model's dtype
    load(tmp_path)


def test_all_offenders_are_named_at_once(directory):
    layer = "model.layers.1."
    change_tensors(
        directory,
        {
            layer + "mlp.up_proj.weight": None,
            "model.norm.weight": None,
            layer + "self_attn.q_norm.weight": torch.zeros(8),
            "model.layers.3.input_layernorm.weight": torch.zeros(32),
            layer + "self_attn.q_proj.weight": torch.zeros(31, 32),
            layer + "input_layernorm.weight": torch.zeros(33),
            "lm_head.weight": torch.zeros(32, 61),
        },
    )
    with pytest.raises(ValueError, match="the weights do not fit the model its config describes") as caught:
        load(directory)
    message = str(caught.value)
    assert str(directory) in message
    for expected in (
        "2 missing from the checkpoint:",
        "model.layers.1.mlp.up_proj.weight -> layers/mlp/up/kernel",
        "model.norm.weight -> norm/scale",
        "2 in the checkpoint but not in this model:",
        "model.layers.1.self_attn.q_norm.weight [8]",
        "model.layers.3.input_layernorm.weight [32]",
        "3 of the wrong shape:",
        "model.layers.1.self_attn.q_proj.weight has shape [31, 32], expected [32, 32]",
        "model.layers.1.input_layernorm.weight has shape [33], expected [32]",
        "lm_head.weight has shape [32, 61], expected [61, 32]",
    ):
        assert expected in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 2}, "9 in the checkpoint but not in this model"),
        ({"num_hidden_layers": 4}, "9 missing from the checkpoint"),
        ({"num_key_value_heads": 4}, "6 of the wrong shape"),
        ({"attention_bias": True}, "12 missing from the checkpoint"),
        ({"mlp_bias": True}, "9 missing from the checkpoint"),
        ({"hidden_size": 64}, "of the wrong shape"),
    ],
)
def test_a_config_that_does_not_fit_the_weights(directory, changes, message):
    hf.change_config(directory, changes)
    with pytest.raises(ValueError, match=message):
        load(directory)


def test_a_transposed_square_matrix_would_change_the_result(directory):
    """No shape tells a square matrix from its transpose: that the parity tests would see it is checked here."""
    name = "model.layers.0.self_attn.q_proj.weight"
    before = np.asarray(load(directory)(TOKENS).logits)
    change_tensors(directory, {name: safetensors.torch.load_file(directory / "model.safetensors")[name].T})
    assert hf.relative_error(load(directory)(TOKENS).logits, before) > 1e-3


def test_rotary_buffers_of_old_checkpoints_are_no_parameters(directory):
    before = load(directory)
    change_tensors(directory, {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(3)})
    jax.tree.map(np.testing.assert_array_equal, load(directory).params, before.params)


def test_a_tied_head_may_be_stored_if_it_is_the_embedding(tmp_path):
    model = random_model(tie_word_embeddings=True)
    hf.save(model, tmp_path)
    embedding = embedding_of(tmp_path)
    assert "head" not in assert_matches(tmp_path, model).params
    change_tensors(tmp_path, {"lm_head.weight": embedding.clone()})
    assert "head" not in assert_matches(tmp_path, model).params
    other = embedding.clone()
    other[60, 31] += 0.5
    change_tensors(tmp_path, {"lm_head.weight": other})
    with pytest.raises(ValueError, match=r"lm_head.weight differs from embedding; set tie_word_embeddings to false"):
        load(tmp_path)
    change_tensors(tmp_path, {"lm_head.weight": embedding[:60]})
    with pytest.raises(ValueError, match="lm_head.weight differs"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logit_scale": 0.5}, "config fields that are not implemented and could change the result: logit_scale = 0.5"),
        ({"zeta": [1], "alpha": "x"}, "alpha = 'x', zeta = \\[1\\]"),
        ({"model_type": "perceiver"}, "model_type 'perceiver' is not supported; supported: .*llama, .*mistral"),
        ({"model_type": None}, "model_type '?None'? is not supported"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"the weights are quantised \(gptq\)"),
    ],
)
def test_configs_that_are_refused(directory, changes, message):
    hf.change_config(directory, changes)
    with pytest.raises(ValueError, match=message) as caught:
        load(directory)
    assert str(directory) in str(caught.value)


def test_loading_peaks_near_one_tensor_above_the_result(tmp_path, monkeypatch):
    """What is alive, on the host and on the device, whenever another tensor is about to be read."""
    model = random_model(torch.bfloat16, num_hidden_layers=12)
    hf.save(model, tmp_path, max_shard_size="30KB")
    alive: dict[int, int] = {}
    above, stacked = [], []
    gc.collect()  # of earlier tests
    baseline = sum(array.nbytes for array in jax.live_arrays())
    read = HuggingFaceSource.read

    def watched(self, name, memory=None):
        host = sum(alive.values())
        device = sum(array.nbytes for array in jax.live_arrays()) - baseline
        above.append((host, device))
        stacked.extend(array for array in jax.live_arrays() if array.shape[:1] == (12,))
        raw = read(self, name, memory)
        alive[id(raw)] = raw.nbytes
        weakref.finalize(raw, alive.pop, id(raw))
        return raw

    monkeypatch.setattr(HuggingFaceSource, "read", watched)
    ours = load(tmp_path)
    result = sum(leaf.nbytes for leaf in jax.tree.leaves(ours.params))
    largest = 4 * max(math.prod(tensor.shape) for tensor in model.state_dict().values())
    assert len(above) == len(model.state_dict())
    # The tensor before may still be there as stored, and be on its way to the device: two at most.
    assert max(host for host, _ in above) <= 2 * largest
    assert max(device for _, device in above) <= result + 2 * largest
    assert result > 20 * largest  # or the bounds would say nothing
    # Layers are written in place: of every stacked parameter, no copy from before was left.
    final = {id(leaf) for leaf in jax.tree.leaves(ours.params)}
    assert len(stacked) > 12
    assert all(array.is_deleted() or id(array) in final for array in stacked)


# GGUF files


def permute(weights, heads):
    """`permute` of llama.cpp's convert_hf_to_gguf.py."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def gguf_tensors(model):
    """The model's tensors as llama.cpp's converter writes them."""
    found = {}
    for name, tensor in model.state_dict().items():
        module, kind = name.rsplit(".", 1)
        prefix = ""
        if module.startswith("model.layers."):
            layer, module = module.removeprefix("model.layers.").split(".", 1)
            prefix = f"blk.{layer}."
        values = tensor.float().numpy()
        if "q_proj" in module:
            values = permute(values, model.config.num_attention_heads)
        if "k_proj" in module:
            values = permute(values, model.config.num_key_value_heads)
        if not (module == "lm_head" and model.config.tie_word_embeddings):
            found[f"{prefix}{GGUF_NAMES[module]}.{kind}"] = values
    return found


def gguf_metadata(config):
    return {
        "general.architecture": "llama",
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": config.rope_parameters["rope_theta"],
        "llama.rope.dimension_count": config.head_dim,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.vocab_size": config.vocab_size,
    }


@pytest.fixture(scope="module")
def processor():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["Summer is warm. Winter is cold.", "the winter of our discontent made glorious"] * 9),
        model_writer=model,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        num_threads=1,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True, "attention_bias": True, "head_dim": 12, "rms_norm_eps": 1e-3},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}},
    ],
    ids=["plain", "tied, biases, head dim", "linear"],
)
def test_gguf_with_a_sentencepiece_vocabulary(tmp_path, processor, changes):
    model = random_model(vocab_size=320, **changes)
    metadata = gguf_metadata(model.config) | sentencepiece_metadata(processor)
    if "rope_parameters" in changes:
        metadata |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    path = tmp_path / "model.gguf"
    write_gguf(path, metadata, gguf_tensors(model))
    text = "Winter is warm.\nSummer, déjà vu"
    ours = load(path)
    tokens = ours.tokenize(text)
    assert tokens.tolist() == [processor.encode(text)]
    assert ours.tokenize(text, bos=True).tolist() == [[processor.bos_id(), *processor.encode(text)]]
    assert ours.first_delimiter(tokens).tolist() == [processor.encode("Winter is warm").__len__()]
    assert_matches(path, model, tokens)


def test_gguf_with_the_frequency_factors_of_llama_3(tmp_path, processor):
    """llama.cpp's converter writes llama3's rope scaling as one divisor a frequency."""
    rope = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    model = random_model(vocab_size=320, rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, **rope})
    wavelengths = 2 * np.pi * 1e4 ** (np.arange(0, 8, 2) / 8)
    smooth = np.clip((16 / wavelengths - 1.0) / (4.0 - 1.0), 0, 1)
    tensors = gguf_tensors(model) | {"rope_freqs.weight": 1 / ((1 - smooth) / 8.0 + smooth)}
    path = tmp_path / "model.gguf"
    write_gguf(path, gguf_metadata(model.config) | sentencepiece_metadata(processor), tensors)
    tokens = np.random.default_rng(1).integers(0, 320, size=(1, 40), dtype=np.int32)
    assert_matches(path, model, tokens)
    # Without them it is another model.
    del tensors["rope_freqs.weight"]
    write_gguf(path, gguf_metadata(model.config) | sentencepiece_metadata(processor), tensors)
    with pytest.raises(AssertionError):
        assert_matches(path, model, tokens)


def test_a_quantised_gguf_is_its_dequantised_self(tmp_path):
    """Q8_0 blocks have 32 values a scale, along the rows that the permutation leaves whole."""
    model = random_model(intermediate_size=64)
    tensors = gguf_tensors(model)
    path = tmp_path / "model.gguf"
    write_gguf(path, gguf_metadata(model.config), tensors, "Q8_0")
    kind = gguf.GGMLQuantizationType.Q8_0
    rounded = {
        name: gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind) if values.ndim > 1 else values
        for name, values in tensors.items()
    }
    quantised = load(path)
    assert quantised.tokenizer is None
    write_gguf(tmp_path / "rounded.gguf", gguf_metadata(model.config), rounded)
    jax.tree.map(np.testing.assert_array_equal, quantised.params, load(tmp_path / "rounded.gguf").params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "rwkv"}, "GGUF architecture 'rwkv' is not supported; supported: .*llama"),
        ({"llama.expert_count": 8}, "expert"),
        ({"llama.rope.dimension_count": 4}, "rotary or value width"),
        (
            {"llama.rope.scaling.type": "longrope"},
            r"llama\.rope\.scaling\.type is 'longrope'; expected one of none, linear",
        ),
        ({"llama.block_count": None}, "no llama.block_count"),
        ({"llama.block_count": 2}, r"llama\.block_count is 2; expected 3, as many blocks as"),
    ],
)
def test_gguf_files_that_are_refused(tmp_path, changes, message):
    model = random_model()
    metadata = gguf_metadata(model.config) | changes
    path = tmp_path / "model.gguf"
    write_gguf(path, {key: value for key, value in metadata.items() if value is not None}, gguf_tensors(model))
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path, dtype, value):
    model = random_model(dtype)
    name = "model.layers.1.self_attn.k_proj.weight"
    model.state_dict()[name][1, 2] = value
    hf.save(model, tmp_path)
    with pytest.raises(ValueError, match=f"1 tensors hold NaN or infinite values: {name}. The file"):
        load(tmp_path)
    ours = load(tmp_path, allow_nonfinite=True)
    assert not np.isfinite(np.asarray(ours.params["layers"]["attn"]["key"]["kernel"])).all()


def test_largest_finite_weights_are_finite():
    for dtype in (np.float32, np.float16, jnp.bfloat16):
        info = jnp.finfo(dtype)
        values = np.array([info.max, info.min, 0, info.tiny], dtype)
        assert numbers.extremes(values) == (float(info.min), float(info.max))
        assert numbers.finite_in(numbers.extremes(values), dtype)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, jnp.bfloat16])
def test_no_value_that_is_not_finite_is_missed(dtype, value):
    assert not numbers.finite_in(numbers.extremes(np.array([1, value, -1], dtype)), dtype)
