from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.actors.least_loaded import LeastLoaded


class Cluster:
    """Engines with tokens and free rows, beside the order that is told of every change."""

    def __init__(self) -> None:
        self.order = LeastLoaded()
        self.engines: dict[str, tuple[int, int]] = {}
        self.looks = 0

    def put(self, name: str, tokens: int, free: int) -> None:
        self.engines[name] = (tokens, free)
        self.order.put(name, tokens)

    def remove(self, name: str) -> None:
        self.engines.pop(name, None)
        self.order.remove(name)

    def first(self, rows: int) -> str | None:
        return self.order.first(rows, lambda name: self._takes(name, rows))

    def expected(self, rows: int) -> str | None:
        able = [(tokens, name) for name, (tokens, free) in self.engines.items() if rows <= free]
        return min(able)[1] if able else None

    def _takes(self, name: str, rows: int) -> bool:
        self.looks += 1
        return rows <= self.engines[name][1]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_it_finds_what_a_look_at_all_engines_finds(seed: int) -> None:
    draw, cluster = random.Random(seed), Cluster()
    for _ in range(300):
        name = draw.choice("abcdefg")
        if draw.random() < 0.1:
            cluster.remove(name)
        elif draw.random() < 0.6:
            cluster.put(name, draw.randrange(4), draw.randrange(6))
        rows = draw.randrange(7)
        assert cluster.first(rows) == cluster.expected(rows)


@pytest.mark.parametrize("rows", [5, 9])
def test_a_call_that_waits_costs_what_has_changed(rows: int) -> None:
    cluster = Cluster()
    for i in range(1000):
        cluster.put(f"engine-{i}", i, 2)
    assert cluster.first(5) is None
    cluster.looks = 0
    for i in range(100):
        cluster.put(f"engine-{i}", i, 3)
        assert cluster.first(rows) is None
    assert cluster.looks == 100
    cluster.put("engine-7", 7, 16)
    assert cluster.first(rows) == "engine-7"


def test_a_call_that_needs_less_looks_again() -> None:
    cluster = Cluster()
    cluster.put("a", 1, 4)
    assert cluster.first(5) is None
    assert cluster.first(3) == "a"


def test_outdated_entries_do_not_pile_up() -> None:
    order = LeastLoaded()
    for tokens in range(10_000):
        order.put("a", tokens)
        order.put("b", 10_000 - tokens)
    assert len(order._heap) < 100
    assert order.first(1, lambda name: True) == "b"
