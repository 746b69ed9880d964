"""The router and the engines behind it, as a worker on another node sees them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import ray

from manta.actors.dispatch import EngineLost
from manta.actors.leases import Ask, Lease, Ticket
from manta.envs.packing import PackedCompletions
from manta.envs.records import Float32, GenerateRequest, Int32

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from manta.actors.rollout import RolloutWorker
    from manta.actors.router import Router


class RemoteEngine:
    """A rollout worker. What it raises is EngineLost where Ray lost it."""

    def __init__(self, handle: ActorHandle[RolloutWorker]) -> None:
        self._handle = handle

    async def generate(
        self, ticket: Ticket, requests: Sequence[GenerateRequest]
    ) -> PackedCompletions:
        async with _told_apart():
            return await self._handle.generate.remote(ticket, requests)

    async def progress(
        self, ticket: Ticket, known: Sequence[Sequence[int]]
    ) -> PackedCompletions | None:
        async with _told_apart():
            return await self._handle.progress.remote(ticket, known)

    async def logprobs(self, rows: Sequence[Int32]) -> list[Float32]:
        async with _told_apart():
            return await self._handle.logprobs.remote(rows)

    def abandon(self, ticket: Ticket) -> None:
        self._handle.abandon.remote([ticket])


class RemoteRouter:
    def __init__(self, handle: ActorHandle[Router]) -> None:
        self._handle = handle

    async def acquire(self, ask: Ask) -> tuple[Lease, RemoteEngine]:
        try:
            lease, handle = await self._handle.acquire.remote(ask)
        except asyncio.CancelledError:
            self._handle.withdraw.remote(ask.ticket)
            raise
        return lease, RemoteEngine(handle)

    def release(self, ticket: Ticket, generated: int) -> None:
        self._handle.release.remote(ticket, generated)

    async def lose(self, ticket: Ticket) -> None:
        await self._handle.lose.remote(ticket)


@asynccontextmanager
async def _told_apart() -> AsyncIterator[None]:
    try:
        yield
    except ray.exceptions.RayActorError as error:
        raise EngineLost(f"the engine was lost: {error}") from error
