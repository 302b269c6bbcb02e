"""Attention to massive tokens over a corpus: against Hugging Face's torch, and what can be said without it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import massive_jax as mj
from massive_jax.analysis import SinkCount, Thresholds, find_secondary_sinks
from massive_jax.data import Windows, cut_windows, load_text
from massive_jax.evaluate import Images, explore, measure_attention
from massive_jax.evaluate import batches as batches_module
from massive_jax.models import AttentionBias
from tests.fixtures import attention_numbers as naive
from tests.fixtures import hf_reference as hf
from tests.fixtures.tiny import TINY, TINY_VISION, random_model
from tests.models.test_default_model import torch_model

MASSIVE, DRAWS, SEED, WINDOW = 7, 5, 3, 12
THRESHOLDS = Thresholds(500.0, 100.0)
SHARE = 0.075


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A Mistral with a window of 12 tokens, whose token 7 carries 3,000 at dim 5: torch's, and the same here."""
    config = transformers.MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        sliding_window=WINDOW,
    )
    model = hf.random_model(hf.MISTRAL, config)
    with torch.no_grad():
        model.model.embed_tokens.weight[MASSIVE, 5] = 3000.0
    directory = tmp_path_factory.mktemp("mistral")
    hf.save(model, directory)
    return model, mj.load(str(directory), progress=False)


@pytest.fixture(scope="module")
def windows():
    """Five of 22 tokens: massive ones at the start, in the middle, at both, nowhere, and as the last."""
    tokens = np.random.default_rng(5).integers(10, 60, size=(5, 22), dtype=np.int32)
    for row, position in ((0, 0), (1, 4), (2, 0), (2, 9), (4, 21)):
        tokens[row, position] = MASSIVE
    return Windows(tokens, 22, False)


@pytest.fixture(scope="module")
def found(pair, windows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches_module, "TOKENS_A_BATCH", 44)  # two windows, two, and one
        done = []
        options = {"thresholds": THRESHOLDS, "draws": DRAWS, "seed": SEED, "sink_share": SHARE}
        result = measure_attention(pair[1], windows, progress=done.append, **options)
    assert done == [44, 44, 22, 44, 44, 22]
    return result


@pytest.fixture(scope="module")
def theirs(pair, windows):
    return naive.torch_tensors(pair[0], transformers.MistralForCausalLM, windows.tokens)


def visible(T, window=None):
    seen = np.tri(T, dtype=bool)
    return seen if window is None else seen & ~np.tri(T, k=-window, dtype=bool)


def test_every_number_is_torchs(found, theirs, windows):
    member, birth = naive.massive_tokens(theirs["block_out"], THRESHOLDS)
    np.testing.assert_array_equal(member, windows.tokens == MASSIVE)
    assert (found.windows, found.with_massive, found.birth) == (5, 4, birth)
    assert [dataclasses.astuple(tokens) for tokens in found.massive] == [(None, "7", 3), (0, None, 2)]
    expected = naive.expected_numbers(theirs, member, visible(22, WINDOW), DRAWS, SEED)
    naive.compare(found.numbers, expected)


def test_the_two_sums_are_what_attention_gives(found, theirs, windows):
    member = windows.tokens == MASSIVE
    assert naive.expected_numbers(theirs, member, visible(22, WINDOW), 1, SEED)["error"] < 1e-5
    assert 0 < found.numbers.error < 2e-6
    assert found.numbers.slot_norm is None
    assert not found.numbers.slots.any()


def test_inputs_looked_at_closely_say_the_same(pair, windows, found):
    explored = explore(pair[1], windows.tokens, thresholds=THRESHOLDS)
    assert [one.massive for one in explored] == [(0,), (4,), (0, 9), (), (21,)]
    assert explored[3].bias is None
    biases, numbers = [one.bias for one in explored if one.bias is not None], found.numbers
    expected = {"share": numbers.concentration.mean(axis=1), "spread": numbers.spreads.massive}
    expected |= {"rest_spread": numbers.spreads.rest}
    expected |= {name: getattr(numbers, name) for name in ("update_norm", "rest_norm")}
    for name, values in expected.items():  # no query sees the last token
        np.testing.assert_allclose(np.nanmean([getattr(bias, name) for bias in biases], axis=0), values, rtol=1e-4)


def test_intervals_are_around_their_means(found):
    numbers = found.numbers
    means = {"concentration": numbers.concentration.mean(axis=1), "spread": numbers.spreads.massive}
    means |= {name: getattr(numbers, name).mean(axis=1) for name in ("logit_massive", "logit_others")}
    means |= {"rest_spread": numbers.spreads.rest}
    assert set(numbers.intervals) == set(means)
    for name, (low, high) in numbers.intervals.items():
        assert (low < means[name]).all()
        assert (means[name] < high).all()


def test_one_window_has_no_spread_over_windows(pair, windows):
    two = Windows(windows.tokens[2:4], 22, False)  # the second has no massive token
    found = measure_attention(pair[1], two, thresholds=THRESHOLDS, draws=DRAWS)
    assert (found.windows, found.with_massive) == (2, 1)
    assert np.isnan(found.numbers.across).all()
    assert np.isnan(found.numbers.intervals["spread"]).all()
    assert np.isfinite(found.numbers.spreads.massive).all()


def test_secondary_sinks_are_those_of_torchs_shares(found, theirs, windows):
    x = theirs
    first = x["block_out"][:, :, 0]
    norm = np.linalg.norm(x["mlp_out"], axis=-1)
    cosine = np.einsum("LWTD,LWD->LWT", x["mlp_out"], first) / norm / np.linalg.norm(first, axis=-1)[..., None]
    sinks = find_secondary_sinks(naive.received_shares(x, visible(22, WINDOW)), norm, cosine, SHARE)
    count = SinkCount()
    for sink in sinks:
        token = windows.tokens[sink.window, sink.position]
        count.add(sink, str(token), bool(token == MASSIVE))
    assert len(count.groups()) > 1
    assert any(group.massive for group in count.groups())
    assert any(group.mlp_layer for group in count.groups())
    for ours, expected in zip(found.sinks, count.groups(), strict=True):
        assert dataclasses.astuple(ours)[:6] == dataclasses.astuple(expected)[:6]
        np.testing.assert_allclose(dataclasses.astuple(ours)[6:], dataclasses.astuple(expected)[6:], rtol=1e-3)


def planted(config, queries=1.0):
    """A random model whose token 7 carries 3,000 at dim 5, and whose queries are so many times as large."""
    model = random_model(config)
    params = jax.tree_util.tree_map_with_path(
        lambda path, a: a * queries if "query" in jax.tree_util.keystr(path) else a, dict(model.params)
    )
    params["embedding"] = jnp.asarray(params["embedding"]).at[MASSIVE, 5].set(3000.0)
    return model.with_params(config, params)


@pytest.mark.slow
def test_uniform_attention_is_the_baseline_in_every_kind_of_layer(windows):
    """Queries are zeros, in a model with a window in one layer, and a slot of value 0 beside the tokens."""
    bias = AttentionBias("softmax1")
    config = dataclasses.replace(TINY, num_layers=2, window=5, window_layers=(True, False), attention_bias=bias)
    found = measure_attention(planted(config, queries=0.0), windows, thresholds=THRESHOLDS, draws=2).numbers
    member = windows.tokens == MASSIVE
    for layer, window in enumerate((5, None)):
        seen = visible(22, window)
        near, all_of_them = (seen & member[:, None]).sum(axis=2), seen.sum(axis=1)
        some = member.any(axis=1)
        np.testing.assert_allclose(found.baseline[layer], (near / all_of_them)[some].mean(), rtol=1e-5)
        np.testing.assert_allclose(found.concentration[layer], (near / (all_of_them + 1))[some].mean(), rtol=1e-5)
        np.testing.assert_allclose(found.slots[layer], (1 / (all_of_them + 1)).mean(), rtol=1e-5)
    assert found.baseline[0] != pytest.approx(found.baseline[1], rel=0.05)
    assert not found.logit_massive.any()
    assert not found.logit_others.any()
    assert found.error < 2e-6
    # All weights alike in a query: what is far from the mean is how many tokens it sees.
    assert (found.spreads.massive < found.spreads.rest).all()


@pytest.mark.parametrize("kind", ["kv", pytest.param("gate_head", marks=pytest.mark.slow)])
def test_what_slots_and_gates_change_is_not_called_an_error(kind, windows):
    config = dataclasses.replace(TINY, num_layers=1, attention_bias=AttentionBias(kind))
    found = measure_attention(planted(config), windows, thresholds=THRESHOLDS, draws=2).numbers
    assert found.error is None
    assert (found.slot_norm is None) == (kind == "gate_head")
    if kind == "kv":
        assert (found.slot_norm > 0.01 * found.rest_norm).all()
        assert (found.concentration + found.slots < 1).all()
        assert found.slots.all()


def test_images(tiny_images):
    """All see all; nothing is before or after another."""
    model = random_model(TINY_VISION)
    found = measure_attention(model, Images(tiny_images, ("a", "b")), thresholds=Thresholds(0, 4.5), apart=0, draws=3)
    names = model.token_texts(tiny_images[0])
    assert found.with_massive > 0
    assert all(names[tokens.position] == tokens.token for tokens in found.massive)
    assert found.sinks == ()
    massive = sum(tokens.count for tokens in found.massive)
    np.testing.assert_allclose(found.numbers.baseline, massive / found.with_massive / len(names))
    assert found.numbers.error < 2e-6


def test_without_massive_tokens_there_is_nothing_to_measure(tiny_model):
    windows = Windows(np.arange(24, dtype=np.int32).reshape(2, 12), 12, False)
    found = measure_attention(tiny_model, windows)
    assert (found.windows, found.with_massive, found.massive, found.birth, found.numbers) == (2, 0, (), None, None)


def test_a_residual_sink_marks_no_token(tiny_model):
    """What every token meets, none stands apart in."""
    windows = Windows(np.arange(24, dtype=np.int32).reshape(2, 12), 12, False)
    found = measure_attention(tiny_model, windows, thresholds=Thresholds(0, 0))
    assert (found.with_massive, found.everywhere, found.numbers) == (0, 24, None)
    assert [(one.massive, one.bias) for one in explore(tiny_model, windows.tokens, thresholds=Thresholds(0, 0))] == [
        ((), None)
    ] * 2


@pytest.mark.slow
def test_where_every_token_is_massive(tiny_model):
    """There are no others: no null, no numbers of them, and still the rest."""
    windows = Windows(np.arange(24, dtype=np.int32).reshape(2, 12), 12, False)
    found = measure_attention(tiny_model, windows, thresholds=Thresholds(0, 0), apart=0, draws=2).numbers
    np.testing.assert_allclose(found.concentration, 1, rtol=1e-5)
    np.testing.assert_allclose(found.baseline, 1)
    assert np.isnan(found.spreads.random).all()
    assert np.isnan(found.vectors["key"][1].top).all()
    assert np.isnan(found.logit_others).all()


def test_what_cannot_be_measured_is_refused(tiny_model):
    tokens = np.zeros((2, 5), np.int32)

    windows = Windows(tokens, 5, False)

    def refused(words, data=windows, **options):
        with pytest.raises(ValueError, match=words):
            measure_attention(tiny_model, data, **options)

    refused("give Windows", tokens)
    refused("cut_windows", Windows(tokens, 5, False, np.ones((2, 5), bool)))
    refused("at least two", Windows(tokens[:, :1], 1, False))
    refused(r"give Thresholds\(magnitude, ratio\)", thresholds=3)
    refused("draws is 0", draws=0)
    refused("apart is -1", apart=-1)
    refused("sink_share is 2", sink_share=2)
    refused("seed", seed=0.5)


@pytest.mark.slow
def test_the_default_model_is_torchs(default_model):
    windows = cut_windows(default_model, load_text(), context=64, windows=4)
    model = torch_model()
    theirs = naive.torch_tensors(model, transformers.LlamaForCausalLM, windows.tokens)
    member, birth = naive.massive_tokens(theirs["block_out"], Thresholds())
    found = measure_attention(default_model, windows, draws=5)
    assert found.birth == birth == 12
    assert found.massive[0].position == 0
    naive.compare(found.numbers, naive.expected_numbers(theirs, member, visible(64), 5, 0))
    assert found.numbers.error < 1e-5
