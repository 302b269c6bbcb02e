"""Labelled images: MNIST's files, class folders and the hub's layout give the same images; bad files are told."""

import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from massive_jax.data import labelled, load_labelled

SIDE = 6


def write_idx(path, array):
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def made():
    """Pixels [n, 6, 6] and labels of training and test images."""
    rng = np.random.default_rng(0)
    return {
        part: (rng.integers(0, 256, (n, SIDE, SIDE), np.uint8), np.arange(n) % 3)
        for part, n in (("train", 9), ("t10k", 5))
    }


@pytest.fixture
def idx(made, tmp_path):
    """A directory of IDX files, the test ones gzipped."""
    for part, (pixels, labels) in made.items():
        end = ".gz" if part == "t10k" else ""
        write_idx(tmp_path / f"{part}-images-idx3-ubyte{end}", pixels)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte{end}", labels)
    return tmp_path


def test_idx(idx, made):
    training, held_out = load_labelled(str(idx))
    assert (len(training), len(held_out), training.size) == (9, 5, (SIDE, SIDE))
    assert training.classes == held_out.classes == ("0", "1", "2")
    got = held_out[np.array([4, 0])]
    np.testing.assert_array_equal(got, np.repeat(made["t10k"][0][[4, 0], :, :, None], 3, axis=-1))
    np.testing.assert_array_equal(training.labels, made["train"][1])
    assert training.checksum != held_out.checksum
    assert training.checksum == load_labelled(str(idx))[0].checksum


def test_class_folders(idx, made, tmp_path):
    root = tmp_path / "folders"
    for part, name in (("train", "train"), ("t10k", "val")):
        for i, (pixels, label) in enumerate(zip(*made[part], strict=True)):
            folder = root / name / "abc"[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    training, held_out = load_labelled(str(root), SIDE)
    assert held_out.classes == ("a", "b", "c")
    which = np.flatnonzero(made["train"][1] == 1)  # in the order of their names
    np.testing.assert_array_equal(training[np.flatnonzero(training.labels == 1)][..., 0], made["train"][0][which])
    assert load_labelled(str(root))[0][np.array([0])].shape == (1, 28, 28, 3)
    (root / "val" / "d").mkdir()
    Image.fromarray(made["train"][0][0]).save(root / "val" / "d" / "0.png")
    with pytest.raises(ValueError, match="train and val have other classes: d"):
        load_labelled(str(root))


def test_hub_layout(made, tmp_path):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    (tmp_path / "data").mkdir()
    for part, name in (("train", "train"), ("t10k", "test")):
        pixels, labels = made[part]
        rows = {"image": [Image.fromarray(x) for x in pixels], "label": labels.tolist()}
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(tmp_path / "data" / f"{name}-00000-of-00001.parquet")
    training, held_out = load_labelled(f"fashion_mnist:{tmp_path}", SIDE)
    assert held_out.classes == ("a", "b", "c")
    np.testing.assert_array_equal(training[np.arange(9)][..., 0], made["train"][0])
    np.testing.assert_array_equal(held_out.labels, made["t10k"][1])


def test_fashion_mnist_where_debian_puts_it(idx, monkeypatch):
    monkeypatch.setattr(labelled, "_FASHION_DIRECTORY", idx)
    assert load_labelled("fashion_mnist")[0].classes[2] == "pullover"
    write_idx(idx / "train-labels-idx1-ubyte", np.full(9, 10))
    with pytest.raises(ValueError, match="the label 10 is none of the 10 classes"):
        load_labelled("fashion_mnist")


def test_bad_input(idx, tmp_path):
    with pytest.raises(ValueError, match="no images 'nowhere'"):
        load_labelled("nowhere")
    with pytest.raises(ValueError, match="32 were asked for"):
        load_labelled(str(idx), 32)
    path = idx / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="it is truncated"):
        load_labelled(str(idx))
    path.write_bytes(b"no images")
    with pytest.raises(ValueError, match="no IDX file of 3 axes"):
        load_labelled(str(idx))
    path.write_bytes(whole)
    zipped = idx / "t10k-images-idx3-ubyte.gz"
    zipped.write_bytes(zipped.read_bytes()[:-9])
    with pytest.raises(ValueError, match="cannot be read"):
        load_labelled(str(idx))
    write_idx(idx / "t10k-images-idx3-ubyte.gz", np.zeros((4, SIDE, SIDE)))
    with pytest.raises(ValueError, match="4 t10k images and 5 labels"):
        load_labelled(str(idx))
    (idx / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(ValueError, match="there is no t10k-labels"):
        load_labelled(str(idx))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="expected the folders train/ and test/"):
        load_labelled(str(empty))


@pytest.mark.parametrize("name", [None, 5, b"x", ["x"]])
def test_a_name_of_another_type(name):
    with pytest.raises(ValueError, match="expected the name of images or the path of a directory"):
        load_labelled(name)


@pytest.mark.parametrize("side", [0, -1, 1.5, "28", True, 10**6])
def test_a_side_of_another_type_or_out_of_range(idx, side):
    with pytest.raises(ValueError, match="side is .*; give a whole number from 1 to 8,192"):
        load_labelled(str(idx), side)


def test_names_that_are_no_directories():
    for name in ("x" * 5000, "a\0b", "~nouser/images", "/dev/null"):
        with pytest.raises(ValueError, match="no images"):
            load_labelled(name)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (struct.pack(">4I", 0x0803, 2**32 - 1, 2**32 - 1, 2**32 - 1), "says that it holds"),
        (struct.pack(">4I", 0x0803, 9, 6, 0), "no IDX file"),
        (struct.pack(">3I", 0x0803, 9, 6), "no IDX file"),
        (struct.pack(">4I", 0x0803, 9, 6, 7), "has 324 bytes for"),
        (struct.pack(">4I", 0x0803, 9, 6, 5), "has more than 270 bytes for"),
    ],
)
@pytest.mark.parametrize("end", ["", ".gz"])
def test_sizes_that_an_idx_file_only_says(idx, head, message, end):
    path = idx / "train-images-idx3-ubyte"
    path.unlink()
    content = head + bytes(9 * SIDE * SIDE)
    (idx / f"train-images-idx3-ubyte{end}").write_bytes(gzip.compress(content) if end else content)
    with pytest.raises(ValueError, match=message):
        load_labelled(str(idx))
