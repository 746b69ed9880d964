"""The workers of one kind that another worker calls: they come and go while it works.

Owns who is asked, and what becomes of a call whose worker died: it is made again elsewhere. Knows
no Ray: what is asked raises `ColleagueLost` where the worker is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from manta.envs.failures import WorkerLost

T = TypeVar("T")
Worker = TypeVar("Worker")

MAX_LOSSES = 3
"""Workers lost under one call: then it may be the call."""
PATIENCE_SECONDS = 120.0
"""How long a call waits for a worker where all have died."""


class ColleagueLost(WorkerLost):
    """The worker that a call was made to is gone."""


class Colleagues(Generic[Worker]):
    """Takes turns. `kind` is what a person calls such a worker."""

    def __init__(
        self, kind: str, workers: Sequence[Worker], patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        self._kind, self._patience = kind, patience_seconds
        self._workers = list(workers)
        self._next = 0
        self._come = asyncio.Event()

    def meet(self, workers: Sequence[Worker]) -> None:
        """From now on these are all that there are; they are ready for every call."""
        self._workers = list(workers)
        self._come.set()

    async def ask(self, call: Callable[[Worker], Awaitable[T]]) -> T:
        """What a worker answers. Raises ColleagueLost where several died under the call, or none
        is there and none comes."""
        losses = 0
        while True:
            worker = await self._one()
            try:
                return await call(worker)
            except ColleagueLost:
                losses += 1
                if losses == MAX_LOSSES:
                    raise
                if worker in self._workers:
                    self._workers.remove(worker)

    async def _one(self) -> Worker:
        if not self._workers:
            try:
                await asyncio.wait_for(self._come_back(), self._patience)
            except TimeoutError:
                raise ColleagueLost(
                    f"every {self._kind} has died, and none came back within {self._patience:g} s"
                ) from None
        self._next += 1
        return self._workers[self._next % len(self._workers)]

    async def _come_back(self) -> None:
        while not self._workers:
            self._come.clear()
            await self._come.wait()
