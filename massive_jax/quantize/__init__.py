"""Quantisation: rounding of weights, inputs and caches, and what is done to a model first, so that less is lost."""

from massive_jax.quantize.outcome import InputShape, Outcome, Quantization, SuperWeightAt
from massive_jax.quantize.rewriting import hadamard, rotate, smooth, untie, why_not_rotated, why_not_smoothed
from massive_jax.quantize.rounding import LINEAR_INPUTS, SCALES, input_edits, round_weights
from massive_jax.quantize.settings import METHODS, Setting, check_methods, parse_setting

__all__ = [
    "LINEAR_INPUTS",
    "METHODS",
    "SCALES",
    "InputShape",
    "Outcome",
    "Quantization",
    "Setting",
    "SuperWeightAt",
    "check_methods",
    "hadamard",
    "input_edits",
    "parse_setting",
    "rotate",
    "round_weights",
    "smooth",
    "untie",
    "why_not_rotated",
    "why_not_smoothed",
]
