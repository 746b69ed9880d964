"""The bookkeeping of the benchmark, on a scale that takes a moment."""

from __future__ import annotations

import asyncio
import time

import pytest

from benchmarks.scale_sim import Look, Looks, Scale, figures_of, growth, measure
from benchmarks.stopwatch import Stopwatch


def spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        sum(range(100))


async def test_every_part_pays_for_itself_alone() -> None:
    watch = Stopwatch()

    async def world() -> int:
        spin(0.02)
        await asyncio.sleep(0.01)
        with watch.part("router"):
            spin(0.03)
        spin(0.01)
        return 7

    assert await watch.timed("world", world()) == 7
    spin(0.02)
    assert watch.seconds["world"] == pytest.approx(0.03, abs=0.008)
    assert watch.seconds["router"] == pytest.approx(0.03, abs=0.008)


async def test_a_cancellation_reaches_the_work() -> None:
    watch, seen = Stopwatch(), []

    async def world() -> None:
        try:
            await asyncio.sleep(10.0)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def waits() -> None:
        await watch.timed("world", world())

    task = asyncio.create_task(waits())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["cancelled"]


def test_what_neither_world_nor_router_used_is_the_driver_s() -> None:
    seen = [Look(1, 10.0, 2.0, 1.0, 100, 50), Look(3, 12.0, 2.5, 1.1, 110, 51)]
    [(driver, router, world)] = Looks(4, seen).windows()
    assert (driver, router, world) == pytest.approx((1e3 * 1.4 / 8, 1e3 * 0.1 / 8, 1e3 * 0.5 / 8))


def test_a_machine_that_slows_down_is_no_growth() -> None:
    steady = [(1.0 + i / 10, 2.0 + i / 5) for i in range(10)]
    assert growth(steady) == pytest.approx(1.0)
    assert growth([(driver + i / 10, world) for i, (driver, world) in enumerate(steady)]) > 1.3


def test_a_small_scale_is_measured() -> None:
    scale = Scale("tiny", 8, 6, 2, 2)
    looks = measure(scale)
    assert [look.step for look in looks.seen] == [1, 2, 4, 6]
    assert looks.most == 2 * 8 * 16
    made = figures_of(scale, looks)
    assert all(figure.value > 0 for figure in made)
