"""Variants: what is drawn is what was given, and names do not lie on each other."""

import itertools

import numpy as np
import pytest

from massive_jax.report import markdown_table, plot_variants, style, variant_rows, variants
from massive_jax.report.results import Bounds, VariantCurve, VariantResult, Variants, VariantTraining
from tests.fixtures.figures import assert_readable

STEPS = (0, 10, 20)


def variant(name, heads, ratio, spread=0.02):
    trainings = tuple(
        VariantTraining(seed=seed, loss=2.0, sink_heads=heads / 2, block_heads=heads + d, ratio=ratio * (1 + d))
        for seed, d in enumerate((-spread, 0.0, spread))
    )
    means = {key: Bounds(mean=0.25, low=0.2, high=0.3) for key in ("first_share", "loss", "int8_rise")}
    means["slot_share"] = Bounds(mean=0.25, low=-0.1, high=1.2)
    means |= {key: Bounds(mean=3.0) for key in ("others_ratio", "typical_ratio", "kurtosis")}
    means |= {"sink_heads": Bounds(mean=heads / 2), "block_heads": Bounds(mean=heads), "ratio": Bounds(mean=ratio)}
    curve = VariantCurve(
        steps=STEPS,
        ratios=tuple((4.0, 5.0, ratio * (1 + d)) for d in (-spread, spread)),
        mean=(4.0, 5.0, ratio),
        r_squared=0.5,
    )
    about = {"words": "it", "source": "someone", "sink": heads >= 0.5, "spike": ratio >= 100}
    return VariantResult(name=name, trainings=trainings, means=means, curve=curve, **about)


LOST = VariantResult(
    name="lost",
    words="it",
    source="someone",
    trainings=(VariantTraining(seed=0, problem="the loss of step 2 is nan"),),
    means={},
    sink=None,
    spike=None,
    curve=None,
)


def result(*found):
    about = {"preset": "small", "text": "python", "dtype": "float32", "bos": 0, "context": 16, "steps": 20}
    return Variants(model="GPT-2", windows=32, variants=found, **about)


CLUSTERED = [variant(f"variant_{i}", 0.01 * (i % 3), 8.0 + 0.1 * i) for i in range(14)]


@pytest.fixture(scope="module")
def drawn():
    given = result(variant("none", 0.8, 400.0), variant("kv", 0.0, 9.0), LOST)
    with style.context():
        return variants.draw(given), variants.draw_curves(given)


def words(made):
    return [text.get_text() for text in made.texts]


def test_points_are_means_and_seeds(drawn):
    made, _ = drawn
    points = [line.get_xydata().tolist() for line in made.axes[0].lines if line.get_marker() == "o"]
    assert [[0.8, 400.0]] in points
    assert [[0.78, 392.0]] in points
    assert len(points) == 2 * (1 + 3)
    lines = [line.get_xydata()[0].tolist() for line in made.axes[0].lines if line.get_marker() != "o"]
    assert [0.5, 0.0] in lines
    assert [0.0, 100.0] in lines
    assert {"none", "kv"} <= set(words(made))
    said = " ".join(words(made))
    assert "Of 2 variants: 1 with a sink and a spike, 1 with neither" in said
    assert "Without a result, as every training diverged: lost." in said


def test_a_chart_a_variant(drawn):
    _, made = drawn
    assert len(made.axes) == 2
    for ax, ratio in zip(made.axes, (400.0, 9.0), strict=True):
        curves = [line.get_ydata() for line in ax.lines if list(line.get_xdata()) == list(STEPS)]
        np.testing.assert_allclose(curves, [[4, 5, ratio * 0.98], [4, 5, ratio * 1.02], [4, 5, ratio]])
    assert made.axes[0].get_ylim() == made.axes[1].get_ylim()
    assert words(made).count("R² 0.500") == 2


def test_names_do_not_lie_on_each_other():
    """Fourteen variants at one place, as where nothing emerged; no line to a name crosses another name."""
    box = (0.0, 0.0, 6.0, 4.0)
    rng = np.random.default_rng(0)
    places = np.array([0.3, 1.0]) + np.array([0.02, 0.05]) * rng.random((14, 2))
    around = [*places.tolist(), [0.3, 0.7]]  # and one not far from them
    points = [(x, y, f"a_long_name_{i}", "black") for i, (x, y) in enumerate(around)]
    taken = [(0.0, 3.8, 1.0, 4.0), *(variants._around_mark(x, y, 0.025) for x, y in around)]  # seeds at the means
    made = style.figure(6.0, 4.0)
    boxes = variants._name_points(made, points, taken, box)
    assert len(boxes) == 15
    for one, other in itertools.combinations([taken[0], *boxes], 2):
        assert not variants._overlap(one, other)
    assert all(variants._inside(one, box) for one in boxes)
    lines = [artist.get_xydata() for artist in made.artists if hasattr(artist, "get_xydata")]
    assert len(lines) > 5
    for start, end in lines:
        way = np.linspace(start, end, 100)[:-1]
        for low_x, low_y, high_x, high_y in boxes:
            assert not ((way > [low_x, low_y]) & (way < [high_x, high_y])).all(axis=1).any()


def test_where_every_training_diverged():
    with style.context():
        for made in (variants.draw(result(LOST)), variants.draw_curves(result(LOST))):
            assert "Of 1 variant none reached its end" in words(made)
    assert "First token's largest / median" not in words(made)  # there are no curves whose axis it would be


def test_the_table():
    columns, rows = variant_rows(result(variant("none", 0.8, 400.0), LOST))
    none, lost = (dict(zip(columns, row, strict=True)) for row in rows)
    assert (none["sink"], none["spike"], none["largest / median"]) == ("yes", "yes", "400")
    assert (none["heads with a sink"], none["in one block"]) == ("40.0 %", "80.0 %")
    assert (none["attention on it"], none["loss"]) == ("25.0 % [20.0, 30.0]", "0.2500 [0.2000, 0.3000]")
    assert none["on slots"] == "25.0 % [0.0, 100.0]"
    assert none["seeds"] == "3 of 3"
    assert (lost["sink"], lost["loss"], lost["seeds"]) == (None, None, "0 of 1 (seed 0: the loss of step 2 is nan)")


def test_the_table_in_markdown():
    given = [("none", "yes", "4.0 [3, 5]"), ("lost", None, None)]
    assert markdown_table(("variant", "sink", "loss"), given) == (
        "| variant | sink | loss |\n| --- | --- | ---: |\n| none | yes | 4.0 [3, 5] |\n| lost | – | – |\n"
    )


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="there are no variants"):
        plot_variants(result(), tmp_path / "a.png")


def test_a_long_name_is_not_over_what_is_beside_it():
    given = result(variant("模型" * 8, 0.9, 400.0), variant("a" * 70, 0.1, 9.0))
    with style.context():
        for made in (variants.draw(given), variants.draw_curves(given)):
            assert_readable(made)
