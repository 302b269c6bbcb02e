"""The replication ledger: claims of papers, each with a rule, what was measured here, and the verdict."""

from collections.abc import Mapping, Sequence

from massive_jax.report.ledger.attention import attention
from massive_jax.report.ledger.claim import VERDICTS, Claim, Entry, MissingError, Ours, Results, judge
from massive_jax.report.ledger.language import activations, interventions
from massive_jax.report.ledger.page import write_page
from massive_jax.report.ledger.quantisation import quantisation
from massive_jax.report.ledger.training import training
from massive_jax.report.ledger.vision import RELEASED, vision

__all__ = [
    "RELEASED",
    "VERDICTS",
    "Claim",
    "Entry",
    "MissingError",
    "Ours",
    "Results",
    "claims",
    "judge",
    "write_page",
]


def claims() -> Mapping[str, Sequence[Claim]]:
    """Gives every claim, by the title of its section."""
    return {
        "What is massive, and where": activations(),
        "What it is for": interventions(),
        "Attention": attention(),
        "In eight bits, and with a prefix": quantisation(),
        "In training": training(),
        "Vision": vision(),
    }
