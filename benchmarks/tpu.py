"""Compiles for TPUs on a machine without one, by libtpu: kernels, forward passes with statistics, training steps.

  make check-tpu

makes an environment with libtpu and runs `python -m benchmarks.tpu`. Prints a line for each program: the seconds of
compiling, the temporary memory a device that the compiler plans for, and how many kernels of Pallas's are in it; ends
with 1 if any did not compile. Nothing runs, so it says nothing about speed or numbers; the numbers of the kernel are
tested interpreted (tests/models/test_splash.py).

There are ten programs a topology; expect three kernels a gradient of attention, and six where it is merged with a sink.
Then `experiments.layerwise` of LLaMA2-70B at its full depth, in bfloat16, on each of --pods, beside what
`experiments.plan` says that it takes: one that is off by more than 5 % counts as failed.
What libtpu says about host names of workers means nothing here.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from massive_jax.chips import Chips
from massive_jax.evaluate.layers import CAPTURE
from massive_jax.models import AttentionBias, LanguageModel, TransformerConfig
from massive_jax.models.attention import Surroundings, attend
from massive_jax.models.attention_bias import AttentionSlots, SlotPlaces
from massive_jax.parallel import BATCH_AXES, mesh_text, parse_mesh
from massive_jax.plan import compile_program, config_of, estimate, mesh_for
from massive_jax.plan.compiled import as_on, mesh_on, topology_devices
from massive_jax.plan.programs import forward as forward_program
from massive_jax.probe import Capture, compile_captures
from massive_jax.train import OptimizerConfig, Trainer
from massive_jax.train.step import _step

_TOPOLOGIES = flags.DEFINE_list(
    "topologies", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"], "What to compile for, as libtpu names them; four chips each."
)
_PODS = flags.DEFINE_list(
    "pods", ["v5e-16/fsdp:4+tensor:4"], "CHIPS/MESH that the full depth is compiled for; + between a mesh's axes."
)
_CONFIG = TransformerConfig(
    vocab_size=1024,
    hidden_size=256,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    intermediate_size=512,
    max_position=1024,
    dtype="bfloat16",
    attention_kernel="splash",
)
_B, _T = 4, 257


def kernels(mesh: Mesh) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Attention alone and its gradient: dtypes, widths, a window, and a bias of each sort, as (name, lowering)."""
    cases: dict[str, dict[str, Any]] = {
        "float32": {"dtype": "float32"},
        "heads of 256": {"head_dim": 256},
        "window": {"window": 64},
        "kv": {"attention_bias": AttentionBias("kv", slots=2)},
        "sink, window": {"attention_bias": AttentionBias("sink"), "window": 64},
    }
    for name, changes in cases.items():
        cfg = dataclasses.replace(_CONFIG, **changes)
        heads = (cfg.num_heads, cfg.num_kv_heads, cfg.num_kv_heads)
        arrays = [jax.ShapeDtypeStruct((_B, _T, H, cfg.head_dim), cfg.dtype) for H in heads]
        module = AttentionSlots(cfg) if cfg.num_slots else None
        slots = jax.eval_shape(module.init, jax.random.key(0), arrays[0], SlotPlaces()) if module else {}

        def loss(arrays: Any, slots: Any, cfg: Any = cfg, module: Any = module) -> Any:
            found = module.apply(slots, arrays[0], SlotPlaces()) if module else None
            return jnp.sum(attend(cfg, *arrays, Surroundings(None, None, None, None), found).astype(jnp.float32))

        arguments = _everywhere(mesh, (arrays, slots))
        yield f"attention, {name}", lambda loss=loss, arguments=arguments: jax.jit(jax.grad(loss)).lower(*arguments)


def forward(mesh: Mesh) -> Iterator[tuple[str, Callable[[], Any]]]:
    """A forward pass that keeps the largest three and the median of every block's output."""
    module, tokens = LanguageModel(_CONFIG), jax.ShapeDtypeStruct((_B, _T), jnp.int32)
    plan = compile_captures(Capture("block_out", top_k=3, median=True), _CONFIG.num_layers)
    params = jax.eval_shape(module.init, jax.random.key(0), tokens)["params"]

    def run(params: Any, tokens: Any) -> Any:
        return module.apply({"params": params}, tokens, capture=plan, mutable=["intermediates"])

    arguments = _everywhere(mesh, (params, tokens))
    yield "forward, statistics", lambda: jax.jit(run).lower(*arguments)


def training(mesh: Mesh) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Whole training steps, without and with the paper's attention bias."""
    for bias in (None, AttentionBias("kv")):
        module = LanguageModel(dataclasses.replace(_CONFIG, attention_bias=bias), remat="cheap")
        trainer = Trainer(module, OptimizerConfig(), mesh=mesh)
        sharding = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
        batch = jax.ShapeDtypeStruct((1, _B, _T), jnp.int32, sharding=sharding)
        name = f"training step, {bias.kind if bias else 'no bias'}, mesh {mesh_text(mesh.shape)}"
        yield name, lambda trainer=trainer, batch=batch: _step.lower(trainer, trainer.abstract(), batch)


def _everywhere(mesh: Mesh, tree: Any) -> Any:
    """The shapes of whole arrays on each device of a mesh."""
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), tree)


def full_depth(pod: str) -> str:
    """Compiles the layer-wise figures of LLaMA2-70B for a pod; says what a chip holds, planned and compiled.

    Raises:
      ValueError: they differ by more than 5 %, or it does not compile.
    """
    name, _, axes = pod.partition("/")
    chips, sizes = Chips.parse(name), parse_mesh(axes.replace("+", ","))
    config = dataclasses.replace(config_of("llama2_70b"), dtype="bfloat16")
    program = forward_program("layers", CAPTURE, 4, 512, 1)
    planned = estimate(program, config, chips, sizes).total
    compiled = compile_program(program, config, mesh_for(chips, sizes)).total
    found = f"{compiled / 2**20:8.1f} MiB a chip, {planned / compiled:.3f} of it planned"
    if not 0.95 < planned / compiled < 1.05:
        raise ValueError(found)
    return found


def main(argv: list[str]) -> None:
    """Runs the check."""
    del argv
    failed = total = 0

    def report(where: str, name: str, check: Callable[[], str]) -> None:
        nonlocal failed, total
        total += 1
        started = time.perf_counter()
        try:
            found = check()
        except Exception as error:
            failed += 1
            found = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:300]}"
        print(f"{where:10} {name:40} {time.perf_counter() - started:6.1f} s {found}", flush=True)

    def compiled(lower: Callable[[], Any]) -> str:
        lowered = lower()
        memory = lowered.compile().memory_analysis().temp_size_in_bytes
        return f"{memory / 2**20:8.1f} MiB {lowered.as_text().count('@tpu_custom_call'):3} kernels"

    for topology in _TOPOLOGIES.value:
        devices = topology_devices(topology)
        one, four = (mesh_on(devices, parse_mesh(f"{a},{b}")) for a, b in ((1, 1), (2, 2)))
        for programs, mesh in ((kernels, one), (forward, one), (training, one), (training, four)):
            with as_on(mesh):
                for name, lower in programs(mesh):
                    report(topology, name, lambda lower=lower: compiled(lower))
    for pod in _PODS.value:
        report(pod.partition("/")[0], "layers, LLaMA2-70B", lambda pod=pod: full_depth(pod))
    print(f"{failed} of {total} programs do not compile" if failed else f"all of {total} programs compile")
    sys.exit(min(failed, 1))


if __name__ == "__main__":
    app.run(main)
