"""An event loop whose clock jumps to the next timer: hours of sleeping in a moment, and a deadlock
is an error instead of a hang.

Owns the clock. Whoever sleeps by it takes the time from the event loop (`loop.time`), and nothing
in it may wait for a thread or a socket.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


_LEAST_SECONDS = 1e-9
"""No turn of the loop takes no time at all: a moment that rounding puts just ahead comes."""


class Deadlock(RuntimeError):
    """Nothing is left that could ever wake anybody."""


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock("every task waits, and no timer is set")
        later = self.now + max(_LEAST_SECONDS, timeout)
        # Far from 0 the least is less than what a float can tell
        self.now = max(later, math.nextafter(self.now, math.inf))
        return []


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work` on a clock that starts at 0. Raises Deadlock."""
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(work)
