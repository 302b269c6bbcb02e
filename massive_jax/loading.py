"""`load`: from a name, a directory, a file or a hub id to a `Model`; `convert`: the same to a checkpoint on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import os
import pathlib
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
from jax.sharding import Mesh

import massive_jax
from massive_jax import files, storage, zoo
from massive_jax.arguments import shown, yes_or_no
from massive_jax.dtypes import DTYPES, check_dtype
from massive_jax.model import Model
from massive_jax.models import TransformerConfig, VisionConfig, build, declared
from massive_jax.parallel import check_mesh
from massive_jax.weights import checkpoint, hub, layout, wheel
from massive_jax.weights.gguf_source import GGUFSource
from massive_jax.weights.loader import expected_shapes, load_params, stream_params
from massive_jax.weights.safetensors_source import HuggingFaceSource
from massive_jax.weights.source import Origin, Source

_PIECE_BYTES = 1 << 20  # of a file, read and hashed at a time


def load(
    model: str | os.PathLike[str] = zoo.DEFAULT_MODEL,
    *,
    dtype: str = "float32",
    revision: str | None = None,
    mesh: Mesh | None = None,
    allow_nonfinite: bool = False,
    progress: bool = True,
) -> Model:
    """Loads a model.

    Args:
      model: a zoo name ("llama2_7b"), a Hugging Face directory, a `.gguf` file (of a split model any of its files), a
        hub id ("org/name"), or a directory (or gs://…) that `convert` wrote. The default is SmolLM2-135M-Instruct, its
        weights stored as Q4_1, from the Python package index; "smollm2_135m" is short for it, too. So is
        "gemma3_270m_q4_k_m" from there.
      dtype: of parameters and activations: float32, bfloat16, float16, or, for a reference, float64, which jax has to
        be told of (`jax_enable_x64`). Statistics are float32 in any case.
      revision: of a hub id: branch, tag or commit.
      mesh: devices to split the parameters over (see `massive_jax.parallel`); None for the default device.
      allow_nonfinite: takes weights that are NaN or infinite, which are an error otherwise.
      progress: shows progress bars for what takes more than a moment.

    Returns:
      A `Model`; `model.module`, `model.params` and `model.config` are its parts.

    Raises:
      ValueError: nothing of that name, an unsupported model type or config, weights that do not fit it, a corrupt
        file, no network on a first fetch, an argument of a wrong type. The message says what to do.

    Examples:
      >>> model = mj.load("smollm2_135m", progress=False)
      >>> model.config.num_layers, model.config.hidden_size
      (30, 576)
    """
    model = _address(model)
    _check_options(dtype, progress, allow_nonfinite)
    check_mesh(mesh)
    _check_revision(model, revision)
    if _is_checkpoint(model):
        found = checkpoint.read_metadata(model)
        config = dataclasses.replace(found.config, dtype=dtype)
        module = build(config)
        expected = functools.partial(declared, module)
        params = checkpoint.load_checkpoint(
            model, expected, dtype=config.jnp_dtype, mesh=mesh, allow_nonfinite=allow_nonfinite, found=found
        )
        return Model(
            *(module, params, config, found.tokenizer),
            name=model,
            processor=found.processor,
            origin=_converted(model, found.provenance),
        )
    with _described(model, revision, dtype) as (source, config, inputs, options):
        module = build(config)
        params = load_params(source, module, mesh=mesh, allow_nonfinite=allow_nonfinite, progress=progress, **options)
        origin = Origin(_place(model, revision), source.weight_type())
        return Model(module, params, config, **inputs, name=zoo.full_name(model), origin=origin)


def check(
    model: str | os.PathLike[str], *, dtype: str = "float32", revision: str | None = None, fetch: bool = False
) -> None:
    """Checks what `load` would refuse of `model`, so far as it shows without the network and without its weights.

    Of several models that are loaded one after another, a wrong one shows before the first has run. Of a directory or
    a file here that is its config and its tokenizer, of what may have to be fetched the name.

    Args:
      model: as for `load`.
      dtype: as for `load`.
      revision: as for `load`.
      fetch: fetches what may have to be fetched, so that its config and tokenizer are looked at, too.

    Raises:
      ValueError: as for `load`.
    """
    model = _address(model)
    check_dtype(dtype)
    _check_revision(model, revision)
    if files.is_remote(model):
        storage.check_reachable(model)
    elsewhere = model in zoo.PRESETS or files.is_remote(model) or (_is_hub_id(model) and not files.is_there(model))
    if elsewhere and not fetch:
        return
    if _is_checkpoint(model):
        checkpoint.read_metadata(model)
        return
    with _described(model, revision, dtype):
        pass


def convert(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    revision: str | None = None,
    allow_nonfinite: bool = False,
    progress: bool = True,
) -> None:
    """Writes `model` as a checkpoint of this project at `out`, one layer in memory at a time; `load(out)` reads it.

    Args:
      model: as for `load`.
      out: directory or gs://…; nothing may be there yet.
      dtype: of the stored parameters.
      revision: of a hub id.
      allow_nonfinite: takes weights that are NaN or infinite, which are an error otherwise, here and in `load(out)`.
      progress: shows a progress bar.

    Raises:
      ValueError: as for `load`; something is at `out`, another process writes there, or it cannot be written.
    """
    model, out = _address(model), _address(out, "out")
    _check_options(dtype, progress, allow_nonfinite)
    checkpoint.check_free(out)
    if _is_checkpoint(model):
        checkpoint.read_metadata(model)
        raise ValueError(f"{model} is a converted checkpoint already.")
    with _described(model, revision, dtype) as (source, config, inputs, options):
        expected = expected_shapes(build(config))
        options |= {"allow_nonfinite": allow_nonfinite, "progress": progress, "memory": layout.Memory()}
        with _Digests(source.files) as digests:
            checkpoint.save_checkpoint(
                out,
                config,
                stream_params(source, expected, **options),
                expected,
                dtype=config.jnp_dtype,
                **inputs,
                provenance=lambda: {
                    "model": model,
                    "revision": revision,
                    "format": source.format,
                    "files": digests.result(),
                    "weights": source.weight_type(),
                    "dtype": dtype,
                    **_made(),
                },
            )


def save(model: Model, out: str | os.PathLike[str], *, allow_nonfinite: bool = False) -> None:
    """Writes a model that is in memory as a checkpoint of this project, in the dtype of its parameters.

    Args:
      model: a loaded, trained or transformed model.
      out: directory or gs://…; nothing may be there yet. `load(out)` reads it.
      allow_nonfinite: takes weights that are NaN or infinite, which are an error otherwise, here and in `load(out)`.

    Raises:
      ValueError: parameters that are not those of the model's config, or are no weights; something is at `out`,
        another process writes there, or it cannot be written.
    """
    model = Model.of(model)
    out = _address(out, "out")
    yes_or_no("allow_nonfinite", allow_nonfinite)
    checkpoint.check_free(out)
    try:
        checkpoint.check_params(model.params, declared(build(model.config)), allow_nonfinite=allow_nonfinite)
    except ValueError as error:
        raise ValueError(f"{model.name}: {error}") from None
    checkpoint.save_params(
        out,
        model.config,
        model.params,
        tokenizer=model.tokenizer,
        processor=model.processor,
        provenance=lambda: {
            "model": model.name,
            "weights": None if model.origin is None else model.origin.weights,
            "dtype": model.config.dtype,
            **_made(),
        },
    )


def open_source(model: str | os.PathLike[str], *, revision: str | None = None) -> Source:
    """Finds the checkpoint that `model` names (see `load`), fetching it if need be, and opens it."""
    model = _address(model)
    _check_revision(model, revision)
    preset = zoo.PRESETS.get(model)
    if preset is not None:
        if isinstance(preset.source, zoo.WheelFile):
            return GGUFSource(wheel.fetch(preset.source))
        return HuggingFaceSource(hub.snapshot(preset.source, revision=revision))
    path = files.user_path(model)
    try:
        if path.is_dir():
            return HuggingFaceSource(path)
        if path.is_file():
            return GGUFSource(path)
        if path.exists():
            raise ValueError(f"{model!r} is a pipe or a device; give a file, or a directory.")
    except OSError as error:  # no permission, a name too long for the system
        raise ValueError(f"model {shown(model)} cannot be opened: {error.strerror}. Check the path.") from None
    if _is_hub_id(model):
        return HuggingFaceSource(hub.snapshot(model, revision=revision))
    raise ValueError(
        f"no model {shown(model)}: it is no file or directory here, no hub id (org/name) and no zoo name. "
        f"Zoo names: {', '.join(zoo.near(model))}, … (all of them: massive_jax.zoo.PRESETS)."
    )


@contextlib.contextmanager
def _described(
    model: str, revision: str | None, dtype: str
) -> Iterator[tuple[Source, TransformerConfig | VisionConfig, dict[str, Any], dict[str, Any]]]:
    """Opens the checkpoint of `model`: the source, its config, what makes the model's input, and how to read weights.

    The input comes first, a tokenizer or an image processor, so that what is wrong with it shows before the weights.
    """
    with open_source(model, revision=revision) as source:
        config, table = zoo.describe(source)
        config = dataclasses.replace(config, dtype=dtype)
        # A tokenizer beside a vision tower is of the text tower.
        vision = isinstance(config, VisionConfig)
        inputs = {"processor": source.processor()} if vision else {"tokenizer": source.tokenizer()}
        yield source, config, inputs, {"table": table, "sizes": config.sizes(1, 1), "dtype": config.jnp_dtype}


def _place(model: str, revision: str | None) -> str:
    """Where what `model` names (see `load`) comes from, in words."""
    preset = zoo.PRESETS.get(model)
    found: Any = model if preset is None else preset.source
    if isinstance(found, zoo.WheelFile):
        return f"{found.name} of {found.package} {found.version}, a package of the Python index"
    if preset is None and files.user_path(model).exists():
        return found
    return f"{found} of the hub" + (f", revision {revision}" if revision is not None else "")


def _converted(model: str, provenance: Mapping[str, Any]) -> Origin:
    """The origin that a checkpoint of this project records; an earlier version of it recorded less."""
    made_from, weights = provenance.get("model"), provenance.get("weights")
    how = f", made from {zoo.full_name(made_from)}" if isinstance(made_from, str) else ""
    how += ", trained" if "training" in provenance else ""
    return Origin(model + how, weights if isinstance(weights, str) else None)


def _address(given: object, what: str = "model") -> str:
    """The name or path `given` as a string; ValueError where it can be none."""
    expected = "a zoo name, a path or a hub id (org/name)" if what == "model" else "a path or gs://BUCKET/PATH"
    text = os.fspath(given) if isinstance(given, os.PathLike) else given
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{what} is {shown(given)}; give {expected}.")
    if files.printable(text) != text:
        raise ValueError(f"{what} {shown(text)} holds characters that no name has; give {expected}.")
    scheme, there, rest = text.partition("://")
    if there and (scheme == "hf" or rest.startswith("huggingface.co/")):
        raise ValueError(f"{what} {shown(text)}: give the id of a model of the hub alone: org/name.")
    return text


def _check_options(dtype: object, progress: object, allow_nonfinite: object) -> None:
    if not isinstance(dtype, str):
        raise ValueError(f"dtype is {shown(dtype)}; give one of {', '.join(DTYPES)}.")
    check_dtype(dtype)
    yes_or_no("progress", progress)
    yes_or_no("allow_nonfinite", allow_nonfinite)


def _check_revision(model: str, revision: str | None) -> None:
    """ValueError where a revision is asked for that `model` cannot have: only the hub keeps several."""
    if revision is None:
        return
    if not isinstance(revision, str) or not revision:
        raise ValueError(f"revision is {shown(revision)}; give a branch, a tag or a commit of a model of the hub.")
    preset = zoo.PRESETS.get(model)
    here = files.is_remote(model) or files.is_there(os.path.expanduser(model))
    if here if preset is None else isinstance(preset.source, zoo.WheelFile):
        raise ValueError(f"revision {revision!r} has no effect: {model} is no model of the hub; leave it out.")


def _is_hub_id(model: str) -> bool:
    """Whether it can be one, unless there is something of that name here."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", model)) and not model.startswith(".") and not model.endswith(".gguf")


def _is_checkpoint(model: str) -> bool:
    path = files.user_path(model)
    try:
        if files.is_remote(path):  # where nothing is, a converted one is missed, which can be read without a copy
            return path.suffix != ".gguf" and not (path / "config.json").exists()
        return path.is_dir() and not (path / "config.json").is_file() and checkpoint.is_or_was_checkpoint(path)
    except OSError:  # `open_source` says what is wrong with it
        return False


def _made() -> dict[str, Any]:
    """With what, and when."""
    return {
        "versions": {"massive_jax": massive_jax.__version__, "jax": jax.__version__},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


class _Digests:
    """Sizes and SHA-256 of files, worked out by a thread while something else is done; leaving stops it."""

    def __init__(self, paths: Sequence[pathlib.Path]):
        self._stopped = threading.Event()
        self._pool = futures.ThreadPoolExecutor(1)
        self._found = self._pool.submit(lambda: [self._of(path) for path in paths])

    def __enter__(self) -> _Digests:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopped.set()
        self._pool.shutdown()

    def result(self) -> list[dict[str, Any]]:
        """Name, size and sha256 of every file; ValueError where one cannot be read."""
        return self._found.result()

    def _of(self, path: pathlib.Path) -> dict[str, Any]:
        digest, size = hashlib.sha256(), 0
        piece = memoryview(bytearray(_PIECE_BYTES))  # one for all: new memory for every piece takes time
        try:
            with path.open("rb", buffering=0) as file:
                while not self._stopped.is_set() and (length := file.readinto(piece)):
                    digest.update(piece[:length])
                    size += length
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error}.") from None
        return {"name": path.name, "size": size, "sha256": digest.hexdigest()}
