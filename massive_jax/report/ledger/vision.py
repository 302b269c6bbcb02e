"""Claims about vision transformers, few of which can be told without their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from massive_jax.report.ledger.claim import Claim, Ours, Results
from massive_jax.report.words import number

RELEASED = "released/register_means"
_HUB = "the weights are on a model hub"


def _block(results: Results) -> Ours:
    """The two largest of DINOv2-reg G at the input of block 20, counted from 0."""
    found: Mapping[str, Any] = results[RELEASED]["giant"]
    values = np.array(found["values"])[20]  # [R, D]
    register, dim = (int(i) for i in np.unravel_index(np.argmax(np.abs(values)), values.shape))
    second = int(np.argsort(-np.abs(values[register]))[1])
    places = {at: round(float(values[register, at]), 1) for at in (dim, second)}
    said = " and ".join(f"{number(value)} at dim {at}" for at, value in places.items())
    return Ours(float(places == {179: -849.4, 999: 671.1}), words=f"{said} of register {register + 1}")


def _one_register(results: Results) -> Ours:
    """In how many of the four models one register has ten times what any other has."""
    said, count = [], 0
    for name, found in results[RELEASED].items():
        largest = np.sort(np.abs(np.array(found["values"])).max(axis=(0, 2)))  # of each register
        count += bool(largest[-1] >= 10 * largest[-2])
        said.append(f"{name} {number(float(largest[-1]), 3)} against {number(float(largest[-2]), 3)}")
    return Ours(float(count), words=f"{count} of 4: {', '.join(said)}")


def vision() -> Sequence[Claim]:
    """Gives the claims."""
    return [
        Claim(
            paper="2402.17762",
            states="In DINOv2 with registers, massive activations are at fixed dims of a register.",
            theirs="G: −849.4 and 671.1 at dims 179 and 999, input of block 20",
            model="the released means of DINOv2-reg G",
            measure=_block,
            holds=bool,
            rule="the same two dims and values in the released file",
        ),
        Claim(
            paper="2402.17762",
            states="One register of four holds them.",
            theirs="S, B, L, G: registers 2, 4, 1, 3",
            model="the released means of four models",
            measure=_one_register,
            holds=lambda count: count == 4,
            rule="ten times the largest of any other register, in all four",
        ),
        Claim(
            paper="2402.17762",
            states="CLIP and DINOv2 ViT-L have massive activations, MAE's has none.",
            theirs="figures",
            why=_HUB,
        ),
        Claim(
            paper="2402.17762",
            states="Fixing all registers to their mean at every block keeps the accuracy.",
            theirs="ImageNet top-1, S, B, L, G: 81.9 → 81.7, 84.8 → 85.0, 86.3 → 86.2, 87.0 → 87.0",
            why=f"{_HUB}, and ImageNet needs a licence",
        ),
        Claim(
            paper="2309.16588",
            states="Large vision transformers have tokens of large norm; four registers take them.",
            theirs="DINOv2 L and G, OpenCLIP, DeiT-III",
            why=f"{_HUB}; a vision transformer as small as can be trained here has none",
        ),
        Claim(
            paper="2506.08010",
            states="One more token, with the values of a few neurons moved to it, does without training.",
            theirs="OpenCLIP and DINOv2 B to L",
            why=f"{_HUB}: `experiments.register_neurons` does it where they are in reach",
        ),
        Claim(
            paper="2604.14433",
            states="Setting registers to zero overstates what they are for.",
            theirs="−36.6 points; mean, noise and other images' registers within 1",
            why=_HUB,
        ),
    ]
