"""Preprocessing against Hugging Face's, timm's and torch's, and every kind of image file."""

import json
import math
import os
import subprocess
import sys

import matplotlib.cbook
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from massive_jax.data import ImageProcessor, image_batches, list_images, read_image

PHOTO = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)  # 512 × 600, RGB
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

# preprocessor_config.json as the models' pages have it.
CONFIGS = {
    "vit": {"image_processor_type": "ViTImageProcessor", "size": 224, "resample": 2, "do_normalize": True},
    "vit_384": {"feature_extractor_type": "ViTFeatureExtractor", "size": 384, "image_mean": [0.5, 0.5, 0.5]},
    "clip": {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224, "do_center_crop": True},
    "dinov2": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 224, "width": 224},
        "resample": 3,
        **IMAGENET,
    },
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 384, "width": 384}, "resample": 3},
    "deit": {"image_processor_type": "DeiTImageProcessorFast", "size": 256, "crop_size": 224, **IMAGENET},
}


def directory_with(path, **files):
    for name, content in files.items():
        (path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("name", CONFIGS)
def test_photograph_as_hugging_face_preprocesses_it(tmp_path, name):
    directory_with(tmp_path, preprocessor_config=CONFIGS[name], config={"model_type": "vit"})
    ours = ImageProcessor.from_directory(tmp_path)
    reference = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    with Image.open(PHOTO) as photo:
        expected = reference(photo, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    got = ours(PHOTO)
    assert got.shape == expected.shape
    assert got.dtype == np.float32
    scale = np.float32(reference.image_std)  # back to pixels in [0, 1]
    assert np.abs((got - expected) * scale).max() <= 1 / 255
    np.testing.assert_array_equal(ImageProcessor.from_json(ours.to_json())(PHOTO), got)


def by_hand(resize, crop, mean, std):
    """The same with PIL's own calls: an independent computation."""
    with Image.open(PHOTO) as photo:
        image = photo.convert("RGB").resize(resize, Image.Resampling.BICUBIC)
    left, top = ((image.width - crop) // 2, (image.height - crop) // 2)
    image = image.crop((left, top, left + crop, top + crop))
    return (np.asarray(image, np.float32) / 255 - np.float32(mean)) / np.float32(std)


def test_clip_and_dinov2_by_hand():
    clip = ImageProcessor({"image_processor_type": "CLIPImageProcessor"})
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    np.testing.assert_allclose(clip(PHOTO)[0], by_hand((224, 262), 224, mean, std), atol=1e-5)
    dinov2 = ImageProcessor(CONFIGS["dinov2"])
    # Twice the side: resized to 512 before the crop of 448.
    np.testing.assert_allclose(dinov2(PHOTO, size=448)[0], by_hand((512, 600), 448, *IMAGENET.values()), atol=1e-5)


def test_dinov3_resizes_in_floats_as_torch_does():
    processor = ImageProcessor({"image_processor_type": "DINOv3ViTImageProcessor"})
    with Image.open(PHOTO) as photo:
        x = torch.tensor(np.array(photo)).permute(2, 0, 1)[None].float() / 255
    resized = torch.nn.functional.interpolate(x, (224, 224), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    expected = (resized.numpy() - np.float32(IMAGENET["image_mean"])) / np.float32(IMAGENET["image_std"])
    np.testing.assert_allclose(processor(PHOTO)[0], expected, atol=1e-4)


@pytest.mark.parametrize(("side", "share"), [(224, 0.9), (231, 0.95), (518, 1.0)])
def test_timm_config(tmp_path, side, share):
    """timm resizes the short side to side / crop_pct, and torchvision's crop rounds half to even."""
    cfg = {"input_size": [3, side, side], "crop_pct": share, "interpolation": "bicubic", "mean": [0.5] * 3}
    directory_with(tmp_path, config={"architecture": "vit", "pretrained_cfg": cfg | {"std": [0.25] * 3}})
    short = math.floor(side / share)
    with Image.open(PHOTO) as photo:
        image = photo.resize((short, int(short * 600 / 512)), Image.Resampling.BICUBIC)
    left, top = (round((edge - side) / 2.0) for edge in image.size)
    image = image.crop((left, top, left + side, top + side))
    expected = (np.asarray(image, np.float32) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(ImageProcessor.from_directory(tmp_path)(PHOTO)[0], expected, atol=1e-5)


def test_type_that_only_the_model_type_or_a_processor_config_tells(tmp_path):
    directory_with(tmp_path, preprocessor_config={"size": 112}, config={"model_type": "dinov2"})
    assert ImageProcessor.from_directory(tmp_path).options["image_processor_type"] == "BitImageProcessor"
    nested = {"image_processor": {"image_processor_type": "CLIPImageProcessorFast", "size": {"shortest_edge": 96}}}
    directory_with(tmp_path, processor_config=nested)
    assert ImageProcessor.from_directory(tmp_path).options["size"] == {"shortest_edge": 96}


def test_no_torch_needed():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'torchvision', 'timm')))\n"
        "from massive_jax.inputs.images import ImageProcessor\n"
        "for kind in ('CLIP', 'DINOv3ViT'):\n"
        "    processor = ImageProcessor({'image_processor_type': kind + 'ImageProcessor'})\n"
        f"    print(processor({PHOTO!r}).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "(1, 224, 224, 3)\n" * 2, done.stderr


def test_no_preprocessor_config(tmp_path):
    assert ImageProcessor.from_directory(tmp_path) is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"preprocessor_config": "{"}, "not readable JSON"),
        ({"preprocessor_config": {"image_processor_type": "SamImageProcessor"}}, "unknown image processor 'SamImage"),
        ({"preprocessor_config": {}, "config": {"model_type": "bert"}}, "names no image_processor_type"),
        ({"config": {"pretrained_cfg": {"input_size": [1, 28, 28]}}}, "known are square RGB"),
        ({"config": {"pretrained_cfg": {"crop_mode": "border"}}}, "crop_mode 'border'"),
    ],
)
def test_bad_processor_config(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        ImageProcessor.from_directory(directory_with(tmp_path, **files))


def test_bad_sizes_and_arrays():
    processor = ImageProcessor({"image_processor_type": "ViTImageProcessor"})
    for image, message in [
        (np.zeros((4, 4, 3), np.float32), "float32\\[4, 4, 3\\]; give"),
        (np.zeros((4, 4, 2), np.uint8), "uint8\\[4, 4, 2\\]; give"),
        ([], "no images"),
        (Image.new("F", (4, 4)), "no fixed range"),
    ]:
        with pytest.raises(ValueError, match=message):
            processor(image)
    with pytest.raises(ValueError, match="size of 0: give"):
        processor(PHOTO, size=0)
    with pytest.raises(ValueError, match="does not resize"):
        ImageProcessor({"image_processor_type": "ViTImageProcessor", "do_resize": False})(PHOTO, size=32)
    keeps = ImageProcessor(
        {"image_processor_type": "CLIPImageProcessor", "do_center_crop": False, "size": {"shortest_edge": 16}}
    )
    with pytest.raises(ValueError, match=r"sizes \(16, 16\), \(18, 16\)"):
        keeps([PHOTO, np.zeros((32, 32, 3), np.uint8)])
    with pytest.raises(ValueError, match="cannot build it"):
        ImageProcessor({"image_processor_type": "ViTImageProcessor", "size": {"side": 4}})(PHOTO)
    for text in ("{", "[]", "{}"):
        with pytest.raises(ValueError, match="image processor"):
            ImageProcessor.from_json(text)


def test_image_kinds_become_rgb(tmp_path):
    """Grey, 16-bit, transparent, palette and turned images, as `read_image` says."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (3, 5), np.uint8)

    def read(image, name="image.png", **options):
        image.save(tmp_path / name, **options)
        return np.asarray(read_image(tmp_path / name))

    three = np.repeat(grey[..., None], 3, axis=-1)
    np.testing.assert_array_equal(read(Image.fromarray(grey)), three)
    np.testing.assert_array_equal(read(Image.fromarray(grey.astype(np.uint16) * 257)), three)
    np.testing.assert_array_equal(read(Image.fromarray(grey.astype(np.uint16) * 257), "image.tif"), three)
    rgba = rng.integers(0, 256, (3, 5, 4), np.uint8)
    alpha = rgba[..., 3:] / 255
    composed = read(Image.fromarray(rgba))
    np.testing.assert_allclose(composed, rgba[..., :3] * alpha + 255 * (1 - alpha), atol=1)
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    np.testing.assert_array_equal(read(palette, transparency=0), [[[255, 255, 255], [40, 50, 60]]])
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the first row is the right column
    turned = read(Image.fromarray(three), exif=exif)
    np.testing.assert_array_equal(turned, np.rot90(three, -1))
    np.testing.assert_array_equal(
        ImageProcessor({"image_processor_type": "ViTImageProcessor"})(rgba),
        ImageProcessor({"image_processor_type": "ViTImageProcessor"})(composed),
    )


def test_files_that_are_no_images(tmp_path):
    with open(PHOTO, "rb") as file:
        whole = file.read()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    png = (tmp_path / "red.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(png[: len(png) // 2])
    Image.new("F", (4, 4)).save(tmp_path / "float.tif")
    for name, message in [
        ("cut.jpg", "truncated"),
        ("cut.png", "damaged, truncated"),
        ("text.jpg", "is not an image"),
        ("empty.png", "is not an image"),
        ("float.tif", "no fixed range"),
        ("missing.png", "cannot be opened"),
        ("", "is a folder"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_image(tmp_path / name)


def make_images(folder, *names):
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i * 10, 0, 0)).save(path)


def test_listing(tmp_path):
    flat, tree = tmp_path / "flat", tmp_path / "tree"
    make_images(flat, "b.png", "a.JPEG", ".hidden.png")
    (flat / "notes.txt").write_text("")
    found = list_images(flat)
    assert [p.name for p in found.paths] == ["a.JPEG", "b.png"]
    assert found.labels is None
    make_images(tree, "dog/2.png", "dog/1.png", "cat/deep/3.png", ".git/4.png")
    found = list_images(tree)
    assert [p.name for p in found.paths] == ["3.png", "1.png", "2.png"]
    assert (found.classes, found.labels.tolist()) == (("cat", "dog"), [0, 1, 1])
    assert len(list_images(flat / "b.png")) == 1
    (tree / "emu").mkdir()
    (tmp_path / "nothing").mkdir()
    make_images(tmp_path / "mixed", "1.png", "dog/1.png")
    for name, message in [
        ("tree", "no images in the class folder emu"),
        ("nothing", "no images in"),
        ("mixed", "images and folders of images"),
        ("missing", "cannot be opened"),
    ]:
        with pytest.raises(ValueError, match=message):
            list_images(tmp_path / name)


def test_batches_keep_the_order(tmp_path):
    make_images(tmp_path, *(f"{i}.png" for i in range(7)))
    paths = list_images(tmp_path).paths
    processor = ImageProcessor({"image_processor_type": "ViTImageProcessor", "size": 16})
    batches = list(image_batches(paths, processor, 3, size=8))
    assert [rows for rows, _ in batches] == [slice(0, 3), slice(3, 6), slice(6, 7)]
    np.testing.assert_array_equal(np.concatenate([x for _, x in batches]), processor(paths, size=8))
    (tmp_path / "5.png").write_text("damaged")
    with pytest.raises(ValueError, match="5.png is not an image"):
        list(image_batches(paths, processor, 3))
    with pytest.raises(ValueError, match="0 images"):
        list(image_batches([], processor, 3))


# Sizes and values of a preprocessor_config.json


@pytest.mark.parametrize("kind", ["ViTImageProcessor", "CLIPImageProcessor", "TimmImageProcessor"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": {"height": 10**6, "width": 10**6}}, r"size\.height is 1000000 .*size\.width is 1000000"),
        ({"size": {"height": 224, "width": 0}}, r"size\.width is 0 \(expected a whole number of pixels from 1 to 8192"),
        ({"size": {"shortest_edge": -1}}, r"size\.shortest_edge is -1"),
        ({"size": 10**9}, "size is 1000000000"),
        ({"size": 224.0}, r"size is 224\.0"),
        ({"size": "224"}, "size is '224'"),
        ({"size": True}, "size is True"),
        ({"size": math.nan}, "size is nan"),
        ({"size": [224, 224, 3]}, r"size is \[224, 224, 3\] \(expected two"),
        ({"crop_size": {"height": 10**6, "width": 224}}, r"crop_size\.height is 1000000"),
        ({"crop_size": 0}, "crop_size is 0"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std is .* above 0"),
        ({"image_std": [0.5, math.nan, 0.5]}, "image_std is"),
        ({"image_std": "half"}, "image_std is 'half'"),
        ({"image_mean": [math.inf, 0, 0]}, "image_mean is .*expected three finite numbers"),
        ({"image_mean": [0.5]}, r"image_mean is \[0\.5\]"),
        ({"rescale_factor": 0}, "rescale_factor is 0"),
        ({"rescale_factor": "1/255"}, "rescale_factor is '1/255'"),
        ({"resample": 9}, "resample is 9"),
        ({"resample": "bicubic"}, "resample is 'bicubic'"),
        ({"do_resize": "yes"}, "do_resize is 'yes'"),
        ({"do_normalize": 1}, "do_normalize is 1"),
    ],
)
def test_values_out_of_range_are_refused_before_anything_is_built(kind, options, message):
    with pytest.raises(ValueError, match=message) as refusal:
        ImageProcessor({"image_processor_type": kind, **options})
    assert "\n" not in str(refusal.value)


def test_a_damaged_directory_names_itself(tmp_path):
    directory_with(tmp_path, preprocessor_config={"image_processor_type": "ViTImageProcessor", "size": "huge"})
    with pytest.raises(ValueError, match=f"^{tmp_path}: ViTImageProcessor: size is 'huge'"):
        ImageProcessor.from_directory(tmp_path)
    directory_with(tmp_path, processor_config={"image_processor": ["ViTImageProcessor"]})
    with pytest.raises(ValueError, match="image_processor is .*expected a JSON object"):
        ImageProcessor.from_directory(tmp_path)


@pytest.mark.parametrize(
    "cfg",
    [
        {"input_size": 224},
        {"input_size": [3, 224]},
        {"input_size": [3, 224.0, 224.0]},
        {"input_size": [3, 10**6, 10**6]},
        {"input_size": ["3", 224, 224]},
        {"crop_pct": "0.9"},
        {"crop_pct": -1},
        {"crop_pct": math.nan},
        {"crop_pct": 1e-30},
        {"interpolation": ["bicubic"]},
        {"mean": "half"},
        {"std": [0.0, 1.0, 1.0]},
    ],
)
def test_a_damaged_timm_config_is_one_line(tmp_path, cfg):
    directory_with(tmp_path, config={"architecture": "vit", "pretrained_cfg": cfg})
    with pytest.raises(ValueError, match=r"pretrained_cfg asks for|TimmImageProcessor: ") as refusal:
        ImageProcessor.from_directory(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("size", [0, -1, 10**6, 32.0, "32", True, math.nan, [32, 32], np.zeros(2, np.int32)])
def test_a_size_of_another_type_or_out_of_range(size):
    with pytest.raises(ValueError, match=r"an image size of .*: give a whole number of pixels, 1 to 8192"):
        ImageProcessor({"image_processor_type": "ViTImageProcessor"})("not read", size=size)


def test_a_size_may_be_a_numpy_integer_and_is_resized_in_proportion():
    processor = ImageProcessor({"image_processor_type": "CLIPImageProcessor", "size": 448})
    assert processor(PHOTO, size=np.int64(16)).shape == (1, 16, 16, 3)
    with pytest.raises(ValueError, match="the image would be resized to 10000 pixels; at most 8192"):
        processor(PHOTO, size=5000)


def test_a_strip_that_resizing_would_blow_up():
    processor = ImageProcessor({"image_processor_type": "CLIPImageProcessor"})
    with pytest.raises(ValueError, match="an image of 30000 by 1 pixels is too long a strip"):
        processor(np.zeros((1, 30000, 3), np.uint8))
    assert processor(np.zeros((1, 300, 3), np.uint8)).shape == (1, 224, 224, 3)


@pytest.mark.parametrize("image", [None, 5, b"bytes", {"a": 1}, [[1, 2], [3]], object(), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_image_is_said(image):
    with pytest.raises(ValueError, match="an image is .*; give a path, a PIL image, or uint8|cannot be opened"):
        ImageProcessor({"image_processor_type": "ViTImageProcessor"})([image])


def test_images_without_pixels_and_bombs(tmp_path, monkeypatch):
    for size in ((0, 5), (5, 0)):
        with pytest.raises(ValueError, match=f"an image of {size[0]} by {size[1]} pixels; expected 1 to"):
            ImageProcessor({"image_processor_type": "ViTImageProcessor"})(Image.new("RGB", size))
    Image.new("1", (200, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_000)  # PIL itself refuses twice as many
    with pytest.raises(ValueError, match=r"bomb\.png cannot be read: .*") as refusal:
        read_image(tmp_path / "bomb.png")
    assert "\n" not in str(refusal.value)


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for read in (read_image, list_images):
        with pytest.raises(ValueError, match=r"pipe\.png is"):
            read(tmp_path / "pipe.png")
    make_images(tmp_path, "real.png")
    assert [p.name for p in list_images(tmp_path).paths] == ["real.png"]


def test_animations_and_other_colour_spaces(tmp_path):
    red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    red.save(tmp_path / "moving.gif", save_all=True, append_images=[blue])
    red.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    red.convert("YCbCr").save(tmp_path / "ycc.tif")
    for name in ("moving.gif", "cmyk.jpg", "ycc.tif"):
        np.testing.assert_allclose(np.asarray(read_image(tmp_path / name))[0, 0], [255, 0, 0], atol=2)


def test_arguments_of_batches(tmp_path):
    processor = ImageProcessor({"image_processor_type": "ViTImageProcessor"})
    for batch_size in (0, -1):
        with pytest.raises(ValueError, match=f"in batches of {batch_size}: at least one"):
            next(image_batches(["a.png"], processor, batch_size))
    for wrong in (1.5, "2", None, True):
        with pytest.raises(ValueError, match="batch_size is .*; give a whole number"):
            next(image_batches(["a.png"], processor, wrong))
    with pytest.raises(ValueError, match="paths is 'a.png'; give a list"):
        next(image_batches("a.png", processor, 1))


def test_names_with_control_characters_are_escaped_in_messages(tmp_path):
    (tmp_path / "a\x1b[2J\n.png").write_text("no image")
    with pytest.raises(ValueError, match=r"a\\x1b\[2J\\n\.png is not an image"):
        read_image(tmp_path / "a\x1b[2J\n.png")
    make_images(tmp_path / "tree", "cat/1.png")
    (tmp_path / "tree" / "dog\x1b[2J").mkdir()
    with pytest.raises(ValueError, match=r"no images in the class folder dog\\x1b\[2J"):
        list_images(tmp_path / "tree")
