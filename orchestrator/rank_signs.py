"""Signs of life of learner ranks. They run no event loop that could be asked: each tells the
mailbox once a second that it lives, and the driver asks there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from manta.actors.muster import Heartbeat
from manta.actors.vitals import Identity, LifeSign

if TYPE_CHECKING:
    from ray.actor import ActorHandle


class Heartbeats(Protocol):
    """The driver's side of the mailbox."""

    async def heartbeats(self) -> Sequence[Heartbeat]: ...


@dataclass(frozen=True, slots=True)
class Heard:
    """A rank, and its last sign, `age_seconds` old; None: it has said nothing since it enlisted, so
    long ago."""

    rank: int
    handle: ActorHandle[Any]
    identity: Identity
    sign: LifeSign | None
    age_seconds: float


async def heard_of(mailbox: Heartbeats) -> list[Heard]:
    """Every rank that has enlisted, and has an actor to be killed by."""
    found = []
    for beat in await mailbox.heartbeats():
        member = beat.member
        if member.handle is not None and member.identity is not None:
            found.append(Heard(member.rank, member.handle, member.identity, beat.sign, beat.age))
    return found
