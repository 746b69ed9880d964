"""The router: which engine takes a request. Leases carry the engine's generation number.

The plain object `Leases` decides (least outstanding tokens); the shell makes it an actor. Engines
that are not in service get nothing: requests wait until one is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from manta.actors.rollout import RolloutWorker


@dataclass(frozen=True, slots=True)
class Lease:
    """`tokens` of work on `engine` in its `generation`-th life."""

    engine: str
    generation: int
    tokens: int


class Leases:
    """Outstanding tokens by engine. A lease from an earlier generation counts for nothing."""

    def __init__(self) -> None:
        self._outstanding: dict[str, int] = {}
        self._generations: dict[str, int] = {}

    def register(self, engine: str) -> None:
        """Takes `engine` into service; a name that returns starts a new generation."""
        self._generations[engine] = self._generations.get(engine, -1) + 1
        self._outstanding[engine] = 0

    def retire(self, engine: str) -> None:
        self._outstanding.pop(engine, None)

    def lose(self, lease: Lease) -> None:
        """The engine died under `lease`; one that has come back under its name stays in service."""
        if self._generations[lease.engine] == lease.generation:
            self.retire(lease.engine)

    def acquire(self, tokens: int) -> Lease | None:
        """The engine with the fewest outstanding tokens; None where none is in service."""
        if not self._outstanding:
            return None
        engine = min(self._outstanding, key=lambda name: (self._outstanding[name], name))
        self._outstanding[engine] += tokens
        return Lease(engine, self._generations[engine], tokens)

    def release(self, lease: Lease) -> None:
        if self._generations[lease.engine] == lease.generation and (
            lease.engine in self._outstanding
        ):
            self._outstanding[lease.engine] -= lease.tokens

    def loads(self) -> Mapping[str, int]:
        return dict(self._outstanding)


class Router:
    """The shell of `Leases`; hands out the engine's handle with the lease."""

    def __init__(self) -> None:
        self._leases = Leases()
        self._handles: dict[str, ActorHandle[RolloutWorker]] = {}
        self._changed = asyncio.Condition()

    async def register(self, engine: str, handle: ActorHandle[RolloutWorker]) -> None:
        async with self._changed:
            self._handles[engine] = handle
            self._leases.register(engine)
            self._changed.notify_all()

    async def retire(self, engine: str) -> None:
        self._leases.retire(engine)

    async def acquire(self, tokens: int) -> tuple[Lease, ActorHandle[RolloutWorker]]:
        """The least loaded engine; waits until one is in service."""
        async with self._changed:
            while (lease := self._leases.acquire(tokens)) is None:
                await self._changed.wait()
        return lease, self._handles[lease.engine]

    async def lose(self, lease: Lease) -> None:
        """Takes the engine out of service that died under `lease`: it gets no more requests."""
        self._leases.lose(lease)

    async def release(self, lease: Lease) -> None:
        self._leases.release(lease)

    async def loads(self) -> Mapping[str, int]:
        return self._leases.loads()
