"""The workers of one kind that can be asked now, by name, and waiting for one where there is none.

Owns who they are. Replacing them is `manta.orchestrator.seats`'s part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

import ray
from ray.actor import ActorHandle

from manta.orchestrator.pools import ask_each
from manta.orchestrator.seats import MAX_TRIES, NoWorkerLeft

T = TypeVar("T")
Answer = TypeVar("Answer")

_SOON_SECONDS = 0.05


class Living(Generic[T]):
    """`workers` of `kind`; `newcomers` are being made ready, and told what everybody is told."""

    def __init__(self, kind: str, workers: Mapping[str, ActorHandle[T]]) -> None:
        self._kind = kind
        self.workers = dict(workers)
        self.newcomers: dict[str, ActorHandle[T]] = {}
        self.is_kept: Callable[[], bool] = lambda: False
        """Is there somebody who replaces those that die?"""
        self._come = asyncio.Event()

    def come(self, name: str) -> None:
        """A newcomer is ready."""
        self.workers[name] = self.newcomers.pop(name)
        self._come.set()

    def go(self, name: str) -> None:
        """Nothing more is asked of this worker."""
        self.newcomers.pop(name, None)
        self.workers.pop(name, None)

    @property
    def everyone(self) -> dict[str, ActorHandle[T]]:
        """Those that can be asked, and newcomers."""
        return {**self.workers, **self.newcomers}

    async def one(self, least: Callable[[str], float] = lambda name: 0.0) -> str:
        """The name of a worker, with the `least` of something; waits where there is none.

        Raises NoWorkerLeft where none will come.
        """
        while not self.workers:
            self._check_that_some_come()
            self._come.clear()
            await self._come.wait()
        return min(self.workers, key=least)

    async def tell_all(self, call: Callable[[ActorHandle[T]], Awaitable[Answer]]) -> list[Answer]:
        """What each worker answers that lives, newcomers too; waits for one where none does."""
        while not (answers := await ask_each(self.everyone, call)):
            self._check_that_some_come()
            # Those that have just died are known to be gone soon
            await asyncio.sleep(_SOON_SECONDS)
            await self.one()
        return answers

    async def ask_one(
        self,
        call: Callable[[ActorHandle[T]], Awaitable[Answer]],
        least: Callable[[str], float] = lambda name: 0.0,
    ) -> Answer:
        """What a worker answers, or another one where it dies under that."""
        for left in reversed(range(MAX_TRIES)):
            name = await self.one(least)
            try:
                return await call(self.workers[name])
            except ray.exceptions.ActorDiedError:
                self.go(name)
                if not left:
                    raise
        raise AssertionError("the last try raises or returns")

    def _check_that_some_come(self) -> None:
        if not self.is_kept():
            raise NoWorkerLeft(
                f"every {self._kind} has died: look at their logs in the Ray session directory "
                "(out of memory?), then start the run again"
            )
