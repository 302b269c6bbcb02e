"""What stands in titles and under them: which model, in which numbers."""

import pytest

from massive_jax.report import style


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
