"""How often a group that broke is made again.

A group whose rewards or environment break may break every time. One whose workers went away while
it was made is hardly to blame for that, unless it takes every worker along: it has more attempts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from manta.actors.lanes import Admission, Broken

Place: TypeAlias = tuple[int, int]
"""Epoch and position of a group, whatever the attempt."""

MAX_ATTEMPTS = 3
"""In one life of the driver: attempts that a stopped run cut short are no fault of the group."""
MAX_LOSSES = 8
"""Attempts that ended with a worker. A node that is lost takes two or three in a row."""


def lost_with(admissions: Sequence[Admission], error: Exception) -> list[Broken]:
    """What became of `admissions`, whose environment worker was lost."""
    return [Broken(a.id, f"environment worker lost: {error}", is_lost=True) for a in admissions]


class Attempts:
    """Of the groups that broke and were not made since."""

    def __init__(self) -> None:
        self._broke: Counter[Place] = Counter()
        self._lost: Counter[Place] = Counter()

    def may_retry(self, outcome: Broken) -> bool:
        """Counts the attempt that ended like this; whether there is to be another one."""
        place = outcome.id[:2]
        (self._lost if outcome.is_lost else self._broke)[place] += 1
        return self._broke[place] < MAX_ATTEMPTS and self._lost[place] < MAX_LOSSES

    def forget(self, place: Place) -> None:
        """The group was made, or given up."""
        del self._broke[place], self._lost[place]
