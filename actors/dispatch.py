"""Calls to engines: through the router, and on another engine where one is lost.

Owns the life of a call: its lease, the looks at it while it is long, and what is asked for again.

**What survives an engine.** Only what left it before. Three ways to get tokens out were weighed:
to stream them (a message per token or so, all the time); to generate in segments (every segment
runs the prefix again, queues again, and waits for the longest row of its call); and to look at a
call that takes long. The last is taken: nothing is paid for a call shorter than
`progress_seconds`, one small message per `progress_seconds` for a longer one, and the batch that
decodes is left alone. What an engine made since the last look is lost with it; that is at most
`progress_seconds` of its work. What was fetched keeps its log-probs and versions, and goes on
elsewhere as a prefix: same seeds, the random stream going on where it was.

In a deterministic run a lost engine breaks the group, which is made again from its start: one
group is one engine batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from manta.actors.drafts import Drafts
from manta.actors.leases import Ask, Lease, Ticket
from manta.actors.router_figures import EngineLife
from manta.envs.failures import WorkerLost
from manta.envs.packing import PackedCompletions
from manta.envs.records import Completion, GenerateRequest
from manta.envs.side_by_side import ending, side_by_side

MAX_LOSSES = 3
"""Engines lost under one call: then it may be the call."""


class EngineLost(WorkerLost):
    """The engine that a call was made to is gone, or cannot be reached."""


class EngineClient(Protocol):
    """One engine, from afar. Every method raises EngineLost where it is gone."""

    def generate(
        self, ticket: Ticket, requests: Sequence[GenerateRequest]
    ) -> Awaitable[PackedCompletions]: ...

    def progress(
        self, ticket: Ticket, known: Sequence[Sequence[int]]
    ) -> Awaitable[PackedCompletions | None]: ...

    def abandon(self, ticket: Ticket) -> None:
        """Not waited for."""
        ...


class RouterClient(Protocol):
    """The router, from afar. `release` is not waited for, and may arrive late."""

    def acquire(self, ask: Ask) -> Awaitable[tuple[Lease, EngineClient]]:
        """Where it is cancelled, nothing is left of the ask."""
        ...

    def release(self, ticket: Ticket, generated: int) -> None: ...

    def lose(self, ticket: Ticket) -> Awaitable[None]: ...


@dataclass(frozen=True, slots=True)
class DispatchSettings:
    """`rows_per_call` bounds the samples that travel in one call, unless one request has more.
    `progress_seconds` lie between two looks at a long call. With `restarts` nothing is kept of a
    call whose engine is lost."""

    rows_per_call: int
    progress_seconds: float
    restarts: bool


class Dispatch:
    """The calls that `holder`, a worker, makes."""

    def __init__(self, router: RouterClient, holder: str, settings: DispatchSettings) -> None:
        self._router, self._holder, self._settings = router, holder, settings
        self._number = 0

    def ticket(self) -> Ticket:
        """A new one."""
        self._number += 1
        return Ticket(self._holder, self._number)

    async def generate(
        self,
        requests: Sequence[GenerateRequest],
        rank: tuple[int, ...],
        homes: dict[str, EngineLife],
    ) -> list[list[Completion]]:
        """All samples of `requests`, in order; `rank` is their place in the router's queue.

        `homes` remembers which engine has the prefix of a session; the caller keeps it as long as
        the sessions last. Raises EngineLost where engines were lost under a call and it is not
        to go on elsewhere. A cancelled call frees its rows.
        """
        calls = list(_calls(requests, homes, self._settings.rows_per_call))
        done = await side_by_side(
            [self._call([requests[i] for i in places], rank, homes) for places in calls]
        )
        made: dict[int, list[Completion]] = {}
        for places, completions in zip(calls, done, strict=True):
            made.update(zip(places, completions, strict=True))
        return [made[i] for i in range(len(requests))]

    async def _call(
        self,
        requests: Sequence[GenerateRequest],
        rank: tuple[int, ...],
        homes: dict[str, EngineLife],
    ) -> list[list[Completion]]:
        """Requests that travel together, to one engine after the other until all is made."""
        drafts = Drafts(requests)
        losses = 0
        while wanted := drafts.open():
            home = homes.get(requests[0].session)
            ask = _ask(self.ticket(), rank, wanted, home, losses > 0, drafts.num_made)
            try:
                life = await self._lease(ask, wanted, drafts)
                homes.update({r.session: life for r in requests if r.session})
            except EngineLost:
                losses += 1
                if self._settings.restarts or losses == MAX_LOSSES:
                    raise
        return drafts.completions()

    async def _lease(self, ask: Ask, wanted: list[GenerateRequest], drafts: Drafts) -> EngineLife:
        """One engine's part; what it made so far is in `drafts`, also where it is lost."""
        before = drafts.num_made
        lease, engine = await self._router.acquire(ask)
        try:
            await self._make(engine, ask.ticket, wanted, drafts)
            return lease.life
        except EngineLost:
            # Waited for: the next ask must not be granted the engine that is lost
            await self._router.lose(ask.ticket)
            raise
        except asyncio.CancelledError:
            engine.abandon(ask.ticket)
            raise
        finally:
            self._router.release(ask.ticket, drafts.num_made - before)

    async def _make(
        self, engine: EngineClient, ticket: Ticket, wanted: list[GenerateRequest], drafts: Drafts
    ) -> None:
        call = asyncio.ensure_future(engine.generate(ticket, wanted))
        async with ending(call):
            while not await _ends_within(call, self._settings.progress_seconds):
                found = await engine.progress(ticket, drafts.known())
                if found is not None:
                    drafts.grow(found.unpack())
            drafts.finish(call.result().unpack())


async def _ends_within(call: asyncio.Future[PackedCompletions], seconds: float) -> bool:
    done, _ = await asyncio.wait({call}, timeout=seconds)
    return bool(done)


def _calls(
    requests: Sequence[GenerateRequest], homes: dict[str, EngineLife], most_rows: int
) -> Iterator[list[int]]:
    """Places of the requests that travel together: those of one home, up to `most_rows` rows."""
    by_home: dict[EngineLife | None, list[int]] = {}
    for i, request in enumerate(requests):
        by_home.setdefault(homes.get(request.session), []).append(i)
    for places in by_home.values():
        call: list[int] = []
        rows = 0
        for i in places:
            count = len(requests[i].seeds)
            if call and rows + count > most_rows:
                yield call
                call, rows = [], 0
            call.append(i)
            rows += count
        yield call


def _ask(
    ticket: Ticket,
    rank: tuple[int, ...],
    wanted: Sequence[GenerateRequest],
    home: EngineLife | None,
    is_retry: bool,
    kept: int,
) -> Ask:
    rows = sum(len(request.seeds) for request in wanted)
    tokens = sum(len(request.prefix) + sum(request.budgets) for request in wanted)
    return Ask(ticket, rank, rows, tokens, home, is_retry, kept)
