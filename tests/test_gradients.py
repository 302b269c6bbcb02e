"""Gradients at sites: against torch's autograd and differences, in padded batches, under edits; what is compiled."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import massive_jax as mj
from massive_jax.forward import left_pad
from massive_jax.gradients import _gradient
from massive_jax.probe import Capture
from tests.fixtures import decoders, parity
from tests.fixtures.hf_reference import LLAMA
from tests.fixtures.tiny import programs

TOKENS, MASK = left_pad([[1, 2, 3], [4, 5, 6, 7, 8]])
TRACED = []


def difference(out, ids):
    """One a sequence: the next token's logit, less another's."""
    return out.logits[:, -1, ids[0]] - out.logits[:, -1, ids[1]]


def counted(out, ids):
    TRACED.append(out)
    return difference(out, ids)


def test_equal_to_torch(tmp_path):
    model = decoders.build(LLAMA, transformers.LlamaConfig(**decoders.SHAPE), tmp_path)
    ours, tokens = parity.load(tmp_path), parity.TOKENS[:, :9]
    sites = {name: LLAMA.places[name] for name in ("embed", "attn_probs", "attn_out", "mlp_norm", "block_out")}
    kept = {}

    def keep(name, place, layer):
        def hook(module, args, output):
            value = output[place.item] if isinstance(output, tuple) else output
            value.retain_grad()
            kept[name, layer] = value

        model.get_submodule(place.module.format(l=layer)).register_forward_hook(hook)

    for name, place in sites.items():
        for layer in range(3 if "{l}" in place.module else 1):
            keep(name, place, layer)
    logits = model(torch.from_numpy(tokens.astype(np.int64))).logits
    value = torch.log_softmax(logits[:, -1], dim=-1)[:, 7]
    value.sum().backward()

    def log_prob(out):
        return jnp.log(jnp.exp(out.logits[:, -1, 7]) / jnp.exp(out.logits[:, -1]).sum(axis=-1))

    found = ours.gradient(tokens, log_prob, tuple(sites))
    np.testing.assert_allclose(found.value, value.detach(), rtol=1e-4)
    for name in sites:
        layers = range(3) if name != "embed" else (0,)
        for field, part in (("gradients", lambda x: x.grad), ("activations", lambda x: x.detach())):
            theirs = np.stack([part(kept[name, layer]) for layer in layers])
            got = np.asarray(getattr(found, field)[name]).reshape(theirs.shape)
            scale = np.abs(theirs).max()
            np.testing.assert_allclose(got / scale, theirs / scale, atol=1e-4, err_msg=f"{field} {name}")
            assert scale > 1e-3, name


def test_padding_edits_and_programs(tiny_model):
    """In a padded batch, under an edit; other tokens, layers, data and edits are one program."""
    embedded = np.where(MASK[..., None], np.asarray(tiny_model.params["embedding"])[TOKENS], 0)
    ids = np.array([65, 66])

    def run(step, layers, tokens=TOKENS, ids=ids):
        edit = mj.Edit("embed", value=np.float32(step) * embedded)
        sites = ("embed", "block_out", "logits")
        return tiny_model.gradient(tokens, counted, sites, data=ids, layers=layers, mask=MASK, edits=edit)

    found = run(1.0, (1, 3))
    before, traced = programs(_gradient), len(TRACED)
    assert found.gradients["block_out"].shape == found.activations["block_out"].shape == (2, 2, 5, 32)
    assert (np.asarray(found.gradients["block_out"])[:, ~MASK] == 0).all()
    assert (np.asarray(found.gradients["embed"])[~MASK] == 0).all()
    np.testing.assert_array_equal(found.activations["embed"], embedded)
    np.testing.assert_allclose(run(1.0, (3, 2), TOKENS + 9).value, found.value, rtol=1e-5)  # all is in the edit

    # By differences: of block 3's output at every token of each sequence, along the gradient.
    along = np.asarray(found.gradients["block_out"][1])
    along = along / np.linalg.norm(along, axis=(1, 2), keepdims=True)
    edits = [mj.Edit("block_out", layer=3, op="add", value=sign * 3e-2 * along) for sign in (1, -1)]
    up, down = (difference(tiny_model(TOKENS, mask=MASK, edits=edit), ids) for edit in edits)
    slope = (along * found.gradients["block_out"][1]).sum(axis=(1, 2))
    np.testing.assert_allclose((up - down) / 6e-2, slope, rtol=1e-2)

    # Attribution patching, of the logits exact: what another run's tensors do in this one's place.
    other = run(0.5, (4, 1))
    change = other.activations["logits"] - found.activations["logits"]
    effect = (change * found.gradients["logits"]).sum(axis=(1, 2))
    np.testing.assert_allclose(effect, other.value - found.value, rtol=1e-4, atol=1e-4)

    # Integrated gradients, from half of the embedding to all of it: they add up to what it changes.
    steps = 0.5 + (np.arange(8) + 0.5) / 16
    integrated = 0.5 * embedded * sum(run(step, (1, 3)).gradients["embed"] for step in steps) / 8
    whole = found.value - other.value
    np.testing.assert_allclose(integrated.sum(axis=(1, 2)), whole, atol=0.01 * np.abs(whole).max())
    assert np.abs(run(1.0, (1, 3), ids=ids[::-1]).value + found.value).max() < 1e-5
    assert (programs(_gradient), len(TRACED)) == (before, traced)


@pytest.mark.slow
def test_a_vision_model(tiny_vision, tiny_images):
    found = tiny_vision.gradient(
        tiny_images, lambda out: out.logits[:, 2].sum(), ("patch_embed", "attn_probs"), layers=2
    )
    assert found.gradients["attn_probs"].shape == (1, 2, 4, 19, 19)
    assert np.abs(found.gradients["patch_embed"]).min() > 0
    assert found.value.shape == ()
    patterns = tiny_vision.head_patterns(tiny_images, layers=2, heads=[3, 0])
    np.testing.assert_allclose(patterns, found.activations["attn_probs"][:, :, [3, 0]], atol=1e-5)


def test_refused(tiny_model, tiny_tokens, compilations):
    def by_numpy(out):
        return np.log(out.logits[:, -1, 0])

    metrics: tuple[tuple[Any, Any, dict[str, Any], str], ...] = (
        ("logits", "block_out", {}, "metric is 'logits'; give a function of the Output"),
        (
            lambda out: out.logits,
            "block_out",
            {},
            r"metric gives float32 \[2, 9, 260\]; .* one a sequence, float\[2\]",
        ),
        (lambda out: out.logits.argmax(), "block_out", {}, r"metric gives int32 \[\]"),
        (lambda out: out, "block_out", {}, "metric gives Output"),
        (lambda out: None, "block_out", {}, "metric gives None"),
        (by_numpy, "block_out", {}, r"metric fails with TracerArrayConversionError: .*; stay in jax"),
        (lambda out: out.logits[:, -1, 0], "block_out", {"data": 3}, "metric fails with TypeError"),
        (
            lambda out: out[0],
            "block_out",
            {},
            "metric fails with TypeError: .* it is called with the Output, whose logits",
        ),
        (difference, "blocks", {}, "unknown site 'blocks'; the sites are embed"),
        (difference, "router_probs", {}, "this model has no site router_probs"),
        (difference, (), {}, r"sites is \(\); give one"),
        (difference, "block_out", {"layers": 5}, "layer 5 is out of range"),
        (difference, "block_out", {"mask": MASK}, r"mask is bool\[2, 5\]; give bool\[2, 9\]"),
        (difference, "block_out", {"edits": 3}, "edits is 3"),
        (difference, "block_out", {"data": "ids"}, "data holds 'ids'; give a function arrays"),
    )
    for metric, sites, options, message in metrics:
        with pytest.raises(ValueError, match=message) as error:
            tiny_model.gradient(tiny_tokens, metric, sites, **options)
        assert "\n" not in str(error.value)
    choices: tuple[tuple[dict[str, Any], str], ...] = (
        ({"heads": 4}, "head 4 is out of range; attn_probs has head 0 to 3"),
        ({"heads": []}, "names none"),
        ({"layers": [1, 1]}, "each only once"),
    )
    for options, message in choices:
        with pytest.raises(ValueError, match=message):
            tiny_model.head_patterns(tiny_tokens, **options)
    assert compilations() == 0


@pytest.mark.slow
def test_memory(make_model):
    """A stream more for each block, and what is returned; not what is kept of every block."""
    tokens, stream = np.zeros((4, 96), np.int32), 4 * 96 * 32 * 4

    def size(layers, kept):
        model = make_model(num_layers=layers)
        plan = model.compile_captures(Capture("block_out", layers=kept))
        lowered = _gradient.lower(model.module, total, model.params, {}, plan, tokens, None, None)
        return lowered.compile().memory_analysis().temp_size_in_bytes / stream

    def total(out):
        return out.logits.sum()

    one, more, every = size(8, (1,)), size(24, (1,)), size(24, None)
    assert (more - one) / 16 < 2
    assert (every - more) / 23 < 4
