"""Generation: prompt and steps together are the full forward pass, whatever the cache and the padding."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import massive_jax as mj
from massive_jax.generate import Sampling, Streaming, _decode, _prefill, left_pad
from massive_jax.models import AlibiConfig, AttentionBias, ExpertsConfig, NormConfig, RopeConfig
from massive_jax.probe import ALL_SITES, compile_captures
from tests.fixtures.tiny import programs

PROMPT, NEW = 5, 6
SETTINGS = {
    "default": {},
    "window": {"window": 3},
    "some layers windowed": {
        "window": 3,
        "window_layers": (True, False, True, False),
        "local_rope": RopeConfig(theta=7.0),
    },
    "alibi": {"position": "alibi", "alibi": AlibiConfig()},
    "learned": {"position": "learned", "position_offset": 2},
    "experts": {"mlp": "experts", "experts": ExpertsConfig(4, 2)},
    "sinks": {"attention_bias": AttentionBias("sink")},
    # Several of them in one model: each would show in it.
    "some layers windowed, sinks": {
        "window": 3,
        "window_layers": (True, False, True, False),
        "local_rope": RopeConfig(theta=7.0),
        "attention_bias": AttentionBias("sink"),
    },
    "learned, experts": {
        "position": "learned",
        "position_offset": 2,
        "mlp": "experts",
        "experts": ExpertsConfig(4, 2),
    },
    "alibi, dynamic tanh, V-scale, clipped": {
        "position": "alibi",
        "alibi": AlibiConfig(),
        "norm": NormConfig("dynamic_tanh"),
        "value_scale": "learned",
        "clip_residual": 1.5,
    },
}
QUICK = ("default", "alibi, dynamic tanh, V-scale, clipped", "some layers windowed, sinks", "learned, experts")


def assert_same(got, expected, name):
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape, name
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert error < 1e-5, f"{name}: relative error {error}"


def check_against_full_forward(model, run, prompt, names, edits=None):
    """Sites of prompt and steps, against one pass over everything."""
    T = prompt.shape[1]
    everything = run.tokens[:, :-1]
    full = model(everything, capture=mj.Capture(names), edits=edits).intermediates
    for name in names:
        site = ALL_SITES[name]
        axis = site.axes.index("T") + site.per_layer
        whole = np.asarray(full[name])
        n = model.config.num_slots  # the last keys, seen by all
        seen = np.tril(np.ones(whole.shape[-2:], bool)) if name == "attn_logits" else np.array(True)
        if name == "attn_logits" and n:
            seen[:, -n:] = True
        first, steps = np.asarray(run.prompt.intermediates[name]), np.asarray(run.steps[name])
        steps = np.concatenate(list(steps), axis=axis)
        if "S" in site.axes:  # the cache has room for more keys than there are
            keys = [*range(whole.shape[-1] - n), *range(first.shape[-1] - n, first.shape[-1])]
            first, steps = first[..., keys], steps[..., keys]
        got = np.concatenate([first, steps], axis=axis)
        if name == "attn_logits":  # up to what the softmax takes up; those of the future are masked
            got, whole = (np.where(seen, x - x[..., :1], 0) for x in (got, whole))
        assert_same(got, whole, name)
    assert everything.shape[1] == T + NEW - 1


@pytest.mark.parametrize(
    "setting", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SETTINGS]
)
def test_equals_the_full_forward_pass_at_every_site(make_model, tiny_tokens, setting):
    model = make_model(**SETTINGS[setting])
    prompt = tiny_tokens[:, :PROMPT]
    # Whatever is wrong elsewhere shows here.
    names: tuple[str, ...] = ("attn_logits", "attn_probs", "block_out", "logits")
    if setting in ("default", "experts", "learned, experts"):
        names = tuple(site for site in ALL_SITES if site not in model.config.absent_sites)
    run = model.generate(prompt, max_new_tokens=NEW, capture=mj.Capture(names), keep_logits=True)
    check_against_full_forward(model, run, prompt, names)
    np.testing.assert_array_equal(run.tokens[:, :PROMPT], prompt)
    greedy = np.asarray(run.logits).argmax(axis=-1).T
    np.testing.assert_array_equal(run.tokens[:, PROMPT:], greedy)
    assert run.prompt.logits.shape == (len(prompt), PROMPT, model.config.vocab_size)  # captured, so whole


@pytest.mark.slow
def test_edits_of_keys_and_slots_are_those_of_the_full_forward_pass(make_model, tiny_tokens):
    """A key is a token's of the whole sequence, before the token is there too; the slots come after all of them."""
    model, prompt = make_model(num_layers=1, attention_bias=AttentionBias("kv", slots=2)), tiny_tokens[:, :PROMPT]
    edits = [
        *(mj.Edit("attn_logits", layer=1, key=key, op="add", value=2.0) for key in (0, PROMPT, PROMPT + 1, -1, -2)),
        mj.Edit("attn_logits", layer=1, op="noise", value=2.0),
        mj.Edit("attn_logits", layer=1, key=-1, op="noise", value=2.0),
        mj.Edit("attn_probs", layer=1, key=2, value=0.5),
        mj.Edit("attn_probs", layer=1, key=-2, op="add", value=0.5),
        mj.Edit("attn_probs", layer=1, key=PROMPT, position=PROMPT + 2, op="add", value=0.5),
    ]
    names = ("block_out", "logits")
    run = model.generate(prompt, max_new_tokens=NEW, capture=mj.Capture(names), edits=edits)
    check_against_full_forward(model, run, prompt, names, edits)


@pytest.mark.parametrize("place", [{}, {"position": 1}, {"key": PROMPT}, {"key": PROMPT + 2, "position": PROMPT + 1}])
@pytest.mark.parametrize("op", ["set", "add", "noise"])
def test_probabilities_of_keys_that_are_not_there_yet_are_refused(tiny_model, tiny_tokens, place, op):
    edit = mj.Edit("attn_probs", layer=1, op=op, value=0.5, **place)
    with pytest.raises(ValueError, match="at keys after the query, which are not there while generating"):
        tiny_model.generate(tiny_tokens[:, :PROMPT], max_new_tokens=NEW, edits=edit)


def test_edits_reach_prompt_and_new_tokens(tiny_model, tiny_tokens):
    prompt = tiny_tokens[:, :PROMPT]
    edits = [
        mj.Edit("block_out", layer=2, position=1, dim=3, value=9.0),
        mj.Edit("mlp_out", layer=1, position=PROMPT + 2, op="scale", value=-3.0),
        mj.Edit("value", layer=3, position=None, dim=2, op="add", value=1.0),
        mj.Edit("attn_out", layer=4, position=np.array([0, -1]), op="set", value=0.5),
        # Noise is that of the full pass: drawn by the place in the sequence (of all keys: the slow test before).
        mj.Edit("mid", layer=2, op="noise", value=0.7, seed=5),
        mj.Edit("attn_probs", layer=2, key=1, op="noise", value=0.1, seed=7),
    ]
    names = ("attn_probs", "block_out", "logits")

    def run(edits):
        return tiny_model.generate(prompt, max_new_tokens=NEW, capture=mj.Capture(names), edits=edits, keep_logits=True)

    check_against_full_forward(tiny_model, run(edits), prompt, names, edits)
    # Each by itself, beside others that change nothing: one program serves all.
    nothing = [
        dataclasses.replace(edit, value=0.0) if edit.op == "noise" else dataclasses.replace(edit, op="add", value=0.0)
        for edit in edits
    ]
    plain = run(nothing)
    for i in (0, 1, 4):
        alone = run([*nothing[:i], edits[i], *nothing[i + 1 :]])
        assert not np.allclose(alone.logits[-1], plain.logits[-1])
    with pytest.raises(ValueError, match=f"positions 0 to {PROMPT + NEW - 1}"):
        tiny_model.generate(prompt, max_new_tokens=NEW, edits=mj.Edit("embed", position=PROMPT + NEW))


@pytest.mark.parametrize(
    "setting", ["default", *(pytest.param(name, marks=pytest.mark.slow) for name in ("alibi", "learned"))]
)
def test_padding_changes_nothing(make_model, tiny_tokens, setting):
    """Of two prompts of one length, one padded in front and one in between: by themselves they are one program."""
    model = make_model(num_layers=2, **SETTINGS[setting])
    prompts, mask = tiny_tokens[:, :3], np.array([[0, 0, 1, 1, 1], [1, 0, 1, 0, 1]], bool)
    tokens = np.full(mask.shape, 7, np.int32)
    tokens[mask] = prompts.ravel()
    options = {
        "max_new_tokens": NEW,
        "keep_logits": True,
        "edits": mj.Edit("block_out", layer=2, position=1, dim=3, value=9.0),
    }
    both = model.generate(tokens, mask=mask, **options)
    for row, alone in enumerate(prompts):
        single = model.generate(alone[None], **options)
        assert_same(both.logits[:, row], single.logits[:, 0], setting)
        np.testing.assert_array_equal(both.tokens[row, -NEW:], single.tokens[0, -NEW:])


@pytest.mark.slow  # a program for each length; the quick test is the one before
@pytest.mark.parametrize("which", [0, 1])
def test_padding_anywhere_gives_the_statistics_of_each_prompt_alone(make_model, which):
    model = make_model(num_layers=2, attention_bias=AttentionBias("kv", slots=2))
    rows = [[1, 2, 3], [4, 5, 6, 7, 8]]
    tokens, mask = np.full((2, 7), 9**9), np.zeros((2, 7), bool)
    for b, columns in enumerate(([1, 2, 5], [0, 1, 3, 4, 6])):
        tokens[b, columns], mask[b, columns] = rows[b], True
    capture = [
        mj.Capture("block_out", top_k=3, median=True, max=True, kurtosis=True),
        mj.Capture("attn_probs", top_k=2, mass=True, mean=True),
    ]
    edits = [
        mj.Edit("block_out", layer=2, position=-1, dim=3, value=9.0),  # of prompt and new tokens: the last of all
        mj.Edit("mid", layer=1, position="last", dim=1, op="scale", value=-2.0),
        mj.Edit("value", layer=1, op="noise", value=0.5, seed=3),
    ]
    options = {"max_new_tokens": NEW, "capture": capture, "edits": edits, "keep_logits": True}
    both = model.generate(tokens, mask=mask, **options)
    np.testing.assert_array_equal(both.tokens[:, :7], tokens)
    row = rows[which]
    single = model.generate(np.array([row]), **options)
    np.testing.assert_array_equal(both.tokens[which, 7:], single.tokens[0, len(row) :])
    assert_same(both.logits[:, which], single.logits[:, 0], "logits")
    # [L, B, …] of the prompt, [n - 1, L, B, …] of the steps.
    pairs = [(both.prompt.intermediates, single.prompt.intermediates, 1), (both.steps, single.steps, 2)]
    for got, alone, axis in pairs:
        its = jax.tree.map(lambda a, axis=axis: np.asarray(a).take(which, axis), got)
        own = jax.tree.map(lambda a, axis=axis: np.asarray(a).take(0, axis), alone)
        for site, stats in own.items():
            for name in ("top_values", "median", "max", "kurtosis", "mean"):
                if getattr(stats, name) is not None:
                    assert_same(getattr(its[site], name), getattr(stats, name), f"{site} {name}")
            for name, index in stats.top_indices.items():
                np.testing.assert_array_equal(its[site].top_indices[name], index)


@pytest.mark.parametrize(
    "edit", [{"op": "shuffle"}, {"op": "quantize", "value": 8}, {"op": "move", "dim": 1, "value": 0}]
)
def test_operations_on_a_whole_sequence_are_refused_while_generating(tiny_model, tiny_tokens, edit):
    with pytest.raises(ValueError, match=f"{edit['op']} looks at all tokens of a sequence"):
        tiny_model.generate(tiny_tokens, max_new_tokens=2, edits=mj.Edit("mid", layer=1, **edit))


@pytest.mark.parametrize(
    ("placed", "lengths"),
    [
        (True, (3, 11)),  # each is a program
        *(pytest.param(placed, tuple(range(3, 12)), marks=pytest.mark.slow) for placed in (True, False)),
    ],
)
def test_dynamic_rotary_scaling_is_by_the_tokens_there_are(make_model, tiny_tokens, placed, lengths):
    """Past the original context every token is turned anew: each step is a pass over all there is so far."""
    bias = {"attention_bias": AttentionBias("kv", slots=2, prefix=True)} if placed else {}
    model = make_model(
        num_layers=3, max_position=20, rope=RopeConfig(kind="dynamic", factor=4.0, original_max_position=7), **bias
    )
    tokens, mask = left_pad([tiny_tokens[0, :3], tiny_tokens[1, :6]])
    edit = mj.Edit("block_out", layer=1, position=2, dim=3, op="add", value=2.0)
    run = model.generate(tokens, mask=mask, max_new_tokens=NEW, keep_logits=True, edits=edit)
    for row, length in enumerate((3, 6)):
        for step in range(NEW):
            if length + step in lengths:
                text = run.tokens[row, mask.shape[1] - length :][: length + step]
                assert_same(
                    run.logits[step, row], np.asarray(model(text[None], edits=edit).logits)[0, -1], f"{row}, {step}"
                )


@pytest.mark.slow
def test_streaming_is_the_full_cache_until_something_is_evicted(tiny_model, tiny_tokens):
    prompt = tiny_tokens[:, :PROMPT]
    full = tiny_model.generate(prompt, max_new_tokens=NEW, keep_logits=True)
    roomy = tiny_model.generate(prompt, max_new_tokens=NEW, keep_logits=True, cache=Streaming(2, 20))
    assert_same(roomy.logits, full.logits, "roomy")
    tight = tiny_model.generate(prompt, max_new_tokens=NEW, keep_logits=True, cache=Streaming(2, 4))
    assert_same(tight.logits[:2], full.logits[:2], "not yet evicted")
    assert not np.allclose(tight.logits[-1], full.logits[-1], rtol=1e-3)


def test_streaming_one_layer_is_a_pass_over_what_is_kept(make_model, tiny_tokens):
    """With one layer, keys and values do not depend on what has been evicted: the text left is the whole truth."""
    model = make_model(num_layers=1)
    sinks, window = 2, 3
    run = model.generate(tiny_tokens[:, :PROMPT], max_new_tokens=NEW, keep_logits=True, cache=Streaming(sinks, window))
    for step in range(1, NEW):
        seen = run.tokens[:, : PROMPT + step]
        kept = np.concatenate([seen[:, :sinks], seen[:, sinks:][:, -window:]], axis=1)
        assert_same(run.logits[step], np.asarray(model(kept).logits)[:, -1], f"step {step}")


def test_streaming_outlives_the_context(make_model, tiny_tokens):
    model = make_model(max_position=8)
    with pytest.raises(ValueError, match="bound the cache"):
        model.generate(tiny_tokens[:, :PROMPT], max_new_tokens=30)
    run = model.generate(tiny_tokens[:, :PROMPT], max_new_tokens=30, keep_logits=True, cache=Streaming(2, 6))
    assert run.tokens.shape == (2, PROMPT + 30)
    assert np.isfinite(run.logits).all()


def test_until(tiny_model, tiny_tokens):
    """Who asks is shown what there is after every 8 steps; what is made, captured and edited is as in one go."""
    prompt, shown, asked = tiny_tokens[:, :PROMPT], [], []
    options = {
        "max_new_tokens": 20,
        "keep_logits": True,
        "capture": mj.Capture("block_out", layers=2),
        "edits": mj.Edit("block_out", layer=1, position=PROMPT + 12, dim=3, value=9.0),
    }

    def enough(new):
        shown.append(new)
        return new.shape[1] >= asked[-1]

    whole = tiny_model.generate(prompt, **options)
    for count, made in ((99, 20), (10, 17)):
        asked.append(count)
        found = tiny_model.generate(prompt, **options, until=enough)
        assert (found.tokens == whole.tokens[:, : PROMPT + made]).all()
        assert_same(found.logits, whole.logits[:made], "logits")
        assert_same(found.steps["block_out"], whole.steps["block_out"][: made - 1], "steps")
    assert [new.shape[1] for new in shown] == [9, 17, 20, 9, 17]
    assert (shown[2] == whole.tokens[:, PROMPT:]).all()


def test_stop(tiny_model, tiny_tokens):
    prompt = tiny_tokens[:, :PROMPT]
    free = tiny_model.generate(prompt, max_new_tokens=NEW).tokens
    stop = int(free[0, PROMPT + 1])
    run = tiny_model.generate(prompt, max_new_tokens=NEW, stop=stop).tokens
    for row, there in zip(run[:, PROMPT:], free[:, PROMPT:], strict=True):
        ends = np.flatnonzero(there == stop)
        length = ends[0] if ends.size else NEW
        np.testing.assert_array_equal(row[:length], there[:length])
        assert (row[length:] == stop).all()


def draw(logits, count, **changes):
    sampling = Sampling(jnp.float32(1.0), jnp.float32(1.0), jax.random.key(3), jnp.int32(-1))
    sampling = dataclasses.replace(sampling, **{name: jnp.float32(value) for name, value in changes.items()})
    return np.asarray(sampling.choose(jnp.broadcast_to(jnp.asarray(logits), (count, len(logits))), jnp.int32(0)))


def test_sampling():
    probs = np.array([0.5, 0.3, 0.15, 0.05])
    logits = np.log(probs).astype(np.float32)
    assert (draw(logits, 50, temperature=0.0) == 0).all()
    counts = np.bincount(draw(logits, 4000), minlength=4) / 4000
    np.testing.assert_allclose(counts, probs, atol=0.04)
    hot = np.bincount(draw(logits, 4000, temperature=2.0), minlength=4) / 4000
    np.testing.assert_allclose(hot, np.sqrt(probs) / np.sqrt(probs).sum(), atol=0.04)
    nucleus = np.bincount(draw(logits, 4000, top_p=0.75), minlength=4) / 4000
    np.testing.assert_allclose(nucleus, np.array([0.5, 0.3, 0, 0]) / 0.8, atol=0.04)
    assert (draw(logits, 50, top_p=1e-6) == 0).all()
    assert np.unique(draw(np.zeros(4, np.float32), 200, top_p=0.2)).size == 1  # ties: the first alone is enough


def test_seeds(tiny_model, tiny_tokens):
    def run(seed):
        return tiny_model.generate(tiny_tokens[:, :PROMPT], max_new_tokens=NEW, temperature=5.0, seed=seed).tokens

    np.testing.assert_array_equal(run(0), run(0))
    assert (run(0) != run(1)).any()


def test_other_edits_temperatures_and_layers_do_not_retrace(tiny_model, tiny_tokens):
    prompt = tiny_tokens[:, :PROMPT]

    def run(i):
        edit = mj.Edit("block_out", layer=1 + i % 4, position=i, dim=i, value=float(i))
        capture = mj.Capture("block_out", layers=(1 + i % 4,))
        tiny_model.generate(prompt, max_new_tokens=NEW, temperature=i / 2, top_p=0.9, capture=capture, edits=edit)

    run(0)
    before = programs(_prefill, _decode)
    for i in range(1, 8):
        run(i)
    assert (programs(_prefill, _decode)) == before


def test_prompts_of_about_one_length_share_their_programs(tiny_model, tiny_tokens):
    """They are padded, unless something is captured, which has the prompt's own axes."""
    made = tiny_model.generate(tiny_tokens[:, :5], max_new_tokens=NEW, keep_logits=True)
    before = programs(_prefill, _decode)
    assert made.prompt.last_hidden.shape[1] == 5
    for length in (6, 8):
        tiny_model.generate(tiny_tokens[:, :length], max_new_tokens=NEW, keep_logits=True)
    assert programs(_prefill, _decode) == before
    alone = tiny_model.generate(
        tiny_tokens[:, :5], max_new_tokens=NEW, keep_logits=True, capture=mj.Capture("block_out", layers=1)
    )
    np.testing.assert_array_equal(made.tokens, alone.tokens)
    np.testing.assert_allclose(made.logits, alone.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(made.prompt.last_hidden, alone.prompt.last_hidden, rtol=1e-4, atol=1e-5)
    assert alone.prompt.intermediates["block_out"].shape[2] == 5


def test_padding_of_its_own_is_not_seen_by_a_rule_or_in_logits(tiny_model, tiny_tokens):
    """A rule is asked for the batch that was given, whatever its length."""
    prompt, asked = tiny_tokens[:2, :5], []

    def each_its_own(tokens):
        asked.append(np.shape(tokens))
        return np.arange(1, 1 + len(tokens))

    edits = [
        mj.Edit("block_out", layer=2, position=each_its_own, dim=3, value=9.0),
        mj.Edit("logits", dim=7, op="add", value=1.0),
    ]
    made = tiny_model.generate(prompt, max_new_tokens=2, edits=edits)
    np.testing.assert_allclose(made.prompt.logits, tiny_model(prompt, edits=edits).logits, rtol=1e-4, atol=1e-5)
    assert asked == [(2, 5), (2, 5)]


def test_cache_is_a_plain_collection(tiny_model, tiny_tokens):
    """Pure-functional use: the whole of the sequence in two pieces."""
    from massive_jax.models import empty_cache

    cache = empty_cache(tiny_model.config, 2, 9)
    plan = compile_captures(mj.Capture("block_out"), 4)

    @jax.jit
    @chex.assert_max_traces(n=2)
    def run(cache, tokens, positions):
        return tiny_model.module.apply(
            {"params": tiny_model.params, "cache": cache},
            tokens,
            positions=positions,
            slots=positions,
            capture=plan,
            mutable=["cache", "intermediates"],
        )

    positions = jnp.broadcast_to(jnp.arange(9), (2, 9))
    tokens = tiny_tokens[:, :9]
    _, first = run(cache, tokens[:, :6], positions[:, :6])
    _, second = run(first["cache"], tokens[:, 6:], positions[:, 6:])
    whole = tiny_model(tokens, capture=mj.Capture("block_out")).intermediates["block_out"]
    got = np.concatenate([first["intermediates"]["block_out"], second["intermediates"]["block_out"]], axis=2)
    assert_same(got, whole, "block_out")


def test_a_temperature_near_zero_is_the_most_likely_token(tiny_model, tiny_tokens):
    greedy = tiny_model.generate(tiny_tokens[:, :PROMPT], max_new_tokens=2).tokens
    drawn = tiny_model.generate(tiny_tokens[:, :PROMPT], max_new_tokens=2, temperature=2e-38).tokens
    np.testing.assert_array_equal(drawn, greedy)


BAD = {
    "max_new_tokens is 0": {"max_new_tokens": 0},
    "temperature -1": {"temperature": -1.0},
    "top_p 0": {"top_p": 0.0},
    "top_p 1.5": {"top_p": 1.5},
    "mask is float64": {"mask": np.ones((2, PROMPT))},
    "mask is False in all of sequence 1": {"mask": np.array([[True] * 5, [False] * 5])},
    r"a cache of 4 tokens must hold the prompt of 5": {"cache": Streaming(1, 3)},
    "within the context of 96": {"cache": Streaming(4, 200)},
    r"max_new_tokens is 2\.5": {"max_new_tokens": 2.5},
    "max_new_tokens is True": {"max_new_tokens": True},
    "max_new_tokens is 10{30}; give a whole number from 1": {"max_new_tokens": 10**30, "cache": Streaming(4, 50)},
    "temperature is nan; give a finite": {"temperature": float("nan")},
    "temperature is inf": {"temperature": float("inf")},
    r"temperature is 1e\+39": {"temperature": 1e39},
    "temperature is '1'": {"temperature": "1"},
    "top_p is nan": {"top_p": float("nan")},
    "top_p is None": {"top_p": None},
    r"seed is 1\.0": {"seed": 1.0},
    "seed is 4294967296": {"seed": 1 << 32},
    "stop is 260; give a whole number from 0 to 259": {"stop": 260},
    "stop is -1": {"stop": -1},
    r"stop is 3\.0": {"stop": 3.0},
    "keep_logits is 'no'; give True or False": {"keep_logits": "no"},
    r"cache is 5; give Streaming\(…\)": {"cache": 5},
    "edits is {'block_out': 3}; give an Edit": {"edits": {"block_out": 3}},
    "this model has no site router_probs": {"edits": mj.Edit("router_probs", layer=1)},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(tiny_model, tiny_tokens, message):
    with pytest.raises(ValueError, match=message):
        tiny_model.generate(tiny_tokens[:, :PROMPT], **{"max_new_tokens": 2, **BAD[message]})


def test_bad_model_cache_and_padding():
    with pytest.raises(ValueError, match="model is 'm'; give a Model, such as"):
        mj.generate("m", [[1]], max_new_tokens=1)
    with pytest.raises(ValueError, match="model is <class .*TextModel'>; give a Model, such as"):
        mj.generate(mj.TextModel, [[1]], max_new_tokens=1)
    with pytest.raises(ValueError, match="expected 0 and 1 at least"):
        Streaming(-1, 4)
    with pytest.raises(ValueError, match="expected 0 and 1 at least"):
        Streaming(1, 0)
    with pytest.raises(ValueError, match=r"window is 5\.5"):
        Streaming(1, 5.5)
    with pytest.raises(ValueError, match="sequence 1 is empty"):
        left_pad([[1], []])
