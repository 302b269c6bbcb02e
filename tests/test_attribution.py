"""Direct logit attribution: the parts add up to the logit in every family, and each is what it says."""

import dataclasses

import numpy as np
import pytest

import massive_jax as mj
from massive_jax import zoo
from massive_jax.attribution import _attribution
from massive_jax.forward import _forward, left_pad
from massive_jax.models import AttentionBias, NormConfig, TransformerConfig
from tests.fixtures.tiny import programs, random_model


def shrunk(name):
    """The config of a preset with all its options, two blocks of width 32."""
    config = zoo.map_config(zoo.PRESETS[name].config, name)[0]
    if not isinstance(config, TransformerConfig):
        return None
    kv = 1 if config.num_kv_heads == 1 else 4 if config.num_kv_heads == config.num_heads else 2

    def rope(its):
        factors = its and its.factors and its.factors[: 2 if its.rotary_dim else 4]
        return its and dataclasses.replace(its, rotary_dim=its.rotary_dim and 4, factors=factors)

    return dataclasses.replace(
        config,
        vocab_size=60,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=kv,
        head_dim=8,
        intermediate_size=24,
        max_position=32,
        dtype="float32",
        rope=rope(config.rope),
        local_rope=rope(config.local_rope),
        window=config.window and 4,
        window_layers=config.window_layers and (True, False),
        embedding_size=config.embedding_size and 20,
        experts=config.experts and dataclasses.replace(config.experts, num_experts=3, num_chosen=2),
    )


ODD = {
    "sandwich, slots, narrow": {
        "norm": NormConfig("rms", unit_offset=True, single_scale=True),
        "norm_placement": "pre_and_output",
        "attention_bias": AttentionBias("kv", slots=2),
        "out_bias": True,
        "embedding_size": 24,
        "embedding_scale": 3.0,
        "head_bias": True,
        "logit_scale": 0.7,
        "logit_softcap": 4.0,
    },
    "post-norm, gates, clipped": {
        "norm": NormConfig("layer"),
        "norm_placement": "after_residual",
        "attention_bias": AttentionBias("gate_head"),
        "layer_scale": True,
        "clip_residual": 2.0,
        "final_norm": False,
    },
}
RARE = {
    "tanh, parallel": {
        "norm": NormConfig("dynamic_tanh"),
        "value_scale": "learned",
        "layer_scale": True,
        "residual": "parallel",
    },
    "norms without parameters": {
        "norm": NormConfig("layer", scale=False, bias=False),
        "position": "learned",
        "mlp": "plain",
        "mlp_bias": True,
    },
}
TOKENS, MASK = left_pad([[1, 2, 3], [4, 5, 6, 7, 8]])


def families():
    """The presets whose shrunk configs differ, one each."""
    configs = {name: shrunk(name) for name, preset in zoo.PRESETS.items() if preset.config is not None}
    return {config: name for name, config in configs.items() if config is not None}.values()


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in (*RARE, *families())]


def assert_adds_up(found, logits, softcap=None, rest=True):
    """To float32's rounding of the parts; without the rest where nothing was clipped or edited."""
    parts = {name: np.asarray(part, np.float64) for name, part in found.parts().items()}
    size = sum(map(np.abs, parts.values()))
    kept = [part for name, part in parts.items() if rest or not name.startswith("rest")]
    assert (np.abs(sum(kept) - found.logit) <= 2e-6 * size).all()
    logit = np.asarray(found.logit)
    logit = logit if softcap is None else softcap * np.tanh(logit / softcap)
    theirs = np.take_along_axis(np.asarray(logits), np.asarray(found.ids)[..., None], -1)[..., 0]
    np.testing.assert_allclose(logit, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*ODD, *SLOW])
def test_parts_add_up_to_the_logit(name, make_model):
    options = (ODD | RARE).get(name)
    model = random_model(shrunk(name)) if options is None else make_model(num_layers=2, **options)
    config, tokens = model.config, np.random.default_rng(1).integers(0, 60, size=(2, 9), dtype=np.int32)
    mask = np.arange(9) >= [[2], [0]]
    found = model.logit_attribution(tokens, np.roll(tokens, -1, axis=1), position=None, heads=True, mask=mask)
    assert (np.asarray(found.ids) == -1).tolist() == (~mask).tolist()
    assert not any(np.abs(part)[~mask].any() for part in found.parts().values())
    clipped = config.clip_residual is not None
    assert_adds_up(found, model(tokens, mask=mask).logits, config.logit_softcap, rest=clipped)
    assert (np.abs(found.rest).max() > 1e-2) == clipped
    no_head = np.asarray(found.attn - found.heads.sum(axis=-1))
    has_bias = config.out_bias or (config.norm.has_bias and "output" in config.norm_placement)
    assert (np.abs(no_head).max() > 1e-5 * np.abs(found.heads).max()) == has_bias


def test_each_part_is_its_product_with_the_direction(tiny_model):
    """At the last token in a padded batch, with an edit of the stream there: against numpy."""
    edit = mj.Edit("block_out", layer=2, position=-1, dim=3, op="add", value=20.0)
    options = {"mask": MASK, "edits": edit, "heads": True}
    sites = ("embed", "attn_out", "mlp_out", "head_out", "block_out")
    out = tiny_model(TOKENS, mask=MASK, edits=edit, capture=mj.Capture(sites))
    params = tiny_model.params
    kept = {site: np.asarray(x, np.float64)[..., -1, :] for site, x in out.intermediates.items() if site != "head_out"}
    head_out = np.asarray(out.intermediates["head_out"], np.float64)[:, :, -1]
    head = np.asarray(params["head"], np.float64)
    direction = (head[7] - head[9]) * np.asarray(params["norm"]["scale"])
    direction = direction / np.sqrt((kept["block_out"][-1] ** 2).mean(axis=-1, keepdims=True) + 1e-5)
    rest = np.zeros((4, 2))
    rest[1] = 20.0 * direction[:, 3]
    expected = {
        "logit": out.logits[:, -1, 7] - out.logits[:, -1, 9],
        "embed": (direction * kept["embed"]).sum(axis=-1),
        "attn": (direction * kept["attn_out"]).sum(axis=-1),
        "mlp": (direction * kept["mlp_out"]).sum(axis=-1),
        "heads": np.einsum("LBHN,LHND,BD->LBH", head_out, params["layers"]["attn"]["out"]["kernel"], direction),
        "bias": np.zeros(2),
        "rest": rest,
        "direction": direction,
    }
    found = tiny_model.logit_attribution(TOKENS, 7, versus=9, **options)
    for name, part in expected.items():
        np.testing.assert_allclose(getattr(found, name), part, rtol=1e-4, atol=2e-5, err_msg=name)

    # Other targets, positions and edits are no other program.
    before = programs(_forward, _attribution)
    options["edits"] = dataclasses.replace(edit, layer=3, value=1.0)
    by_text = tiny_model.logit_attribution(TOKENS, ["a", "b"], versus="c", position=np.array([2, 0]), **options)
    assert by_text.ids.tolist() == [97, 98]
    assert by_text.versus.tolist() == [99, 99]
    by_id = tiny_model.logit_attribution(TOKENS, [97, 98], versus=99, position="first", **options)
    np.testing.assert_allclose(by_id.logit[1], by_text.logit[1], rtol=1e-4)
    assert programs(_forward, _attribution) == before

    # Without a target it is the model's own next token.
    own = tiny_model.logit_attribution(TOKENS, **options | {"edits": edit})
    np.testing.assert_array_equal(own.ids, out.logits[:, -1].argmax(axis=-1))
    assert_adds_up(own, out.logits[:, -1])
    assert "heads" in repr(own)


def test_refused(tiny_model, tiny_vision, tiny_images, compilations):
    for options, message in (
        ({"target": 260}, r"target: token ids from 260 to 260 do not fit the vocabulary of 260 \(ids 0 to 259\)"),
        ({"target": [1, -1]}, "target: token ids from -1 to 1 do not fit"),
        ({"target": 1.5}, r"target is 1.5; give a token's id, its text, or one a sequence: int\[2\]\.$"),
        ({"target": [1, 2, 3]}, r"target is \[1, 2, 3\]; give"),
        ({"target": [[1], [1, 2]]}, r"target is \[\[1\], \[1, 2\]\]; give"),
        ({"target": True}, "target is True; give"),
        ({"target": "two"}, r"target 'two' is 3 tokens \('t', 'w', 'o'\); give a text of one token"),
        ({"versus": ""}, "versus '' is 0 tokens"),
        ({"versus": [1, 2, 3], "position": None}, r"one a sequence: int\[2\] or int\[2, 5\]"),
        ({"position": 5}, "position 5 is out of range"),
        ({"position": [0, 1, 2]}, r"position is \[0, 1, 2\], which may be several of a sequence; give one of each"),
        ({"position": np.array([0, -1])}, r"position is \[0, -1\], which is none of sequence 1; give one of each"),
        ({"position": "middle"}, "unknown position rule 'middle'"),
        ({"heads": 3}, "heads is 3; give True or False"),
        ({"edits": mj.Edit("logits", dim=3)}, "an edit of logits is after the stream"),
        ({"edits": mj.Edit("block_out", layer=9)}, "layer 9 is out of range"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            tiny_model.logit_attribution(TOKENS, **options)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="it takes images, not tokens"):
        tiny_vision.logit_attribution(tiny_images)
    assert compilations() == 0
