"""The made-up language: triggers copy, other letters follow their table, and the seed fixes the text."""

import collections

import numpy as np
import pytest

from massive_jax.data import load_text
from massive_jax.data.backcopy import LETTERS, TRIGGERS, backcopy_text

LENGTH = 50_000


@pytest.fixture(scope="module")
def text():
    return backcopy_text(LENGTH)


def test_triggers_copy_what_stood_before_them(text):
    copies, seen = collections.Counter(), collections.Counter()
    for before, letter, after in zip(text, text[1:], text[2:], strict=False):
        seen[letter] += 1
        copies[letter] += before == after
    always = [letter for letter in seen if seen[letter] > 50 and copies[letter] == seen[letter]]
    assert len(always) == TRIGGERS
    assert sum(seen[letter] for letter in always) / LENGTH > 0.05


def test_the_letters_are_of_the_alphabet(text):
    assert len(text) == LENGTH
    assert len(set(LETTERS)) == 64
    assert set(text) <= set(LETTERS)
    assert all(ord(letter) for letter in LETTERS)  # byte 0 is the preset's BOS


def test_only_triggers_look_further_back_than_one_letter(text):
    """What follows another letter is drawn from the same row of the table, whatever stood before the letter."""
    ids = np.asarray([LETTERS.index(letter) for letter in text])
    before, now, after = ids[:-2], ids[1:-1], ids[2:]
    apart = []
    for letter in range(64):
        here = now == letter
        common = np.argsort(-np.bincount(before[here], minlength=64))[:2]  # the two that most often stood before it
        counts = [np.bincount(after[here & (before == b)], minlength=64) for b in common]
        if min(c.sum() for c in counts) > 130:
            first, second = (c / c.sum() for c in counts)
            apart.append(np.abs(first - second).sum() / 2)  # total variation
    assert sum(a == 1 for a in apart) == TRIGGERS
    others = [a for a in apart if a < 1]
    assert len(others) > 10
    assert max(others) < 0.25


def test_the_seed_fixes_the_text(text):
    assert backcopy_text(LENGTH) == text
    assert backcopy_text(1000, seed=1) != backcopy_text(1000)


def test_it_is_a_text_by_name(text):
    named = load_text("backcopy")
    assert len(named) == 1_000_000
    assert named[:LENGTH] == text
