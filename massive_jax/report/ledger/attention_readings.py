"""Numbers that claims ask the attention to massive tokens for: attention.json of a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from massive_jax.report.ledger.claim import MissingError, Ours
from massive_jax.report.ledger.readings import percent
from massive_jax.report.words import label

_Json = Mapping[str, Any]


def _after(result: _Json) -> _Json:
    """The means over the layers after the birth."""
    if not result.get("after"):
        raise MissingError("there are no massive tokens, or no layers after their birth")
    found: _Json = result["after"]
    return found


def concentration(result: _Json) -> Ours:
    """The attention on massive tokens after their birth over what a uniform one would give."""
    after = _after(result)
    times = after["concentration"] / after["baseline"]
    layers = f"layers {after['first']} to {after['last']}"
    words = f"{percent(after['concentration'])} in {layers}, uniform {percent(after['baseline'])}: {times:.1f} times"
    return Ours(times, words=words)


def signs(result: _Json) -> Ours:
    """How far the mean logits of massive tokens are above 0 and the others' below, whichever is less."""
    after = _after(result)
    massive, others = after["logit_massive"], after["logit_others"]
    return Ours(min(massive, -others), words=f"{massive:+.2f} and {others:+.2f} on average after the birth")


def _median_vectors(result: _Json, key: str) -> tuple[float, float]:
    """The median over layers after the birth of what massive tokens' normed inputs have, and others'."""
    layers = [layer["vectors"]["attn_norm"] for layer in result["layers"] if layer["layer"] > result["birth"]]
    if not layers:
        raise MissingError("there are no layers after the birth")
    massive, others = (float(np.median([layer[of][key] for layer in layers])) for of in ("massive", "others"))
    return massive, others


def alike(result: _Json) -> Ours:
    """The cosine similarity of massive tokens' normed inputs."""
    massive, others = _median_vectors(result, "cosine")
    return Ours(massive, words=f"mean cosine {massive:.2f}, of other tokens {others:.2f}")


def sparse(result: _Json) -> Ours:
    """The share of massive tokens' squared norm in the largest hundredth of the dims, over the others'."""
    massive, others = _median_vectors(result, "top")
    return Ours(
        massive / others, words=f"{percent(massive)} of the squared norm in 1 % of the dims, others {percent(others)}"
    )


def secondary(result: _Json) -> Ours:
    """How often the most frequent secondary sink is there that an MLP turned towards the first token."""
    found = [sink for sink in result["secondary_sinks"] if sink["mlp_layer"] is not None and sink["mlp_cosine"] >= 0.5]
    if not found:
        return Ours(0.0, words="none that an MLP made alike to the first token")
    sink = max(found, key=lambda sink: sink["count"])
    where = f"{label(sink['token'])} in layers {sink['begins']} to {sink['ends']}, {sink['count']} times"
    made = f"made by the MLP of layer {sink['mlp_layer']}, cosine with the first token {sink['mlp_cosine']:.2f}"
    return Ours(float(sink["count"]), words=f"{where}; {made}")
