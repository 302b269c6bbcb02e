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


def test_other_letters_follow_a_table(text):
    """What comes after a letter does not depend on the letter before it: the halves of the text agree."""
    index = {letter: i for i, letter in enumerate(LETTERS)}
    ids = np.asarray([index[letter] for letter in text])
    halves = []
    for half in np.array_split(ids, 2):
        counts = np.zeros((64, 64))
        np.add.at(counts, (half[:-1], half[1:]), 1)
        halves.append(counts)
    often = (halves[0].sum(1) > 500) & (halves[1].sum(1) > 500)
    tables = [half[often] / half[often].sum(1, keepdims=True) for half in halves]
    assert often.sum() >= 5
    assert np.abs(tables[0] - tables[1]).max() < 0.1


def test_the_seed_fixes_the_text(text):
    assert backcopy_text(LENGTH) == text
    assert backcopy_text(1000, seed=1) != backcopy_text(1000)


def test_it_is_a_text_by_name():
    text = load_text("backcopy")
    assert len(text) == 1_000_000
    assert text[:LENGTH] == backcopy_text(1_000_000)[:LENGTH]
