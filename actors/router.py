"""The router: a Ray shell over `Leases`, which decides. It wakes who has got an engine.

An asynchronous actor takes calls as they come in, and those of one caller may overtake each other.
So a word counts whenever it comes: `withdraw` before the `acquire` that it takes back as well.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING

import ray

from manta.actors.alive import Alive
from manta.actors.engine_state import Word
from manta.actors.leases import Ask, Lease, Leases, Ticket
from manta.actors.router_figures import RouterFigures
from manta.actors.row_limit import AdaptiveLimit, FixedLimit, RowLimit

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from manta.actors.rollout import RolloutWorker

LOOK_SECONDS = 0.02


class Router(Alive):
    """`most_rows`: how many rows an engine may hold, `max_rows` of which it decodes side by side.
    With `is_adaptive` the limit follows the engine's speed, up to `most_rows`."""

    def __init__(self, max_rows: int, most_rows: int, is_adaptive: bool = False) -> None:
        def new_limit() -> RowLimit:
            if is_adaptive:
                return AdaptiveLimit(most_rows, max(1, max_rows // 2))
            return FixedLimit(most_rows)

        self._leases = Leases(new_limit)
        self._handles: dict[str, ActorHandle[RolloutWorker]] = {}
        self._waiters: dict[Ticket, asyncio.Future[Lease]] = {}
        self._drains: dict[str, asyncio.Event] = {}
        self._looking: asyncio.Task[None] | None = None

    async def join(self, engine: str, handle: ActorHandle[RolloutWorker]) -> None:
        """A new engine, or a new life of one; it gets nothing until `serve`."""
        self._handles[engine] = handle
        self._leases.tell(engine, "join")

    async def tell(self, engine: str, word: Word) -> None:
        """See `manta.actors.engine_state`."""
        self._leases.tell(engine, word)
        self._hand_out()

    async def drain(self, engine: str) -> None:
        """Gives the engine nothing more; returns once it has finished what it has."""
        drained = self._drains.setdefault(engine, asyncio.Event())
        await self.tell(engine, "drain")
        await drained.wait()

    async def acquire(self, ask: Ask) -> tuple[Lease, ActorHandle[RolloutWorker]]:
        """An engine that serves; waits, behind those of lower rank, until one has room."""
        if not self._leases.ask(ask):
            raise asyncio.CancelledError
        waiter = self._waiters[ask.ticket] = asyncio.get_running_loop().create_future()
        self._hand_out()
        lease = await waiter
        return lease, self._handles[lease.engine]

    async def release(self, ticket: Ticket, generated: int = 0) -> None:
        """The call is over."""
        self._leases.release(ticket, generated)
        self._hand_out()

    async def withdraw(self, ticket: Ticket) -> None:
        """Whoever asks, or asked, with this ticket does not wait for an engine any more."""
        self._leases.withdraw(ticket)
        self._give_up(ticket)
        self._hand_out()

    async def lose(self, ticket: Ticket) -> None:
        """Takes the engine out of service that died under this call."""
        self._leases.lose(ticket)
        self._hand_out()

    async def forget(self, holder: str) -> None:
        """The worker `holder` died: nothing waits for its calls, and engines drop their rows."""
        abandoned = defaultdict(list)
        for lease in self._leases.forget(holder):
            abandoned[lease.engine].append(lease.ticket)
        for engine, tickets in abandoned.items():
            self._handles[engine].abandon.remote(tickets)
        for ticket in [ticket for ticket in self._waiters if ticket.holder == holder]:
            self._give_up(ticket)
        self._hand_out()

    async def figures(self) -> RouterFigures:
        return self._leases.figures()

    def _hand_out(self) -> None:
        while leases := self._leases.grant():
            for lease in leases:
                waiter = self._waiters.pop(lease.ticket)
                waiter.set_result(lease)
        if self._leases.num_waiting and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self._look())
        for engine in [name for name in self._drains if self._leases.state(name) == "gone"]:
            self._drains.pop(engine).set()

    async def _look(self) -> None:
        """While calls wait, asks the engines every now and then which of their rows are free."""
        while self._leases.num_waiting:
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.gather(
                *(
                    self._look_at(handle)
                    for name, handle in self._handles.items()
                    if self._leases.state(name) == "serving"
                )
            )
            self._hand_out()

    async def _look_at(self, handle: ActorHandle[RolloutWorker]) -> None:
        # An engine that died has no rows to tell of; those who called it say that it is lost.
        with suppress(ray.exceptions.RayError):
            self._leases.shrink(await handle.unfinished.remote())

    def _give_up(self, ticket: Ticket) -> None:
        waiter = self._waiters.pop(ticket, None)
        if waiter is not None:
            waiter.cancel()
