"""Sharing weighted things out so that the fullest share is as light as can be.

Deterministic and in whole numbers, so that every process that computes it gets the same answer.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import count
from typing import TypeAlias

Shares: TypeAlias = list[list[int]]
"""Indices of what each share holds."""


def balanced(costs: Sequence[int], num_shares: int) -> Shares:
    """Every index of `costs` (each at least 0) in one of `num_shares` shares, ascending.

    The better of largest differencing (Karmarkar and Karp, 1982, "The differencing method of set
    partitioning", UC Berkeley CSD-83-113) and greedy (Graham, 1969, SIAM J. Appl. Math. 17(2),
    longest first to the lightest share), then moves and swaps out of the fullest share while they
    help. The fullest share and the lightest differ by the largest cost at most.
    """
    candidates = (_differencing(costs, num_shares), greedy(costs, num_shares))
    best = min(candidates, key=lambda shares: max(_loads(costs, shares)))
    return [sorted(share) for share in _refined(costs, best)]


def greedy(costs: Sequence[int], num_shares: int) -> Shares:
    """Longest first to the lightest share (ties: lower index, lower share)."""
    shares: Shares = [[] for _ in range(num_shares)]
    loads = [(0, share) for share in range(num_shares)]
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, share = loads[0]
        shares[share].append(index)
        heapq.heapreplace(loads, (load + costs[index], share))
    return shares


def _differencing(costs: Sequence[int], num_shares: int) -> Shares:
    """Partial solutions, each with its shares from heavy to light; the two with the widest spread
    become one, the heaviest share of each with the lightest of the other."""
    order = count()
    heap: list[tuple[int, int, list[tuple[int, list[int]]]]] = []
    empty: list[tuple[int, list[int]]] = [(0, []) for _ in range(num_shares - 1)]
    for index, cost in enumerate(costs):
        heap.append((-cost, next(order), [(cost, [index]), *empty]))
    heapq.heapify(heap)
    while len(heap) > 1:
        _, _, left = heapq.heappop(heap)
        _, _, right = heapq.heappop(heap)
        joined = [
            (load + other, held + others)
            for (load, held), (other, others) in zip(left, reversed(right), strict=True)
        ]
        joined.sort(key=lambda share: -share[0])
        heapq.heappush(heap, (joined[-1][0] - joined[0][0], next(order), joined))
    return [held for _, held in heap[0][2]] if heap else [[] for _ in range(num_shares)]


def _refined(costs: Sequence[int], shares: Shares) -> Shares:
    """While it lowers the fullest share, and there is a thousandth of it to gain: the one move or
    swap between it and the lightest that leaves the heavier of the two lightest."""
    shares = [list(share) for share in shares]
    loads = _loads(costs, shares)
    while True:
        full, light = loads.index(max(loads)), loads.index(min(loads))
        gap = loads[full] - loads[light]
        if gap * 1000 <= loads[full]:
            return shares
        # Moving `moved` in exchange for `back` (None: nothing) shifts what lies between 0 and gap.
        shifts = [
            (abs(gap - 2 * shift), moved, back)
            for moved in shares[full]
            for back in (None, *shares[light])
            if 0 < (shift := costs[moved] - (0 if back is None else costs[back])) < gap
        ]
        if not shifts:
            return shares
        _, moved, back = min(
            shifts, key=lambda found: (found[0], found[1], -1 if found[2] is None else found[2])
        )
        for index, source, target in ((moved, full, light), (back, light, full)):
            if index is not None:
                shares[source].remove(index)
                shares[target].append(index)
                loads[source] -= costs[index]
                loads[target] += costs[index]


def _loads(costs: Sequence[int], shares: Shares) -> list[int]:
    return [sum(costs[index] for index in share) for share in shares]
