"""What processes tell each other through jax's coordination service, which threads stand in for here."""

import atexit
import itertools
import os
import threading
import time
from concurrent import futures
from typing import Any

import jax
import pytest

from massive_jax.parallel import agree, bytes_from_first, check_same, everywhere, is_leaving, leave, together, watch


class Service:
    """A store of keys, as jax's coordination service is one."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def key_value_set(self, key, value):
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()

    def key_value_try_get(self, key):
        with self.changed:
            if key not in self.values:
                raise jax.errors.JaxRuntimeError(f"NOT_FOUND: {key}")
            return self.values[key]

    def blocking_key_value_get(self, key, timeout_in_ms):
        with self.changed:
            assert self.changed.wait_for(lambda: key in self.values, timeout=10)
            return self.values[key]


@pytest.fixture
def in_each(monkeypatch):
    """`in_each(work)`: `work(number)` in three processes: what each gives, or the message of its ValueError."""
    service, mine = Service(), threading.local()
    monkeypatch.setattr(together, "_service", lambda: (service, mine.number, 3))
    monkeypatch.setattr(together, "_rounds", itertools.repeat(0))

    run: Any

    def run_each(work):
        def one(number):
            mine.number = number
            try:
                return work(number)
            except ValueError as error:
                return str(error)

        with futures.ThreadPoolExecutor(3) as pool:
            return list(pool.map(one, range(3)))

    run = run_each
    run.service = service
    return run


def test_process_0_judges(in_each):
    heard = []
    assert in_each(lambda number: agree(str(number), lambda said: heard.extend(said))) == [None] * 3
    assert heard == ["0", "1", "2"]


def test_the_first_difference_is_named(in_each):
    facts = [{"--layer": "1", "jax": "0.10"}, {"--layer": "1", "jax": "0.10"}, {"--head": "2", "jax": "0.10"}]
    expected = (
        "--layer is not given in process 2, and 1 in process 0; --head is 2 in process 2, and not given in process 0: "
        "start every process with the same flags, code and packages."
    )
    assert in_each(lambda number: check_same(facts[number])) == [expected] * 3


@pytest.mark.parametrize(
    ("failing", "expected"), [((), [0, 2, 4]), ((1,), ["process 1: no 1"] * 3), ((0, 2), ["process 0: no 0"] * 3)]
)
def test_where_one_fails_all_fail(in_each, failing, expected):
    def work(number):
        if number in failing:
            raise ValueError(f"no {number}")
        return 2 * number

    assert in_each(lambda number: everywhere(lambda: work(number))) == expected


def test_who_leaves_says_why_and_the_others_hear_it(in_each, monkeypatch):
    said, ended = [], []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(together, "_TELLING", 0)
    monkeypatch.setattr(together, "_EVERY", 0.01)
    monkeypatch.setattr(atexit, "register", lambda stop: None)
    monkeypatch.setattr(together, "_leaving", threading.Event())
    in_each(lambda number: watch(said.append) if number == 0 else None)
    assert not is_leaving()
    in_each.service.key_value_set("massive_jax/failed", "143 process 2: stopped")
    while not ended:
        time.sleep(0.01)
    assert (said, ended) == (["process 2: stopped"], [143])
    assert is_leaving()
    in_each(lambda number: leave("what comes of it", 1) if number == 0 else None)
    assert in_each.service.values["massive_jax/failed"] == "143 process 2: stopped"

    monkeypatch.setattr(together, "_leaving", threading.Event())
    in_each(lambda number: leave("a file is gone", 1) if number == 1 else None)
    assert ended == [143, 1, 1]
    assert in_each.service.values["massive_jax/failed"] == "1 process 1: a file is gone"


def test_alone_there_is_nobody_to_tell():
    agree("mine", lambda said: None if said == ["mine"] else "others")
    with pytest.raises(ValueError, match=r"^wrong$"):
        agree("mine", lambda said: "wrong")
    check_same({"--layer": "1"})
    assert everywhere(lambda: 3) == 3
    assert bytes_from_first(b"content") == b"content"
    leave("nothing", 1)
    watch(lambda *_: None)
