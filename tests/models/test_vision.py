"""The vision transformer's own parts, and the face it shares with the language models."""

import dataclasses

import jax
import numpy as np
import pytest
import torch

import massive_jax as mj
from massive_jax.models.positions import resize_table
from massive_jax.probe import ALL_SITES
from massive_jax.weights import checkpoint
from massive_jax.weights.loader import Part, expected_shapes
from tests.fixtures.tiny import TINY_VISION, random_model


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("native", "grid"), [((4, 4), (7, 3)), ((5, 6), (5, 12)), ((9, 9), (2, 4)), ((3, 3), (3, 3))])
def test_positions_are_resized_as_torch_does(native, grid, antialias):
    table = np.random.default_rng(0).normal(size=(*native, 8)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(table).permute(2, 0, 1)[None], size=grid, mode="bicubic", antialias=antialias
    )[0].permute(1, 2, 0)
    got = resize_table(table.reshape(-1, 8), native, grid, antialias=antialias)
    np.testing.assert_allclose(got, expected.reshape(-1, 8), atol=2e-6)


def test_the_tokens_have_names(tiny_vision, tiny_images):
    names = tiny_vision.token_texts(tiny_images[0])
    assert names[:5] == ["CLS", "reg1", "reg2", "(0,0)", "(0,1)"]
    assert names[-1] == "(3,3)"
    assert len(names) == 3 + 16
    assert tiny_vision.token_texts(np.zeros((14, 21, 3)))[3:] == [f"({i},{j})" for i in range(2) for j in range(3)]


@pytest.mark.slow
def test_every_site_is_read_and_edited(tiny_vision, tiny_images):
    """One program with an edit at every site, of which one at a time does something; earlier tokens see it too."""
    sites = [site for site in ALL_SITES if site not in tiny_vision.config.absent_sites]
    plan = tiny_vision.compile_captures(mj.Capture(sites))

    def run(changed=None):
        edits = [
            mj.Edit(
                site,
                layer=2 if ALL_SITES[site].per_layer else None,
                position=4,
                op="add",
                value=5.0 * (site == changed),
                **({"head": 1} if "H" in ALL_SITES[site].axes or "K" in ALL_SITES[site].axes else {}),
            )
            for site in sites
        ]
        out = tiny_vision(tiny_images, edits=tiny_vision.compile_edits(edits, tiny_images), capture=plan)
        return jax.device_get(out)

    before = run()
    assert before.intermediates["patch_embed"].shape == (2, 16, 32)
    assert before.intermediates["attn_probs"].shape == (3, 2, 4, 19, 19)
    assert before.intermediates["block_out"].shape == (3, 2, 19, 32)
    np.testing.assert_array_equal(before.intermediates["final_norm"], before.last_hidden)
    assert before.logits.shape == (2, 5)
    np.testing.assert_allclose(before.intermediates["attn_probs"].sum(axis=-1), 1, rtol=1e-5)
    for site in sites:
        after = run(site)
        index = (1,) if ALL_SITES[site].per_layer else ()
        old, new = before.intermediates[site][index], after.intermediates[site][index]
        time = ALL_SITES[site].axes.index("P" if site == "patch_embed" else "T")
        moved = np.flatnonzero((old != new).any(axis=tuple(i for i in range(old.ndim) if i != time)))
        assert moved.tolist() == [4], site
        if site not in ("attn_logits", "final_norm"):  # one number more on every logit of a query changes nothing
            changed = (before.last_hidden != after.last_hidden).any(axis=(0, 2))
            assert changed[4] or site in ("key", "value"), site
            # Not causal: earlier tokens change too.
            assert changed[:4].any(), site


def test_patches_have_positions_of_their_own(tiny_vision, tiny_images):
    edit = mj.Edit("patch_embed", position=16)
    with pytest.raises(ValueError, match="position 16 is out of range; there are positions 0 to 15"):
        tiny_vision(tiny_images, edits=edit)
    with pytest.raises(ValueError, match="position 19 is out of range"):
        tiny_vision(tiny_images, edits=mj.Edit("embed", position=19))


def test_position_rules_count_tokens(tiny_vision, tiny_images):
    edits = tiny_vision.compile_edits(mj.Edit("block_out", layer=1, position="last"), tiny_images)
    assert edits["block_out"][0].index["T"][0].tolist() == [18, 18]
    with pytest.raises(ValueError, match="unknown position rule 'first_delimiter'"):
        tiny_vision(tiny_images, edits=mj.Edit("block_out", layer=1, position="first_delimiter"))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 28, 28), np.float32), r"images are float32\[2, 28, 28\]; give float32 \[batch"),
        (np.zeros((2, 3, 28, 28), np.float32), r"float32\[2, 3, 28, 28\]"),
        (np.zeros((2, 28, 28, 3), np.uint8), r"uint8\[2, 28, 28, 3\]; .*`preprocess` makes"),
        (np.zeros((0, 28, 28, 3), np.float32), "nothing to run"),
        (np.zeros((1, 30, 28, 3), np.float32), "30 × 28 pixels do not divide into patches of 7 × 7"),
        (np.full((1, 28, 28, 3), np.nan, np.float32), "NaN or infinite"),
    ],
)
def test_images_that_are_refused(tiny_vision, images, message):
    with pytest.raises(ValueError, match=message):
        tiny_vision(images)


def test_one_size_only(tiny_vision):
    model = dataclasses.replace(tiny_vision, config=dataclasses.replace(TINY_VISION, interpolation=None))
    with pytest.raises(ValueError, match="35 × 28 pixels: without interpolation this model takes only 28 × 28"):
        model(np.zeros((1, 35, 28, 3), np.float32))


def test_what_only_the_other_kind_of_model_does(tiny_vision, tiny_model, tiny_images):
    for call in (
        lambda: tiny_vision.tokenize("a"),
        lambda: tiny_vision.check_tokens(np.zeros((1, 3), np.int32)),
        lambda: tiny_vision.generate(np.zeros((1, 3), np.int32), max_new_tokens=1),
    ):
        with pytest.raises(ValueError, match="tiny is a vision model: it takes images, not tokens"):
            call()
    with pytest.raises(ValueError, match="tiny is a language model: it takes tokens, not images"):
        tiny_model.preprocess("a.png")
    with pytest.raises(ValueError, match=r"no preprocessor_config\.json"):
        tiny_vision.preprocess("a.png")
    with pytest.raises(ValueError, match="this model has no site patch_embed"):
        tiny_model(np.zeros((1, 3), np.int32), capture=mj.Capture("patch_embed"))
    with pytest.raises(ValueError, match="this model has no site logits"):
        tiny_vision(tiny_images, capture=mj.Capture("logits"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (28, 6)}, "at least one patch of 7"),
        ({"interpolation": "linear"}, "interpolation 'linear' is not one of None, bicubic"),
        ({"pooling": "max"}, "pooling 'max' is not one of class, "),
        ({"class_token": False}, "pooling 'class' needs a class token"),
        ({"position": "alibi"}, "position 'alibi' is not one of an image's"),
        ({"position": "rope", "head_dim": 6}, "turns whole heads of 4·n dims"),
        ({"registers": -1}, "must not be negative"),
        ({"window": 3}, "a window is of causal attention"),
    ],
)
def test_configs_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY_VISION, **changes)


def test_a_checkpoint_keeps_config_and_preprocessing(tiny_vision, tiny_images, tmp_path):
    from massive_jax.data import ImageProcessor

    processor = ImageProcessor({"image_processor_type": "ViTImageProcessor", "size": {"height": 28, "width": 28}})
    path = str(tmp_path / "converted")
    flat = {"/".join(k.key for k in path): x for path, x in jax.tree_util.tree_leaves_with_path(tiny_vision.params)}
    parts = [
        Part(
            name,
            (layer,) if name.startswith("layers/") else (),
            np.asarray(x[layer] if name.startswith("layers/") else x),
            (None, (), None),
        )
        for name, x in flat.items()
        for layer in (range(3) if name.startswith("layers/") else [0])
    ]
    parts.sort(key=lambda part: part.place)
    expected = expected_shapes(tiny_vision.module)
    checkpoint.save_checkpoint(path, TINY_VISION, parts, expected, dtype=np.float32, processor=processor)
    loaded = mj.load(path, progress=False)
    assert loaded.config == TINY_VISION
    assert loaded.processor == processor
    np.testing.assert_array_equal(loaded(tiny_images).logits, tiny_vision(tiny_images).logits)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    assert loaded.preprocess(pixels).shape == (1, 28, 28, 3)


def test_half_precision(tiny_images):
    """Statistics and logits stay float32."""
    model = random_model(dataclasses.replace(TINY_VISION, dtype="bfloat16"))
    out = model(tiny_images, capture=mj.Capture("block_out", top_k=2, median=True))
    assert out.last_hidden.dtype == "bfloat16"
    assert out.logits.dtype == out.intermediates["block_out"].median.dtype == np.float32
