"""Reading and editing activations: sites, what to keep of them (`Capture`), and interventions as data (`Edit`)."""

from massive_jax.probe.capture import Capture, CapturePlan, Captures, Measure, compile_captures
from massive_jax.probe.compiled import check_edits, check_plan
from massive_jax.probe.coordinates import UNPADDED, Coordinates
from massive_jax.probe.edit import Edit, as_edits
from massive_jax.probe.functions import PerToken
from massive_jax.probe.operations import OPERATIONS, OPS
from massive_jax.probe.packing import compile_edits
from massive_jax.probe.places import RULES, ambiguous, find_heads, find_position, find_positions
from massive_jax.probe.reduce import Stats
from massive_jax.probe.rows import EditCollection, EditRows, Summand, stack_edits
from massive_jax.probe.sites import ALL_SITES, ATTENTION_SITES, EXPERT_SITES, SITES, VISION_SITES, Site
from massive_jax.probe.tap import Tap, empty_results, present

__all__ = [
    "ALL_SITES",
    "ATTENTION_SITES",
    "EXPERT_SITES",
    "OPERATIONS",
    "OPS",
    "RULES",
    "SITES",
    "UNPADDED",
    "VISION_SITES",
    "Capture",
    "CapturePlan",
    "Captures",
    "Coordinates",
    "Edit",
    "EditCollection",
    "EditRows",
    "Measure",
    "PerToken",
    "Site",
    "Stats",
    "Summand",
    "Tap",
    "ambiguous",
    "as_edits",
    "check_edits",
    "check_plan",
    "compile_captures",
    "compile_edits",
    "empty_results",
    "find_heads",
    "find_position",
    "find_positions",
    "present",
    "stack_edits",
]
