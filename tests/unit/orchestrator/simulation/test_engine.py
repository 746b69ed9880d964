"""The paced engine by hand, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from manta.actors.leases import Ticket
from manta.orchestrator.simulation import virtual_clock
from manta.orchestrator.simulation.engine import PacedEngine
from manta.orchestrator.simulation.speeds import EngineSpeed

SPEED = EngineSpeed(base=1.0, per_row=0.5)
"""A step of one row takes 1.5 s, of two rows 2 s."""


def now() -> float:
    return asyncio.get_running_loop().time()


def in_virtual_time(work: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await work()

    virtual_clock.run(run())


async def call(
    engine: PacedEngine, *lengths: int, number: int = 0, prompt: int = 10, spare: int = 0
) -> tuple[float, list[dict[int, int]]]:
    """When it ended, and each row's tokens by version."""
    [rows] = await engine.run(Ticket("w", number), [prompt], [lengths], spare)
    return now(), [dict(row.tokens_by_version) for row in rows]


def test_a_step_takes_what_its_rows_take() -> None:
    async def work() -> None:
        engine = PacedEngine(SPEED, 4)
        ended, made = await call(engine, 2, 5)
        assert ended == pytest.approx(2 * 2.0 + 3 * 1.5, abs=1e-5)
        assert made == [{0: 2}, {0: 5}]
        engine.settle()
        assert engine.seconds.tokens == pytest.approx(7, abs=1e-4)
        assert engine.seconds.busy == pytest.approx(8.5, abs=1e-4)
        assert engine.seconds.rows == pytest.approx(2 * 4 + 4.5, abs=1e-4)

    in_virtual_time(work)


def test_rows_beyond_the_most_wait_and_prompts_are_prefilled_once() -> None:
    async def work() -> None:
        engine = PacedEngine(EngineSpeed(base=1.0, prefill_per_token=0.1), 2)
        ended, _ = await call(engine, 3, 3, 3, prompt=20)
        assert ended == pytest.approx(2.0 + 3 + 3, abs=1e-5)

    in_virtual_time(work)


def test_a_pause_stops_and_a_load_changes_the_version_of_what_comes() -> None:
    async def work() -> None:
        engine = PacedEngine(EngineSpeed(base=1.0, prefill_per_token=0.01), 4, recomputes=True)
        running = asyncio.create_task(call(engine, 6, prompt=100))
        await asyncio.sleep(1.0 + 2.0 + 1e-4)
        engine.pause()
        await asyncio.sleep(5.0)
        engine.load(1)
        engine.resume()
        ended, made = await running
        # Two tokens and the third, which had begun, under the old weights; then 102 tokens anew
        assert made == [{0: 3, 1: 3}]
        assert ended == pytest.approx(1 + 2 + 5 + 1.02 + 4, abs=1e-3)

    in_virtual_time(work)


def test_what_is_more_than_wanted_is_cut() -> None:
    async def work() -> None:
        engine = PacedEngine(EngineSpeed(base=1.0), 8)
        [rows] = await engine.run(Ticket("w", 0), [1], [[2, 9, 4, 7]], 2)
        assert now() == pytest.approx(4.0, abs=1e-5)
        assert [(sum(row.tokens_by_version.values()), row.is_cut) for row in rows] == [
            (2, False),
            (4, True),
            (4, False),
            (4, True),
        ]

    in_virtual_time(work)


def test_a_cancelled_call_frees_its_rows() -> None:
    async def work() -> None:
        engine = PacedEngine(EngineSpeed(base=1.0), 1)
        first = asyncio.create_task(call(engine, 50, number=1))
        second = asyncio.create_task(call(engine, 2, number=2))
        await asyncio.sleep(3.0)
        assert await engine.unfinished() == {Ticket("w", 1): 1, Ticket("w", 2): 1}
        first.cancel()
        ended, _ = await second
        assert ended == pytest.approx(5.0, abs=1e-3)
        assert await engine.unfinished() == {}

    in_virtual_time(work)


def test_memory_or_products_whichever_takes_longer() -> None:
    speed = EngineSpeed(base=1.0, per_context=0.01, compute_per_row=0.5, overhead=0.25)
    assert speed.step_seconds(1, 100.0) == 2.25
    assert speed.step_seconds(6, 100.0) == 3.25
