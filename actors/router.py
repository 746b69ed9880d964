"""The router: a Ray shell over `Routing`, which wakes who has got an engine."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import ray

from manta.actors.alive import Alive
from manta.actors.engine_state import Word
from manta.actors.leases import Ask, Lease, Ticket
from manta.actors.router_figures import RouterFigures
from manta.actors.routing import Routing

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from manta.actors.rollout import RolloutWorker


class Router(Alive):
    """Methods as in `Routing`, for engines by their handles. Calls of one caller may overtake each
    other: an asynchronous actor takes them as they come in."""

    def __init__(self, max_rows: int, most_rows: int, is_adaptive: bool = False) -> None:
        self._handles: dict[str, ActorHandle[RolloutWorker]] = {}
        self._routing = Routing(max_rows, most_rows, is_adaptive, self._unfinished)

    async def join(self, engine: str, handle: ActorHandle[RolloutWorker]) -> None:
        """A new engine, or a new life of one; it gets nothing until `serve`."""
        self._handles[engine] = handle
        self._routing.tell(engine, "join")

    async def tell(self, engine: str, word: Word) -> None:
        self._routing.tell(engine, word)

    async def drain(self, engine: str) -> None:
        await self._routing.drain(engine)

    async def acquire(self, ask: Ask) -> tuple[Lease, ActorHandle[RolloutWorker]]:
        lease = await self._routing.acquire(ask)
        return lease, self._handles[lease.engine]

    async def release(self, ticket: Ticket, generated: int = 0) -> None:
        self._routing.release(ticket, generated)

    async def withdraw(self, ticket: Ticket) -> None:
        self._routing.withdraw(ticket)

    async def lose(self, ticket: Ticket) -> None:
        self._routing.lose(ticket)

    async def forget(self, holder: str) -> None:
        """The worker `holder` died: nothing waits for its calls, and engines drop their rows."""
        for engine, tickets in self._routing.forget(holder).items():
            self._handles[engine].abandon.remote(tickets)

    async def figures(self) -> RouterFigures:
        return self._routing.figures()

    async def _unfinished(self, engine: str) -> Mapping[Ticket, int]:
        # An engine that died has no rows to tell of; those who called it say that it is lost.
        with suppress(ray.exceptions.RayError):
            found: Mapping[Ticket, int] = await self._handles[engine].unfinished.remote()
            return found
        return {}
