"""Shares of work: every thing once, never worse than greedy, near the best where that is known."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from manta.actors.balance import Shares, balanced, greedy

COSTS = st.lists(st.integers(0, 1000), max_size=40)


def fullest(costs: list[int], shares: Shares) -> int:
    return max(sum(costs[index] for index in share) for share in shares)


@given(COSTS, st.integers(1, 9))
def test_every_thing_is_in_one_share(costs: list[int], num_shares: int) -> None:
    shares = balanced(costs, num_shares)
    assert len(shares) == num_shares
    assert sorted(index for share in shares for index in share) == list(range(len(costs)))
    assert all(share == sorted(share) for share in shares)
    assert shares == balanced(costs, num_shares)


@given(COSTS, st.integers(1, 9))
def test_it_is_never_worse_than_greedy(costs: list[int], num_shares: int) -> None:
    shares = balanced(costs, num_shares)
    assert fullest(costs, shares) <= fullest(costs, greedy(costs, num_shares))
    loads = [sum(costs[index] for index in share) for share in shares]
    assert max(loads) - min(loads) <= max(costs, default=0)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 3))
def test_it_keeps_grahams_bound(costs: list[int], num_shares: int) -> None:
    best = min(
        max(sum(c for c, s in zip(costs, places, strict=True) if s == k) for k in range(num_shares))
        for places in product(range(num_shares), repeat=len(costs))
    )
    assert fullest(costs, balanced(costs, num_shares)) <= 11 / 9 * best


def test_differencing_beats_greedy_where_it_is_known_to() -> None:
    """The textbook case: greedy gives 8, 7 and 6 in one half and nothing fits."""
    costs = [8, 7, 6, 5, 4]
    assert fullest(costs, greedy(costs, 2)) == 17
    assert fullest(costs, balanced(costs, 2)) == 15


def test_no_things_give_empty_shares() -> None:
    assert balanced([], 3) == [[], [], []]
