"""Routing in virtual time. What it decides is tested with `Leases`, its calls with the router."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Mapping

import pytest

from manta.actors.leases import Ask, Ticket
from manta.actors.routing import LOOKS_PER_SECOND, Routing
from manta.orchestrator.simulation import virtual_clock

NUMBERS = itertools.count()


def ask(rows: int = 4) -> Ask:
    return Ask(Ticket("w", next(NUMBERS)), (0,), rows, 3)


class Engines:
    """Engines of four rows that serve, and how often they were asked."""

    def __init__(self, count: int) -> None:
        self.asked: Counter[str] = Counter()
        clock = asyncio.get_running_loop().time
        self.routing = Routing(4, 4, False, self._unfinished, clock)
        for i in range(count):
            self.routing.tell(f"engine-{i}", "join")
            self.routing.tell(f"engine-{i}", "serve")

    async def _unfinished(self, engine: str) -> Mapping[Ticket, int]:
        self.asked[engine] += 1
        return {}


def test_a_call_that_is_cancelled_while_it_waits_leaves_nothing() -> None:
    async def cancelled() -> None:
        engines = Engines(1)
        held, last = ask(), ask()
        await engines.routing.acquire(held)
        waiting = [asyncio.create_task(engines.routing.acquire(ask())) for _ in range(3)]
        waiting.append(asyncio.create_task(engines.routing.acquire(last)))
        await asyncio.sleep(0.001)
        for task in waiting[:3]:
            task.cancel()
        # In the same turn: the cancelled ones have not noticed yet, and are next in the queue
        engines.routing.release(held.ticket)
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in done[:3]] == [asyncio.CancelledError] * 3
        assert engines.routing.figures().rows == 4
        engines.routing.release(last.ticket)
        assert (engines.routing.figures().rows, engines.routing.figures().waiting) == (0, 0)

    virtual_clock.run(cancelled())


def test_a_call_that_is_cancelled_as_it_is_granted_gives_the_engine_back() -> None:
    async def cancelled() -> None:
        engines = Engines(1)
        held = ask()
        await engines.routing.acquire(held)
        waiting = asyncio.create_task(engines.routing.acquire(ask()))
        await asyncio.sleep(0.001)
        engines.routing.release(held.ticket)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert engines.routing.figures().rows == 0

    virtual_clock.run(cancelled())


@pytest.mark.parametrize(("count", "looks_each"), [(2, 50), (1000, 0.5)])
def test_looks_at_engines_have_a_bound_whatever_their_number(count: int, looks_each: float) -> None:
    async def looked() -> Counter[str]:
        engines = Engines(count)
        for _ in range(count):
            await engines.routing.acquire(ask())
        waiting = asyncio.create_task(engines.routing.acquire(ask()))
        await asyncio.sleep(20.0)
        waiting.cancel()
        return engines.asked

    asked = virtual_clock.run(looked())
    assert len(asked) == count
    assert asked.total() / count == pytest.approx(20 * looks_each, rel=0.11)
    assert asked.total() <= 20 * LOOKS_PER_SECOND
