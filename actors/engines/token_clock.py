"""A clock that can be halted: seconds for which a simulated engine has been running.

Owns the pause. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class TokenClock:
    """Starts running at 0. While halted, time stands still and sleepers sleep on.

    `seconds` is the time that passes: that of the event loop.
    """

    def __init__(self, seconds: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._elapsed = 0.0
        self._since: float | None = seconds()
        self._running = asyncio.Event()
        self._halted = asyncio.Event()
        self._running.set()

    @property
    def is_halted(self) -> bool:
        return self._since is None

    def now(self) -> float:
        """Running seconds so far."""
        if self._since is None:
            return self._elapsed
        return self._elapsed + self._seconds() - self._since

    def halt(self) -> None:
        self._elapsed = self.now()
        self._since = None
        self._running.clear()
        self._halted.set()

    def go_on(self) -> None:
        if self._since is None:
            self._since = self._seconds()
        self._halted.clear()
        self._running.set()

    async def sleep_until(self, moment: float) -> None:
        """Returns once `now()` has reached `moment`, running again."""
        while True:
            await self._running.wait()
            left = moment - self.now()
            if left <= 0.0:
                return
            try:
                await asyncio.wait_for(self._halted.wait(), left)
            except TimeoutError:
                continue
