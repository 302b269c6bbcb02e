"""The table of kernels: what is refused by name, what is padded, and that all the rest passes jax's own checks.

There is no GPU here: programs are traced and lowered for one, which is where jax checks what it gives to cuDNN.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as jax_cudnn

from massive_jax.models import AlibiConfig, AttentionBias, cudnn, kernels
from massive_jax.models.attention import Surroundings, attend
from massive_jax.models.attention_bias import SLOT_KINDS, AttentionSlots, SlotPlaces, attend_merged
from massive_jax.models.kernels import KERNELS, fused_attention
from massive_jax.models.stack import REMAT
from tests.fixtures.gradient_at import gradient_at
from tests.fixtures.tiny import TINY, TINY_VISION

B = 2
BIASES = {kind: AttentionBias(kind) for kind in (*SLOT_KINDS, "sigmoid") if kind != "sink_token"}
BIASES |= {"none": None, "kv, three": AttentionBias("kv", slots=3), "kv, offset": AttentionBias("kv", offset=True)}
MASKS = ("causal", "window", "padding", "all")
ONCE = {"none", "kv", "k", "v", "softmax1"}  # their gradients take one call of a kernel that cannot merge


@pytest.fixture
def hopper(monkeypatch):
    """This process believes that it has an H100, as jax does when it checks a call of cuDNN."""
    monkeypatch.setattr(kernels, "cuda_capability", lambda: (9, 0))
    monkeypatch.setattr(jax_cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(jax_cudnn, "check_compute_capability", lambda capability: float(capability) <= 9.0)


def config(kernel, mask, **options):
    base = TINY_VISION if mask == "all" else dataclasses.replace(TINY, window=9 if mask == "window" else None)
    return dataclasses.replace(base, attention_kernel=kernel, **options)


def call(cfg, T, masked=False):
    """Attention in which the mask, if any, is known when it runs only, as (loss, arguments)."""
    H, K, N, bias = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim, cfg.attention_bias
    arrays = [jax.ShapeDtypeStruct((B, T, heads, N), cfg.dtype) for heads in (H, K, K)]
    mask = jax.ShapeDtypeStruct((B, T, T), bool) if masked else None
    slots = None
    if cfg.num_slots:
        shapes = {"key": (K, bias.slots, N), "value": (K, bias.slots, N), "logit": (H,)}
        slots = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}

    def loss(arrays, slots, mask):
        found = slots and AttentionSlots(cfg).apply({"params": slots}, arrays[0], SlotPlaces())
        return jnp.sum(attend(cfg, *arrays, Surroundings(None, None, None, mask), found).astype(jnp.float32))

    return loss, (arrays, slots, mask)


def calls(loss, arguments):
    """How often the kernel is called in a gradient."""
    program = str(jax.make_jaxpr(lambda *args: (loss(*args), jax.grad(loss)(*args)))(*arguments))
    return program.count("= dot_product_attention_bwd_wrapper")


@pytest.mark.parametrize("bias", BIASES)
def test_cudnn_takes_what_is_not_refused(hopper, bias):
    """Every bias with every mask and length, forward and gradient, passes the checks that jax makes when it traces.

    Widths: one that is padded, a usual one, one that needs a Hopper.
    """
    kinds = itertools.cycle(((12, "float16"), (64, "bfloat16"), (256, "bfloat16")))
    for mask, T in [*itertools.product(MASKS, (1, 255)), ("causal", 256)]:
        N, dtype = next(kinds)
        cfg = config("cudnn", mask, attention_bias=BIASES[bias], dtype=dtype, head_dim=N)
        assert calls(*call(cfg, T, mask == "padding")) == (bias != "sigmoid"), (mask, T, N)


@pytest.mark.parametrize("known", [True, False])
def test_slots_in_front_where_they_cannot_be_merged(hopper, monkeypatch, known):
    """By choice, or because this jax is not one whose functions are known: more calls where there is no front."""
    if known:
        monkeypatch.setitem(KERNELS, "cudnn", dataclasses.replace(KERNELS["cudnn"], slots="in front"))
    else:
        monkeypatch.setattr(cudnn, "is_known", lambda: False)
    for bias, mask in (("kv", "all"), ("kv", "padding"), ("kv", "window"), ("sink", "causal")):
        in_front = bias in ONCE and mask != "window"
        cfg = config("cudnn", mask, attention_bias=BIASES[bias], dtype="bfloat16")
        loss, arguments = call(cfg, 255, mask == "padding")
        assert calls(loss, arguments) == (1 if in_front or known else 2), (bias, mask)
        assert ("= concatenate[" in str(jax.make_jaxpr(loss)(*arguments))) == in_front


def test_a_kernel_that_is_kept_runs_once(hopper):
    """Under `remat="cheap"`, with slots too: the backward pass does not attend again."""
    for bias in ("none", "sink"):
        loss, arguments = call(config("cudnn", "causal", attention_bias=BIASES[bias], dtype="bfloat16"), 256)
        kept = jax.checkpoint(loss, policy=REMAT["cheap"])
        program = str(jax.make_jaxpr(jax.grad(kept))(*arguments))
        assert program.count("= dot_product_attention_fwd_wrapper") == 1, bias


def test_this_jax_is_known():
    assert cudnn.is_known()


def test_cudnn_lowers_for_cuda(hopper, monkeypatch):
    """Slots beside 255 tokens, three in front of 256: odd lengths, which jax refuses a gradient of."""
    for bias, mask, T, slots, padded in (
        ("kv", "causal", 255, "merged", 256),
        ("kv, three", "causal", 256, "in front", 260),
        ("sink", "window", 255, "merged", 256),
        ("kv, three", "padding", 255, "merged", 256),
        ("kv", "all", 255, "merged", 256),
    ):
        monkeypatch.setitem(KERNELS, "cudnn", dataclasses.replace(KERNELS["cudnn"], slots=slots))
        loss, arguments = call(
            config("cudnn", mask, attention_bias=BIASES[bias], dtype="bfloat16"), T, mask == "padding"
        )
        text = jax.jit(jax.grad(loss)).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
        name = "fmhaScaleBiasSoftmaxBackward" if mask == "padding" else "fmhaSoftmaxBackward"
        assert text.count(f"@__cudnn${name}") == 1, (bias, mask)
        assert f"2x{padded}x4x8xbf16" in text
        assert ("PADDING" in text) == (mask == "all")  # causality hides what is added, as a mask does
        assert ('sliding_window_length": 9' in text.replace("\\22", '"')) == (mask == "window")


def test_sweeps_are_more_sequences(hopper, monkeypatch):
    """Under `vmap`: queries that are edited and keys that are not, with a mask; and gradients of attention to all."""
    loss, (arrays, slots, mask) = call(config("cudnn", "padding", dtype="bfloat16"), 256, masked=True)
    query, *rest = arrays
    queries = jax.ShapeDtypeStruct((3, *query.shape), query.dtype)
    program = jax.make_jaxpr(jax.vmap(loss, in_axes=([0, None, None], None, None)))([queries, *rest], slots, mask)
    assert f"bf16[{3 * B},256,4,8]" in str(program)

    # Merged. Otherwise jax 0.10's own rule cannot batch a gradient of which only some arrays are mapped.
    monkeypatch.setitem(KERNELS, "cudnn", dataclasses.replace(KERNELS["cudnn"], slots="merged"))
    for bias in ("kv", "sink"):
        loss, (arrays, slots, mask) = call(
            config("cudnn", "causal", attention_bias=BIASES[bias], dtype="bfloat16"), 255
        )
        query, *rest = arrays
        queries = jax.ShapeDtypeStruct((3, *query.shape), query.dtype)
        gradient = jax.vmap(jax.grad(loss), in_axes=([0, None, None], None, None))
        assert f"bf16[{3 * B},256,4,8]" in str(jax.make_jaxpr(gradient)([queries, *rest], slots, mask)), bias

    loss, (arrays, *rest) = call(config("cudnn", "all", dtype="bfloat16"), 255)
    stacked = [jax.ShapeDtypeStruct((3, *x.shape), x.dtype) for x in arrays]
    squared = jax.grad(lambda *args: loss(*args) ** 2)
    program = jax.make_jaxpr(jax.vmap(squared, in_axes=(0, None, None)))(stacked, *rest)
    assert f"bf16[{3 * B},256,4,8]" in str(program)


@pytest.mark.parametrize("mask", MASKS)
def test_padding_is_not_seen(monkeypatch, mask):
    """Outputs, log-sum-exps, gradients and a sweep with other multiples than 1, on XLA, which any length does for."""
    options = {"implementation": "xla", "scale": 0.3}
    T, S, visible = 7, 7, None
    if mask == "padding":
        S = 9
        visible = jnp.asarray(np.random.default_rng(1).random((B, 1, T, S)) < 0.7).at[..., 0].set(True)
    else:
        options |= {"is_causal": mask != "all", "local_window_size": (2, 0) if mask == "window" else None}
    rng = np.random.default_rng(0)
    shapes = ((B, T, 4, 6), (B, S, 2, 6), (B, S, 2, 6))
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    weight = jnp.asarray(rng.normal(size=shapes[0]), jnp.float32)
    beside = (
        jnp.asarray(rng.normal(size=(B, 4, T, 3)), jnp.float32),
        jnp.asarray(rng.normal(size=(2, 3, 6)), jnp.float32),
    )
    monkeypatch.setitem(kernels.GRADIENTS_AT, "xla", gradient_at)

    def everything(arrays):
        attention = fused_attention(tuple(options.items()), visible)
        out, pullback = jax.vjp(attention, *arrays)
        swept = jax.vmap(attention, in_axes=(0, None, None))(jnp.stack([2 * arrays[0], arrays[0]]), *arrays[1:])
        merged = lambda *args: attend_merged(tuple(options.items()), *args, visible)  # noqa: E731
        merged_pullback = jax.vjp(merged, *arrays, *beside)[1]
        of_slots = jax.vmap(merged_pullback)(jnp.stack([2 * weight, weight]))
        return out, attention(*arrays, return_residual=True), pullback(weight), swept[1], [x[1] for x in of_slots]

    plain = jax.jit(everything)(arrays)
    padded = dataclasses.replace(KERNELS["xla"], lengths=3, gradient_lengths=16, head_multiple=8)
    monkeypatch.setitem(KERNELS, "xla", padded)
    program = jax.jit(lambda arrays: everything(arrays))
    assert "2x16x4x8xf32" in program.lower(arrays).as_text()
    for got, expected in zip(jax.tree.leaves(program(arrays)), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "'cudnn' does not take dtype float32 but bfloat16 or float16; 'xla' does"),
        ({"dtype": "bfloat16", "head_dim": 264}, "head_dim 264 but at most 256"),
        ({"dtype": "bfloat16", "position": "alibi", "alibi": AlibiConfig()}, "'cudnn' does not take position 'alibi'"),
    ],
)
def test_a_config_beyond_cudnn_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config("cudnn", "causal", **changes)


@pytest.mark.parametrize(
    ("capability", "N", "message"),
    [
        (None, 64, "needs an NVIDIA GPU of compute capability 8.0 or newer, and this process has none: make the model"),
        ((7, 5), 64, r"8\.0 or newer, and this process has one of 7\.5"),
        ((8, 6), 192, r"9\.0 or newer for head_dim 192, and this process has one of 8\.6"),
    ],
)
def test_a_machine_without_the_kernel_is_refused(monkeypatch, capability, N, message):
    monkeypatch.setattr(kernels, "cuda_capability", lambda: capability)
    loss, arguments = call(config("cudnn", "causal", dtype="bfloat16", head_dim=N), 8)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(loss, *arguments)


def test_there_is_no_gpu_here():
    assert kernels.cuda_capability() is None


def test_splash_lowers_for_a_tpu(monkeypatch):
    """Slots in front, beside, and a window: three kernels a gradient, and three more where it takes two."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    for bias, mask, expected in (("kv", "causal", 3), ("softmax1", "all", 3), ("sink", "window", 6)):
        loss, arguments = call(config("splash", mask, attention_bias=BIASES[bias], dtype="bfloat16"), 130)
        text = jax.jit(jax.grad(loss)).trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
        assert text.count("@tpu_custom_call") >= expected, bias
