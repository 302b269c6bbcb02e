"""Languages so small that a model trained on them for minutes grows an attention sink, and massive activations.

Bigram-Backcopy: a token follows from the one before it by a fixed table, but after a trigger comes the token that stood
before the trigger. A head that copies has something to do at triggers only; everywhere else it wants to do nothing, and
attends to the first token (arXiv 2410.13835, section 2).

Multicopy: the same with sixteen triggers, each of which says from how far back the next letter is. That is more than
one head can do well: heads of several blocks each do a part of it, and rest at most tokens.
"""

from __future__ import annotations

import string

import numpy as np

LETTERS = string.ascii_letters + string.digits + "-\n"  # 64, each one byte
TRIGGERS = 3
DISTANCES = "123456789abcdefg"  # the triggers of multicopy, each its distance as a digit of base 17


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


def multicopy_text(length: int, *, seed: int = 0, concentration: float = 0.1, share: float = 0.2) -> str:
    """Makes a text of Multicopy.

    Args:
      length: characters.
      seed: of the table and of the text.
      concentration: of the Dirichlet distribution that the table's rows are drawn from; small is predictable.
      share: how often a letter is followed by a trigger, each as often as the others.

    Returns:
      `length` of the `LETTERS`, of which `DISTANCES` are the triggers. After the one of distance d comes the letter
      that stood d places before it, or the last letter there was where that is a trigger or before the beginning.
    """
    random = np.random.default_rng(seed)
    letters = [letter for letter in LETTERS if letter not in DISTANCES]
    table = random.dirichlet(np.full(len(letters), concentration), size=len(letters))
    cumulative = np.cumsum(table, axis=1)
    chance, trigger, which = random.random(length), random.random(length), random.integers(0, len(DISTANCES), length)
    last, found = 0, [letters[0]]
    for i in range(1, length):
        if found[-1] in DISTANCES:
            place = i - 1 - int(found[-1], len(DISTANCES) + 1)
            copied = found[place] if place >= 0 else ""
            last = letters.index(copied) if copied in letters else last
        elif trigger[i] < share:
            found.append(DISTANCES[which[i]])
            continue
        else:
            last = min(int(np.searchsorted(cumulative[last], chance[i])), len(letters) - 1)
        found.append(letters[last])
    return "".join(found[:length])
