"""The ranks of the present learner group: who they are, and when each was last heard of.

Plain bookkeeping for the mailbox. What follows from a rank that falls silent is the watchdog's
decision.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.actor import ActorHandle

BEAT_SECONDS = 1.0
"""How often a rank says that it lives."""


@dataclass(frozen=True, slots=True)
class Member:
    """A rank's process, and the actor in it, by which it can be killed."""

    rank: int
    pid: int
    node: str
    handle: ActorHandle[object] | None


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """When a rank was last heard of: `age` seconds ago."""

    incarnation: int
    member: Member
    age: float


class Muster:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._members: dict[int, tuple[int, Member]] = {}
        self._heard: dict[int, float] = {}

    def enlist(self, incarnation: int, member: Member) -> None:
        self._members[member.rank] = (incarnation, member)
        self._heard[member.rank] = self._clock()

    def alive(self, rank: int, incarnation: int) -> None:
        """A beat of a rank that has been replaced says nothing."""
        if rank in self._members and self._members[rank][0] == incarnation:
            self._heard[rank] = self._clock()

    def heartbeats(self) -> tuple[Heartbeat, ...]:
        """Of the ranks that have enlisted, by rank."""
        now = self._clock()
        return tuple(
            Heartbeat(incarnation, member, now - self._heard[rank])
            for rank, (incarnation, member) in sorted(self._members.items())
        )

    def dismiss(self) -> None:
        """The group is no more."""
        self._members.clear()
        self._heard.clear()
