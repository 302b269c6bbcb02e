"""Counts the programs that an experiment compiles, each in a process of its own without a cache of compiled programs.

  python -m benchmarks.programs                      # all of them
  python -m benchmarks.programs layerwise --by_name  # one, with a line a program

Prints how many programs are compiled, how many of them are an operation by itself (done outside `jax.jit`, where NumPy
would do), and the seconds that compiling takes; a second line a name with --by_name. A program of the same name is
compiled again for other shapes.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
from typing import Any

import jax

_TOY = ("--preset=small", "--context=16", "--batch=4", "--steps=12", "--eval_every=6", "--census_every=6")
# name -> arguments of the experiment. Fewer and shorter windows are as many programs as reproduce's own.
EXPERIMENTS: dict[str, tuple[str, ...]] = {
    "reproduce": ("--windows=2", "--context=64"),
    "layerwise": (),
    "train_gpt2": (*_TOY, "--attention_bias=kv"),
}


def count(name: str) -> None:
    """Runs an experiment, and prints a line of JSON: seconds of compiling of every program, by name."""
    found: dict[str, list[float]] = collections.defaultdict(list)

    def heard(event: str, duration_secs: float, **about: Any) -> None:
        if event.endswith("backend_compile_duration"):
            found[str(about.get("fun_name"))].append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(heard)
    with tempfile.TemporaryDirectory() as workdir:
        sys.argv = [f"experiments.{name}", *EXPERIMENTS[name], f"--workdir={workdir}"]
        try:
            runpy.run_module(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
    print("\n" + json.dumps(found))


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"Of {', '.join(EXPERIMENTS)}; none for all.")
    parser.add_argument("--by_name", action="store_true", help="A line a program, too.")
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - set(EXPERIMENTS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(EXPERIMENTS)}")
    print(f"jax {jax.__version__}")
    print(f"{'experiment':12} {'programs':>8} {'eager':>6} {'compiling, s':>13}")
    for name in given.names or EXPERIMENTS:
        done = subprocess.run(
            [sys.executable, "-c", f"from benchmarks.programs import count; count({name!r})"],
            cwd=pathlib.Path(__file__).parents[1],
            env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"experiments.{name} failed: {done.stderr[-2000:]}")
        found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
        sizes = {program: (len(seconds), sum(seconds)) for program, seconds in found.items()}
        eager = sum(n for program, (n, _) in sizes.items() if _is_operation(program))
        print(f"{name:12} {sum(n for n, _ in sizes.values()):8} {eager:6} {sum(s for _, s in sizes.values()):13.1f}")
        if given.by_name:
            for program, (n, seconds) in sorted(sizes.items(), key=lambda item: -item[1][1]):
                print(f"    {n:4} {seconds:8.2f} s  {program}")


def _is_operation(program: str) -> bool:
    """Whether a program is one operation of jax's: "jit(add)", not a function of this package's."""
    name = program.removeprefix("jit(").removesuffix(")").removeprefix("jit_")
    return hasattr(jax.lax, name) or hasattr(jax.numpy, name)


if __name__ == "__main__":
    main()
