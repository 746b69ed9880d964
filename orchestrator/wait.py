"""Every wait of the driver has a name and a deadline; nothing hangs without saying what it is.

Owns the register of waits in progress, which display and status file read. Acting on a missed
deadline is the caller's part.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TypeVar

from manta.envs.side_by_side import ending

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
        self.witness: Callable[[], str] = lambda: ""
        """Who does not answer, in a sentence for the error of a missed deadline."""

    def current(self) -> list[Waiting]:
        return list(self._waiting.values())

    async def wait(self, name: str, awaitable: Awaitable[T], deadline_seconds: float) -> T:
        """The awaitable's result.

        Raises DeadlineMissed, naming the wait, after `deadline_seconds`; the awaitable is
        cancelled then. A TimeoutError of the awaitable's own comes out as it is.
        """
        key = self._next
        self._next += 1
        self._waiting[key] = Waiting(name, time.monotonic(), deadline_seconds)
        # Not wait_for: up to Python 3.11 it loses a cancellation that meets a result.
        limit = asyncio.timeout(deadline_seconds)
        try:
            async with limit:
                return await awaitable
        except TimeoutError as error:
            if not limit.expired():
                raise
            told = [f"waited {deadline_seconds:g} s for {name}: no answer.", self.witness()]
            told.append(
                "Look at the workers' logs in the Ray session directory (manta doctor RUN_DIR "
                "shows their ends), or raise run.deadline_minutes"
            )
            raise DeadlineMissed(" ".join(filter(None, told))) from error
        finally:
            del self._waiting[key]


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable


async def unless(event: asyncio.Event, awaitable: Coroutine[None, None, T]) -> T | None:
    """The result, or None where `event` comes first; what was awaited has been cancelled then, and
    has ended. What it raises comes out, also where it raises while it is being cancelled."""
    work = asyncio.create_task(awaitable)
    signal = asyncio.create_task(event.wait())
    async with ending(work, signal):
        await asyncio.wait({work, signal}, return_when=asyncio.FIRST_COMPLETED)
    if work.cancelled() and event.is_set():
        return None
    return work.result()


async def unless_ended(work: Awaitable[T], other: Awaitable[None]) -> T:
    """The result of `work`. Raises what `other` raises, or RuntimeError if it just ends, first.

    Where both fail, the error of `other` is raised from that of `work`.
    """
    working = asyncio.ensure_future(_awaited(work))
    watching = asyncio.ensure_future(_awaited(other))
    async with ending(working), ending(watching):
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
    if not watching.cancelled() and (failure := watching.exception()) is not None:
        if not working.cancelled() and (other_failure := working.exception()) is not None:
            raise failure from other_failure
        raise failure
    if working.cancelled() and not watching.cancelled():
        raise RuntimeError("the learner group ended before it answered")
    return working.result()
