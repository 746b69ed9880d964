"""How much of the time what can do one thing at a time was taken: an event loop, or threads.

Owns the looking, which goes on beside: a loop that is taken answers nobody.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_SECONDS = 0.02
"""Between two looks: a dozen and more in the time between two questions."""


class LoadWatch:
    """The mean of `load_now`, over time. Nobody looks before the first question."""

    def __init__(
        self, load_now: Callable[[], float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._load_now, self._clock = load_now, clock
        self._lock = threading.Lock()
        self._looked = self._asked = clock()
        self._sum = 0.0
        self._thread: threading.Thread | None = None

    def look(self) -> None:
        """What is the case now counts for all the time since the last look."""
        load = self._load_now()
        with self._lock:
            now = self._clock()
            self._sum += load * (now - self._looked)
            self._looked = now

    def load(self) -> float:
        """Since this was asked last; 0 the first time."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._go_on, name="load-watch", daemon=True)
            self._thread.start()
            return 0.0
        with self._lock:
            seconds, self._asked = self._looked - self._asked, self._looked
            total, self._sum = self._sum, 0.0
        return total / seconds if seconds > 0 else 0.0

    def _go_on(self) -> None:
        with self._lock:
            self._looked = self._asked = self._clock()
        while True:
            time.sleep(_SECONDS)
            self.look()


class CountedThreads(ThreadPoolExecutor):
    """As many threads as asyncio would have; knows how many calls they have."""

    def __init__(self) -> None:
        self._size = min(32, (os.cpu_count() or 1) + 4)
        super().__init__(self._size, thread_name_prefix="calls")
        self._calls = 0
        self._counting = threading.Lock()

    @property
    def load(self) -> float:
        """Calls under way and waiting, a thread."""
        return self._calls / self._size

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        self._count(1)
        future = super().submit(fn, *args, **kwargs)
        future.add_done_callback(lambda _: self._count(-1))
        return future

    def _count(self, change: int) -> None:
        with self._counting:
            self._calls += change
