"""Signs of life of learner ranks. They run no event loop that could be asked: each tells the
mailbox once a second that it lives, and the driver asks there.

Owns what is made of that: where a rank is, and what its process says where that is of this machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from manta.actors.processes import Known, ProcessFigures, figures, found_here
from manta.actors.vitals import Identity, LifeSign, log_file

if TYPE_CHECKING:
    from ray.actor import ActorHandle

NO_STACKS = -1
_UNKNOWN = ProcessFigures("unknown", False, 0.0, 0, 0)


class Member(Protocol):
    """A rank's process, and the actor in it."""

    @property
    def rank(self) -> int: ...
    @property
    def pid(self) -> int: ...
    @property
    def node(self) -> str: ...
    @property
    def handle(self) -> Any: ...


class Heartbeat(Protocol):
    """When a rank was last heard of: `age` seconds ago."""

    @property
    def member(self) -> Member: ...
    @property
    def age(self) -> float: ...


class Heartbeats(Protocol):
    """The driver's side of the mailbox."""

    async def heartbeats(self) -> Sequence[Heartbeat]: ...


@dataclass(frozen=True, slots=True)
class Heard:
    """A rank, and its last sign, `age_seconds` old."""

    rank: int
    handle: ActorHandle[Any]
    identity: Identity
    sign: LifeSign
    age_seconds: float


class Ranks:
    """`node` is the driver's own, by Ray's name."""

    def __init__(self, mailbox: Heartbeats, node: str) -> None:
        self._mailbox, self._node = mailbox, node
        self._identities: dict[tuple[str, int], Identity] = {}

    async def heard(self) -> list[Heard]:
        """Of every rank that has enlisted and has an actor to be killed by."""
        found = []
        for beat in await self._mailbox.heartbeats():
            member = beat.member
            if member.handle is not None:
                identity = self._identity(member)
                sign = LifeSign(0.0, "", figures(identity.process) or _UNKNOWN)
                found.append(Heard(member.rank, member.handle, identity, sign, beat.age))
        return found

    def _identity(self, member: Member) -> Identity:
        key = member.node, member.pid
        if key not in self._identities:
            process = found_here(member.pid) if member.node == self._node else None
            log = "" if process is None else str(log_file(member.pid))
            process = process or Known(member.node, member.pid, 0.0)
            self._identities[key] = Identity(process, member.node, log, NO_STACKS)
        return self._identities[key]
