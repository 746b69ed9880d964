"""Workers that others call, and that come and go."""

from __future__ import annotations

import asyncio

import pytest

from manta.actors.colleagues import ColleagueLost, Colleagues
from manta.orchestrator.simulation import virtual_clock


class Worker:
    def __init__(self, name: str, is_dead: bool = False) -> None:
        self.name, self.is_dead = name, is_dead
        self.asked = 0

    async def answer(self) -> str:
        self.asked += 1
        if self.is_dead:
            raise ColleagueLost(f"{self.name} is gone")
        return self.name


def ask(workers: Colleagues[Worker]) -> asyncio.Task[str]:
    return asyncio.ensure_future(workers.ask(lambda worker: worker.answer()))


async def test_they_take_turns() -> None:
    workers = Colleagues("reward worker", [Worker("a"), Worker("b")])
    assert {await ask(workers), await ask(workers)} == {"a", "b"}


async def test_a_lost_call_is_made_again_elsewhere_and_nobody_asks_the_dead_twice() -> None:
    dead = Worker("a", is_dead=True)
    workers = Colleagues("reward worker", [dead, Worker("b")])
    assert [await ask(workers) for _ in range(4)] == ["b"] * 4
    assert dead.asked == 1


async def test_a_call_waits_for_one_that_comes() -> None:
    workers = Colleagues("reward worker", [Worker("a", is_dead=True)])
    call = ask(workers)
    await asyncio.sleep(0.01)
    assert not call.done()
    workers.meet([])
    await asyncio.sleep(0.01)
    workers.meet([Worker("b")])
    assert await call == "b"


async def test_a_call_that_every_worker_dies_of_is_given_up() -> None:
    dead = [Worker(str(i), is_dead=True) for i in range(4)]
    with pytest.raises(ColleagueLost, match="is gone"):
        await ask(Colleagues("reward worker", dead))
    assert sum(worker.asked for worker in dead) == 3


def test_nobody_waits_for_ever() -> None:
    async def wait() -> None:
        with pytest.raises(ColleagueLost, match="every reward worker has died, and none came back"):
            await ask(Colleagues("reward worker", []))

    virtual_clock.run(wait())
