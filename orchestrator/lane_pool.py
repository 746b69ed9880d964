"""Actors that work in lanes and call others: what a newcomer is told before it is asked.

Owns which lanes are open, and the order of news about those whom workers call. What either is, is
the pool's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

from ray.actor import ActorHandle

from manta.actors.alive import LIFE, Alive
from manta.actors.lanes import Lane
from manta.orchestrator.actor_pool import ActorPool
from manta.orchestrator.pools import ask_each

T = TypeVar("T", bound=Alive)


class LanePool(ActorPool[T]):
    """`_edition` counts the news: calls may overtake each other, and the newest one holds."""

    def __init__(self, workers: int) -> None:
        self._edition = 0
        self._lanes: dict[str, tuple[Lane, Mapping[str, str]]] = {}
        super().__init__(workers)

    @abstractmethod
    async def _introduce(self, worker: ActorHandle[T]) -> None:
        """Tells a worker whom it may call, as of `_edition`."""

    async def join(self, name: str, worker: ActorHandle[T]) -> None:
        """Lanes that open, and news, while this one gets ready, it is told of with all others."""
        if name in self.living.workers:
            await self._introduce(worker)
            return
        self.living.newcomers[name] = worker
        await self._introduce(worker)
        for lane, versions in list(self._lanes.values()):
            await worker.open.remote(lane, versions)
        self.living.come(name)
        await self.tell()

    async def busy(self) -> float:
        """How many workers the work of all would have filled since this was asked last."""
        return sum(await ask_each(self.living.workers, _busy))

    async def _spread_news(self) -> None:
        self._edition += 1
        await ask_each(self.living.everyone, self._introduce)


def _busy(worker: ActorHandle[Any]) -> Awaitable[float]:
    answer: Awaitable[float] = worker.busy.options(concurrency_group=LIFE).remote()
    return answer
