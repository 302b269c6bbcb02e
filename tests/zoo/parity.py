"""Comparing a checkpoint, as this project loads it, with the torch model that it was saved from."""

import hf_reference as hf
import jax
import numpy as np

import massive_jax as mj
from massive_jax.probe import ALL_SITES

TOLERANCE = 1e-5
# Patches of 7 × 7 pixels: the native 4 × 4 of them, and 6 × 3.
IMAGES, OTHER_SIZE = (
    np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32) for size in ((28, 28), (42, 21))
)
TOKENS = np.random.default_rng(0).integers(0, 61, size=(2, 21), dtype=np.int32)


def load(directory, **options):
    return mj.load(str(directory), progress=False, **options)


def parallel_mid(sites):
    """`sites` with the stream after the attention, which no module has where attention and MLP are parallel."""
    sites = dict(sites)
    sites["mid"] = sites.pop("block_in") + sites["attn_out"]
    return sites


def measure(directory, reference, model, inputs=TOKENS, dtype="float32"):
    """The model as loaded here, and site -> worst relative error over layers.

    "fused": logits, nothing captured; of a vision model "last_hidden", "pooled" and "logits", what there is.
    """
    ours = load(directory, dtype=dtype)
    theirs = hf.run(reference, model, inputs)
    fused = {
        name: theirs.pop(name) for name in ("last_hidden", "pooled", "logits") if inputs.ndim == 4 and name in theirs
    }
    if "block_in" in theirs:
        theirs = parallel_mid(theirs)
    sites = tuple(site for site in ALL_SITES if site not in ours.config.absent_sites)
    got = jax.device_get(ours(inputs, capture=mj.Capture(sites)).intermediates)
    # The slots of an attention bias are the last keys; torch drops the column of its sinks.
    got["attn_probs"] = got["attn_probs"][..., : got["attn_probs"].shape[-2]]
    worst = {site: max(error) for site, error in hf.errors_by_site(got, theirs).items()}
    out = ours(inputs)
    if inputs.ndim != 4:
        return ours, worst | {"fused": hf.relative_error(out.logits, theirs["logits"])}
    ours_fused = {"last_hidden": out.last_hidden, "pooled": out.pooled, "logits": out.logits}
    return ours, worst | {name: hf.relative_error(ours_fused[name], value) for name, value in fused.items()}


def assert_parity(directory, reference, model, inputs=TOKENS, tolerance=TOLERANCE):
    """Compares at every site of torch's, and what the model returns (fused kernel) with what it captures."""
    ours, worst = measure(directory, reference, model, inputs)
    assert {site: error for site, error in worst.items() if not error <= tolerance} == {}
    expected = {"block_out", "logits", "attn_probs", "head_out", "mid", "mlp_hidden", "router_probs", "mlp_out"}
    assert (expected | {"patch_embed"}) - ours.config.absent_sites <= worst.keys()
    assert "logits" in worst or "last_hidden" in worst
    return ours


def assert_same_params(ours, theirs, tolerance=0.0):
    """Two loads of one model: the same tree, and in it the same numbers."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=0), ours, theirs)
