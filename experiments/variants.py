"""Variants of one training, side by side: what `python -m experiments.emergence --variants=…` does."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import massive_jax as mj
from experiments import common, train_gpt2
from experiments.flags import training
from massive_jax.analysis import has_sink, has_spike, mean_interval, middle_blocks, sink_and_spike
from massive_jax.data import Windows
from massive_jax.evaluate import quantized_inputs, quantized_weights, window_nll
from massive_jax.files import HeldError, Path, atomic_write, locked, read_json, write_json
from massive_jax.memory import keep_freed_memory
from massive_jax.report import as_json, as_record, markdown_table, plot_variant_curves, plot_variants, variant_rows
from massive_jax.report.results import (
    Bounds,
    Census,
    MeasuredTraining,
    VariantCurve,
    VariantResult,
    Variants,
    VariantTraining,
)
from massive_jax.train import DivergedError, TokenFile, TrainConfig, Variant, take_census, train, variants_named
from massive_jax.train.config import check_same
from massive_jax.train.data import even_windows
from massive_jax.train.presets import PRESETS

HELD_OUT = 32  # windows
_RATIOS = ("ratio", "others_ratio", "typical_ratio", "top_ratio", "kurtosis")  # averaged as logarithms
_OTHERS = ("loss", "int8_loss", "first_share", "sink_heads", "block_heads", "slot_share")


def run(names: Sequence[str], seeds: int) -> None:
    """Trains and measures what is not there yet of the variants called `names`, and puts all side by side."""
    keep_freed_memory()
    preset = training.preset(PRESETS)
    data = train_gpt2.data_name(preset)
    variants = variants_named(names)
    training.check(preset.optimizer, preset.options)
    base = train_gpt2.configure(preset)
    configs = {  # all of them, before anything is made
        name: [dataclasses.replace(_changed(name, variant, base), seed=base.seed + i) for i in range(seeds)]
        for name, variant in variants.items()
    }
    workdir = common.workdir(reserve=False)  # other processes may train other variants there
    file = _tokens(data, workdir, base)
    planned = {
        name: {
            workdir / name / f"seed_{config.seed}": dataclasses.replace(config, data=file.sha256) for config in of_seeds
        }
        for name, of_seeds in configs.items()
    }
    for directory, config in itertools.chain.from_iterable(trainings.items() for trainings in planned.values()):
        _check_there(directory, config)
    found: dict[str, list[tuple[MeasuredTraining, tuple[Census, ...]]]] = {}
    with training.preemptible():
        for name, trainings in planned.items():
            found[name] = [
                (_measured(name, config, file, directory), training.census(directory))
                for directory, config in trainings.items()
            ]
    result = Variants(
        model=preset.name,
        preset=str(training.PRESET.value),
        text=file.text,
        dtype=base.model.dtype,
        bos=base.bos,
        context=base.context,
        steps=base.steps,
        windows=HELD_OUT,
        variants=tuple(_summary(name, variants[name], trainings) for name, trainings in found.items()),
    )
    path = workdir / "emergence_variants.json"
    write_json(path, as_json(result))
    columns, rows = variant_rows(result)
    with atomic_write(path.with_suffix(".md")) as temporary:
        temporary.write_text(markdown_table(columns, rows), encoding="utf-8")
    plot_variants(result, path.with_suffix(".png"))
    plot_variant_curves(result, workdir / "emergence_variants_curves.png")
    common.print_table(columns, rows)
    print(f"wrote {path}, the table in {path.with_suffix('.md')}, and figures beside them")


def _changed(name: str, variant: Variant, base: TrainConfig) -> TrainConfig:
    try:
        return variant.of(base)
    except ValueError as error:
        raise ValueError(f"--variants: {name} does not go with this preset: {error}") from None


def _tokens(data: str, workdir: Path, config: TrainConfig) -> TokenFile:
    """The token file that all trainings share, made by whichever process comes first."""
    while True:
        try:
            with locked(workdir / "data"):
                return train_gpt2.open_data(data, workdir, config)
        except HeldError:
            time.sleep(0.5)


def _check_there(directory: Path, config: TrainConfig) -> None:
    """Looks at what a training has left in `directory`, before hours go into others.

    Raises:
      ValueError: it was another training, or a longer one; its census is damaged.
    """
    if (record := _stored(directory)) is not None:
        ended = record.config.get("steps", 0) if record.problem is None else 0
        check_same(record.config, config, directory, ended)
    training.census(directory)


def _stored(directory: Path) -> MeasuredTraining | None:
    """The measurement of the training in `directory`; None where there is none, or none that can be read."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        record = as_record(MeasuredTraining, read_json(directory / "measured.json"))
        if record.problem is not None or None not in (record.loss, record.int8_loss):
            _training(record)
            return record
    return None


def _measured(name: str, config: TrainConfig, file: TokenFile, directory: Path) -> MeasuredTraining:
    """What came of a training: read where it has ended, else made."""
    stored = _stored(directory)
    if stored is not None and (stored.config, stored.windows) == (config.described(), HELD_OUT):
        return stored

    def say(line: str) -> None:
        print(f"{name}, seed {config.seed}: {line}", flush=True)

    with locked(directory):
        record = MeasuredTraining(variant=name, config=config.described(), windows=HELD_OUT)
        try:
            trained = train(config, file, directory, say=say)
        except DivergedError as error:
            record = dataclasses.replace(record, problem=str(error).partition(": stopped")[0])
            say(f"{record.problem}; left so")
        else:
            training.whole_census(directory, config.steps)
            found = _measurements(config, file, trained.directory)
            if math.isfinite(found["loss"]):
                record = dataclasses.replace(record, **found)
            else:  # what the last step made is not seen by its own loss
                record = dataclasses.replace(record, problem=f"the loss on held-out windows is {found['loss']}")
        write_json(directory / "measured.json", as_json(record))
    return record


def _measurements(config: TrainConfig, file: TokenFile, directory: Path) -> dict[str, Any]:
    """Losses and the census of the model in `directory` on held-out windows, in float32."""
    model = mj.load(str(directory), progress=False)
    part = file.split(config.validation, config.context)[1]
    tokens = even_windows(file, part, context=config.context, count=HELD_OUT, bos=config.bos)[:, :-1]
    windows = Windows(tokens, tokens.shape[1] - (config.bos is not None), config.bos is not None)
    rounded = window_nll(quantized_weights(model), windows, quantized_inputs(model.config))
    layers = {"step": config.steps, "layers": take_census(model.module, model.params, tokens)}
    return {
        "loss": window_nll(model, windows).mean,
        "int8_loss": rounded.mean,
        "layers": as_record(Census, layers).layers,
    }


def _summary(
    name: str, variant: Variant, trainings: Sequence[tuple[MeasuredTraining, tuple[Census, ...]]]
) -> VariantResult:
    """Puts a variant's trainings together."""
    each = tuple(_training(measured) for measured, _ in trainings)
    whole = [one for one in each if one.problem is None]
    means = {key: _bounds([getattr(one, key) for one in whole], key in _RATIOS) for key in (*_OTHERS, *_RATIOS)}
    sink = spike = curve = None
    if whole:
        rises = [(one.int8_loss or 0.0) - (one.loss or 0.0) for one in whole]
        means["int8_rise"] = _bounds(rises, ratios=False)
        sink = has_sink(means["block_heads"].mean)
        fixed = 2 * sum(one.dim is not None for one in whole) > len(whole)
        spike = has_spike(means["ratio"].mean, means["typical_ratio"].mean, fixed=fixed)
        curve = _curve([census for measured, census in trainings if measured.problem is None])
    found = means if whole else {}
    return VariantResult(
        name=name,
        words=variant.words,
        source=variant.source,
        trainings=each,
        means=found,
        sink=sink,
        spike=spike,
        curve=curve,
    )


def _training(measured: MeasuredTraining) -> VariantTraining:
    seed = int(measured.config["seed"])
    if measured.problem is not None:
        return VariantTraining(seed=seed, problem=measured.problem)
    found = sink_and_spike([as_json(layer) for layer in measured.layers])
    return VariantTraining(seed=seed, loss=measured.loss, int8_loss=measured.int8_loss, **dataclasses.asdict(found))


def _bounds(values: Sequence[float | None], ratios: bool) -> Bounds:
    """Mean and interval; nan where a number is not finite, or has no logarithm."""
    numbers = np.array([np.nan if value is None else value for value in values])
    if not numbers.size or not np.isfinite(numbers).all() or (ratios and (numbers <= 0).any()):
        return Bounds(mean=float("nan"))
    found = mean_interval(numbers, ratios=ratios)
    return Bounds(mean=found.value, low=found.low, high=found.high)


def _curve(censuses: Sequence[Sequence[Census]]) -> VariantCurve | None:
    """How the ratio emerged, over the steps that all trainings have a census of; None where there are none."""
    by_step: list[Mapping[int, float]] = [
        {
            record.step: max(
                record.layers[i].over_median(record.layers[i].first) for i in middle_blocks(len(record.layers))
            )
            for record in census
        }
        for census in censuses
    ]
    steps = [step for step in by_step[0] if all(step in one for one in by_step)]
    if not steps:
        return None
    ratios = [[one[step] for step in steps] for one in by_step]
    with np.errstate(divide="ignore"):
        mean = np.exp(np.log(ratios).mean(axis=0)).tolist()
    return VariantCurve(
        steps=tuple(steps),
        ratios=tuple(map(tuple, ratios)),
        mean=tuple(mean),
        **common.fitted(steps, mean),
    )
