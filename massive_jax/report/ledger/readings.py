"""Numbers that claims ask results for.

A census's `first` are the three largest mean activations of position 0, signed; the carrier is the dim that is largest
there in the layer where the largest is; its birth the first layer at which it has half of its largest mean magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from massive_jax.report.ledger.claim import MissingError, Ours, Results
from massive_jax.report.words import number

Reading = Callable[[Results], Ours]
_Json = Mapping[str, Any]


def percent(share: float) -> str:
    """Writes a share of one."""
    return f"{100 * share:.{1 if share < 0.995 else 0}f} %"


def of(run: str, read: Callable[[Any], float | Ours], words: Callable[[float], str] | None = None) -> Reading:
    """Makes the reading of one run: a number, or what `read` makes of it."""

    def reading(results: Results) -> Ours:
        found = read(results[run])
        if isinstance(found, Ours):
            return found
        return Ours(found, words=None if words is None else words(found))

    return reading


# A census


def carrier(census: _Json) -> tuple[int, np.ndarray]:
    """The dim, and its mean at position 0 after each layer [L]; 0 where it is not among the three largest."""
    layers = census["layers"]
    largest = max((abs(place["mean"]), place["dim"]) for layer in layers for place in layer["first"])
    dim = int(largest[1])
    values = [next((place["mean"] for place in layer["first"] if place["dim"] == dim), 0.0) for layer in layers]
    return dim, np.array(values, float)


def birth(census: _Json) -> int:
    """The layer, from 1."""
    size = np.abs(carrier(census)[1])
    return int(np.argmax(size >= size.max() / 2)) + 1


def of_layers(census: _Json, key: str, least: int = 1, most: int | None = None) -> np.ndarray:
    """What layers `least` to `most` have, without those that have none."""
    found = [layer[key] for layer in census["layers"] if least <= layer["layer"] <= (most or math.inf)]
    values = np.array([math.nan if value is None else value for value in found], float)
    values = values[np.isfinite(values)]
    if not len(values):
        raise MissingError(f"the census has no {key} in layers {least} to {most or 'the last'}")
    return values


def _interval(layer: _Json, key: str) -> tuple[float | None, float | None]:
    """The 95 % interval over windows of what a layer has; two of None where there is none."""
    low, high = layer.get("intervals", {}).get(key, (None, None))
    return low, high


def _over(end: float | None, by: float) -> float | None:
    return None if end is None else end / by


def _brackets(low: float | None, high: float | None, digits: int = 3) -> str:
    return "" if low is None or high is None else f" [{number(low, digits)}, {number(high, digits)}]"


def _median_layer(census: _Json, key: str) -> _Json:
    """The layer after the birth that has the median of what those layers have."""
    layers = [layer for layer in census["layers"] if layer["layer"] > birth(census) and layer[key] is not None]
    if not layers:
        raise MissingError(f"the census has no {key} after the birth")
    found: _Json = sorted(layers, key=lambda layer: float(layer[key]))[(len(layers) - 1) // 2]
    return found


def largest_over_median(census: _Json) -> Ours:
    """The largest mean activation of position 0 over the median magnitude of its layer."""
    layer = max(census["layers"], key=lambda layer: abs(layer["first"][0]["mean"]))
    place = layer["first"][0]
    size, error = abs(place["mean"]), 1.96 * place["std"] / math.sqrt(max(census["windows"] - 1, 1))
    where = f"dim {place['dim']} after block {layer['layer']}"
    ratio, low, high = (value / layer["median"] if value > 100 else 0.0 for value in (size, size - error, size + error))
    brackets = _brackets(size - error, size + error, 4) if error else ""
    words = f"{number(size)}{brackets} at {where}, {number(ratio, 3)} × the median"
    return Ours(ratio, low, high, words)


def spread(census: _Json) -> Ours:
    """The standard deviation of the largest over windows, as a share of its mean."""
    layer = max(census["layers"], key=lambda layer: abs(layer["first"][0]["mean"]))
    place = layer["first"][0]
    share = place["std"] / abs(place["mean"])
    return Ours(share, words=f"{number(abs(place['mean']))} ± {number(place['std'], 3)}: {percent(share)}")


def dims(census: _Json) -> Ours:
    """How many dims are the largest at position 0 from the birth on."""
    found = sorted({layer["first"][0]["dim"] for layer in census["layers"] if layer["layer"] >= birth(census)})
    return Ours(len(found), words=f"{len(found)}: {', '.join(map(str, found))}")


def plateau(census: _Json) -> Ours:
    """The share of layers after which the carrier has at least 0.8 of its largest mean magnitude."""
    size = np.abs(carrier(census)[1])
    share = float((size >= 0.8 * size.max()).mean())
    return Ours(share, words=f"{round(share * len(size))} of {len(size)} layers")


def remains(census: _Json) -> Ours:
    """What the carrier has after the last block, as a share of its largest mean magnitude."""
    size = np.abs(carrier(census)[1])
    share = float(size[-1] / size.max())
    return Ours(share, words=f"{number(float(size[-1]), 3)} of {number(float(size.max()))}: {percent(share)}")


def depth_of_birth(census: _Json) -> Ours:
    """Where the carrier is born, as a share of the depth."""
    layer, count = birth(census), len(census["layers"])
    return Ours(layer / count, words=f"block {layer} of {count}")


def sink_after_birth(census: _Json) -> Ours:
    """The mean of the attention on position 0 after the birth over that up to it."""
    at = birth(census)
    before, after = of_layers(census, "sink_mass", 1, at).mean(), of_layers(census, "sink_mass", at + 1).mean()
    times = float(after / before)
    words = f"{percent(before)} up to block {at}, {percent(after)} after it: {number(times, 3)} times"
    return Ours(times, words=words)


def bias_against_rest(census: _Json) -> Ours:
    """How far the sink's value update changes over queries after the birth, over how far the others' does."""
    layer = _median_layer(census, "bias_spread")
    bias, rest, (low, high) = layer["bias_spread"], layer["rest_spread"], _interval(layer, "bias_spread")
    words = f"{bias:.2f}{_brackets(low, high)} against {rest:.2f} in block {layer['layer']}, the median after the birth"
    return Ours(bias / rest, _over(low, rest), _over(high, rest), words)


def value_norms(census: _Json) -> Ours:
    """The median over layers after the birth of the sink's value norm over the others'."""
    layer = _median_layer(census, "value_norm_ratio")
    ratio, (low, high) = float(layer["value_norm_ratio"]), _interval(layer, "value_norm_ratio")
    words = f"{ratio:.2f}{_brackets(low, high)} in block {layer['layer']}, the median after the birth"
    return Ours(ratio, low, high, words)


def drained(census: _Json) -> Ours:
    """The sink's value norm over the others', in the layer with the largest sink."""
    layer = max(census["layers"], key=lambda layer: layer["sink_mass"] or 0.0)
    ratio, mass = layer["value_norm_ratio"], layer["sink_mass"]
    if ratio is None or mass is None:
        raise MissingError("the census has no value norms")
    low, high = _interval(layer, "value_norm_ratio")
    words = (
        f"{ratio:.2f}{_brackets(low, high)} in block {layer['layer']}, {percent(mass)} of its attention on position 0"
    )
    return Ours(ratio, low, high, words)


def broadcasting(census: _Json) -> Ours:
    """The number of layers whose sink has a larger value norm than the others, where some have less than half."""
    ratios = of_layers(census, "value_norm_ratio")
    above, below = int((ratios > 1).sum()), int((ratios < 0.5).sum())
    return Ours(min(above, below), words=f"above 1 in {above} layers, under 0.5 in {below} of {len(ratios)}")


def valley(census: _Json) -> Ours:
    """The lowest entropy from the birth on over the mean of that before it."""
    at = birth(census)
    if at == 1:
        raise MissingError("the massive activations are there after block 1: there is no layer before them")
    before = float(of_layers(census, "entropy", 1, at - 1).mean())
    layer = min(census["layers"][at - 1 :], key=lambda layer: layer["entropy"])
    lowest, (low, high) = layer["entropy"], _interval(layer, "entropy")
    words = f"{before:.2f} before block {at}, {number(lowest, 2)}{_brackets(low, high, 2)} after block {layer['layer']}"
    return Ours(lowest / before, _over(low, before), _over(high, before), words)


def under_null(census: _Json) -> Ours:
    """In which share of the layers after the birth the sink's update is more constant than 97.5 % of random tokens'."""
    layers = [
        layer for layer in census["layers"] if layer["layer"] > birth(census) and layer["bias_spread"] is not None
    ]
    if not layers:
        raise MissingError("the census has no bias_spread after the birth")
    under = sum(layer["bias_spread"] < layer["random_spread"]["low"] for layer in layers)
    middle = layers[len(layers) // 2]
    null = middle["random_spread"]
    words = (
        f"in {under} of {len(layers)} layers; block {middle['layer']}: {middle['bias_spread']:.2f} against "
        f"{null['mean']:.2f} [{null['low']:.2f}, {null['high']:.2f}]"
    )
    return Ours(under / len(layers), words=words)


def on_few_tokens(census: _Json) -> Ours:
    """Which share of the massive activations that were counted is on the start, delimiters and weak words."""
    counts: dict[str, int] = {}
    for layer in census["layers"]:
        for place in layer["classes"]:
            if place["massive"]:
                counts[place["class"]] = counts.get(place["class"], 0) + place["count"]
    if not counts:
        raise MissingError("no place is massive")
    whole = sum(counts.values())
    said = ", ".join(f"{kind.replace('_', ' ')} {percent(count / whole)}" for kind, count in counts.items())
    return Ours(1 - counts.get("other", 0) / whole, words=said)


def made_by_mlp(census: _Json) -> Ours:
    """The part that the MLP adds of the largest step up of the largest massive activation."""
    life = max(census["lives"], key=lambda life: abs(life["largest"]), default=None)
    if life is None:
        raise MissingError("no massive activation is followed")
    if not life["up"]:
        return Ours(0.0, words=f"dim {life['dim']} never rises by more than half at one block")
    step = max(life["up"], key=lambda step: abs(step["change"]))
    share = step["mlp"] / step["change"]
    words = (
        f"dim {life['dim']} at block {step['layer']}: {number(step['change'])}, of which the MLP {number(step['mlp'])}"
    )
    return Ours(share, words=words)


def stepped_down(census: _Json) -> Ours:
    """Where the largest massive activation first steps down, as a share of the depth; 0 where it never does."""
    life = max(census["lives"], key=lambda life: abs(life["largest"]), default=None)
    if life is None:
        raise MissingError("no massive activation is followed")
    count = len(census["layers"])
    if not life["down"]:
        return Ours(0.0, words=f"dim {life['dim']} never falls by more than half at one block")
    step = life["down"][0]
    words = f"dim {life['dim']} at block {step['layer']} of {count}, by {number(abs(step['change']))}"
    return Ours(step["layer"] / count, words=words)


def residual_sink(census: _Json) -> Ours:
    """The largest mean magnitude, over the median, of a dim that is the largest on nine tenths of the tokens."""
    found = [
        (sink["mean"] / layer["median"], layer["layer"], sink)
        for layer in census["layers"]
        for sink in layer["residual_sinks"]
        if sink["share"] >= 0.9
    ]
    if not found:
        return Ours(0.0, words="no dim is the largest on nine tenths of the tokens")
    ratio, layer, sink = max(found, key=lambda one: one[0])
    where = f"dim {sink['dim']} after block {layer} on {percent(sink['share'])} of the tokens"
    words = f"{where}, {number(ratio, 3)} × the median"
    return Ours(ratio, words=words)


def spike_without_sink(census: _Json) -> Ours:
    """The sink rate of a model with massive activations; one without has none of which it could be said."""
    if not census["massive"]:
        raise MissingError("it has no massive activations so")
    rate = sink_rate(census).value
    return Ours(rate, words=f"massive: {largest_over_median(census).words}; sink rate {percent(rate)}")


def sink_rate(census: _Json) -> Ours:
    """The model's sink rate."""
    rate = census["sink_rate"]
    if rate is None:
        raise MissingError("the census has no sink rate")
    return Ours(rate, words=percent(rate))


def lost_sink(with_bos: str, without: str) -> Reading:
    """The sink rate without BOS over that with it."""

    def reading(results: Results) -> Ours:
        behind, bare = sink_rate(results[with_bos]).value, sink_rate(results[without]).value
        return Ours(bare / behind if behind else math.nan, words=f"{percent(behind)} with BOS, {percent(bare)} without")

    return reading


# An intervention


def _nats(result: _Json, name: str) -> Ours:
    effect, original = result["effects"][name], result["effects"]["original"]
    nats = effect["nats"]
    low, high = (None if nats[end] is None else math.exp(min(nats[end], 700)) for end in ("low", "high"))
    ratio = math.exp(min(nats["value"], 700))
    interval = "" if low is None or high is None else f", × {number(ratio)} [{number(low)}, {number(high)}]"
    return Ours(ratio, low, high, f"perplexity {number(original['value'])} → {number(effect['value'])}{interval}")


def times_worse(run: str, operation: str) -> Reading:
    """The perplexity under an operation over the unedited one, with its interval."""
    return of(run, lambda result: _nats(result, operation))


def controls(run: str, kind: str) -> Reading:
    """The same of places drawn at random: the middle 95 % of the draws."""

    def read(result: _Json) -> Ours:
        (found,) = [one for one in result["control_draws"] if one["kind"] == kind]
        drawn = next(iter(found["effects"].values()))
        nats = drawn["nats"]
        ratio, low, high = (None if nats[end] is None else math.exp(nats[end]) for end in ("value", "low", "high"))
        count = len(drawn["values"])
        return Ours(
            ratio or math.nan, low, high, f"× {number(ratio)} [{number(low)}, {number(high)}] over {count} draws"
        )

    return of(run, read)


def without_bos(with_bos: str, without: str) -> Reading:
    """The unedited perplexity without BOS over that with it."""

    def reading(results: Results) -> Ours:
        behind, bare = (results[run]["effects"]["original"]["value"] for run in (with_bos, without))
        return Ours(bare / behind, words=f"perplexity {number(behind)} with BOS, {number(bare)} without")

    return reading


# Super weights


def _strongest(result: _Json) -> _Json:
    """The tested weight without which the model is worst."""
    if not result["tested"]:
        raise MissingError("no weight was tested")
    found: _Json = max(result["tested"], key=lambda weight: weight["without"]["nats"]["value"])
    return found


def one_weight(result: _Json) -> Ours:
    """The perplexity without the weight over that with it."""
    weight = _strongest(result)
    nats = weight["without"]["nats"]
    ratio, low, high = (None if nats[end] is None else math.exp(nats[end]) for end in ("value", "low", "high"))
    change = f"{number(result['perplexity']['value'])} → {number(weight['without']['perplexity']['value'])}"
    where = f"block {weight['layer']}, {weight['unit']} → {weight['dim']}"
    words = f"perplexity {change} without {where}: × {number(ratio)}{_brackets(low, high)}"
    return Ours(math.nan if ratio is None else ratio, low, high, words)


def one_against_many(result: _Json) -> Ours:
    """How many nats a token the model loses more without the weight than without the largest others of its matrix."""
    weight = _strongest(result)
    excess = weight["excess"]
    one, others = (number(weight[key]["perplexity"]["value"]) for key in ("without", "without_others"))
    said = f"perplexity {one} without it, {others} without the {weight['without_others']['weights']:,} largest others"
    words = f"{said}: {number(excess['value'], 3)}{_brackets(excess['low'], excess['high'])} nats"
    return Ours(excess["value"], excess["low"], excess["high"], words)


def birth_from_weights(result: _Json) -> Ours:
    """Whether the weights alone name the layer."""
    found = result["from_weights"]
    words = f"the weights name block {found['named_layer']}, it is block {found['birth_layer']}"
    return Ours(float(found["names_birth"]), words=words)


# An explicit bias


def fall(result: _Json) -> Ours:
    """The largest activation with BOS in the sequence over that with BOS as a bias."""
    before, after = result["largest"]["original"], result["largest"]["explicit"]
    return Ours(
        before / after, words=f"largest {number(before)} → {number(after)}: {number(before / after, 3)} times less"
    )


def lossless(result: _Json) -> Ours:
    """How far the logits are apart, as a share of their norm."""
    apart = result["logits"]["relative_difference"]
    return Ours(apart, words=f"{apart:.1e} of the logits' norm")


def regained(result: _Json) -> Ours:
    """The share of int8's loss, in nats, that the bias takes back."""
    whole, before, after = (
        math.log(value)
        for value in (
            result["perplexity"]["original"],
            result["int8_per_tensor"]["original"],
            result["int8_per_tensor"]["explicit"],
        )
    )
    if before <= whole:
        raise MissingError("int8 loses nothing")
    share = (before - after) / (before - whole)
    words = f"perplexity {number(math.exp(before))} → {number(math.exp(after))}, unquantised {number(math.exp(whole))}"
    return Ours(share, words=f"{words}: {percent(share)} of the loss")


def int8_loss(result: _Json) -> Ours:
    """The perplexity with int8 inputs over the unquantised one."""
    whole, int8 = result["perplexity"]["original"], result["int8_per_tensor"]["original"]
    return Ours(int8 / whole, words=f"perplexity {number(whole)} → {number(int8)}")


# Trainings


def last_layers(result: _Json) -> Sequence[_Json]:
    """The layers of a training's last census."""
    found: Sequence[_Json] = result["census"]["layers"]
    return found


def most_sink(result: _Json) -> float:
    """The largest share of attention on position 0 of any layer at a training's end."""
    return float(max(layer["sink_rate"] for layer in last_layers(result)))


def trained_sink(result: _Json) -> Ours:
    """The same, in words."""
    share = most_sink(result)
    return Ours(share, words=f"{percent(share)} of a layer's attention on position 0")


def sink_left(run: str, default: str) -> Reading:
    """The same with an attention bias, over that of the default training."""

    def reading(results: Results) -> Ours:
        plain, changed = most_sink(results[default]), most_sink(results[run])
        return Ours(changed / plain, words=f"{percent(plain)} → {percent(changed)} of attention on position 0")

    return reading


def kurtosis_left(run: str, default: str) -> Reading:
    """The largest kurtosis of any layer with an attention bias, over that of the default training."""

    def reading(results: Results) -> Ours:
        plain, changed = (max(layer["kurtosis"] for layer in last_layers(results[r])) for r in (default, run))
        return Ours(changed / plain, words=f"kurtosis {number(plain, 3)} → {number(changed, 3)}")

    return reading


def slot_share(result: _Json) -> Ours:
    """The largest share of attention on the bias's slots of any layer at a training's end."""
    share = max(layer["slot_rate"] for layer in last_layers(result))
    return Ours(
        share, words=f"{percent(share)} of a layer's attention on the slot, {percent(most_sink(result))} on position 0"
    )


def sink_without_spike(result: _Json) -> Ours:
    """The largest over the median of the layer with the largest sink, at a training's end."""
    layer = max(last_layers(result), key=lambda layer: layer["sink_rate"])
    ratio = layer["largest"] / layer["median"]
    words = f"{percent(layer['sink_rate'])} of attention on position 0, largest {number(ratio, 3)} × the median"
    return Ours(ratio if layer["sink_rate"] >= 0.3 else math.inf, words=words)


def explained(emergence: _Json) -> Ours:
    """The mean R² of the curves through the layers."""
    fits = [fit for fit in emergence["fits"] if fit["r_squared"] is not None]
    if not fits:
        raise MissingError("no layer has a curve")
    mean = float(emergence["r_squared"])
    layers = f"{len(fits)} of {len(emergence['fits'])} layers, {len(emergence['census'])} checkpoints"
    return Ours(mean, words=f"R² {mean:.3f} on average over {layers}")


def growth(emergence: _Json) -> Ours:
    """The largest ratio of largest to median of any layer at the last checkpoint, over that at the first."""
    first, last = (
        max(layer["largest"] / layer["median"] for layer in emergence["census"][at]["layers"]) for at in (0, -1)
    )
    return Ours(
        last / first, words=f"largest over median {number(first, 3)} at the start, {number(last, 3)} at the end"
    )
