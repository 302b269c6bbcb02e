"""Every attention bias against a naive float64 softmax over the extended keys: forward and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import massive_jax as mj
from massive_jax.models import AttentionBias, attention_bias
from massive_jax.models import attention as attention_module
from massive_jax.models import kernels as kernels_module
from massive_jax.models.attention import LOWEST, Surroundings, attend, attend_with_probs, causal_mask
from massive_jax.models.attention_bias import (
    AttentionSlots,
    SlotPlaces,
    TokenMixture,
    attend_behind,
    attend_with_lse,
    attend_with_slots,
)
from massive_jax.probe import Tap, compile_captures, empty_results
from tests.fixtures.gradient_at import gradient_at
from tests.fixtures.tiny import TINY, TINY_VISION

B, T, H, K, N = 2, 7, 4, 2, 8
BIASES = {
    "kv": AttentionBias("kv"),
    "kv, three slots": AttentionBias("kv", slots=3),
    "kv, shared, offset": AttentionBias("kv", slots=2, shared=True, offset=True),
    "k": AttentionBias("k"),
    "v": AttentionBias("v"),
    "softmax1": AttentionBias("softmax1"),
    "softmax1, two": AttentionBias("softmax1", slots=2),
    "sink": AttentionBias("sink"),
    "sink, shared": AttentionBias("sink", shared=True),
}
# Of these the quick tests have others: with another mask, or with what they leave out.
REPEATS = ("kv", "kv, three slots", "softmax1, two", "sink, shared")
MASKS = {
    "causal": None,
    "window": None,
    # Left padding: the second sequence's first three tokens are seen by nobody but see themselves.
    "padding": np.stack([np.tri(T, dtype=bool), np.tri(T, dtype=bool) & (np.arange(T) >= 3) | np.eye(T, dtype=bool)]),
}
KERNELS = ("xla", "rows", "fused", "behind", "merged", "splash", "tapped")


def arrays(bias, seed=0):
    rng = np.random.default_rng(seed)
    heads = 1 if bias.shared else K
    shapes = {"query": (B, T, H, N), "key": (B, T, K, N), "value": (B, T, K, N)}
    slots = {
        "key": (heads, bias.slots, N) if bias.kind in ("kv", "k") else None,
        "value": (heads, bias.slots, N) if bias.kind in ("kv", "v") else None,
        "logit": (1 if bias.shared else H,) if bias.kind == "sink" or bias.offset else None,
    }
    normal = lambda shape: 1.5 * rng.normal(size=shape)  # noqa: E731
    return (
        {name: normal(shape) for name, shape in shapes.items()},
        {name: normal(shape) for name, shape in slots.items() if shape is not None},
        normal((B, T, H, N)),
    )


def naive(bias, tokens, slots, visible, scale, softcap=None):
    """softmax([q kᵀ, s]) [v; v′] by torch, in the dtype of its arrays. visible: bool [B or 1, T, T]."""
    n, groups = bias.slots, H // K
    key, value = (tokens[name].repeat_interleave(groups, dim=2) for name in ("key", "value"))
    logits = torch.einsum("bthn,bshn->bhts", tokens["query"], key) * scale

    def per_head(x):  # [K or 1, n, N] -> [H, n, N]
        return x.expand(K, n, N).repeat_interleave(groups, dim=0)

    extra = torch.zeros(B, H, T, n, dtype=logits.dtype)
    if "key" in slots:
        extra = torch.einsum("bthn,hmn->bhtm", tokens["query"], per_head(slots["key"])) * scale
    if softcap:
        logits, extra = softcap * torch.tanh(logits / softcap), softcap * torch.tanh(extra / softcap)
    if "logit" in slots:
        extra = extra + slots["logit"][:, None, None]
    logits = logits.masked_fill(~torch.as_tensor(np.array(visible))[:, None], -torch.inf)
    probs = torch.softmax(torch.cat([logits, extra], dim=-1), dim=-1)
    out = torch.einsum("bhts,bshn->bthn", probs[..., :T], value)
    if "value" in slots:
        out = out + torch.einsum("bhtm,hmn->bthn", probs[..., T:], per_head(slots["value"]))
    return out, probs


@pytest.fixture
def xla_merges(monkeypatch):
    merging = dataclasses.replace(kernels_module.KERNELS["xla"], slots="merged")
    monkeypatch.setitem(kernels_module.KERNELS, "xla", merging)
    monkeypatch.setitem(kernels_module.GRADIENTS_AT, "xla", gradient_at)


def attention(kernel, cfg, around, slots_module, tokens, slots):
    found = slots_module.apply({"params": slots}, tokens["query"], SlotPlaces())
    args = (tokens["query"], tokens["key"], tokens["value"])
    if kernel in ("xla", "splash"):
        return attend(dataclasses.replace(cfg, attention_kernel=kernel), *args, around, found)
    if kernel == "rows":  # a few at a time, as in longer sequences
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(attention_module, "_ROWS", 2)
            return attend(cfg, *args, around, found)
    if kernel == "tapped":
        plan = compile_captures(mj.Capture("attn_probs"), 1)
        results = empty_results(plan, cfg.sizes(B, T), jnp.float32)
        return attend_with_probs(cfg, *args, around, Tap({}, plan, 1, {"attn_probs": 0}, results), found)
    # A kernel: any implementation of jax's is one. In the closed form, with its log-sum-exp, or with slots in front.
    options = {"scale": cfg.scale, "implementation": "xla"}
    mask = None if around.mask is None else around.mask[:, None]
    if mask is None:
        options |= {"is_causal": cfg.causal, "local_window_size": None if cfg.window is None else (cfg.window - 1, 0)}
    if kernel == "behind":
        return attend_behind(found, tuple(options.items()), *args, mask)
    if kernel == "merged":
        return attend_with_slots(found, tuple(options.items()), *args, mask)
    mixed, lse = attend_with_lse(tuple(options.items()), *args, mask)
    return TokenMixture(mixed, lse, jnp.ones_like(lse)).with_slots(found)


@pytest.mark.parametrize(
    ("case", "mask"),
    [
        *(pytest.param(case, "causal", marks=pytest.mark.slow if case in REPEATS else ()) for case in BIASES),
        ("kv", "window"),
        ("kv, three slots", "padding"),
    ],
)
def test_forward_and_gradients(xla_merges, case, mask):
    bias = BIASES[case]
    window = 3 if mask == "window" else None
    cfg = dataclasses.replace(TINY, attention_bias=bias, window=window)
    around = Surroundings(None, None, None, None if MASKS[mask] is None else jnp.asarray(MASKS[mask]))
    tokens, slots, weight = arrays(bias)
    visible = causal_mask(T, window)[None] if MASKS[mask] is None else MASKS[mask]

    exact_tokens, exact_slots = (
        {name: torch.tensor(x, dtype=torch.float64, requires_grad=True) for name, x in group.items()}
        for group in (tokens, slots)
    )
    expected, _ = naive(bias, exact_tokens, exact_slots, visible, cfg.scale)
    (expected * torch.tensor(weight)).sum().backward()

    as32 = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)  # noqa: E731

    def loss(tokens, slots, kernel):
        out = attention(kernel, cfg, around, AttentionSlots(cfg), tokens, slots)
        return jnp.sum(out * weight.astype(np.float32)), out

    @jax.jit  # one program for all kernels: compiling is what takes time here
    def everything(tokens, slots):
        run = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        left_out = set()
        if around.mask is not None:
            left_out.add("splash")  # which is "xla" then
        if window or "logit" in slots:
            left_out.add("behind")
        if case in ("k", "v", "softmax1, two", "sink, shared"):
            left_out.add("fused")  # the log-sum-exp's own gradient, which is that of the other cases
        return {kernel: run(tokens, slots, kernel) for kernel in KERNELS if kernel not in left_out}

    for kernel, ((_, out), grads) in everything(as32(tokens), as32(slots)).items():
        assert error(out, expected.detach()) < 1e-6, kernel
        for group, exact in zip(grads, (exact_tokens, exact_slots), strict=True):
            for name, grad in group.items():
                assert error(grad, exact[name].grad) < 1e-6, (kernel, name)


def test_attention_to_all():
    """Slots of a kernel that is not causal: the queries stay as they are."""
    cfg = dataclasses.replace(TINY_VISION, num_kv_heads=K, attention_bias=AttentionBias("kv", slots=2))
    tokens, slots, _ = arrays(cfg.attention_bias)
    around, given = Surroundings(None, None, None, None), jax.tree.map(jnp.float32, (tokens, slots))

    @jax.jit
    def both(tokens, slots):
        return [attention(kernel, cfg, around, AttentionSlots(cfg), tokens, slots) for kernel in ("behind", "xla")]

    ours, theirs = both(*given)
    assert ours.shape == (B, T, H, N)
    assert error(ours, theirs) < 1e-6


def error(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


@pytest.mark.slow
def test_gradients_by_finite_differences():
    """The log-sum-exp's own gradient, which jax stops: against differences, not against another formula."""
    bias = AttentionBias("kv", slots=2)
    cfg = dataclasses.replace(TINY, attention_bias=bias)
    tokens, slots, weight = arrays(bias)
    around = Surroundings(None, None, None, None)
    with jax.enable_x64(True):
        flat = jax.tree.map(jnp.asarray, (tokens, slots))

        @jax.jit
        def loss(flat):
            return jnp.sum(attention("fused", cfg, around, AttentionSlots(cfg), *flat) * weight)

        grads = jax.grad(loss)(flat)
        length = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        # Along the gradient, where the difference is largest: the log-sum-exp is float32.
        direction = jax.tree.map(lambda g: g / length, grads)
        step = 1e-2
        ahead, behind = (jax.tree.map(lambda x, d, s=s: x + s * d, flat, direction) for s in (step, -step))
        measured = (loss(ahead) - loss(behind)) / (2 * step)
        predicted = sum(jax.tree.leaves(jax.tree.map(lambda g, d: jnp.vdot(g, d), grads, direction)))
    np.testing.assert_allclose(predicted, measured, rtol=1e-3)


def test_softcap():
    bias = AttentionBias("kv", offset=True)
    cfg = dataclasses.replace(TINY, attention_bias=bias, attention_softcap=2.0)
    tokens, slots, _ = arrays(bias)
    exact = [{name: torch.tensor(x) for name, x in group.items()} for group in (tokens, slots)]
    expected, probs = naive(bias, *exact, np.array(causal_mask(T))[None], cfg.scale, softcap=2.0)
    around = Surroundings(None, None, None, None)
    both = jax.jit(
        lambda *given: [attention(kernel, cfg, around, AttentionSlots(cfg), *given) for kernel in ("xla", "tapped")]
    )
    for got in both(*jax.tree.map(np.float32, (tokens, slots))):
        assert error(got, expected) < 1e-6
    assert probs.shape[-1] == T + 1


@pytest.mark.parametrize("kind", ["kv", pytest.param("sink_token", marks=pytest.mark.slow), "softmax1"])
def test_sites_have_the_slots_as_last_keys(make_model, tiny_tokens, kind):
    model = make_model(attention_bias=AttentionBias(kind, slots=2))
    out = model(tiny_tokens, capture=[mj.Capture("attn_probs", mass=True, tensor=True), mj.Capture("attn_logits")])
    probs = np.asarray(out.intermediates["attn_probs"].tensor)
    assert probs.shape == (4, 2, 4, 9, 11)
    np.testing.assert_allclose(probs.sum(-1), 1.0, rtol=1e-5)
    assert (probs[..., 9:] > 0).all()
    np.testing.assert_allclose(out.intermediates["attn_probs"].mass, probs.mean(axis=3), rtol=1e-5)
    np.testing.assert_allclose(out.logits, model(tiny_tokens).logits, rtol=2e-4, atol=2e-5)
    # Without its probability, the slots are as if they were not there (for "softmax1" they have no value anyway).
    edits = [mj.Edit("attn_logits", layer=layer, key=key, value=LOWEST) for layer in range(1, 5) for key in (9, 10)]
    plain = mj.Model(*_without(model))
    np.testing.assert_allclose(model(tiny_tokens, edits=edits).logits, plain(tiny_tokens).logits, rtol=2e-4, atol=2e-5)
    with pytest.raises(ValueError, match="key 0 to 10"):
        model(tiny_tokens, edits=mj.Edit("attn_probs", layer=1, key=11))


def _without(model):
    config = dataclasses.replace(model.config, attention_bias=None)
    params = {name: value for name, value in model.params.items() if name != "sink_token"}
    layers = dict(params["layers"])
    layers["attn"] = {name: value for name, value in layers["attn"].items() if name != "slots"}
    return type(model.module)(config), params | {"layers": layers}, config


@pytest.mark.parametrize("position", ["rope", "learned", pytest.param("alibi", marks=pytest.mark.slow)])
def test_sink_token_is_a_token_in_front(make_model, tiny_tokens, position):
    """A learned token beside the sequence gives what the same vector in front of it gives (paper's sink token)."""
    from massive_jax.models import AlibiConfig

    options = {"position": position, "alibi": AlibiConfig() if position == "alibi" else None}
    options["window"] = None if position == "learned" else 4  # a slot without a place is in every window
    model = make_model(attention_bias=AttentionBias("sink_token", slots=2), **options)
    plain = mj.Model(*_without(model))
    # The peer: the sink's vectors as embeddings in front, put there by edits; no position for them in a learned table.
    sink = np.asarray(model.params["sink_token"])
    front = np.concatenate([np.zeros((2, 2), np.int32), tiny_tokens], axis=1)
    edits = [mj.Edit("embed", position=i, value=sink[i]) for i in range(2)]
    if position == "learned":
        rows = np.asarray(plain.params["position_embedding"])
        shifted = np.concatenate([rows[:2], rows[:-2]])
        plain = dataclasses.replace(plain, params=plain.params | {"position_embedding": shifted})
    expected = plain(front, edits=edits, capture=mj.Capture("block_out"))
    got = model(tiny_tokens, capture=mj.Capture("block_out"))
    np.testing.assert_allclose(
        got.intermediates["block_out"], expected.intermediates["block_out"][:, :, 2:], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(got.logits, expected.logits[:, 2:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["gate_head", "gate_element"])
def test_gates(make_model, tiny_tokens, kind):
    model = make_model(attention_bias=AttentionBias(kind))
    plain = mj.Model(*_ungated(model))
    out = model(tiny_tokens, capture=mj.Capture(("attn_norm", "head_out"), layers=1))
    ungated = np.asarray(plain(tiny_tokens, capture=mj.Capture("head_out", layers=1)).intermediates["head_out"][0])
    kernel = np.asarray(model.params["layers"]["attn"]["gate"]["gate"]["kernel"][0])
    logits = np.tensordot(np.asarray(out.intermediates["attn_norm"][0]), kernel, axes=1)
    gate = 1 / (1 + np.exp(-logits))
    expected = ungated * (gate if kind == "gate_element" else gate[..., None])
    np.testing.assert_allclose(out.intermediates["head_out"][0], expected, rtol=1e-4, atol=1e-5)


def _ungated(model):
    config = dataclasses.replace(model.config, attention_bias=None)
    layers = dict(model.params["layers"])
    layers["attn"] = {name: value for name, value in layers["attn"].items() if name != "gate"}
    return type(model.module)(config), {**model.params, "layers": layers}, config


def test_sigmoid(make_model, tiny_tokens):
    model = make_model(attention_bias=AttentionBias("sigmoid"))
    out = model(tiny_tokens, capture=mj.Capture(("attn_logits", "attn_probs", "value", "head_out"), layers=2))
    sites = ("attn_logits", "attn_probs", "value", "head_out")
    logits, probs, value, mixed = (np.asarray(out.intermediates[site][0]) for site in sites)
    expected = np.where(np.tri(9, dtype=bool), 1 / (1 + np.exp(-logits)), 0)
    np.testing.assert_allclose(probs, expected, rtol=1e-5, atol=1e-7)
    value = np.repeat(value, 2, axis=2)
    np.testing.assert_allclose(mixed, np.einsum("bhts,bshn->bthn", expected, value), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out.logits, model(tiny_tokens).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "kvq"}, "kind 'kvq' is not one of kv, k, v, "),
        ({"kind": "kv", "slots": 0}, "slots is 0, expected a positive integer"),
        ({"kind": "gate_head", "slots": 2}, "no slots"),
        ({"kind": "k", "prefix": True}, "only 'kv'"),
        ({"kind": "sink_token", "shared": True}, "cannot be shared"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        AttentionBias(**options)


def test_a_prefix_must_leave_room():
    with pytest.raises(ValueError, match="leaves nothing"):
        dataclasses.replace(TINY, max_position=4, attention_bias=AttentionBias("kv", slots=4, prefix=True))


@pytest.mark.parametrize("batch", [1, 2])
def test_products_with_few_slots_are_those_with_many(batch):
    """In 16 bits they are sums of products, not a matrix product; with a gradient."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 5, 4, 8)), jnp.bfloat16)
    slots = jnp.asarray(rng.normal(size=(batch, 2, 3, 8)), jnp.bfloat16)

    def products(x, slots):
        return attention_bias._products(x, slots, jnp.float32)

    weights = jnp.asarray(rng.normal(size=(2, 4, 5, 3)), jnp.float32)
    few, gradient = jax.vjp(products, x, slots)
    many, expected = jax.vjp(products, x.astype(jnp.float32), slots.astype(jnp.float32))
    np.testing.assert_allclose(few, many, rtol=1e-5, atol=1e-5)
    for got, wanted in zip(gradient(weights), expected(weights), strict=True):
        np.testing.assert_allclose(got.astype(jnp.float32), wanted, rtol=2e-2, atol=2e-2)
