"""How a person names a setting, "W4A8KV4", and a method, "rotate+absorb"."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from massive_jax.arguments import several, shown

METHODS: Mapping[str, str] = {
    "plain": "nothing else",
    "zero": "massive activations set to zero",
    "apart": "tokens with massive activations kept in full precision",
    "absorb": "BOS as an attention bias",
    "super": "super weight kept in full precision",
    "rotate": "random Hadamard rotation of the residual stream",
    "smooth": "SmoothQuant's scaling",
}
"""What is done beside rounding, by name; "+" puts several together."""

_NOT_TOGETHER = {
    frozenset({"zero", "rotate"}): "in a rotated stream no single number is massive",
    frozenset({"super", "rotate"}): "in a rotated stream no single weight is super",
}
_FULL = 16


@dataclasses.dataclass(frozen=True)
class Setting:
    """Says to how many bits what is rounded; 0 for not at all.

    Attributes:
      name: as a person writes it.
      weights: of every linear map.
      inputs: of every linear map.
      cache: of keys, before the rotary embedding, and values.
    """

    name: str
    weights: int = 0
    inputs: int = 0
    cache: int = 0


def parse_setting(text: str) -> Setting:
    """Reads "W4A8", "KV4" or "W4A4KV4": bits of weights, inputs, and keys and values, 2 to 8; 16 for unquantised.

    Raises:
      ValueError: something else.

    Examples:
      >>> from massive_jax.quantize import parse_setting
      >>> parse_setting("W4A16")
      Setting(name='W4A16', weights=4, inputs=0, cache=0)
    """
    found = re.fullmatch(r"(?:W(\d+)A(\d+))?(?:KV(\d+))?", text) if isinstance(text, str) and text else None
    bits = [_FULL if part is None else int(part) for part in found.groups()] if found else []
    if found is None or any(b != _FULL and not 2 <= b <= 8 for b in bits):
        raise ValueError(
            f"setting {shown(text)} is none; write W and A with bits for weights and inputs, KV for keys and values: "
            f"W8A8, W4A16, KV4, W4A4KV4; 2 to 8 bits, or {_FULL} for unquantised."
        )
    return Setting(text, *(0 if b == _FULL else b for b in bits))


def check_methods(methods: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Gives every method as the tuple of its parts.

    Raises:
      ValueError: none; one twice; an unknown one; parts that do not go together.

    Examples:
      >>> from massive_jax.quantize import check_methods
      >>> check_methods(["plain", "rotate+absorb"])
      (('plain',), ('rotate', 'absorb'))
    """
    found = several(methods)
    if not found or not all(isinstance(method, str) for method in found):
        raise ValueError(f"methods is {shown(methods)}; give names: {', '.join(METHODS)}, or several joined by +.")
    parts = tuple(tuple(method.split("+")) for method in found)
    for method, its in zip(found, parts, strict=True):
        unknown = [part for part in its if part not in METHODS]
        if unknown or len(set(its)) < len(its) or (len(its) > 1 and "plain" in its):
            raise ValueError(
                f"method {shown(method)} is none; the methods are {', '.join(METHODS)}; all but plain join by +."
            )
        for pair, why in _NOT_TOGETHER.items():
            if pair <= set(its):
                raise ValueError(f"method {method!r}: {' and '.join(sorted(pair))} do not go together: {why}.")
    if len({frozenset(its) for its in parts}) < len(parts):
        raise ValueError(f"methods {', '.join(found)}: one is named twice.")
    return parts
