"""What every experiment does: start, load the model, show progress, print a table, fail in one line."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from absl import app, flags
from absl import logging as absl_logging

import massive_jax as mj
from experiments import streams
from experiments.flags import images as image_flags
from experiments.flags import model as model_flags
from experiments.flags import prompt as prompt_flags
from experiments.flags import text as text_flags
from massive_jax.data import ImageList, Windows, cut_windows, image_batches, list_images
from massive_jax.evaluate import Images, Profile
from massive_jax.files import locked, printable
from massive_jax.inputs.images import stack_images
from massive_jax.models import VisionConfig
from massive_jax.report import label, number
from massive_jax.report.results import Activation, ImageSource, ProfileCurves, ProfileLayer, TextSource

_IMAGES = 16  # that are held in memory, where no number is given

_held: contextlib.ExitStack | None = None  # what a run of `guarded` holds until it ends

_TRACEBACK = flags.DEFINE_bool("traceback", False, "On an error, shows where in the code it was raised.")


def run_experiment(main: Callable[[], Any]) -> None:
    """Parses flags and runs `main`. Bad input ends in one clear line on stderr and exit status 1."""
    streams.secure()
    mj.keep_compiled()  # the second run of an experiment starts in seconds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
    app.run(lambda argv: guarded(main, argv), flags_parser=parse_flags)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; gives what is no flag."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, OSError) as error:  # OSError: a --flagfile that is not there
        _fail(_in_words(error))
    except SystemExit:  # after --help; absl's status is 1
        sys.exit(0)
    return []


def _check_flags_have_effect() -> None:
    """Modules share their flags, so absl takes some that this binary does not look at: an error, not silence."""
    taken = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])}
    for name in flags.FLAGS if taken else ():  # none where a script of the user's own runs an experiment
        ours = str(flags.FLAGS.find_module_defining_flag(name)).startswith("experiments.")
        if ours and flags.FLAGS[name].present and name not in taken:
            raise ValueError(f"--{name} has no effect here; leave it out. --help lists the flags that have.")


def guarded(main: Callable[[], Any], argv: Sequence[str]) -> None:
    """Runs `main` with what `parse_flags` gave; an error becomes a line and an exit status."""
    global _held
    absl_logging.set_verbosity(absl_logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no PyTorch is no news either
    logging.getLogger("jax").setLevel(logging.WARNING)  # which accelerators are absent is no news
    for chatty in ("datasets", "huggingface_hub"):  # what goes wrong there ends in one line of ours
        logging.getLogger(chatty).setLevel(logging.ERROR)
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected arguments {' '.join(argv[1:])!r}; flags look like --name=value.")
        _check_flags_have_effect()
        if model_flags.DTYPE.value == "float64":
            jax.config.update("jax_enable_x64", True)
        with contextlib.ExitStack() as _held:
            main()
        streams.flush()  # here, where it can still be told, and not at the interpreter's end
    except BrokenPipeError:  # whoever read our output has seen enough; the files are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        _fail("interrupted.", 130)
    except (ValueError, OSError, MemoryError, FloatingPointError, jax.errors.JaxRuntimeError) as error:
        if _TRACEBACK.value:
            raise
        _fail(_in_words(error) + _others())
    finally:
        _held = None


def _fail(message: str, status: int = 1) -> None:
    print(f"error: {printable(message, keep=chr(10))}", file=sys.stderr)
    sys.exit(status)


def _others() -> str:
    """A second sentence for errors in one of several processes, which are often another's."""
    if not jax.distributed.is_initialized():
        return ""
    return (
        f" (Process {jax.process_index()} of {jax.process_count()}; where another has ended, the cause is in its "
        "output. Start all of them again to go on from the last checkpoint.)"
    )


def _in_words(error: Exception) -> str:
    if isinstance(error, MemoryError | jax.errors.JaxRuntimeError):
        first = str(error).partition("\n")[0]
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in first:
            return (
                f"out of memory; try a smaller --batch, a shorter --context or --prompt, or --dtype=bfloat16. ({first})"
            )
        return first
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    return str(error)


def check_device() -> None:
    """Nothing where jax has a device to run on; ValueError where JAX_PLATFORMS names a platform that is not here."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter of a platform whose plug-in is not installed
        asked = os.environ.get("JAX_PLATFORMS", "")
        first = str(error).partition("\n")[0] or "its plug-in is not installed."
        raise ValueError(f"JAX_PLATFORMS={asked}: jax finds no such device here: {first}") from None


def load_model(name: str | None = None) -> mj.Model:
    """The model that the flags ask for, or the one of that name."""
    check_device()  # before anything is downloaded for it
    return mj.load(
        model_flags.MODEL.value if name is None else name,
        dtype=model_flags.DTYPE.value,
        revision=model_flags.REVISION.value,
        allow_nonfinite=model_flags.ALLOW_NONFINITE.value,
    )


def workdir(*, reserve: bool = True) -> pathlib.Path:
    """The directory for results, this process's alone until `guarded` ends; it is made with its first file.

    Args:
      reserve: False in processes that share it with the one that holds it.

    Raises:
      ValueError: files cannot be made in it; another process is writing there.
    """
    if not model_flags.WORKDIR.value:
        raise ValueError("--workdir is empty; give a directory, or . for this one.")
    path = pathlib.Path(os.path.expanduser(model_flags.WORKDIR.value))
    try:
        there = next(p for p in (path, *path.absolute().parents) if p.exists())
        with tempfile.TemporaryDirectory(prefix=".", dir=there):
            pass
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"--workdir={path}: cannot write there: {reason}.") from None
    if reserve and _held is not None:
        # Where nothing can be made beside it, as at a mount point, the directory is there to keep the lock in.
        inside = path.is_dir() and not os.access(path.absolute().parent, os.W_OK)
        made = [parent for parent in path.absolute().parents if not parent.exists()]
        _held.callback(_remove_empty, made)
        try:
            _held.enter_context(locked(path / "workdir" if inside else path))
        except ValueError as error:
            raise ValueError(f"--workdir={path}: {error}") from None
    return path


def _remove_empty(directories: Sequence[pathlib.Path]) -> None:
    """Removes those that are empty, from the innermost: they were made for a lock, and no result came."""
    with contextlib.suppress(OSError):
        for directory in directories:
            directory.rmdir()


def prompt_tokens(model: mj.Model) -> np.ndarray:
    """The one prompt as int32 [1, T]; ValueError where the model cannot take it."""
    return model.check_tokens(model.tokenize(prompt_flags.one(), bos=model_flags.BOS.value))


def prompts(model: mj.Model) -> dict[str, np.ndarray]:
    """The prompts that the flags ask for, each with its tokens int32 [1, T]; none for a vision model.

    Raises:
      ValueError: one that the model cannot take.
    """
    texts = prompt_flags.PROMPT.value
    if isinstance(model.config, VisionConfig):
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
    vision = isinstance(model.config, VisionConfig)
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
        context=text_flags.context(model.require_language().context_length - model_flags.BOS.value),
        windows=text_flags.windows(),
        bos=model_flags.BOS.value,
        tokens=least,
    )


def image_files(model: mj.Model) -> ImageList:
    """The image files that the flags ask for, unread; ValueError where there are none."""
    model.require_vision()
    if image_flags.IMAGES.value is None:
        raise ValueError(f"{model.name} is a vision model: give it images with --images=FILE or a folder.")
    return list_images(image_flags.IMAGES.value).first(image_flags.NUM_IMAGES.value)


def image_source(model: mj.Model, files: ImageList) -> Callable[[], Iterator[tuple[slice, np.ndarray]]]:
    """Gives the images in batches, preprocessed for `model`, as often as it is called."""
    processor = model.require_processor()
    size, count = image_flags.IMAGE_SIZE.value, image_flags.BATCH_SIZE.value
    return lambda: image_batches(files.paths, processor, min(count, len(files)), size=size)


def image_header(model: mj.Model, files: ImageList) -> dict[str, Any]:
    """The same of a result on image files: those of the first image, the path given, and how many."""
    _, first = next(image_source(model, files.first(1))())
    return {
        **header(model, first, [str(image_flags.IMAGES.value)]),
        "tokens": token_texts(model, first),
        "count": len(files),
        "classes": len(files.classes) or None,
    }


@contextlib.contextmanager
def progress(total: int, what: str, unit: str = "tok") -> Iterator[Callable[[int], Any]]:
    """A progress bar over `total` tokens (or `unit`) that shows itself when the work takes more than two seconds."""
    with tqdm.tqdm(total=total, desc=what, unit=unit, unit_scale=True, delay=2.0, disable=None) as bar:
        yield bar.update


def header(model: mj.Model, inputs: np.ndarray, source: str | Sequence[str] | None = None) -> dict[str, Any]:
    """What every result starts with: the fields of a `massive_jax.report.results.Run`.

    Args:
      model: the model.
      inputs: int [W, T], or images [B, height, width, 3].
      source: the name of the text they are windows of, None for a prompt; or the images' names.
    """
    about = {"model": model.name, "weights": stored_as(model), "dtype": model.config.dtype}
    if isinstance(model.config, VisionConfig):
        return {**about, "source": ImageSource(images=tuple(source or ()), image_size=tuple(inputs.shape[1:3]))}
    bos, text = model_flags.BOS.value, None if source is None else str(source)
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


def profile_layers(profile: Profile) -> tuple[ProfileLayer, ...]:
    """A profile's layers, as results have them."""
    return tuple(ProfileLayer(**layer) for layer in profile.layers())


def profile_curves(name: str, profile: Profile) -> ProfileCurves:
    """A profile's curves, as figures have them."""
    curves = {of: tuple(getattr(profile, of).tolist()) for of in ("largest", "median", "sink_rate")}
    return ProfileCurves(name=name, **curves)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints rows under aligned columns; numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
    numeric = [all(not isinstance(row[i], str) for row in rows) for i in range(len(columns))]
    for row in [list(columns), *cells]:
        parts = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        print("  ".join(parts).rstrip())


def place(found: Activation) -> str:
    """A found activation's place in words: (position token, dim)."""
    token = "" if found.token is None else f" {label(found.token)}"
    return f"({found.position}{token}, {found.dim})"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    return "–" if value is None else printable(value)
