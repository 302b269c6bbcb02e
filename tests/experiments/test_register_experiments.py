"""The experiments on registers, on a tiny random vision model."""

import dataclasses
import importlib
from typing import Any

import numpy as np
import pytest
import torch
from absl import flags
from PIL import Image

import massive_jax as mj
from massive_jax.data import ImageProcessor
from massive_jax.files import read_json, write_arrays

WIDTH = 32  # of TINY_VISION


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """Two classes of two images."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in ("cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 20, 3)).astype(np.uint8)).save(path)
    return folder


@pytest.fixture
def run_vit(tmp_path, image_folder, make_vision, monkeypatch, clean_flags, capsys):
    """`run_vit("vit_registers", registers, "--means=…")`: runs on a model with that many registers; gives the JSON."""

    run: Any

    def run_binary(name, registers, *arguments, images=image_folder):
        model = make_vision(registers=registers, num_classes=0)
        processor = ImageProcessor({"image_processor_type": "ViTImageProcessor", "size": 28})
        loaded = dataclasses.replace(model, processor=processor)
        monkeypatch.setattr(mj, "load", lambda *_, **__: loaded)
        module = importlib.import_module(f"experiments.{name}")
        clean_flags()
        flags.FLAGS([name, f"--images={images}", f"--workdir={tmp_path}", "--batch_size=4", *arguments])
        module.main()
        run.out = capsys.readouterr().out
        return read_json(tmp_path / f"{name}.json")

    run = run_binary
    return run


@pytest.mark.slow
def test_vit_registers_with_a_head(run_vit, tmp_path):
    rng = np.random.default_rng(1)
    head = torch.nn.Linear(2 * WIDTH, 2)
    torch.save(head.state_dict(), tmp_path / "head.pth")
    with_head = f"--linear_head={tmp_path / 'head.pth'}"
    result = run_vit("vit_registers", 2, with_head, "--massive_magnitude=1", "--massive_ratio=2")
    assert (result["count"], result["classes"], result["registers"], result["means"]) == (4, 2, 2, "collected")
    assert set(result["measures"]["top1"]) == {"original", "fixed"}
    with np.load(tmp_path / "vit_register_means.npz") as stored:
        means = stored["means"]
    assert means.shape == (3, 2, WIDTH)
    assert [row["layer"] for row in result["layers"]] == [0, 1, 2]
    for row, values in zip(result["layers"], means, strict=True):
        assert row["median"] == pytest.approx(np.median(np.abs(values)))
        assert [e["value"] for e in row["largest"]] == [v[np.abs(v).argmax()] for v in values]
    found = [(m["layer"], m["register"], m["dim"]) for m in result["massive"]]
    assert found
    assert all(abs(means[layer, register - 1, dim]) > 1 for layer, register, dim in found)
    assert "top-1" in run_vit.out
    for picture in ("vit_registers.png", "vit_attention.png"):
        assert (tmp_path / picture).read_bytes()[:4] == b"\x89PNG"

    # Other means, from a file, change more.
    write_arrays(tmp_path / "other.npz", other=means + rng.normal(size=means.shape) * 5)
    other = run_vit("vit_registers", 2, with_head, f"--means={tmp_path / 'other.npz'}")
    assert other["means"] == str(tmp_path / "other.npz")
    assert other["measures"]["cosine"] < result["measures"]["cosine"]


def test_register_neurons(run_vit, tmp_path):
    result = run_vit("register_neurons", 0, "--outlier=1.05", "--neurons=2", "--outlier_layer=2")
    assert len(result["neurons"]) == 2
    assert len(result["norms"]) == 3
    assert set(result["norms"][0]["moved"]) == {"largest", "median", "other"}
    assert 0 < result["measures"]["cosine"] < 1
    assert (tmp_path / "register_neurons.png").read_bytes()[:4] == b"\x89PNG"


def test_bad_input(run_vit, tmp_path, image_folder):
    write_arrays(tmp_path / "giant.npz", giant=np.ones((40, 4, 1536), np.float32))
    np.savez(tmp_path / "head.npz", weight=np.ones((3, 2 * WIDTH), np.float32), bias=np.ones(3, np.float32))
    (tmp_path / "none").mkdir()
    (tmp_path / "text.png").write_text("no image")
    for name, registers, arguments, message in [
        ("vit_registers", 0, (), "has no register tokens"),
        ("vit_registers", 2, (f"--means={tmp_path / 'giant.npz'}",), "they are of another model"),
        (
            "vit_registers",
            2,
            (f"--linear_head={tmp_path / 'head.npz'}",),
            "the images have 2 classes, the model's head 3",
        ),
        ("vit_registers", 2, ("--image_size=13",), "13 × 13 pixels do not divide into patches of 7 × 7"),
        ("vit_registers", 2, (f"--images={tmp_path / 'none'}",), "no images in"),
        ("vit_registers", 2, (f"--images={tmp_path / 'text.png'}",), "is not an image"),
        ("register_neurons", 0, ("--outlier=1e9",), "no patch of any image exceeds"),
        ("register_neurons", 0, ("--outlier_layer=7",), "layer 7 is out of range"),
    ]:
        with pytest.raises(ValueError, match=message):
            run_vit(name, registers, *arguments)
