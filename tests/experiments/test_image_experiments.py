"""The experiments on images: one code path, another input."""

import json
import re

import numpy as np
import pytest

import massive_jax as mj
from massive_jax.files import read_json

DIM, TOKEN = 7, "reg1"


@pytest.fixture
def look(run, vision_directory, folder):
    def look(name, *arguments, images=folder):
        return run(name, f"--model={vision_directory}", f"--images={images}", *arguments)

    return look


@pytest.mark.slow
def test_attention(look, run):
    result = look("attention", "--random_sets=2")
    assert (result["count"], result["with_massive"], result["birth"]) == (3, 3, 1)
    assert result["massive"] == [{"position": 1, "token": TOKEN, "count": 3}]
    for layer in result["layers"]:
        assert layer["baseline"] == pytest.approx(1 / 12)
        assert layer["vectors"]["key"]["massive"]["cosine"] > 0.99
    assert result["secondary_sinks"] == []
    assert result["error"] < 1e-5
    assert result["finding"] in run.out


def test_census(look, run):
    result = look("census")
    assert (result["count"], result["images"]) == (3, ["photo0.png", "photo1.png", "photo2.png"])
    assert result["massive"]
    assert "register tokens" in result["finding"]
    for layer in result["layers"]:
        (place,) = (place for place in layer["places"] if place["massive"])
        assert (place["token"], place["class"], place["dim"]) == (TOKEN, "register", DIM)
        assert (place["count"], place["share"]) == (3, 1.0)
        assert layer["sink_mass_uniform"] == pytest.approx(1 / 12)
        (together,) = (place for place in layer["classes"] if place["massive"])
        assert together["share"] == 0.5  # one register of two
    assert result["finding"] in run.out


def test_layerwise(look, run, vision_directory, folder):
    result = look("layerwise")
    assert result["images"] == ["photo0.png", "photo1.png", "photo2.png"]
    assert result["image_size"] == [42, 42]
    assert result["tokens"] == ["CLS", "reg1", "reg2", *(f"({i},{j})" for i in range(3) for j in range(3))]
    assert not {"bos", "text", "windows", "context"} & result.keys()
    for layer in result["layers"]:
        top = layer["top"][0]
        assert (top["position"], top["dim"], top["token"], top["share"]) == (1, DIM, TOKEN, 1.0)
        assert top["value"] > 20000
    assert f"(1 {TOKEN}, {DIM})" in run.out
    # As the model's own output.
    model = mj.load(str(vision_directory), progress=False)
    stream = model(model.preprocess(sorted(folder.iterdir())), capture=mj.Capture("block_out"))
    values = np.asarray(stream.intermediates["block_out"])[:, :, 1, DIM].mean(axis=1)
    np.testing.assert_allclose([layer["top"][0]["value"] for layer in result["layers"]], values, rtol=1e-5)


@pytest.mark.slow
def test_feature_map_and_attention_map(look, run, folder):
    mapped = look("feature_map", "--layer=2", images=folder / "photo1.png")
    assert mapped["images"] == ["photo1.png"]
    assert [(m["position"], m["dim"], m["token"]) for m in mapped["massive"]] == [(1, DIM, TOKEN)]
    attention = look("attention_map", "--layer=2", "--head=1", "--image_size=56")
    assert attention["images"] == ["photo0.png"]
    assert len(attention["tokens"]) == 3 + 16
    assert attention["massive_positions"] == [1]
    # Attention goes both ways: nothing is masked.
    with np.load(run.workdir / "attention_map.npz") as arrays:
        assert np.isfinite(arrays["logits"]).all()
        np.testing.assert_allclose(arrays["probs"].sum(axis=-1), 1, rtol=1e-5)


@pytest.mark.slow
def test_intervene(look, run):
    result = look("intervene", "--layer=1", "--ops=zero,mean", "--num_images=2")
    assert [(s["position"], s["dim"]) for s in result["sites"]] == [(1, DIM)]
    found = result["cosine_similarity"]
    assert found["original"] == 1.0
    assert found["mean"] > 0.999 > found["zero"]
    assert result["images"] == ["photo0.png", "photo1.png"]
    assert "predicted_tokens" not in result
    assert "cosine similarity" in run.out
    assert (run.workdir / "intervene.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--images=nowhere",), "'nowhere' cannot be opened"),
        (("--image_size=45",), "45 × 45 pixels do not divide into patches of 14 × 14"),
        (("--layer=3",), "give 'auto' or a layer of this model, 1 to 2"),
    ],
)
def test_bad_input(look, arguments, message):
    with pytest.raises(ValueError, match=message):
        look("feature_map", *arguments)


def test_bad_places(look):
    with pytest.raises(ValueError, match="12:7 out of range: the inputs have positions 0 to 11"):
        look("intervene", "--places=12:7")
    with pytest.raises(ValueError, match="first delimiter, which an image does not have"):
        look("intervene", "--places=delim:7")


def test_images_and_models_that_do_not_go_together(run, vision_directory, folder):
    with pytest.raises(ValueError, match="is a vision model: give it images with --images"):
        run("layerwise", f"--model={vision_directory}")
    with pytest.raises(ValueError, match="is a language model: it cannot look at --images"):
        run("layerwise", f"--images={folder}")


@pytest.mark.slow
def test_reproduce(look, run):
    summary = look("reproduce", "--num_images=3")
    assert (summary["massive"][0]["token"], summary["massive"][0]["dim"]) == (TOKEN, DIM)
    assert summary["cosine_similarity"] == read_json(run.workdir / "intervene.json")["cosine_similarity"]
    assert not {"perplexity", "top1_agreement"} & summary.keys()
    source = (run.workdir / "report.html").read_text()
    data = json.loads(re.search(r"<script type='application/json' id='explored'>(.*?)</script>", source, re.S)[1])
    layers = read_json(run.workdir / "layerwise.json")
    assert layers["images"] == ["photo0.png"]
    first, second = data["inputs"]
    assert (first["input"], second["input"]) == ("1: photo0.png", "2: photo1.png")
    assert (first["tokens"], first["massive"], first["image"]["grid"]) == (layers["tokens"], [1], [3, 3])
    for layer, summarised in zip(first["layers"], layers["layers"], strict=True):
        assert layer["values"][1] == pytest.approx(summarised["top"][0]["value"], rel=1e-5)
    (panel,) = data["what_if"]
    assert (panel["image"], panel["places"][0]) == ("photo0.png", f"massive: {TOKEN}, dim {DIM}")
    assert panel["edits"][0]["top"] == []
    for words in ("On the picture", "3 of 42 × 42 pixels", "cosine similarity of the features to the unedited ones"):
        assert words in source
    assert source.count("<img ") == 5
    assert "leaves its features with a cosine similarity of" in run.out


def test_reproduce_takes_a_prompt_or_images(look):
    with pytest.raises(ValueError, match="--prompt has no effect beside --images"):
        look("reproduce", "--prompt=a")
