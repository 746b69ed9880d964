"""How much of the time a loop, or threads, were taken."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import pytest

from manta.actors.slots import CountedThreads, LoadWatch
from manta.actors.work import Work


def test_the_load_is_a_mean_over_time_since_it_was_asked_last() -> None:
    now, load = 0.0, 0.0
    watch = LoadWatch(lambda: load, lambda: now)
    watch._thread = threading.current_thread()  # nobody else looks
    for now, load in ((1.0, 1.0), (2.0, 0.0), (4.0, 3.0)):  # noqa: B007 - the watch reads both
        watch.look()
    assert watch.load() == pytest.approx((1 * 1 + 1 * 0 + 2 * 3) / 4)
    now, load = 5.0, 0.5
    watch.look()
    assert watch.load() == pytest.approx(0.5)
    assert watch.load() == 0.0, "no time has passed"


def measured(work: Callable[[], Awaitable[object]]) -> float:
    """What a worker says of itself, from another thread, while its loop does `work` again and again
    for half a second."""
    load = 0.0

    async def run() -> None:
        nonlocal load
        measure = Work()
        measure.runs_on(asyncio.get_running_loop())
        measure.busy()
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            await work()
        asked: list[float] = []
        asking = threading.Thread(target=lambda: asked.append(measure.busy()))
        asking.start()
        asking.join()
        [load] = asked

    asyncio.run(run())
    return load


def test_a_call_that_blocks_takes_its_worker_and_one_that_awaits_does_not() -> None:
    async def blocks() -> None:
        time.sleep(0.05)

    assert measured(blocks) > 0.8
    assert measured(lambda: asyncio.sleep(0.05)) < 0.3


def test_threads_are_full_when_each_has_a_call() -> None:
    ready = threading.Event()
    with CountedThreads() as threads:
        size = threads._max_workers
        calls = [threads.submit(ready.wait) for _ in range(2 * size)]
        assert threads.load == 2.0
        ready.set()
        assert all(call.result() for call in calls)
        assert threads.load == 0.0

    async def in_threads() -> None:
        await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.05) for _ in range(2 * size)))

    assert measured(in_threads) > 0.9
