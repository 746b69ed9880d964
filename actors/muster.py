"""The ranks of the present learner group: who they are, and when each was last heard of.

Plain bookkeeping for the mailbox. What follows from a rank that falls silent is the watchdog's
decision.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manta.actors.vitals import Identity, LifeSign

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
    identity: Identity | None = None


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """When a rank was last heard of: `age` seconds ago; and what it said of itself then."""

    incarnation: int
    member: Member
    age: float
    sign: LifeSign | None = None


class Muster:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._members: dict[int, tuple[int, Member]] = {}
        self._heard: dict[int, float] = {}
        self._signs: dict[int, LifeSign] = {}

    def enlist(self, incarnation: int, member: Member) -> None:
        self._members[member.rank] = (incarnation, member)
        self._heard[member.rank] = self._clock()
        self._signs.pop(member.rank, None)

    def alive(self, rank: int, incarnation: int, sign: LifeSign | None = None) -> None:
        """A beat of a rank that has been replaced says nothing."""
        if rank in self._members and self._members[rank][0] == incarnation:
            self._heard[rank] = self._clock()
            if sign is not None:
                self._signs[rank] = sign

    def heartbeats(self) -> tuple[Heartbeat, ...]:
        """Of the ranks that have enlisted, by rank."""
        now = self._clock()
        return tuple(
            Heartbeat(incarnation, member, now - self._heard[rank], self._signs.get(rank))
            for rank, (incarnation, member) in sorted(self._members.items())
        )

    def dismiss(self) -> None:
        """The group is no more."""
        self._members.clear()
        self._heard.clear()
        self._signs.clear()
