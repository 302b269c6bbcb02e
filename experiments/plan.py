"""What an experiment will take on chips that need not be here: memory by part, work, what is sent, the time.

  python -m experiments.plan --model=llama2_70b --experiment=layerwise --dtype=bfloat16 --chips=v5p-16
  python -m experiments.plan --model=llama2_7b --experiment=census --windows=1000 --chips=h100:8 --mesh=fsdp:8
  python -m experiments.plan --experiment=train_gpt2 --preset=paper --chips=v5e-16 --mesh=fsdp:16
  JAX_PLATFORMS=cpu python -m experiments.plan --model=llama2_70b --dtype=bfloat16 --chips=v5p-8 --compile

From shapes alone: no weights, no network, nothing allocated; seconds. --model is a zoo name, a directory with a
config.json, or a converted checkpoint. Without --mesh it looks for the one that fits and is fastest. What does not fit
ends with status 1 and a line that says what would. --compile asks the compiler too: for a TPU by libtpu (pip install
'massive_jax[tpu]'; none is needed), minutes; for GPUs where they are here. Writes plan.json.

Times are estimates, a roofline's: from where everything overlaps to where nothing does, at the vendors' figures; real
programs take longer, and loading the weights comes on top. LLaMA2-70B's layer-wise figures take 17.4
to 17.8 GB a chip on v5p-16, by the mesh; docs/plan.md has more, beside what the compiler says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments import attention_map, common, train_gpt2
from experiments.flags import mesh as mesh_flags
from experiments.flags import model, text, training
from massive_jax.chips import Chips
from massive_jax.evaluate import Closer
from massive_jax.evaluate.batches import rows_a_batch
from massive_jax.evaluate.census import census_measure
from massive_jax.evaluate.layers import CAPTURE
from massive_jax.files import write_json
from massive_jax.models import TransformerConfig
from massive_jax.parallel import mesh_text, parse_mesh
from massive_jax.plan import Compiled, Estimate, Job, Program, check_fits, compile_program, config_of, mesh_for, time_of
from massive_jax.plan import programs as planned
from massive_jax.probe import Capture
from massive_jax.train.presets import PRESETS

_EXPERIMENTS = ("layerwise", "census", "feature_map", "attention_map", "intervene", "generate", "train_gpt2")
_EXPERIMENT = flags.DEFINE_enum("experiment", "layerwise", _EXPERIMENTS, "What is to be run; generate is mj.generate.")
_CHIPS = flags.DEFINE_string(
    "chips", "v5e-8", "What it runs on: v5e-16, v5p-16 (8 chips), v6e-8, h100:8, h200:8, a100:8 …"
)
_COMPILE = flags.DEFINE_bool(
    "compile", False, "Compiles the programs for these chips, and says what the compiler says."
)
_NEW_TOKENS = flags.DEFINE_integer("new_tokens", 128, "Of generate: tokens after a prompt.", lower_bound=2)
_PLACES, _OPERATIONS = 2, 2  # of an intervention, where it finds the places by itself

if __name__ == "__main__":
    for module in (common, training):
        flags.adopt_module_key_flags(module)
    for name in ("model", "dtype", "workdir", "windows", "context"):
        flags.declare_key_flag(name)


def mesh() -> dict[str, int] | None:
    """The mesh that the flag asks for; None where it is left to be found."""
    return None if mesh_flags.MESH.value is None else parse_mesh(mesh_flags.MESH.value)


def check_effect() -> None:
    """ValueError where a flag is given that the experiment does not have."""
    of_training = ("preset", "batch", "accumulate", "remat", "attention_bias", "optimizer")
    others = ("windows",) if _EXPERIMENT.value == "train_gpt2" else of_training
    new = () if _EXPERIMENT.value == "generate" else ("new_tokens",)
    common.without_effect((*others, *new), f"with --experiment={_EXPERIMENT.value}")


def job() -> Job:
    """What the flags ask for; ValueError where there is no such model, or the length is more than it takes."""
    chips = Chips.parse(_CHIPS.value)
    if _EXPERIMENT.value == "train_gpt2":
        trained = train_gpt2.configure(training.preset(PRESETS), platform=chips.chip.platform)
        program = planned.training(dataclasses.replace(trained, mesh=(1, 1)))
        return Job(
            lambda B, T: [program], trained.model, chips, program.batch, trained.context, cuts=False, divides=True
        )
    config = dataclasses.replace(config_of(model.MODEL.value), dtype=model.DTYPE.value)
    if isinstance(config, TransformerConfig):
        most = config.context_length
        length = text.context(most)
        if length > most:
            raise ValueError(f"--context={length}: the model takes at most {most} tokens.")
        if length < 2 and _EXPERIMENT.value == "intervene":
            raise ValueError(f"--context={length}: perplexity needs at least two tokens: the first is not predicted.")
    else:
        length = config.num_tokens(*config.image_size)
        common.without_effect(("context",), "for a vision model, whose images have one size here")
        if _EXPERIMENT.value in ("generate", "intervene"):
            raise ValueError(f"--experiment={_EXPERIMENT.value} is planned for language models; this one takes images.")
    windows = 1 if _EXPERIMENT.value in ("feature_map", "attention_map") else text.windows()
    make = _PROGRAMS[_EXPERIMENT.value]
    batch = windows if _EXPERIMENT.value == "generate" else rows_a_batch(windows, length)

    def of(B: int, T: int) -> list[Program]:
        return make(config, min(B, windows), T, -(-windows // min(B, windows)))

    return Job(of, config, chips, batch, length)


def _layerwise(config: Any, B: int, T: int, runs: int) -> list[Program]:
    return [planned.forward("layers", CAPTURE, B, T, runs)]


def _census(config: Any, B: int, T: int, runs: int) -> list[Program]:
    def measure(config: Any, B: int) -> Any:
        return census_measure(config.causal, B)

    return [planned.forward("census", measure, B, T, runs)]


def _feature_map(config: Any, B: int, T: int, runs: int) -> list[Program]:
    return [
        *_layerwise(config, B, T, runs),
        planned.forward("hidden state", Capture("block_out", layers=1), B, T, runs),
    ]


def _attention_map(config: Any, B: int, T: int, runs: int) -> list[Program]:
    return [*_layerwise(config, B, T, runs), planned.forward("attention", attention_map.captures(1), B, T, runs)]


def _intervene(config: Any, B: int, T: int, runs: int) -> list[Program]:
    passes = Closer().passes_of(config.num_layers, _PLACES, _OPERATIONS)
    return [
        *_layerwise(config, B, T, runs),
        planned.likelihood(f"perplexity, {passes} times", _PLACES, B, T, passes * runs),
    ]


def _generate(config: Any, B: int, T: int, runs: int) -> list[Program]:
    new = min(_NEW_TOKENS.value, config.context_length - T)
    if new < 2:
        raise ValueError(f"--context={T} leaves no room to generate: the model takes {config.context_length} tokens.")
    return list(planned.generation(B, T, new))


_PROGRAMS: dict[str, Callable[[Any, int, int, int], list[Program]]] = {
    "layerwise": _layerwise,
    "census": _census,
    "feature_map": _feature_map,
    "attention_map": _attention_map,
    "intervene": _intervene,
    "generate": _generate,
}


def show(of: Job, sizes: dict[str, int], estimates: Sequence[Estimate], compiled: Sequence[Compiled]) -> None:
    """Prints the tables: a line a program."""
    chip = of.chips.chip
    print(
        f"{of.chips}: {of.chips.count} chips of {chip.memory / 1e9:,.1f} GB, mesh {mesh_text(sizes)}, "
        f"{of.config.dtype}, {of.batch} × {of.length} tokens at a time. A chip, in GB:"
    )
    parts = list(dict.fromkeys(part for one in estimates for part in one.memory))
    rows = [
        (one.name, one.runs, *(one.memory.get(part, 0) / 1e9 for part in parts), one.total / 1e9) for one in estimates
    ]
    common.print_table(("program", "runs", *parts, "all"), rows)
    print("a run, on each chip; seconds are estimates, each as if it were alone:")
    common.print_table(
        ("program", "TFLOP", "GB moved", "GB sent", "s products", "s memory", "s interconnect"),
        [
            (
                *(one.name, one.flops / 1e12, one.moved / 1e9, sum(c.sent for c in one.collectives) / 1e9),
                *(one.compute, one.bandwidth, one.interconnect),
            )
            for one in estimates
        ],
    )
    _show_sent(estimates, [one.collectives for one in estimates])
    least, most = time_of(estimates)
    print(
        f"all runs: {_duration(least)} where all overlaps, {_duration(most)} where nothing does; real ones take longer."
    )
    if compiled:
        print("as compiled, a chip, in GB:")
        common.print_table(
            ("program", "arguments", "results", "temporary", "all", "planned / compiled"),
            [
                (
                    *(one.name, found.arguments / 1e9, found.outputs / 1e9, found.temporary / 1e9, found.total / 1e9),
                    f"{one.total / found.total:.3f}",
                )
                for one, found in zip(estimates, compiled, strict=True)
            ],
        )
        _show_sent(estimates, [found.collectives for found in compiled])


def _show_sent(estimates: Sequence[Estimate], collectives: Sequence[Sequence[Any]]) -> None:
    rows = [
        (one.name, sent.kind, sent.axis, sent.size, sent.count, sent.bytes / 1e9, sent.sent / 1e9)
        for one, all_sent in zip(estimates, collectives, strict=True)
        for sent in all_sent
    ]
    if rows:
        common.print_table(("program", "collective", "axis", "chips", "count", "GB", "GB sent"), rows)


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} seconds"


def main() -> None:
    """Runs the binary."""
    check_effect()
    given, out = mesh(), common.workdir()
    found = job()
    if given is None:
        sizes, estimates = found.best()
    else:
        sizes = given
        if np.prod(list(sizes.values())) != found.chips.count:
            raise ValueError(
                f"--mesh={mesh_text(sizes)} is of {np.prod(list(sizes.values()))} chips, and --chips={found.chips} are "
                f"{found.chips.count}."
            )
        estimates = found.estimates(sizes)
    check_fits(found, sizes, estimates)
    compiled = []
    if _COMPILE.value:
        on = mesh_for(found.chips, sizes)
        compiled = [compile_program(one, found.config, on) for one in found.programs(found.batch, found.length)]
    show(found, sizes, estimates, compiled)
    write_json(
        out / "plan.json",
        {
            "model": model.MODEL.value,
            "experiment": _EXPERIMENT.value,
            "chips": str(found.chips),
            "mesh": sizes,
            "dtype": found.config.dtype,
            "batch": found.batch,
            "length": found.length,
            "seconds": time_of(estimates),
            "programs": [dataclasses.asdict(one) for one in estimates],
            "compiled": [dataclasses.asdict(dataclasses.replace(one, text="")) for one in compiled],
        },
    )
    print(f"wrote {out / 'plan.json'}")


if __name__ == "__main__":
    common.run_experiment(main)
