"""The picture: what was reached of the most that the device does, by operations a byte."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw(records: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws the measured roofs, and under them products, forward passes and training steps; nothing without roofs."""
    rates = [r["bytes_per_second"] for r in records if "bytes_per_second" in r]
    peaks = [r["flops_per_second"] for r in records if r["what"] == "matmul, square"]
    if not rates or not peaks:
        return
    memory, peak = max(rates), max(peaks)
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    intensities = [1.0, peak / memory, 1e4]
    axes.plot(intensities, [min(peak, memory * x) for x in intensities], color="black", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="operations a second")
    axes.set_title(f"{memory / 1e9:,.0f} GB/s, {peak / 1e12:,.0f} TFLOP/s", fontsize="medium")
    for marker, section in zip("os^", ("ceilings", "forward", "train"), strict=True):
        for record in records:
            if record["section"] == section and (x := _intensity(record)) and "flops_per_second" in record:
                axes.plot(x, record["flops_per_second"], marker, color="black", markersize=4)
                axes.annotate(
                    record["what"],
                    (x, record["flops_per_second"]),
                    fontsize=5,
                    xytext=(3, -3),
                    textcoords="offset points",
                )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _intensity(record: dict[str, Any]) -> float | None:
    """Operations a byte: of a product of 16-bit matrices, or as the compiler counts a program's bytes."""
    if "shape" in record:
        m, k, n = record["shape"]
        return m * k * n / (m * k + k * n + m * n)
    if record.get("bytes_accessed"):
        return record["flops_per_second"] * record["seconds"] / record["bytes_accessed"]
    return None
