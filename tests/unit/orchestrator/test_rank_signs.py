from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from manta.actors.examination import examine
from manta.actors.processes import figures, this_process
from manta.orchestrator.rank_signs import Ranks


@dataclass(frozen=True)
class Member:
    rank: int
    pid: int
    node: str
    handle: object


@dataclass(frozen=True)
class Beat:
    member: Member
    age: float


class Mailbox:
    def __init__(self, *beats: Beat) -> None:
        self.beats = beats

    async def heartbeats(self) -> Sequence[Beat]:
        return self.beats


async def test_a_rank_of_this_machine_is_looked_at_and_another_is_named_by_its_node() -> None:
    here, there = Member(0, os.getpid(), "here", "handle"), Member(1, 7, "there", "handle")
    nobody = Beat(Member(2, 8, "here", None), 0.0)
    ranks = Ranks(Mailbox(Beat(here, 0.5), Beat(there, 9.0), nobody), "here")
    zero, one = await ranks.heard()
    assert (zero.rank, zero.age_seconds, one.rank, one.age_seconds) == (0, 0.5, 1, 9.0)
    assert zero.identity.process == this_process()
    assert zero.sign.process.memory > 0
    assert (one.identity.process.host, one.identity.process.pid) == ("there", 7)
    assert one.sign.process.memory == 0
    assert figures(one.identity.process) is None


async def test_a_process_that_catches_no_signal_is_not_sent_one() -> None:
    """It would end it: this one."""
    ranks = Ranks(Mailbox(Beat(Member(0, os.getpid(), "here", "handle"), 0.5)), "here")
    (rank,) = await ranks.heard()
    (found,) = examine([rank.identity])
    assert found.stacks == ""
    assert found.state
