"""A sequence in a padded batch gives what it gives by itself: logits, every statistic, every site, every edit."""

import dataclasses
import itertools

import chex
import jax
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import massive_jax as mj
from massive_jax.forward import _forward, left_pad, own_positions
from massive_jax.models import AlibiConfig, AttentionBias, ExpertsConfig, NormConfig, RopeConfig
from massive_jax.probe import ALL_SITES, Stats
from massive_jax.probe.sites import AXIS_NAMES
from tests.fixtures.tiny import BOS, programs

# Sequences have few lengths, so that each is compiled once by itself; where the padding is, is what varies.
LENGTHS, QUICK_LENGTHS, T, L = (2, 5, 9), (5, 9, 5), 11, 2
FAMILIES = {
    "llama": {},
    "windows, softcap, slots": {
        "window": 3,
        "window_layers": (True, False),
        "local_rope": RopeConfig(theta=7.0),
        "attention_softcap": 5.0,
        "qk_norm": "head",
        "norm_placement": "pre_and_output",
        "attention_bias": AttentionBias("kv", slots=2, prefix=True),
    },
    "dynamic rope": {"rope": RopeConfig(kind="dynamic", factor=3.0, original_max_position=4), "window": 4},
    "alibi": {"position": "alibi", "alibi": AlibiConfig(from_last=True), "norm": NormConfig("layer"), "mlp": "plain"},
    "learned": {
        "position": "learned",
        "position_offset": 2,
        "residual": "parallel",
        "qkv_bias": True,
        "out_bias": True,
    },
    "experts": {"mlp": "experts", "experts": ExpertsConfig(4, 2), "attention_bias": AttentionBias("sink")},
    "sink token": {"attention_bias": AttentionBias("sink_token")},
    "sigmoid": {"attention_bias": AttentionBias("sigmoid")},
    "gate": {"attention_bias": AttentionBias("gate_head")},
}
# What most can go wrong in runs with the quick tests: the sites that have statistics, and those edited, of every kind
# together; sequences of one length are compared. All of it runs with `make test-all`.
QUICK = {"windows, softcap, slots": (("attn_probs", "block_out"), ("attn_logits", "mid"))}
STATISTICS = ("median", "max", "mean", "variance", "kurtosis")


def captures(config, reduced):
    sites = [site for site in ALL_SITES if site not in config.absent_sites]
    kept = dict.fromkeys(STATISTICS, True) | {"top_k": 4, "tensor": True}
    return [
        mj.Capture(site, mass=site == "attn_probs", **kept) if reduced is None or site in reduced else mj.Capture(site)
        for site in sites
    ]


def batch_of(rows, places):
    """Tokens and mask with the tokens of each row in the columns `places`; the rest is ids that are none."""
    tokens, mask = np.full((len(rows), T), 10**6, np.int32), np.zeros((len(rows), T), bool)
    for b, (row, columns) in enumerate(zip(rows, places, strict=True)):
        tokens[b, columns], mask[b, columns] = row, True
    return tokens, mask


def assert_near(got, expected, name, scale=None):
    """To 1e-5 of the largest number, or of `scale`; infinities (slots out of sight) are the same."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape, name
    finite = np.abs(expected[np.isfinite(expected)])
    scale = finite.max(initial=1e-6) if scale is None else scale
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * scale, err_msg=name)


def assert_same_sequence(out, b, alone, mask, num_slots):
    """Sequence `b` of a padded batch, and the same by itself."""
    columns = np.flatnonzero(mask[b])
    keys = np.concatenate([columns, T + np.arange(num_slots)])
    assert_near(np.asarray(out.logits)[b, columns], np.asarray(alone.logits)[0], "logits")
    assert_near(np.asarray(out.last_hidden)[b, columns], np.asarray(alone.last_hidden)[0], "last_hidden")
    for name, stats in out.intermediates.items():
        site, single = ALL_SITES[name], alone.intermediates[name]
        rows = (slice(None),) * site.per_layer
        whole, expected = (np.asarray(getattr(s, "tensor", s)) for s in (stats, single))
        whole, expected = whole[*rows, b], expected[*rows, 0]
        kept = np.zeros(whole.shape, bool)
        index = np.ix_(*[
            {"T": columns, "S": keys}.get(axis, np.arange(size))
            for axis, size in zip(("L",) * site.per_layer + tuple(site.axes[1:]), whole.shape, strict=True)
        ])  # fmt: skip
        kept[index] = True
        assert_near(whole[index], expected, name)
        assert not whole[~kept].any(), f"{name}: zeros at padding"
        if not isinstance(stats, Stats):
            continue
        magnitudes = np.abs(expected, dtype=np.float64)
        largest = magnitudes[np.isfinite(magnitudes)].max()  # slots out of sight are infinitely low
        for statistic in STATISTICS:
            its, own = (np.asarray(getattr(s, statistic)) for s in (stats, single))
            # A mean of signed numbers may be all rounding: its error is that of the numbers.
            assert_near(its[*rows, b], own[*rows, 0], f"{name} {statistic}", largest if statistic == "mean" else None)
        if stats.mass is not None:
            assert_near(np.asarray(stats.mass)[:, b][..., keys], np.asarray(single.mass)[:, 0], f"{name} mass")
        for layer in np.ndindex(whole.shape[: site.per_layer]):
            assert_same_largest(stats, (*layer, b), whole[index][layer], single, (*layer, 0), expected[layer], name)


def assert_same_largest(stats, at, own, single, at_single, expected, name):
    """Indices exactly: those of the tensor that the same program gives, and of the sequence by itself.

    Two programs round differently, so numbers that differ by no more than that have another order in each, and are left
    out, unless they are equal to the last bit in both: then the lower index of the sequence's own comes first.
    """
    orders, gaps, number = [], [], 0
    for s, where, tensor in ((stats, at, own), (single, at_single, expected)):
        magnitude = np.abs(tensor, dtype=np.float64).ravel()
        order = np.argsort(-magnitude, kind="stable")
        number = min(s.top_values.shape[-1], len(order))
        np.testing.assert_array_equal(s.top_values[where][:number], tensor.ravel()[order[:number]], err_msg=name)
        for axis, its in zip(ALL_SITES[name].axes[1:], np.unravel_index(order[:number], tensor.shape), strict=True):
            indices = np.asarray(s.top_indices[AXIS_NAMES[axis]][where])
            np.testing.assert_array_equal(indices[:number], its, err_msg=f"{name} {axis}")
            assert (indices[number:] == -1).all()
        orders.append(order)
        with np.errstate(invalid="ignore"):  # of numbers that are both infinite
            gaps.append(-np.diff(magnitude[order]) / magnitude.max())
    edges = [0, *(np.flatnonzero(gaps[1] > 1e-5) + 1), len(orders[1])]
    for start, stop in itertools.pairwise(edges):
        if not any(gap[start : stop - 1].any() for gap in gaps):
            same = slice(start, min(stop, number))
            np.testing.assert_array_equal(orders[0][same], orders[1][same], err_msg=f"{name} largest")


def drawn_edits(draw, shortest):
    """The same sites and axes every time, so that nothing is compiled again; all the rest is drawn."""
    layer = lambda: draw(st.sampled_from([1, 2, "all"]))  # noqa: E731
    number = st.floats(-3, 3, width=32)
    position = draw(
        st.one_of(
            st.integers(-shortest, shortest - 1),
            st.sampled_from(
                ["first", "last", lambda tokens: tokens.argmax(axis=1), np.array([0, -1, 1]), np.array([-1, 1, 0])]
            ),
        )
    )
    op, any_op = st.sampled_from(["set", "scale", "add", "noise"]), draw(st.sampled_from(mj.probe.OPS))
    value = {"quantize": draw(st.integers(2, 8)), "move": draw(st.integers(-shortest, shortest - 1))}
    head = draw(st.integers(0, 1))
    key = draw(st.integers(-shortest, shortest - 1))
    seed = draw(st.integers(0, 99))
    return [
        mj.Edit("block_out", layer=layer(), position=position, op=draw(op), value=draw(number), seed=seed),
        mj.Edit("value", layer=layer(), head=head, dim=3, op=any_op, value=value.get(any_op, draw(number)), seed=seed),
        mj.Edit("attn_logits", layer=layer(), key=key, op=draw(op), value=draw(number), seed=seed),
        mj.Edit("mid", layer=layer(), op=draw(st.sampled_from(["noise", "shuffle", "quantize"])), value=5, seed=seed),
        mj.Edit("logits", position=-1, dim=7, op=draw(op), value=draw(number)),
    ]


@pytest.mark.parametrize(
    ("family", "reduced", "edited"),
    [(name, *sites) for name, sites in QUICK.items()]
    + [pytest.param(name, None, None, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_a_sequence_in_a_batch_gives_what_it_gives_alone(make_model, family, reduced, edited):
    model = make_model(num_layers=L, **FAMILIES[family])
    capture, quick = captures(model.config, reduced), reduced is not None

    @given(st.data())
    @settings(max_examples=8 if quick else 30, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    def check(data):
        draw = data.draw
        lengths = draw(st.permutations(QUICK_LENGTHS if quick else LENGTHS))
        # Different tokens: those of the same have values that are equal but for rounding, so places that are a toss.
        rows = [draw(st.lists(st.integers(0, 255), min_size=n, max_size=n, unique=True)) for n in lengths]
        side = draw(st.sampled_from(["left", "right", "anywhere"]))
        places = {
            "left": lambda n: np.arange(T - n, T),
            "right": lambda n: np.arange(n),
            "anywhere": lambda n: np.sort(draw(st.permutations(range(T)))[:n]),
        }[side]
        tokens, mask = batch_of(rows, [places(n) for n in lengths])
        edits = [e for e in drawn_edits(draw, min(LENGTHS)) if edited is None or e.site in edited]
        out = model(tokens, mask=mask, capture=capture, edits=edits)
        for b, row in enumerate(rows):
            if quick and len(row) != QUICK_LENGTHS[0]:
                continue
            its = [
                dataclasses.replace(e, position=e.position[b : b + 1]) if isinstance(e.position, np.ndarray) else e
                for e in edits
            ]
            alone = model(np.asarray([row], np.int32), capture=capture, edits=its)
            assert_same_sequence(out, b, alone, mask, model.config.num_slots)

    check()


def test_without_a_mask_the_program_is_the_one_without_padding(tiny_model, tiny_tokens):
    plan = tiny_model.compile_captures(mj.Capture("block_out", top_k=2))

    def program(*positions):
        return _forward.lower(tiny_model.module, tiny_model.params, {}, plan, tiny_tokens, *positions, True).as_text()

    assert program(None) != program(own_positions(np.ones(tiny_tokens.shape, bool)))
    everything = tiny_model(tiny_tokens, mask=np.ones(tiny_tokens.shape, bool))
    np.testing.assert_allclose(everything.logits, tiny_model(tiny_tokens).logits, rtol=1e-4, atol=1e-5)


def test_a_mask_under_jit_and_in_16_bits(make_model):
    model = make_model(dtype="bfloat16")
    tokens, mask = left_pad([[1, 2, 3], [4, 5, 6, 7, 8]])

    @jax.jit
    @chex.assert_max_traces(n=1)
    def last(tokens, mask):
        return model(tokens, mask=mask, edits=mj.Edit("block_out", layer=2, position=1, dim=3, value=9.0)).logits[:, -1]

    got = last(tokens, mask)
    plain = model(tokens, mask=mask, edits=mj.Edit("block_out", layer=2, position=1, dim=3, value=9.0)).logits[:, -1]
    np.testing.assert_allclose(got, plain, rtol=2e-2, atol=2e-2)
    right = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]]), np.array([[True] * 3 + [False] * 2, [True] * 5])
    np.testing.assert_allclose(
        model(right[0], mask=right[1], edits=mj.Edit("block_out", layer=2, position=1, dim=3, value=9.0)).logits[0, 2],
        plain[0],
        rtol=2e-2,
        atol=2e-2,
    )
    with pytest.raises(ValueError, match="a jax transform does not show"):
        jax.jit(lambda m: model(tokens, mask=m, edits=mj.Edit("block_out", layer=1, position=-1)).logits)(mask)


def test_padding_that_overflows_reaches_nothing(make_model):
    """Float16, where a token that nothing looks at would be infinite."""
    model = make_model(dtype="float16")
    params = jax.tree.map(lambda a: a, model.params)
    params["embedding"] = params["embedding"].at[0].set(6e4)
    model = dataclasses.replace(model, params=params)
    tokens, mask = left_pad([[1, 2, 3], [4, 5, 6, 7, 8]], pad=0)
    out = model(tokens, mask=mask, capture=mj.Capture("block_out", max=True))
    assert np.isfinite(out.logits).all()
    assert np.isfinite(out.intermediates["block_out"].max).all()


# tokenize_batch -------------------------------------------------------------------------------------------------------


def test_tokenize_batch(tiny_model):
    texts = ["Rain. It", "A man who had walked all day sat.", "a" * 70]
    tokens, mask = tiny_model.tokenize_batch(texts)
    assert tokens.dtype == np.int32
    assert mask.dtype == bool
    assert tokens.shape == mask.shape == (3, 96)  # the context, which is nearer than the next multiple of 64
    for row, own, text in zip(tokens, mask, texts, strict=True):
        np.testing.assert_array_equal(row[own], tiny_model.tokenize(text)[0])
        assert own[-len(tiny_model.tokenize(text)[0]) :].all()
    tokens, mask = tiny_model.tokenize_batch(texts[:2], bos=True)
    assert tokens.shape == (2, 64)
    assert (tokens[np.arange(2), mask.argmax(axis=1)] == BOS).all()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no texts"),
        (["a", ""], "text 1"),
        (["a", "b" * 97], "text 1 has 97 tokens, more than the model's context of 96"),
        (["a", None], "text 1"),
        (None, "None"),
    ],
)
def test_tokenize_batch_refuses(tiny_model, texts, message):
    with pytest.raises(ValueError, match=message):
        tiny_model.tokenize_batch(texts)


def test_prompts_of_many_lengths_share_their_programs(tiny_model):
    (before,) = programs(_forward)
    for n in (3, 7, 12, 20, 33, 41, 60, 64):
        tokens, mask = tiny_model.tokenize_batch(["x" * n])
        tiny_model(tokens, mask=mask)
    assert programs(_forward)[0] <= before + 1


def test_texts_in_an_array_are_texts(tiny_model):
    for texts in (np.array(["Rain.", "A man"]), ("Rain.", "A man"), (text for text in ("Rain.", "A man"))):
        np.testing.assert_array_equal(tiny_model.tokenize_batch(texts)[1].sum(axis=1), [5, 5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sequences": None}, "sequences is None; give a list"),
        ({"sequences": "ab"}, "sequences is 'ab'"),
        ({"sequences": ["ab"]}, r"sequence 0 is <U2\[\]; give integers"),
        ({"sequences": [1, 2]}, r"sequence 0 is int64\[\]; give integers"),
        ({"sequences": [[1], [1.5]]}, r"sequence 1 is float64\[1\]; give integers"),
        ({"sequences": [[1]], "length": 1.5}, "length is 1.5; give a whole number"),
        ({"sequences": [[1]], "pad": "x"}, "pad is 'x'; give a whole number"),
        ({"sequences": [[1]], "pad": 1 << 31}, "pad is 2147483648"),
    ],
)
def test_left_pad_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        left_pad(**arguments)


def test_generation_is_no_part_of_a_jax_transform(tiny_model, tiny_tokens):
    with pytest.raises(ValueError, match="cannot run under a jax transform"):
        jax.jit(lambda tokens: tiny_model.generate(tokens, max_new_tokens=2).tokens)(tiny_tokens)
    with pytest.raises(ValueError, match=r"tokens is \[\[1\], \[2, 3\]\], which is no array"):
        tiny_model.generate([[1], [2, 3]], max_new_tokens=2)


# Bad masks ------------------------------------------------------------------------------------------------------------

BAD = {
    "another shape": (np.ones((2, 3), bool), r"mask is bool\[2, 3\]; give bool\[2, 9\]"),
    "numbers": (np.ones((2, 9)), r"mask is float64\[2, 9\]; give bool"),
    "an empty sequence": (np.arange(2)[:, None] < np.ones((2, 9)), "mask is False in all of sequence 1"),
    "a word": ("left", "mask"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_masks(tiny_model, tiny_tokens, case):
    mask, message = BAD[case]
    for run in (tiny_model, lambda *a, **o: tiny_model.generate(*a, max_new_tokens=2, **o)):
        with pytest.raises(ValueError, match=message):
            run(tiny_tokens, mask=mask)


def test_images_have_no_mask(tiny_vision):
    with pytest.raises(ValueError, match="a mask is for tokens"):
        tiny_vision(np.zeros((1, 28, 28, 3), np.float32), mask=np.ones((1, 19), bool))


def test_an_edit_beyond_a_short_sequence_is_refused(tiny_model):
    tokens, mask = left_pad([[1, 2, 3], [4, 5, 6, 7, 8]])
    with pytest.raises(ValueError, match="position 3 is out of range; there are positions 0 to 2 in sequence 0"):
        tiny_model(tokens, mask=mask, edits=mj.Edit("block_out", layer=1, position=3))
    with pytest.raises(ValueError, match="attn_probs has key 0 to 2 in sequence 0"):
        tiny_model(tokens, mask=mask, edits=mj.Edit("attn_probs", layer=1, key=-4))
    tiny_model(tokens, mask=mask, edits=mj.Edit("block_out", layer=1, position=np.array([-1, 3])))


def test_a_longer_batch_than_the_context_may_be_padding(make_model):
    model = make_model(max_position=8, position="learned")
    tokens, mask = left_pad([[1, 2, 3], [4, 5, 6, 7, 8]], length=12)
    np.testing.assert_allclose(
        model(tokens, mask=mask).logits[0, -3:], model(np.array([[1, 2, 3]])).logits[0], rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match="9 tokens are more than the model's context of 8"):
        model(np.ones((1, 12), int), mask=np.arange(12)[None] < 9)
