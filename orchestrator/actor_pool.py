"""Actors of one kind that the driver asks, as the role of their seats.

Owns what all such kinds have in common. How one is started and made ready is its pool's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import ray
from ray.actor import ActorHandle

from manta.actors.alive import Alive
from manta.orchestrator.living import Living
from manta.orchestrator.seats import Seats

T = TypeVar("T", bound=Alive)


async def nobody() -> None:
    """Nobody wants to know."""


class ActorPool(ABC, Generic[T]):
    """Methods as in `manta.orchestrator.seats.Role`. A worker that dies is replaced while `seats`
    run; `tell` is awaited whenever others can be called."""

    role: str

    def __init__(self, workers: int) -> None:
        """To be called once `start` can be."""
        self.tell: Callable[[], Awaitable[None]] = nobody
        first = [self.start(seat) for seat in range(workers)]
        self.living = Living(self.role, dict(first))
        self.seats = Seats(self, first)
        self.living.is_kept = lambda: self.seats.is_running

    @property
    def handles(self) -> list[ActorHandle[T]]:
        """Those that can be called now."""
        return list(self.living.workers.values())

    @abstractmethod
    def start(self, seat: int) -> tuple[str, ActorHandle[T]]: ...

    @abstractmethod
    async def join(self, name: str, worker: ActorHandle[T]) -> None: ...

    async def stay(self, worker: ActorHandle[T]) -> None:
        await worker.stay.remote()

    async def lost(self, name: str) -> None:
        self.living.go(name)
        await self.tell()

    async def leave(self, name: str) -> None:
        """Calls that it has are made again elsewhere."""
        await self.lost(name)

    async def end(self, name: str, worker: ActorHandle[T]) -> None:
        ray.kill(worker)
