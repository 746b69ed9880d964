"""Storage as the driver asks it: beside its event loop, under a name and by a deadline.

A network file system that does not answer holds whoever asks it, and nobody can end a thread that
it holds. Owns what is known of what was asked and is still at work. What is read and written is
others' business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from manta.orchestrator.side_thread import in_thread
from manta.orchestrator.wait import DeadlineMissed, Waits

P = ParamSpec("P")
T = TypeVar("T")


class StorageHangs(OSError):
    """Storage did not answer in time, and may never."""


class Storage:
    def __init__(self, waits: Waits, deadline_seconds: float) -> None:
        self._waits, self._deadline_seconds = waits, deadline_seconds
        self._at_work: set[asyncio.Future[Any]] = set()
        self.hangs = False
        """Something was left unanswered: what that may still write, nothing can prevent."""

    async def ask(self, what: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` returns or raises. Raises StorageHangs, naming `what`, after the deadline."""
        answer = in_thread(work, *args, **kwargs)
        self._at_work.add(answer)
        answer.add_done_callback(self._at_work.discard)
        seconds, name = self._deadline_seconds, f"storage to {what}"
        try:
            return await self._waits.wait(name, asyncio.shield(answer), seconds)
        except DeadlineMissed as error:
            self.hangs = True
            raise StorageHangs(
                f"waited {seconds:g} s for {name}: no answer. Look at the file system (does ls "
                "there end?) and mount it anew, then start the run again; where it is only slow, "
                "raise run.deadline_minutes"
            ) from error

    async def settle(self) -> None:
        """Until nothing is at work any more, unless it hangs."""
        if self._at_work and not self.hangs:
            try:
                name = "storage to end what the run has given up"
                await self._waits.wait(name, asyncio.wait(self._at_work), self._deadline_seconds)
            except DeadlineMissed:
                self.hangs = True
