"""The made-up languages: triggers copy, other letters follow their table, and the seed fixes the text."""

import collections
import itertools

import numpy as np
import pytest

from massive_jax.data import load_text
from massive_jax.data import text as text_module
from massive_jax.data.backcopy import DISTANCES, LETTERS, TRIGGERS, backcopy_text, multicopy_text

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


def test_a_trigger_says_from_how_far_back_the_next_letter_is():
    words = multicopy_text(LENGTH)
    assert set(words) <= set(LETTERS)
    assert not any(a in DISTANCES and b in DISTANCES for a, b in itertools.pairwise(words))
    places = [i for i in range(20, LENGTH - 1) if words[i] in DISTANCES]
    assert 0.15 < len(places) / LENGTH < 0.18  # one in five letters drawn has one behind it
    copied = 0
    for i in places:
        source = words[i - int(words[i], 17)]
        if source not in DISTANCES:
            assert words[i + 1] == source
            copied += 1
    assert copied > 0.75 * len(places)
    assert len({words[i] for i in places}) == len(DISTANCES)


def test_behind_a_copied_letter_the_table_goes_on():
    words = multicopy_text(LENGTH)
    after = collections.defaultdict(collections.Counter)
    for trigger, now, then in zip(words, words[1:], words[2:], strict=False):
        if now not in DISTANCES and then not in DISTANCES:
            after[now, trigger in DISTANCES][then] += 1
    apart = []
    for letter in set(words) - set(DISTANCES):
        copied, drawn = after[letter, True], after[letter, False]
        if min(copied.total(), drawn.total()) > 80:
            apart.append(sum(abs(copied[x] / copied.total() - drawn[x] / drawn.total()) for x in {*copied, *drawn}) / 2)
    assert len(apart) > 5
    assert max(apart) < 0.3


def test_it_is_a_text_by_name(text):
    named = load_text("backcopy")
    assert len(named) == 1_000_000
    assert named[:LENGTH] == text


def test_multicopy_is_a_text_by_name(monkeypatch):
    """As long as the other, which is seen to be; a short one is compared."""
    monkeypatch.setattr(text_module, "_MADE_UP_LENGTH", 2000)
    assert load_text("multicopy") == multicopy_text(2000)
