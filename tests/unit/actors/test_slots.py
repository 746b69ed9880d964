"""How much of the time a loop, or threads, were taken."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

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


class Worker:
    """A loop in a thread of its own, and what is said of it from outside."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.measure = Work()
        self.measure.runs_on(self.loop)
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    @property
    def load(self) -> float:
        assert self.measure._slots is not None
        return self.measure._slots._load_now()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


def test_a_call_that_blocks_takes_its_worker_and_one_that_awaits_does_not(worker: Worker) -> None:
    begun, may_end = threading.Event(), threading.Event()

    async def blocks() -> None:
        begun.set()
        may_end.wait()

    async def awaits() -> None:
        worker.loop.call_later(0.01, begun.set)
        await asyncio.sleep(1000)

    blocking = asyncio.run_coroutine_threadsafe(blocks(), worker.loop)
    assert begun.wait(60) and worker.load == 1.0
    may_end.set()
    blocking.result(60)
    begun.clear()
    awaiting = asyncio.run_coroutine_threadsafe(awaits(), worker.loop)
    assert begun.wait(60) and worker.load == 0.0
    awaiting.cancel()


def test_threads_are_full_when_each_has_a_call(worker: Worker) -> None:
    begun, may_end = threading.Event(), threading.Event()

    async def in_threads(calls: int) -> None:
        worker.loop.call_later(0.01, begun.set)
        await asyncio.gather(*(asyncio.to_thread(may_end.wait) for _ in range(calls)))

    with CountedThreads() as threads:
        size = threads._max_workers
    calling = asyncio.run_coroutine_threadsafe(in_threads(3 * size), worker.loop)
    assert begun.wait(60) and worker.load == 3.0
    may_end.set()
    calling.result(60)
    assert worker.load == 0.0


def test_the_share_of_a_worker_s_time_is_told(worker: Worker) -> None:
    """By the real thread that looks, and the real clock."""
    may_end = threading.Event()

    async def blocks() -> None:
        may_end.wait()

    worker.measure.busy()
    blocking = asyncio.run_coroutine_threadsafe(blocks(), worker.loop)
    time.sleep(0.3)
    worker.measure.busy()
    time.sleep(0.2)
    assert worker.measure.busy() > 0.99
    may_end.set()
    blocking.result(60)
