"""Workers that die, join, leave and move, on scripted workers in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
import ray

from manta.envs.records import Json
from manta.orchestrator.seats import NoWorkerLeft, NoWorkerStarts, SeatFigures, Seats
from manta.orchestrator.simulation import virtual_clock


@dataclass(eq=False)
class Worker:
    """Joins after `join_seconds`; dies when told, or with `dies_early` while it joins."""

    join_seconds: float = 1.0
    dies_early: bool = False
    init_failed: bool = False
    busy_seconds: float = 0.0
    death: asyncio.Event = field(default_factory=asyncio.Event)


class Scripted:
    """A role whose `new` says what the next worker is like. `log` has what was asked of whom."""

    role = "engine"

    def __init__(self, new: Callable[[], Worker] = Worker) -> None:
        self.new = new
        self.log: list[str] = []
        self.started = 0

    def start(self, seat: int) -> tuple[str, Worker]:
        self.started += 1
        self.log.append(f"start {seat}")
        return f"e{seat}", self.new()

    async def stay(self, worker: Worker) -> None:
        await worker.death.wait()
        error = ray.exceptions.ActorDiedError()
        error._actor_init_failed = worker.init_failed
        if worker.init_failed:
            error.error_msg = (
                "It died,\n\x1b[36mray::Engine\x1b[39m\n\x1b[1mValueError: no model\x1b[0m"
            )
        raise error

    async def join(self, name: str, worker: Worker) -> None:
        await asyncio.sleep(worker.join_seconds)
        if worker.dies_early:
            worker.death.set()
            raise ray.exceptions.ActorDiedError
        self.log.append(f"join {name}")

    async def lost(self, name: str) -> None:
        self.log.append(f"lost {name}")

    async def leave(self, name: str) -> None:
        self.log.append(f"leave {name}")

    async def end(self, name: str, worker: Worker) -> None:
        worker.death.set()


class Kept:
    """Seats that run while a test looks at them."""

    def __init__(self, size: int, new: Callable[[], Worker] = Worker) -> None:
        self.role = Scripted(new)
        self.seats = Seats(self.role, [self.role.start(i) for i in range(size)])
        self.events: list[tuple[str, str]] = []

    def event(self, name: str, fields: Mapping[str, Json]) -> None:
        self.events.append((name, str(fields["worker"])))

    def run(self, look: Callable[[], Awaitable[None]]) -> None:
        async def both() -> None:
            running = asyncio.create_task(self.seats.run(self.event))
            looking = asyncio.ensure_future(look())
            await asyncio.wait({running, looking}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                looking.cancel()
            await looking
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

        virtual_clock.run(both())

    def worker(self, name: str) -> Worker:
        return self.seats.workers()[name]


def test_a_worker_that_dies_is_replaced_at_once_in_its_seat() -> None:
    kept = Kept(2)

    async def look() -> None:
        await asyncio.sleep(1.5)
        assert kept.seats.figures() == SeatFigures(2, 2, 0, 0)
        kept.worker("e1").death.set()
        await asyncio.sleep(0.5)
        assert kept.seats.figures() == SeatFigures(2, 1, 1, 1)
        await asyncio.sleep(0.6)
        assert kept.seats.figures() == SeatFigures(2, 2, 0, 1)

    kept.run(look)
    assert kept.role.log == ["start 0", "start 1", "join e0", "join e1", "lost e1", "start 1",
                             "join e1"]  # fmt: skip
    assert kept.events == [("engine died", "e1"), ("engine joined", "e1")]


def test_a_seat_whose_workers_never_serve_is_given_up_and_the_others_go_on() -> None:
    kept = Kept(2)

    async def look() -> None:
        await asyncio.sleep(2)
        kept.role.new = lambda: Worker(dies_early=True)
        kept.worker("e1").death.set()
        await asyncio.sleep(60)
        assert kept.seats.figures() == SeatFigures(1, 1, 0, 6)

    kept.run(look)
    assert kept.role.started == 2 + 5, "five died in a row before any served"
    assert kept.events[-1] == ("engine not replaced", "e1")


def test_a_death_after_service_counts_anew() -> None:
    kept = Kept(1)

    async def look() -> None:
        for _ in range(12):
            await asyncio.sleep(2)
            kept.worker("e0").death.set()
        await asyncio.sleep(2)
        assert kept.seats.figures() == SeatFigures(1, 1, 0, 12)

    kept.run(look)
    assert kept.events == [("engine died", "e0"), ("engine joined", "e0")] * 12


def test_a_worker_that_comes_later_is_news_and_the_first_are_not() -> None:
    kept = Kept(1)

    async def look() -> None:
        await asyncio.sleep(2)
        kept.seats.resize(2)
        await asyncio.sleep(2)

    kept.run(look)
    assert kept.events == [("engine joined", "e1")]


def test_the_run_ends_where_every_seat_is_given_up() -> None:
    seats = Seats(role := Scripted(lambda: Worker(dies_early=True)), [role.start(0)])

    with pytest.raises(ExceptionGroup) as raised:
        virtual_clock.run(seats.run(lambda name, fields: None))
    [error] = raised.value.exceptions
    assert isinstance(error, NoWorkerLeft)
    assert "no engine is left: 5 died one after the other before any of them served" in str(error)


def test_a_constructor_that_nobody_survives_is_not_tried_again() -> None:
    broken = Worker(join_seconds=1e6, init_failed=True)
    broken.death.set()
    seats = Seats(role := Scripted(lambda: broken), [role.start(0)])
    with pytest.raises(ExceptionGroup) as raised:
        virtual_clock.run(seats.run(lambda name, fields: None))
    [error] = raised.value.exceptions
    assert isinstance(error, NoWorkerStarts)
    assert "the last one, e0, of: its constructor failed: ValueError: no model." in str(error)
    assert role.started == 1


def test_what_join_raises_beside_a_death_ends_the_run() -> None:
    class Buggy(Scripted):
        async def join(self, name: str, worker: Worker) -> None:
            raise ValueError("no such lane")

    seats = Seats(role := Buggy(), [role.start(0)])
    with pytest.raises(ExceptionGroup) as raised:
        virtual_clock.run(seats.run(lambda name, fields: None))
    assert str(raised.value.exceptions[0]) == "no such lane"


def test_seats_grow_and_shrink_and_those_not_up_yet_go_first() -> None:
    kept = Kept(2)

    async def look() -> None:
        await asyncio.sleep(2)
        kept.role.new = lambda: Worker(join_seconds=1e6)
        kept.seats.resize(4)
        await asyncio.sleep(2)
        assert kept.seats.figures() == SeatFigures(4, 2, 2, 0)
        kept.seats.resize(1)
        await asyncio.sleep(2)
        assert kept.seats.figures() == SeatFigures(1, 1, 0, 0)
        assert list(kept.seats.workers()) == ["e0"]

    kept.run(look)
    assert kept.role.log[4:] == ["start 2", "start 3", "lost e3", "lost e2", "leave e1", "lost e1"]
    not_needed = [("engine not needed any more", "e3"), ("engine not needed any more", "e2")]
    assert kept.events == [*not_needed, ("engine left", "e1")]


class Slow(Scripted):
    """Whose workers never finish."""

    async def leave(self, name: str) -> None:
        await super().leave(name)
        await asyncio.sleep(1e6)


def test_a_worker_that_moves_leaves_when_another_has_taken_over() -> None:
    kept = Kept(1)
    kept.role = Slow()
    kept.seats = Seats(kept.role, [kept.role.start(0)])

    async def look() -> None:
        await asyncio.sleep(2)
        kept.seats.move("e0", 10.0)
        kept.seats.move("e0", 10.0)
        await asyncio.sleep(0.5)
        assert "leave e0" not in kept.role.log, "the other one is not up yet"
        await asyncio.sleep(1.5)
        assert list(kept.seats.workers()) == ["e1"]
        assert kept.role.log[-2:] == ["join e1", "leave e0"]
        await asyncio.sleep(10)
        assert kept.role.log[-1] == "lost e0", "its time was up"
        assert kept.seats.figures() == SeatFigures(1, 1, 0, 0)

    kept.run(look)


def test_a_worker_that_moves_does_not_wait_for_ever_for_the_other_one() -> None:
    kept = Kept(1)

    async def look() -> None:
        await asyncio.sleep(2)
        kept.role.new = lambda: Worker(join_seconds=1e6)
        kept.seats.move("e0", 10.0)
        await asyncio.sleep(5.5)
        assert kept.role.log[-2:] == ["leave e0", "lost e0"]

    kept.run(look)
