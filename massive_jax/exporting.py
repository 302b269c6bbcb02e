"""`export`: from a `Model` back to a directory that Hugging Face's transformers loads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import tqdm

from massive_jax import files, zoo
from massive_jax.arguments import shown, yes_or_no
from massive_jax.dtypes import check_dtype
from massive_jax.inputs.image_settings import FILE, TIMM, TYPE, to_timm
from massive_jax.model import Model
from massive_jax.models import VisionConfig, build, declared
from massive_jax.parallel import once, whole
from massive_jax.weights import checkpoint, numbers
from massive_jax.weights.safetensors_writer import write_safetensors
from massive_jax.weights.table import Row, expand, put_back, stored_shape, table_sizes


def export(
    model: Model,
    out: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    allow_nonfinite: bool = False,
    progress: bool = True,
) -> files.Path:
    """Writes a model as Hugging Face's transformers has it: config.json, safetensors, tokenizer or image processor.

    `AutoModelForCausalLM.from_pretrained(out)`, of images `AutoModel` or `AutoModelForImageClassification`, computes
    the same. So does `load(out)`. The class is that of the model's family, or of another one that computes the same: of
    a nanoGPT, GPT-2; of a Gemma 3, its text model. What is not in a `Model`, a chat template say, is not written.

    Args:
      model: a loaded, trained or changed model.
      out: a directory; nothing may be there yet. It appears when all of it is written. In a bucket, gs://…, an object
        `.unfinished` is in it until then; `load` takes it from there, transformers a copy of it.
      dtype: of the stored weights; None for that of the parameters.
      allow_nonfinite: takes weights that are NaN or infinite, or become so in `dtype`.
      progress: shows a progress bar where it takes more than a moment.

    Returns:
      The directory.

    Raises:
      ValueError: options of the model that no class of transformers has, all named (an attention bias, say);
        parameters that are not those of its config; something is at `out`, another process writes there, or it cannot
        be written.

    Examples:
      >>> import tempfile
      >>> import massive_jax as mj
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     out = mj.export(model, f"{directory}/smollm2", dtype="bfloat16")
      ...     sorted(path.name for path in out.iterdir())
      ['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json']
    """
    model = Model.of(model)
    target_directory = check_directory(out)
    if dtype is not None:
        if not isinstance(dtype, str):
            raise ValueError(f"dtype is {shown(dtype)}; give a name, such as 'bfloat16', or None.")
        check_dtype(dtype)
    yes_or_no("allow_nonfinite", allow_nonfinite)
    yes_or_no("progress", progress)
    target = zoo.target(model.config, model.name)
    try:
        checkpoint.check_params(model.params, declared(build(model.config)), allow_nonfinite=allow_nonfinite)
    except ValueError as error:
        raise ValueError(f"{model.name}: {error}") from None
    params: dict[str, Any] = whole(flax.traverse_util.flatten_dict(model.params, sep="/"))
    tensors = _Tensors(target, params, dtype, unit_offset=model.config.norm.unit_offset)
    config_json = _config_json(model, target, tensors.dtype)

    def write() -> None:
        with files.atomic_directory(target_directory) as directory:
            write_safetensors(
                directory,
                tensors.shapes,
                tensors.dtype,
                tensors.checked(model.name, allow_nonfinite, None if progress else True),
            )
            files.write_json(directory / "config.json", config_json)
            if model.tokenizer is not None:
                model.tokenizer.save_directory(directory)
            if model.processor is not None and "pretrained_cfg" not in config_json:
                files.write_json(directory / FILE, dict(model.processor.options))

    once(write, f"write {target_directory}")
    return target_directory


class _Tensors:
    """The tensors of a model under transformers' names, made one at a time of its parameters.

    Attributes:
      shapes: name -> shape, in the order they are made.
      dtype: of all of them.
    """

    def __init__(self, target: zoo.Target, params: Mapping[str, Any], dtype: str | None, *, unit_offset: bool):
        config = target.config
        self._params = params
        self._declared = declared(build(config))
        self._minus_one = config.norm.unit_offset and not unit_offset
        self._sizes = table_sizes(config.sizes(1, 1))
        self.dtype = jnp.dtype(dtype or next(iter(params.values())).dtype)
        rows = [row for row in target.table.rows if row.path in self._declared]
        if lost := sorted(set(self._declared) - {row.path for row in rows}):
            raise ValueError(f"parameters that transformers has no place for: {files.listed(lost, 8)}.")
        self._groups: list[list[Row]] = []  # rows of one name are neighbours
        for name in dict.fromkeys(row.name for row in rows):
            self._groups.append([row for row in rows if row.name == name])
        self.shapes = {
            name: stored_shape(row, self._declared[row.path].shape[len(place) :], self._sizes)
            for group in self._groups
            for name, row, place in self._expanded(group[0])
        }
        self._unread = {
            name: tuple({**self._sizes, "1": 1}[letter] for letter in axes)
            for name, axes in target.unread.items()
            if name not in self.shapes
        }
        self.shapes |= self._unread

    def _expanded(self, row: Row) -> Iterator[tuple[str, Row, tuple[int, ...]]]:
        return expand((row,), self._sizes["L"], self._sizes["E"])

    def _parameter(self, path: str) -> np.ndarray:
        """All of a parameter, on the host."""
        if path not in self._params:  # a bias that the class has and the model has not
            return np.zeros(self._declared[path].shape, self.dtype)
        x = np.asarray(self._params[path])
        if self._minus_one and path.rpartition("/")[2] == "scale":
            x = x - np.ones((), x.dtype)
        return x

    def _made(self) -> Iterator[tuple[str, np.ndarray]]:
        for group in self._groups:
            parameters = {row.path: self._parameter(row.path) for row in group}
            for name, _, place in self._expanded(group[0]):
                stored = np.empty(self.shapes[name], self.dtype)
                written = sum(put_back(parameters[row.path][place], stored, row, self._sizes) for row in group)
                if written != stored.size:
                    raise ValueError(f"the model has parameters for {written} of {stored.size} elements of {name}.")
                yield name, stored
        for name, shape in self._unread.items():
            yield name, np.zeros(shape, self.dtype)

    def checked(self, location: str, allow_nonfinite: bool, quiet: bool | None) -> Iterator[tuple[str, np.ndarray]]:
        """Gives names and tensors; ValueError where one is not finite."""
        total = sum(int(np.prod(shape)) for shape in self.shapes.values())
        with (
            np.errstate(over="ignore"),
            tqdm.tqdm(total=total, unit="param", unit_scale=True, desc="writing", delay=2.0, disable=quiet) as bar,
        ):
            for name, stored in self._made():
                if not allow_nonfinite and not numbers.finite_in(numbers.extremes(stored), self.dtype):
                    raise numbers.out_of_range(location, [name], self.dtype)
                yield name, stored
                bar.update(stored.size)


def _config_json(model: Model, target: zoo.Target, dtype: Any) -> dict[str, Any]:
    """What config.json holds."""
    fields = dict(target.fields) | {"torch_dtype": dtype.name}
    if model.processor is not None:
        is_timm = model.processor.options[TYPE] == TIMM
        if "pretrained_cfg" in fields and is_timm:
            fields["pretrained_cfg"] = fields["pretrained_cfg"] | to_timm(model.processor.options)
        elif "pretrained_cfg" in fields or is_timm:
            raise ValueError(
                f"{model.name}: its image processor ({model.processor.options[TYPE]}) has no place beside a model of "
                "that family; write it without: dataclasses.replace(model, processor=None)."
            )
    if isinstance(model.config, VisionConfig):
        return fields
    # Also where there are none: transformers' classes have ids of their own for those that are not said.
    ids: dict[str, int | None] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if model.tokenizer is not None:
        ids |= {"bos_token_id": model.tokenizer.bos_id, "eos_token_id": model.tokenizer.eos_id}
    return fields | ids


def check_directory(out: object) -> files.Path:
    """Gives `out` as a path; ValueError where `export` cannot write there, or something is there."""
    text = os.fspath(out) if isinstance(out, os.PathLike) else out
    if not isinstance(text, str) or not text.strip() or files.printable(text) != text:
        raise ValueError(f"out is {shown(out)}; give a path.")
    path = files.user_path(text)
    checkpoint.check_free(path)
    return path
