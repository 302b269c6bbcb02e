"""The vision training binary: what it writes, models that other experiments take, and bad input."""

import numpy as np
import pytest
from PIL import Image

import massive_jax as mj

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")
TINY = ("--batch=8", "--steps=6", "--checkpoint_every=3", "--eval_every=3", "--census_every=3", "--patch_size=14")


@pytest.fixture(scope="session")
def image_folders(tmp_path_factory):
    """Dark and bright squares, eight to train on and four held out of each."""
    root = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 4)):
        for name, low in (("bright", 180), ("dark", 0)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(low, low + 70, (28, 28, 3)).astype(np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.mark.slow
def test_trains_and_compares(run, image_folders, tiny_directory):
    """In-process: the results, the picture, a model that is compared as any other is."""
    options = ("--registers=2", "--attention_bias=kv", "--samples=3")
    trained = run("train_vit", f"--dataset={image_folders}", *TINY, *options)
    results = run.workdir
    assert (trained["registers"], trained["attention_bias"], trained["images"]) == (2, "kv", 48)
    assert 0 <= trained["accuracy"] <= 1
    assert trained["loss"] > 0
    assert all(layer["slot_rate"] > 0 for layer in trained["census"]["layers"])
    assert (results / "emergence.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in (results / "samples").iterdir()) == ["0 bright", "1 dark"]
    assert len(list((results / "samples" / "1 dark").iterdir())) == 3

    model = str(results / "model")
    twice, size = f"--models={model},{model}", "--batch_size=3"
    compared = run("compare_bias", twice, f"--images={results / 'samples'}", size)
    assert compared["count"] == 6
    first = mj.load(model)
    paths = sorted((results / "samples").rglob("*.png"))
    labels = np.array([int(p.parent.name[0]) for p in paths])
    out = first(first.preprocess(paths), capture=[mj.Capture("block_out"), mj.Capture("attn_probs")])
    record = compared["models"][0]
    assert record["registers"] == 2
    assert record["top1"] == pytest.approx(float(np.mean(out.logits.argmax(axis=-1) == labels)))
    magnitude = np.abs(np.asarray(out.intermediates["block_out"]))
    assert record["largest"] == pytest.approx(float(magnitude.max()), rel=1e-4)
    probs = np.asarray(out.intermediates["attn_probs"])[..., :-1]  # the last key is the bias's slot
    most = probs.mean(axis=(2, 3)).max(axis=-1).mean(axis=-1)
    assert record["sink_rate"] == pytest.approx(float(most.max()), rel=1e-4)
    for name in ("compare_bias.png", "compare_attention.png"):
        assert (results / name).stat().st_size > 10_000
    # Images without classes: features are compared.
    unlabelled = run("compare_bias", twice, f"--images={paths[0].parent}", size)
    assert unlabelled["models"][0]["cosine_similarity"] == 1
    assert 0.5 < unlabelled["models"][0]["int8_per_tensor"] <= 1

    both = f"--models={model},{tiny_directory}"
    with pytest.raises(ValueError, match="language model: it cannot look at --images"):
        run("compare_bias", both, f"--images={image_folders / 'test'}")
    with pytest.raises(ValueError, match="compare those of one kind"):
        run("compare_bias", both)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=nowhere"], "no images 'nowhere'"),
        (["--preset=paper"], "--preset=paper: there are small, gpu"),
        (["--attention_bias=sink_token"], "images have registers"),
        (["--patch_size=99"], "at least one patch"),
        (["--shift=28"], "shift is 28"),
    ],
)
def test_bad_input(run, image_folders, arguments, message):
    data = [] if "dataset" in arguments[0] else [f"--dataset={image_folders}"]
    with pytest.raises(ValueError, match=message):
        run("train_vit", *data, *arguments)
