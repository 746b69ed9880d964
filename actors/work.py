"""What a worker has to do: the calls under way, and how much of it the worker's work takes.

Owns the measure by which pools of such workers grow. A call is kept waiting by others where the
event loop is taken, be it by one that computes or by one that blocks (that sleeps, or runs a
program, or asks a server, and does not `await` it), and where all threads are. A call that awaits
holds nobody up, however long: more workers would not make it any quicker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from manta.actors.slots import CountedThreads, LoadWatch


class Work:
    """`clock` is in wall seconds, `processor` in seconds that this process has computed."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        processor: Callable[[], float] = time.process_time,
    ) -> None:
        self._clock, self._processor = clock, processor
        self._since = clock(), processor()
        self._calls = 0
        self._none = asyncio.Event()
        self._none.set()
        self._slots: LoadWatch | None = None

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Around a call."""
        self._calls += 1
        self._none.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self._none.set()

    async def quiet(self) -> None:
        """Returns once no call is under way."""
        await self._none.wait()

    def runs_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Calls run on `loop`, and what they give to `asyncio.to_thread` in threads of its own."""
        if self._slots is None:
            threads = CountedThreads()
            loop.set_default_executor(threads)
            self._slots = LoadWatch(
                lambda: max(float(asyncio.current_task(loop) is not None), threads.load)
            )

    def busy(self) -> float:
        """How many workers the work would have filled since this was asked last: the most of the
        cores that this process has used, the share of the time in which its event loop was taken,
        and the calls that its threads had each. May be asked from another thread."""
        before, self._since = self._since, (self._clock(), self._processor())
        seconds = self._since[0] - before[0]
        cores = (self._since[1] - before[1]) / seconds if seconds > 0 else 0.0
        return max(cores, self._slots.load() if self._slots is not None else 0.0)
