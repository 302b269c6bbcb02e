"""A language so small that a model trained on it for minutes grows an attention sink: Bigram-Backcopy.

A token follows from the one before it by a fixed table, but after a trigger comes the token that stood before the
trigger. A head that copies has something to do at triggers only; everywhere else it wants to do nothing, and attends to
the first token (arXiv 2410.13835, section 2).
"""

from __future__ import annotations

import string

import numpy as np

LETTERS = string.ascii_letters + string.digits + "-\n"  # 64, each one byte
TRIGGERS = 3


def backcopy_text(length: int, *, seed: int = 0, concentration: float = 0.1) -> str:
    """Makes a text of the language.

    Args:
      length: characters.
      seed: of the table and of the text.
      concentration: of the Dirichlet distribution that the table's rows are drawn from; small is predictable.

    Returns:
      `length` of the 64 `LETTERS`. The triggers are the `TRIGGERS` most frequent of them by the table alone.
    """
    random = np.random.default_rng(seed)
    table = random.dirichlet(np.full(len(LETTERS), concentration), size=len(LETTERS))
    frequency = np.linalg.matrix_power(table, 1024)[0]  # of the chain once it has forgotten where it began
    triggers = set(np.argsort(-frequency)[:TRIGGERS].tolist())
    cumulative, chance = list(np.cumsum(table, axis=1)), random.random(length)
    before, now, found = 0, 0, []
    for u in chance:
        drawn = before if now in triggers else int(np.searchsorted(cumulative[now], u))
        before, now = now, min(drawn, len(LETTERS) - 1)  # a row's sum may be just below 1
        found.append(now)
    return "".join(LETTERS[i] for i in found)
