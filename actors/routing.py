"""Routing: who waits for an engine, and who is woken when one has room. A plain object.

Owns the waiters and the looks at engines over `Leases`, which decides. Belongs to one event loop;
how engines are reached is handed in, and the clock may be a virtual one.

Calls that take engines out of order overtake each other on their way. So a word counts whenever it
comes: `withdraw` before the `acquire` that it takes back as well.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping

from manta.actors.engine_state import Word
from manta.actors.leases import Ask, Lease, Leases, Ticket
from manta.actors.router_figures import RouterFigures
from manta.actors.row_limit import AdaptiveLimit, FixedLimit, RowLimit

LOOK_SECONDS = 0.02
LOOKS_PER_SECOND = 500.0
"""At most, at all engines together: a look is a call, and whoever routes has other things to do."""


class Routing:
    """`max_rows`: how many rows an engine decodes side by side, `most_rows` how many it may hold.
    With `is_adaptive` the limit follows the engine's speed, up to `most_rows`. `unfinished` asks an
    engine by name for the rows that each of its calls still needs."""

    def __init__(
        self,
        max_rows: int,
        most_rows: int,
        is_adaptive: bool,
        unfinished: Callable[[str], Awaitable[Mapping[Ticket, int]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        def new_limit() -> RowLimit:
            if is_adaptive:
                return AdaptiveLimit(most_rows, max(1, max_rows // 2))
            return FixedLimit(most_rows)

        self._leases = Leases(new_limit, clock)
        self._unfinished = unfinished
        self._waiters: dict[Ticket, asyncio.Future[Lease]] = {}
        self._drains: dict[str, asyncio.Event] = {}
        self._looking: asyncio.Task[None] | None = None

    def tell(self, engine: str, word: Word) -> None:
        """See `manta.actors.engine_state`."""
        self._leases.tell(engine, word)
        self._hand_out()

    async def drain(self, engine: str) -> None:
        """Gives the engine nothing more; returns once it has finished what it has."""
        drained = self._drains.setdefault(engine, asyncio.Event())
        self.tell(engine, "drain")
        await drained.wait()

    async def acquire(self, ask: Ask) -> Lease:
        """An engine that serves; waits, behind those of lower rank, until one has room. Where it
        is cancelled, nothing is left of the ask."""
        if not self._leases.ask(ask):
            raise asyncio.CancelledError
        waiter: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._waiters[ask.ticket] = waiter
        self._hand_out()
        try:
            return await waiter
        except asyncio.CancelledError:
            if self._waiters.pop(ask.ticket, None) is not None:
                self._leases.withdraw(ask.ticket)
            elif not waiter.cancelled():
                self._leases.release(ask.ticket)
            self._hand_out()
            raise

    def release(self, ticket: Ticket, generated: int = 0) -> None:
        """The call is over."""
        self._leases.release(ticket, generated)
        self._hand_out()

    def withdraw(self, ticket: Ticket) -> None:
        """Whoever asks, or asked, with this ticket does not wait for an engine any more."""
        self._leases.withdraw(ticket)
        self._give_up(ticket)
        self._hand_out()

    def lose(self, ticket: Ticket) -> None:
        """Takes the engine out of service that died under this call."""
        self._leases.lose(ticket)
        self._hand_out()

    def forget(self, holder: str) -> Mapping[str, list[Ticket]]:
        """The worker `holder` died: nothing waits for its calls; those under way, by engine."""
        abandoned: dict[str, list[Ticket]] = defaultdict(list)
        for lease in self._leases.forget(holder):
            abandoned[lease.engine].append(lease.ticket)
        for ticket in [ticket for ticket in self._waiters if ticket.holder == holder]:
            self._give_up(ticket)
        self._hand_out()
        return abandoned

    def figures(self) -> RouterFigures:
        return self._leases.figures()

    def _hand_out(self) -> None:
        while leases := self._leases.grant():
            for lease in leases:
                waiter = self._waiters.pop(lease.ticket)
                if waiter.cancelled():
                    self._leases.release(lease.ticket)
                else:
                    waiter.set_result(lease)
        if self._leases.num_waiting and (self._looking is None or self._looking.done()):
            self._looking = asyncio.get_running_loop().create_task(self._look())
        for engine in [name for name in self._drains if self._leases.state(name) == "gone"]:
            self._drains.pop(engine).set()

    async def _look(self) -> None:
        """While calls wait, asks the engines every now and then which of their rows are free."""
        while self._leases.num_waiting and (busy := self._leases.busy):
            await asyncio.sleep(max(LOOK_SECONDS, len(busy) / LOOKS_PER_SECOND))
            await asyncio.gather(*(self._look_at(name) for name in busy))
            self._hand_out()

    async def _look_at(self, engine: str) -> None:
        self._leases.shrink(await self._unfinished(engine))

    def _give_up(self, ticket: Ticket) -> None:
        waiter = self._waiters.pop(ticket, None)
        if waiter is not None:
            waiter.cancel()
