"""Interventions and super weights with intervals: what their figures and sentences say."""

import dataclasses
import math

import matplotlib.collections
import pytest

from experiments import reproduce
from massive_jax.analysis import Gain, Interval, Pruned, Signature, SuperWeight, SuperWeights, told_from_weights
from massive_jax.report import as_json, as_record, intervention, intervention_rows, style, super_weights
from massive_jax.report.results import (
    AloneEffect,
    Carrier,
    ControlDraws,
    ControlPlace,
    DrawnEffect,
    EditedAt,
    EditedPlace,
    Effect,
    Findings,
    Intervention,
    LayerEffect,
    SuperWeightsOf,
    TextSource,
)

HEAD = {
    "model": "tiny",
    "weights": None,
    "dtype": "float32",
    "source": TextSource(bos=False, text="book.txt", windows=4, context=64),
}


def effect(value, original=30.0):
    nats = math.log(value / original)
    difference = Interval(value - original, value * 0.9 - original, value * 1.1 - original)
    return Effect(
        value=value,
        low=value * 0.9,
        high=value * 1.1,
        difference=difference,
        nats=Interval(nats, nats - 0.1, nats + 0.1),
    )


PLACES = ((507, 23147.1), (247, -1692.8))


def result(zero=4e6, alone=(1.5e6, 31.0)):
    """Two places set to zero, each alone, two kinds of controls, and three layers."""
    values = {"original": 30.0, "zero": zero, "mean": 30.1, "random_zero": 30.2, "random_mean": 30.0}
    whole = math.log(zero / 30)
    return Intervention(
        **HEAD,
        layer=12,
        sites=tuple(EditedPlace(position=0, dim=dim, value_mean=mean) for dim, mean in PLACES),
        perplexity=values,
        bootstrap_draws=1000,
        effects={name: effect(value) for name, value in values.items()},
        alone=tuple(
            AloneEffect(position=0, dim=dim, share=math.log(value / 30) / whole, effects={"zero": effect(value)})
            for (dim, _), value in zip(PLACES, alone, strict=True)
        ),
        control_draws=tuple(
            ControlDraws(
                kind=kind,
                places=((ControlPlace(position=3, dim=9),),) * 3,
                effects={"zero": DrawnEffect(values=(29.0, 31.0, 36.0), mean=32.0, low=29.0, high=36.0)},
            )
            for kind in ("median_sized", "same_dim")
        ),
        sweep=tuple(
            LayerEffect(layer=layer, effects={"zero": effect(value), "mean": effect(30.1)})
            for layer, value in ((1, 30.5), (2, 4e6), (3, 900.0))
        ),
    )


def words_of(made):
    return [text.get_text() for text in made.texts] + [t.get_text() for ax in made.axes for t in ax.get_xticklabels()]


def test_a_result_is_read_as_it_was_written():
    assert as_record(Intervention, as_json(result())) == result()


def test_the_figure_has_intervals_draws_and_layers():
    with style.context():
        made = intervention.draw(result())
        made.canvas.draw()
    words = words_of(made)
    assert {"only position 0, dim 507", "Entries of median size × 3", "Same dims, other positions × 3"} <= set(words)
    assert "Random entries set to zero" not in words  # its draws have rows of their own
    assert "Random entries set to mean" in words
    bars, sweep = made.axes
    assert sum(len(line.get_xdata()) == 3 for line in bars.lines) == 2  # the draws
    assert sum(isinstance(c, matplotlib.collections.PolyCollection) for c in sweep.collections) == 2  # the bands
    title = " ".join(words)
    assert "zeroing dim 507 of position 0 alone" in title
    assert "(with the other too: × 133,000)" in title
    assert "1,000 bootstrap draws of the windows" in title
    room = made.bbox
    for text in made.texts:
        box = text.get_window_extent()
        assert room.x0 <= box.x0
        assert box.x1 <= room.x1


def test_without_a_place_that_does_it_all_the_title_counts():
    found = result(alone=(3000.0, 3000.0))
    assert found.carrier is None
    with style.context():
        assert "zeroing 2 activations multiplies it by 133,000" in " ".join(words_of(intervention.draw(found)))


def test_rows_have_intervals():
    rows = {row.key: row for row in intervention_rows(result())}
    assert rows["zero at 0:507 only"].interval == "1,350,000 to 1,650,000"
    assert rows["zero at same dim × 3"].value == 32.0
    bare = dataclasses.replace(result(), effects={}, alone=(), control_draws=(), bootstrap_draws=None)
    assert {row.interval for row in intervention_rows(bare)} == {"–"}
    assert "No intervals" in intervention.about_intervals(bare)


def test_the_headline_names_the_one_that_does_it():
    found = Findings(
        model="tiny",
        layer=12,
        massive=(),
        one_criterion=(),
        attention_share=None,
        attention_layer=None,
        intervention=EditedAt(layer=12, sites=result().sites),
        perplexity=result().perplexity,
        times_worse=1.0,
        carrier=Carrier(position=0, dim=507, operation="zero", value=1.5e6, share=0.92),
    )
    words = reproduce.headline(found)
    assert words.startswith("Setting one number (position 0, dim 507) to zero in tiny, after block 12, takes its")
    assert (
        "from 30.00 to 1,500,000; with the other too it is 4,000,000; setting all 2 to the mean gives 30.10." in words
    )
    assert "Setting 2 numbers to zero" in reproduce.headline(dataclasses.replace(found, carrier=None))


def pruned(weights, value):
    nats = math.log(value / 25.5)
    return Pruned(weights=weights, perplexity=Interval(value, value - 1, value + 1), nats=Interval(nats, nats, nats))


def found_weights(*, tested=True, confirmed=True, birth=2):
    signatures = tuple(
        Signature(layer=i, position=0, unit=3, dim=7, share=1.0, hidden=2.0, output=10.0**i, ratio=9.0)
        for i in (1, 2, 3)
    )
    one = SuperWeight(
        **dataclasses.asdict(signatures[1]),
        value=5.88,
        rank=2,
        size=884_736,
        without=pruned(1, 161.0),
        without_others=pruned(1000, 31.9),
        excess=Interval(1.6, 1.5, 1.7),
        confirmed=confirmed,
    )
    gains = [Gain(layer=i, gain=g, unit=3, dim=7) for i, g in ((1, 10.0), (2, 500.0), (3, 900.0))]
    return SuperWeightsOf(
        **HEAD,
        predicted_tokens=252,
        found=SuperWeights(
            perplexity=Interval(25.5, 20.0, 31.0),
            signatures=signatures,
            tested=(one,) if tested else (),
            from_weights=told_from_weights(gains, signatures[birth - 1]),
        ),
    )


def test_super_weights_are_read_as_they_were_written():
    assert as_record(SuperWeightsOf, as_json(found_weights())) == found_weights()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "One weight of tiny, 3 → 7 of the down projection of block 2: without it perplexity is × 6.31"),
        ({"confirmed": False}, "No super weight of tiny is confirmed by pruning; the likeliest is 3 → 7"),
        ({"tested": False}, "tiny has no super weight: nothing that one of its MLPs adds is massive"),
    ],
)
def test_super_weights_say_what_was_found(options, expected):
    found = found_weights(**options)
    assert expected in super_weights.super_weight_title(found)
    with style.context():
        words = words_of(super_weights.draw(found))
    assert expected.split(":")[0] in " ".join(words)
    assert ("Without layer 2, 3 → 7" in words) == bool(found.found.tested)


def test_what_the_weights_alone_tell():
    right = super_weights.told_in_words(found_weights().found.from_weights)
    assert right.startswith("The weights alone name block 2 for the birth, as the activations show")
    assert right.endswith("they name the same weight there.")
    wrong = super_weights.told_in_words(found_weights(birth=1).found.from_weights)
    assert "name block 2 for the birth; the activations show block 1, number 3 by gain" in wrong
