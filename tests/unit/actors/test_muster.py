from __future__ import annotations

from dataclasses import replace

from manta.actors.muster import Heartbeat, Member, Muster


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


ZERO, ONE = Member(0, 10, "here", None), Member(1, 11, "there", None)


def test_a_rank_is_as_old_as_its_last_beat() -> None:
    clock = Clock()
    muster = Muster(clock)
    assert muster.heartbeats() == ()
    muster.enlist(3, ONE)
    muster.enlist(3, ZERO)
    clock.now += 5
    muster.alive(1, 3)
    clock.now += 2
    assert muster.heartbeats() == (Heartbeat(3, ZERO, 7.0), Heartbeat(3, ONE, 2.0))


def test_beats_of_ranks_that_were_replaced_say_nothing() -> None:
    clock = Clock()
    muster = Muster(clock)
    muster.enlist(3, ZERO)
    muster.dismiss()
    assert muster.heartbeats() == ()
    again = replace(ZERO, pid=20)
    muster.enlist(4, again)
    clock.now += 4
    muster.alive(0, 3)
    muster.alive(1, 4)
    assert muster.heartbeats() == (Heartbeat(4, again, 4.0),)
