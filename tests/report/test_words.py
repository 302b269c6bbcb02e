"""What stands in titles and under them: which model, in which numbers."""

import math

import numpy as np
import pytest

from massive_jax.report import style, words


@pytest.mark.parametrize(
    ("address", "title"),
    [
        ("smollm2_135m_instruct_q4_1", "smollm2_135m_instruct_q4_1"),
        ("/data/models/Llama-2-7b-hf", "Llama-2-7b-hf"),
        ("checkpoints/smollm2_135m/", "smollm2_135m"),
        ("meta-llama/Llama-2-7b-hf", "Llama-2-7b-hf"),
        ("~/a.b/SmolLM2.Q4_1.gguf", "SmolLM2.Q4_1"),
        ("gs://bucket/made/llama", "llama"),
        ("/home/me/hub/models--org--Model-1b/snapshots/0123abc", "Model-1b"),
        ("/data/snapshots/3", "3"),
        ("GPT-2", "GPT-2"),
        ("/", "/"),
    ],
)
def test_a_title_has_a_models_name_and_not_its_path(address, title):
    assert style.model_name({"model": address}) == title


def test_here_is_called_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "my_model" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "my_model")
    assert style.model_name({"model": "."}) == "my_model"
    assert style.model_name({"model": "sub/.."}) == "my_model"


@pytest.mark.parametrize(
    ("weights", "words"),
    [({}, "float32"), ({"weights": None}, "float32"), ({"weights": "float32"}, "float32")]
    + [({"weights": kind}, f"{kind} weights in float32") for kind in ("Q4_1", "bfloat16")],
)
def test_the_line_under_a_title_says_what_the_weights_were_stored_as(weights, words):
    result = {"dtype": "float32", "bos": False, **weights}
    assert style.conditions(result) == f"{words} · no BOS"
    image = {"dtype": "float32", "images": ["a.png"], "image_size": [14, 28], **weights}
    assert style.conditions(image) == f"{words} · a.png · 14 × 28 pixels"


@pytest.mark.parametrize(
    ("value", "powers", "text"),
    [
        (0.0, True, "0"),
        (-0.25, False, "−0.25"),
        (1_000_000.0, False, "1,000,000"),
        (1e6, True, "10⁶"),
        (2.5e9, False, "2.5 × 10⁹"),
        (-1e-6, False, "−1 × 10⁻⁶"),
    ],
)
def test_numbers_on_axes(value, powers, text):
    assert words.on_axis(value, powers) == text


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.0, 0.0], "everywhere 0"),
        ([1.0, 1.009], "everywhere 1.00 to 1.01"),
        ([-2.0, -2.0, math.nan], "everywhere −2.00"),
        ([math.nan, math.inf], "no finite value"),
        ([1.0, 1.02], ""),
        ([-1e-9, 1e-9], ""),
    ],
)
def test_a_map_of_one_colour_is_said(values, said):
    assert words.nothing_to_see(np.array(values)) == said


def test_a_text_from_the_right_keeps_its_place():
    assert words.label("שלום") == "\u200eשלום\u200e"
    assert words.label("שלום", font=False) == "שלום"  # a browser is told otherwise
    assert words.label("\u200eab") == "\\u200eab"  # what a token has of it is seen


def test_what_the_font_lacks_is_escaped_wherever_it_is_written():
    with style.context():
        made = style.figure(1, 1)
        written = style.text(made, 0, 0, "中é").get_text()
        assert written == "\\u4e2dé"
        assert style.text_width("中é") == style.text_width(written)
