"""Finished groups by their place in the order of admission: the first one without a search.

Owns places. Feeds whose steps take who has finished, and not who is oldest, ask it.
"""

from __future__ import annotations

import heapq

from manta.envs.records import GroupId


class FinishedOrder:
    def __init__(self) -> None:
        self._places: dict[GroupId, int] = {}
        """Of the groups that are admitted and not consumed."""
        self._next = 0
        self._finished: list[tuple[int, GroupId]] = []

    def __len__(self) -> int:
        """Groups that are there, finished or not."""
        return len(self._places)

    def __contains__(self, group: GroupId) -> bool:
        return group in self._places

    def enter(self, group: GroupId, instead_of: GroupId | None = None) -> None:
        """`group` is admitted: behind all others, or at the place of one that leaves for it."""
        place = self._next if instead_of is None else self._places.pop(instead_of)
        self._next += instead_of is None
        self._places[group] = place

    def finish(self, group: GroupId) -> None:
        heapq.heappush(self._finished, (self._places[group], group))

    def leave(self, group: GroupId) -> None:
        """`group` is consumed, dropped or overtaken; as often as it likes."""
        self._places.pop(group, None)

    def first(self) -> GroupId | None:
        """The first in order of those that have finished and are still there."""
        while self._finished:
            group = self._finished[0][1]
            if group in self._places:
                return group
            heapq.heappop(self._finished)
        return None
