"""Every wait of the driver has a name and a deadline; nothing hangs without saying what it is.

Owns the register of waits in progress, which the display reads. Acting on a missed deadline is the
caller's part.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


class DeadlineMissed(RuntimeError):
    """A named wait took longer than it may."""


@dataclass(frozen=True, slots=True)
class Waiting:
    name: str
    since: float
    deadline_seconds: float


class Waits:
    """The waits in progress, oldest first."""

    def __init__(self) -> None:
        self._waiting: dict[int, Waiting] = {}
        self._next = 0

    def current(self) -> list[Waiting]:
        return list(self._waiting.values())

    async def wait(self, name: str, awaitable: Awaitable[T], deadline_seconds: float) -> T:
        """The awaitable's result.

        Raises DeadlineMissed, naming the wait, after `deadline_seconds`; the awaitable is
        cancelled then.
        """
        key = self._next
        self._next += 1
        self._waiting[key] = Waiting(name, time.monotonic(), deadline_seconds)
        try:
            return await asyncio.wait_for(_awaited(awaitable), deadline_seconds)
        except TimeoutError as error:
            raise DeadlineMissed(
                f"waited {deadline_seconds:.0f} s for {name}: no answer. Look at the workers' logs "
                "in the Ray session directory, or raise the deadline"
            ) from error
        finally:
            del self._waiting[key]


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable


async def unless(event: asyncio.Event, awaitable: Coroutine[None, None, T]) -> T | None:
    """The result, or None where `event` comes first; what was awaited is cancelled then."""
    work = asyncio.create_task(awaitable)
    signal = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({work, signal}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        for task in (work, signal):
            task.cancel()


async def unless_ended(work: Awaitable[T], other: Awaitable[None]) -> T:
    """The result of `work`. Raises what `other` raises, or RuntimeError if it just ends, first."""
    working = asyncio.ensure_future(_awaited(work))
    ending = asyncio.ensure_future(_awaited(other))
    try:
        await asyncio.wait({working, ending}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        ending.result()
        raise RuntimeError("the learner group ended before it answered")
    finally:
        for task in (working, ending):
            task.cancel()
