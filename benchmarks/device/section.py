"""One section, in a process of its own: `python -m benchmarks.device.section NAME OUT SECONDS [small] [data=FILE]`."""

from __future__ import annotations

import importlib
import pathlib
import sys
import time

# name -> module of this package, function, seconds that it may take, modules that it needs. In order of value.
SECTIONS: dict[str, tuple[str, str, int, tuple[str, ...]]] = {
    "environment": ("ceilings", "environment", 30, ()),
    "ceilings": ("ceilings", "ceilings", 45, ()),
    "train": ("train", "sweep", 200, ()),
    "train_torch": ("train", "peer", 90, ("torch",)),
    "kernels": ("kernels", "check", 90, ()),
    "lengths": ("kernels", "lengths", 60, ()),
    "forward": ("forward", "ours", 75, ()),
    "reductions": ("forward", "reductions", 90, ("benchmarks.reductions",)),
    "forward_torch": ("forward", "peer", 90, ("torch", "transformers")),
    "profile": ("train", "profile", 60, ()),
    "generation": ("generation", "ours", 60, ()),
    "generation_torch": ("generation", "peer", 90, ("torch", "transformers")),
    "emergence": ("emergence", "compare", 600, ()),
}


def main(arguments: list[str]) -> None:
    """Runs a section."""
    name, out, seconds, *others = arguments
    started = time.monotonic()
    data = next((word.removeprefix("data=") for word in others if word.startswith("data=")), None)
    from benchmarks.device.record import Compiles, Context

    module, function, _, _ = SECTIONS[name]
    context = Context(name, pathlib.Path(out), "small" in others, started + float(seconds), data)
    compiles = Compiles()
    try:
        getattr(importlib.import_module(f"benchmarks.device.{module}"), function)(context)
    finally:
        context.add(
            "section",
            seconds=time.monotonic() - started,
            programs_compiled=compiles.count,
            compile_seconds=compiles.seconds,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
