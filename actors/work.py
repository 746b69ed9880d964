"""What a worker has to do: the calls under way, and how much of a core it uses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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

    def busy(self) -> float:
        """Cores that this process has used on average since it was asked last. A worker's event
        loop is one thread: near 1, calls wait for it."""
        before, self._since = self._since, (self._clock(), self._processor())
        seconds = self._since[0] - before[0]
        return (self._since[1] - before[1]) / seconds if seconds > 0 else 0.0
