"""The table, the title and the figure of quantisations, from numbers that are given."""

import dataclasses
import json

import pytest

from massive_jax.analysis import Interval
from massive_jax.quantize import InputShape, Outcome, Quantization
from massive_jax.report import (
    as_json,
    as_record,
    outlier_rows,
    plot_quantization,
    quantization_rows,
    quantization_title,
)
from massive_jax.report.results import ImageSource, QuantizationOf, TextSource

COSTS = {"plain": 0.6, "absorb": 0.3, "rotate": 0.2, "absorb+rotate": 0.15, "zero": 2.0}


def result(costs, metric="perplexity", **changes):
    outcomes = tuple(
        Outcome(setting, scales, method, Interval(30.0, 20.0, 40.0), Interval(cost * size, 0.5 * cost * size, cost))
        for scales in ("tensor", "token")
        for setting, size in (("W8A16", -0.01), ("W8A8", 1.0))
        for method, cost in costs.items()
    )
    inputs = tuple(InputShape(method, "attn_norm", 95.0, 1234.0) for method in costs)
    source = TextSource(bos=True, text="book.txt", windows=4, context=32)
    found = Quantization(metric, Interval(25.0, 20.0, 30.0), outcomes, inputs)
    about = {"model": "tiny", "dtype": "float32", "source": source, "predicted_tokens": 124, "alpha": 0.5, "seed": 0}
    return QuantizationOf(**{**about, **changes}, found=found)


def test_json_and_rows():
    found = result(COSTS)
    read = json.loads(json.dumps(as_json(found)))
    assert as_record(QuantizationOf, read) == found
    columns, rows = quantization_rows(read)
    assert columns == ("setting", "scales", *COSTS)
    assert [row[:2] for row in rows] == [(s, k) for k in ("tensor", "token") for s in ("W8A16", "W8A8")]
    assert rows[1][2:4] == ("0.600 (0.300 to 0.600)", "0.300 (0.150 to 0.300)")
    assert quantization_rows(read, scores=True)[1][0][2] == "30.0 (20.0 to 40.0)"
    assert outlier_rows(read)[1][1][:3] == ("attn_norm", "largest / median", "1,234")


@pytest.mark.parametrize(
    ("costs", "title"),
    [
        (
            COSTS,
            "tiny, W8A8, one scale a tensor: absorbing BOS takes the cost, nats a token, alone from 0.60 to 0.30, "
            "after a rotation from 0.20 to 0.15",
        ),
        ({"smooth": 0.4}, "tiny, W8A8, one scale a tensor, smoothed: 0.40 nats a token"),
        ({"absorb": 0.4}, "tiny, W8A8, one scale a tensor, BOS absorbed: 0.40 nats a token"),
    ],
)
def test_title(costs, title):
    assert quantization_title(result(costs)) == title


def test_figure(tmp_path):
    """Costs of nothing and less are at the edge; of images, and without an absorbed partner, there is one too."""
    plot_quantization(as_json(result(COSTS)), tmp_path / "text.png")
    images = {"source": ImageSource(images=("a", "b"), image_size=(28, 28)), "count": 2, "predicted_tokens": None}
    found = result({"plain": 0.0}, "top1_agreement", **images)
    outcomes = tuple(dataclasses.replace(o, cost=Interval(-0.1, -0.2, 0.1)) for o in found.found.outcomes)
    found = dataclasses.replace(found, found=dataclasses.replace(found.found, outcomes=outcomes))
    plot_quantization(found, tmp_path / "images.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in ("text", "images"))
