"""What experiments run on: the model, prompts, texts and images that the flags ask for; and what results say of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

import massive_jax as mj
from experiments.flags import images as image_flags
from experiments.flags import mesh as mesh_flags
from experiments.flags import model as model_flags
from experiments.flags import prompt as prompt_flags
from experiments.flags import text as text_flags
from massive_jax.data import ImageList, Windows, cut_windows, image_batches, list_images, text_name
from massive_jax.evaluate import Images
from massive_jax.inputs.images import stack_images
from massive_jax.loading import check
from massive_jax.parallel import everywhere, is_first
from massive_jax.report.results import ImageSource, TextSource

_IMAGES = 16  # that are held in memory, where no number is given


def check_device() -> None:
    """Nothing where jax has a device to run on; ValueError where JAX_PLATFORMS names a platform that is not here."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter of a platform whose plug-in is not installed
        asked = os.environ.get("JAX_PLATFORMS", "")
        first = str(error).partition("\n")[0] or "its plug-in is not installed."
        raise ValueError(f"JAX_PLATFORMS={asked}: jax finds no such device here: {first}") from None


def load_model(name: str | None = None, revision: str | None = None) -> mj.Model:
    """The model that the flags ask for, or the one of that name, or that revision."""
    check_device()  # before anything is downloaded for it
    name = model_flags.MODEL.value if name is None else name
    mesh = mesh_flags.make()
    options: dict[str, Any] = {
        "dtype": model_flags.DTYPE.value,
        "revision": model_flags.REVISION.value if revision is None else revision,
    }
    if jax.process_count() > 1:  # all have it, and can read it, before the first reads weights
        everywhere(lambda: check(name, **options, fetch=True))
    return mj.load(name, **options, mesh=mesh, allow_nonfinite=model_flags.ALLOW_NONFINITE.value, progress=is_first())


def prompt_tokens(model: mj.Model) -> np.ndarray:
    """The one prompt as int32 [1, T]; ValueError where the model cannot take it."""
    return model.check_tokens(model.tokenize(prompt_flags.one(), bos=model_flags.BOS.value))


def prompts(model: mj.Model) -> dict[str, np.ndarray]:
    """The prompts that the flags ask for, each with its tokens int32 [1, T]; none for a vision model.

    Raises:
      ValueError: one that the model cannot take.
    """
    texts = prompt_flags.PROMPT.value
    if isinstance(model, mj.ImageModel):
        return {}
    return {text: model.check_tokens(model.tokenize(text, bos=model_flags.BOS.value)) for text in texts}


def without_effect(names: Sequence[str], where: str) -> None:
    """ValueError that names those of the flags which are given, though they change nothing `where` they stand."""
    given = [f"--{name}" for name in names if flags.FLAGS[name].present]
    if given:
        have, them = ("have", "them") if len(given) > 1 else ("has", "it")
        raise ValueError(f"{' and '.join(given)} {have} no effect {where}; leave {them} out.")


def check_inputs(*, prompt_and_text: bool = False, one_prompt: bool = False) -> None:
    """Looks at the flags that say what to run on, before anything is loaded.

    Args:
      prompt_and_text: whether the experiment takes both.
      one_prompt: whether it takes one prompt only.

    Raises:
      ValueError: flags of one kind of input beside another's; no such images; several prompts where one is taken.
    """
    if one_prompt:
        prompt_flags.one()
    if image_flags.IMAGES.value is not None:
        without_effect(("prompt", "text", "context", "windows", "bos"), "beside --images")
        list_images(image_flags.IMAGES.value)
        return
    without_effect(("num_images", "image_size", "batch_size"), "without --images")
    if text_flags.given() and not prompt_and_text:
        present = [f"--{name}" for name in ("text", "windows", "context") if flags.FLAGS[name].value is not None]
        without_effect(("prompt",), f"beside {present[0]}, which asks for windows of a text")


def images(model: mj.Model, most: int | None = None) -> Images:
    """The images that the flags ask for, in memory; ValueError where there are none, or the model cannot take them."""
    files = image_files(model).first(most or image_flags.NUM_IMAGES.value or _IMAGES)
    pixels = stack_images([image for _, batch in image_source(model, files)() for image in batch])
    return Images(model.check_images(pixels), tuple(path.name for path in files.paths))


def takes_images(model: mj.Model) -> bool:
    """Whether it is a vision model; ValueError where --images is given and it is not."""
    vision = isinstance(model, mj.ImageModel)
    if not vision and image_flags.IMAGES.value is not None:
        raise ValueError(f"{model.name} is a language model: it cannot look at --images; name a vision --model.")
    return vision


def prompt_or_image(model: mj.Model) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """One input and the header's source of it: the prompt's tokens [1, T] and None, or the first image and its name."""
    if not takes_images(model):
        return prompt_tokens(model), None
    found = images(model, 1)
    return found.inputs, found.names


def windows(model: mj.Model, text: str, least: int = 1) -> Windows:
    """The windows of `text` that the flags ask for, of at least `least` tokens each."""
    return cut_windows(
        model,
        text,
        context=text_flags.context(mj.TextModel.of(model).config.context_length - model_flags.BOS.value),
        windows=text_flags.windows(),
        bos=model_flags.BOS.value,
        tokens=least,
    )


def image_files(model: mj.Model) -> ImageList:
    """The image files that the flags ask for, unread; ValueError where there are none."""
    mj.ImageModel.of(model)
    if image_flags.IMAGES.value is None:
        raise ValueError(f"{model.name} is a vision model: give it images with --images=FILE or a folder.")
    return list_images(image_flags.IMAGES.value).first(image_flags.NUM_IMAGES.value)


def image_source(model: mj.Model, files: ImageList) -> Callable[[], Iterator[tuple[slice, np.ndarray]]]:
    """Gives the images in batches, preprocessed for `model`, as often as it is called."""
    size, count = image_flags.IMAGE_SIZE.value, image_flags.BATCH_SIZE.value
    return lambda: image_batches(files.paths, model.preprocess, min(count, len(files)), size=size)


def image_header(model: mj.Model, files: ImageList) -> dict[str, Any]:
    """The same of a result on image files: those of the first image, the path given, and how many."""
    _, first = next(image_source(model, files.first(1))())
    return {
        **header(model, first, [str(image_flags.IMAGES.value)]),
        "tokens": token_texts(model, first),
        "count": len(files),
        "classes": len(files.classes) or None,
    }


def header(
    model: mj.Model, inputs: np.ndarray, source: str | Sequence[str] | None = None, bos: bool | None = None
) -> dict[str, Any]:
    """What every result starts with: the fields of a `massive_jax.report.results.Run`.

    Args:
      model: the model.
      inputs: int [W, T], or images [B, height, width, 3].
      source: the name of the text they are windows of, None for a prompt; or the images' names.
      bos: whether BOS is in front; None for what the flag says.
    """
    about = {"model": model.name, "weights": stored_as(model), "dtype": model.config.dtype}
    if isinstance(model, mj.ImageModel):
        return {**about, "source": ImageSource(images=tuple(source or ()), image_size=tuple(inputs.shape[1:3]))}
    bos = model_flags.BOS.value if bos is None else bos
    text = None if source is None else text_name(str(source))
    return {**about, "source": TextSource(bos=bos, text=text, windows=len(inputs), context=inputs.shape[1] - bos)}


def token_texts(model: mj.Model, inputs: np.ndarray) -> tuple[str, ...]:
    """Texts of the tokens of the first of `inputs`."""
    return tuple(model.token_texts(inputs[0]))


def stored_as(model: mj.Model) -> str | None:
    """What the model's weights were stored as, for the header of a result; None where that is not known."""
    return None if model.origin is None else model.origin.weights


def shared_token(model: mj.Model, inputs: np.ndarray, w: int, position: int) -> str | None:
    """What the token at `position` of input `w` is called; None where it is another one in other inputs."""
    if inputs.ndim == 2 and (inputs[:, position] != inputs[w, position]).any():
        return None
    return model.token_texts(inputs[w])[position]
