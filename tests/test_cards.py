"""What a person sees of a model, of what it gives, and of its sites: short, whatever is in them."""

import dataclasses

import jax
import numpy as np
import pytest

import massive_jax as mj
from massive_jax import cards
from massive_jax.models import AttentionBias, ExpertsConfig
from massive_jax.weights.source import Origin
from tests.fixtures.tiny import TINY, TINY_VISION

MIXTURE = dataclasses.replace(
    TINY, mlp="experts", experts=ExpertsConfig(4, 2), attention_bias=AttentionBias("kv"), window=8
)


@pytest.mark.parametrize("config", [TINY, TINY_VISION, MIXTURE], ids=["language", "vision", "mixture"])
def test_a_model_is_a_card(config):
    model = mj.init(config, 3)
    text = repr(model)
    assert len(text.splitlines()) <= cards.LINES
    assert max(map(len, text.splitlines())) < 200
    for word in ("random, seed 3", f"{sum(x.size for x in jax.tree.leaves(model.params)):,} in float32", "cpu:0"):
        assert word in text, word
    for row in model.sites():
        assert f"sites {row.shape}" in text
        assert row.site in text
    assert model._repr_html_().startswith("<pre>")
    assert "<td>block_out</td>" in model._repr_html_()


def test_the_default_model_says_what_it_is(default_model):
    text = repr(default_model)
    for words in ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1 weights", "134,515,008 in float32, 538.06 MB", "49,152"):
        assert words in text, words


def test_what_a_checkpoint_says_of_itself_stays_on_its_line():
    model = dataclasses.replace(mj.init(TINY), origin=Origin("made from \x1b[31ma\nb", "Q4\n_1"))
    assert "\x1b" not in repr(model)
    assert len(repr(model).splitlines()) == len(repr(mj.init(TINY)).splitlines())


def test_a_card_needs_no_numbers(tiny_model):
    shapes = jax.eval_shape(lambda: tiny_model.params)
    assert "parameters" in repr(dataclasses.replace(tiny_model, params=shapes))
    seen = []
    jax.jit(lambda p: seen.append(repr(dataclasses.replace(tiny_model, params=p))))(tiny_model.params)
    assert "in float32" in seen[0]


def test_sites_are_those_that_can_be_captured(tiny_model, tiny_tokens, tiny_vision, tiny_images):
    for model, inputs in ((tiny_model, tiny_tokens), (tiny_vision, tiny_images)):
        table, sizes = model.sites(), model.config.input_sizes(inputs.shape)
        found = model(inputs, capture=mj.Capture([row.site for row in table])).intermediates
        assert set(found) == {row.site for row in table}
        for row in table:
            assert row.axes.strip("[]").split(", ")[0] == ("L" if "L" in row.axes else "B")
            shape = row.shape
            for letter in "BTSP":
                shape = shape.replace(letter, str(sizes.get(letter, 0)))
            assert shape == str(list(found[row.site].shape)), row.site


def test_a_table_is_a_sequence_of_its_rows(tiny_model):
    table = tiny_model.sites()
    assert table[0].site == "embed"
    assert len(table) == len(list(table)) == len(repr(table).splitlines()) - 1
    assert repr(cards.CardTable(())) == ""


def test_what_a_pass_gives_is_shown_without_its_numbers(tiny_model, tiny_tokens):
    capture = [mj.Capture(("block_out", "attn_probs"), top_k=2, median=True), mj.Capture("mid", layers=(1, 3))]
    out = tiny_model(tiny_tokens, capture=capture)
    for shown in (out, out.intermediates["block_out"], tiny_model.generate(tiny_tokens, max_new_tokens=2)):
        assert len(repr(shown).splitlines()) <= cards.LINES
        assert shown._repr_html_() == f"<pre>{shown!r}</pre>"
    assert "mid         float32 [2, 2, 9, 32]" in repr(out)
    assert "logits         float32 [2, 9, 260]" in repr(out)
    assert "pooled" not in repr(out)
    assert repr(out.intermediates["block_out"]).splitlines()[:2] == ["Stats", "  top_values   float32 [4, 2, 2]"]
    seen = []
    jax.jit(lambda tokens: seen.append(repr(tiny_model(tokens).last_hidden)))(tiny_tokens)
    jax.vmap(lambda x: seen.append(repr(mj.Stats(max=x))))(np.zeros(3, np.float32))
    assert seen[1] == "Stats\n  max  float32 []"


def test_a_card_of_many_fields_is_cut():
    text = cards.card("many", {f"field{i}": np.zeros(i) for i in range(40)})
    assert len(text.splitlines()) == cards.LINES
    assert text.splitlines()[-1] == "  … and 17 more"
    assert repr(mj.Stats()) == "Stats"


def test_markup_in_a_name_is_text():
    assert cards.as_html("<b>") == "<pre>&lt;b&gt;</pre>"
