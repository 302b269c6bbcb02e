"""The ledger: verdicts by rule, readings against numbers made by hand, and a page that has every row."""

import math
from typing import Any

import numpy as np
import pytest

from massive_jax.files import write_json
from massive_jax.report.ledger import VERDICTS, Claim, Entry, MissingError, Ours, Results, claims, judge, write_page
from massive_jax.report.ledger import attention_readings as attend
from massive_jax.report.ledger import readings as read

EVERY = [claim for section in claims().values() for claim in section]


@pytest.fixture
def results(tmp_path):
    """`results(name=content, …)`: results of runs with those JSON files."""

    def make(**contents):
        for name, content in contents.items():
            write_json(tmp_path / f"{name}.json", content)
        return Results({name: tmp_path / f"{name}.json" for name in contents})

    return make


def claim(measure, holds=lambda value: value >= 10, **more):
    return Claim(
        paper="2402.17762", states="It holds.", theirs="20", model="a model", measure=measure, holds=holds, **more
    )


@pytest.mark.parametrize(
    ("ours", "verdict", "why"),
    [
        (Ours(12.0), "reproduced", ""),
        (Ours(9.0), "not reproduced", ""),
        (Ours(12.0, 11.0, 13.0), "reproduced", ""),
        (Ours(12.0, 9.0, 13.0), "undecided", "the interval has both"),
        (Ours(9.0, 8.0, 13.0), "undecided", "the interval has both"),
    ],
)
def test_the_rule_decides_where_the_whole_interval_agrees(results, ours, verdict, why):
    found = judge(claim(lambda _: ours), results())
    assert (found.verdict, found.why, found.ours) == (verdict, why, ours)


def test_what_was_not_run_decides_nothing(results):
    found = judge(claim(lambda results: Ours(results["a/census"]["x"])), results())
    assert (found.verdict, found.why) == ("undecided", "a/census was not run")
    found = judge(claim(lambda results: Ours(results["census"]["x"])), results(census={"y": 1}))
    assert (found.verdict, found.why) == ("undecided", "its result has no 'x'")
    found = judge(claim(None, why="no weights"), results())
    assert (found.verdict, found.why) == ("out of reach here", "no weights")
    assert judge(claim(lambda _: Ours(math.nan)), results()).why == "not a number"


CENSUS: dict[str, Any] = {
    "lives": [
        {"dim": 3, "largest": 30.0, "up": [], "down": []},
        {
            "dim": 7,
            "largest": -1000.0,
            "up": [{"layer": 2, "change": -1000.0, "mlp": -900.0}],
            "down": [{"layer": 4, "change": 900.0, "mlp": 900.0}],
        },
    ],
    "sink_rate": 0.6,
    "windows": 5,
    "massive": True,
    "layers": [
        {
            "layer": layer,
            "median": 0.5,
            "first": [{"dim": dim, "mean": mean, "std": 10.0}, {"dim": 3, "mean": 30.0, "std": 1.0}],
            "sink_mass": mass,
            "bias_spread": 0.2 * layer,
            "rest_spread": 1.0,
            "value_norm_ratio": norm,
            "entropy": entropy,
            "intervals": {"value_norm_ratio": [norm - 0.01, norm + 0.01]},
            "random_spread": {"mean": 0.9, "low": 0.7, "high": 1.0},
            "residual_sinks": [{"dim": 3, "share": share, "mean": 40.0}],
            "classes": [
                {"class": "start", "count": 3, "massive": True},
                {"class": "other", "count": layer, "massive": layer == 4},
            ],
        }
        for layer, dim, mean, mass, norm, entropy, share in (
            (1, 8, -40.0, 0.1, 1.2, 0.8, 0.8),
            (2, 7, -700.0, 0.2, 0.4, 0.3, 0.95),
            (3, 7, -1000.0, 0.5, 0.3, 0.02, 0.6),
            (4, 7, -100.0, 0.7, 0.1, 0.2, 0.6),
        )
    ],
}


@pytest.mark.parametrize(
    ("reading", "value", "words"),
    [
        (read.largest_over_median, 2000.0, "1,000 [990.2, 1,010] at dim 7 after block 3, 2,000 × the median"),
        (read.spread, 0.01, "1,000 ± 10.0: 1.0 %"),
        (read.dims, 1, "1: 7"),
        (read.plateau, 0.25, "1 of 4 layers"),
        (read.remains, 0.1, "100 of 1,000: 10.0 %"),
        (read.depth_of_birth, 0.5, "block 2 of 4"),
        (read.sink_after_birth, 4.0, "15.0 % up to block 2, 60.0 % after it: 4.00 times"),
        (read.bias_against_rest, 0.6, "0.60 against 1.00 in block 3"),
        (read.value_norms, 0.1, "0.10 [0.0900, 0.110] in block 4, the median after"),
        (read.broadcasting, 1, "above 1 in 1 layers, under 0.5 in 3 of 4"),
        (read.drained, 0.1, "0.10 [0.0900, 0.110] in block 4, 70.0 % of its attention on position 0"),
        (read.valley, 0.025, "0.80 before block 2, 0.020 after block 3"),
        (read.sink_rate, 0.6, "60.0 %"),
        (read.under_null, 0.5, "in 1 of 2 layers; block 4: 0.80 against 0.90 [0.70, 1.00]"),
        (read.on_few_tokens, 0.75, "start 75.0 %, other 25.0 %"),
        (read.made_by_mlp, 0.9, "dim 7 at block 2: −1,000, of which the MLP −900.0"),
        (read.stepped_down, 1.0, "dim 7 at block 4 of 4, by 900"),
        (read.residual_sink, 80.0, "dim 3 after block 2 on 95.0 % of the tokens, 80.0 × the median"),
        (
            read.spike_without_sink,
            0.6,
            "massive: 1,000 [990.2, 1,010] at dim 7 after block 3, 2,000 × the median; sink rate 60.0 %",
        ),
    ],
)
def test_readings_of_a_census(reading, value, words):
    found = reading(CENSUS)
    assert found.value == pytest.approx(value)
    assert words in found.words


def test_a_census_without_sinks_decides_nothing():
    layers = [{**layer, "sink_mass": None} for layer in CENSUS["layers"]]
    with pytest.raises(MissingError, match="no sink_mass in layers 1 to 2"):
        read.sink_after_birth({**CENSUS, "layers": layers})


def test_readings_of_an_intervention(results):
    nats = {"value": math.log(4), "low": math.log(3), "high": math.log(5)}
    effects = {"original": {"value": 10.0}, "zero": {"value": 40.0, "nats": nats}}
    drawn = {"values": [10.1, 10.0], "nats": {"value": 0.0, "low": -0.01, "high": 0.01}}
    content = {"effects": effects, "control_draws": [{"kind": "same_dim", "effects": {"zero": drawn}}]}
    found = read.times_worse("run", "zero")(results(run=content))
    assert (found.value, found.low, found.high) == pytest.approx((4, 3, 5))
    assert found.words == "perplexity 10.00 → 40.00, × 4.000 [3.000, 5.000]"
    found = read.controls("run", "same_dim")(results(run=content))
    assert found.words == "× 1.000 [0.9900, 1.010] over 2 draws"
    found = read.without_bos("bos", "run")(results(run=content, bos={"effects": {"original": {"value": 5.0}}}))
    assert found.value == 2


def test_readings_of_attention():
    def vectors(top, cosine):
        of = {"massive": {"top": top, "cosine": cosine}, "others": {"top": 0.1, "cosine": 0.2}}
        return {"attn_norm": of}

    means = {"first": 3, "last": 4, "concentration": 0.6, "baseline": 0.1, "logit_massive": 2.0, "logit_others": -1.0}
    sink = {"token": " the", "begins": 4, "ends": 9, "count": 20, "mlp_layer": 3, "mlp_cosine": 0.95}
    found = {
        "birth": 2,
        "after": means,
        "layers": [{"layer": layer, "vectors": vectors(0.1 * layer, 0.3 * layer)} for layer in (1, 2, 3)],
        "secondary_sinks": [sink, {**sink, "count": 30, "mlp_cosine": 0.1}],
    }
    assert attend.concentration(found) == Ours(
        pytest.approx(6.0), words="60.0 % in layers 3 to 4, uniform 10.0 %: 6.0 times"
    )
    assert attend.signs(found).value == 1
    assert attend.signs({**found, "after": {**means, "logit_others": 0.5}}).value == -0.5
    assert attend.alike(found).value == pytest.approx(0.9)
    assert attend.sparse(found).value == pytest.approx(3)
    assert attend.secondary(found).value == 20
    assert "␣the in layers 4 to 9, 20 times; made by the MLP of layer 3" in attend.secondary(found).words
    assert attend.secondary({"secondary_sinks": []}).value == 0
    with pytest.raises(MissingError, match="no massive tokens"):
        attend.concentration({"after": None})


def test_readings_of_super_weights():
    def pruned(weights, perplexity, nats):
        return {
            "weights": weights,
            "perplexity": {"value": perplexity},
            "nats": {"value": nats, "low": nats, "high": nats},
        }

    weak = {"layer": 2, "without": pruned(1, 11.0, 0.1)}
    strong = {
        "layer": 3,
        "unit": 9,
        "dim": 7,
        "without": pruned(1, 50.0, math.log(5)),
        "without_others": pruned(1000, 20.0, math.log(2)),
        "excess": {"value": 0.9, "low": 0.8, "high": 1.0},
    }
    names = {"named_layer": 3, "birth_layer": 3, "names_birth": True}
    found = {"perplexity": {"value": 10.0}, "tested": [weak, strong], "from_weights": names}
    assert read.one_weight(found).value == pytest.approx(5)
    assert read.one_weight(found).words == "perplexity 10.00 → 50.00 without block 3, 9 → 7: × 5.000 [5.00, 5.00]"
    assert read.one_against_many(found).low == 0.8
    assert "50.00 without it, 20.00 without the 1,000 largest others: 0.900" in read.one_against_many(found).words
    assert read.birth_from_weights(found) == Ours(1.0, words="the weights name block 3, it is block 3")
    with pytest.raises(MissingError, match="no weight was tested"):
        read.one_weight({**found, "tested": []})


def test_readings_of_an_explicit_bias():
    found = {
        "perplexity": {"original": 10.0, "explicit": 10.0},
        "int8_per_tensor": {"original": 40.0, "explicit": 20.0},
        "largest": {"original": 500.0, "explicit": 20.0},
        "logits": {"relative_difference": 3e-6},
    }
    assert read.fall(found).value == 25
    assert read.lossless(found).value == 3e-6
    assert read.regained(found).value == pytest.approx(0.5)  # of log 4, log 2
    assert read.int8_loss(found).value == 4


def test_readings_of_trainings(results):
    def training(sink, slots, kurtosis):
        layer = {"largest": 30.0, "median": 2.0, "kurtosis": kurtosis, "sink_rate": sink, "slot_rate": slots}
        return {
            "census": {"step": 9, "layers": [layer, {**layer, "sink_rate": 0.0, "slot_rate": 0.0, "kurtosis": 3.0}]}
        }

    given = results(none=training(0.6, 0.0, 8.0), kv=training(0.06, 0.5, 4.0))
    assert read.sink_left("kv", "none")(given).value == pytest.approx(0.1)
    assert read.kurtosis_left("kv", "none")(given).value == 0.5
    assert read.slot_share(given["kv"]).value == 0.5
    assert read.sink_without_spike(given["none"]).value == 15
    assert read.sink_without_spike(given["kv"]).value == math.inf  # no sink: the claim is about those that have one


def test_every_claim_has_what_its_row_needs():
    assert len(EVERY) >= 30
    assert len({one.paper for one in EVERY}) >= 10
    for one in EVERY:
        assert one.states.endswith("."), one.states
        assert one.theirs
        assert bool(one.measure) == bool(one.rule) == bool(one.model) != bool(one.why), one.states


def test_claims_of_results_that_are_not_there_are_undecided(results):
    verdicts = {judge(one, results()).verdict for one in EVERY}
    assert verdicts == {"undecided", "out of reach here"}


def test_the_page_has_a_row_a_claim():
    entries = [Entry(claim(None, rule="ten | more"), verdict, Ours(12.0, 9.0, 13.0), "so") for verdict in VERDICTS]
    page = write_page({"One": entries[:1], "Two": entries[1:]}, [("date", "today")], ["python -m experiments.x"])
    rows = [line for line in page.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert len(rows) == 4
    assert "| a model: 12.00 [9.000, 13.00] | **reproduced**: so |" in rows[0]
    assert "| It holds. [2402.17762](https://arxiv.org/abs/2402.17762)<br>*Rule: ten \\| more.* | 20 |" in rows[1]
    assert rows[2].startswith("| 3 | ″ | ″ | a model: 12.00")  # as the one above
    assert "**4 claims of 1 papers: 1 reproduced, 1 not reproduced, 1 undecided, 1 out of reach here.**" in page
    assert "    python -m experiments.x" in page
    assert all(line.count(" | ") == 4 for line in rows)


def test_one_register_in_four(results):
    from massive_jax.report.ledger.vision import RELEASED, vision

    values = np.full((21, 4, 1000), 2.0)
    values[20, 2, [179, 999]] = -849.44, 671.12
    claim, register = vision()[:2]
    given = results(means={"giant": {"values": values.tolist()}, "small": {"values": np.ones((2, 4, 5)).tolist()}})
    given = {RELEASED: given["means"]}
    assert claim.measure(given) == Ours(1.0, words="−849.4 at dim 179 and 671.1 at dim 999 of register 3")
    assert register.measure(given).value == 1
