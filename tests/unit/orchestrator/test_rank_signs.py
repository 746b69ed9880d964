from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from manta.actors.examination import examine
from manta.actors.muster import Heartbeat, Member
from manta.actors.processes import this_process
from manta.actors.vitals import Identity, LifeSign, sign_of_thread
from manta.orchestrator.rank_signs import heard_of

HERE = Identity(this_process(), "node", "/log", 999)
HANDLE: Any = "handle"


class Mailbox:
    def __init__(self, *beats: Heartbeat) -> None:
        self.beats = beats

    async def heartbeats(self) -> Sequence[Heartbeat]:
        return self.beats


def beat(rank: int, handle: Any, sign: LifeSign | None) -> Heartbeat:
    return Heartbeat(0, Member(rank, 7, "node", handle, HERE), 0.5, sign)


async def test_ranks_are_heard_of_from_their_enlistment_on() -> None:
    sign = sign_of_thread(0)
    mailbox = Mailbox(beat(0, HANDLE, sign), beat(1, HANDLE, None), beat(2, None, sign))
    speaking, silent = await heard_of(mailbox)
    assert (speaking.rank, speaking.age_seconds, speaking.identity) == (0, 0.5, HERE)
    assert speaking.sign is not None and speaking.sign.process.memory > 0
    assert (silent.rank, silent.sign) == (1, None)


def test_a_process_that_catches_no_signal_is_not_sent_one() -> None:
    """It would end it: this one."""
    (found,) = examine([HERE])
    assert found.stacks == "" and found.state
