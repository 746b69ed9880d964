"""The calls of `generate` that an engine works on, by the ticket of the lease they came with.

Owns looking at a call under way and ending it. The engine decides everything else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from manta.actors.engines.progress import Progress
from manta.actors.engines.protocol import Engine
from manta.actors.leases import Ticket
from manta.envs.packing import PackedCompletions, pack_completions
from manta.envs.records import Completion, GenerateRequest


class CallAbandoned(RuntimeError):
    """Nobody waits for the call any more."""


_REMEMBERED = 256


class EngineCalls:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._calls: dict[Ticket, tuple[asyncio.Task[list[list[Completion]]], Progress]] = {}
        self._samples: dict[Ticket, int] = {}
        self._abandoned: deque[Ticket] = deque(maxlen=_REMEMBERED)
        """Those that were not under way: over, or about to come."""

    def __len__(self) -> int:
        return len(self._calls)

    async def generate(
        self, ticket: Ticket, requests: Sequence[GenerateRequest]
    ) -> PackedCompletions:
        """All samples. Raises CallAbandoned where the call is abandoned; its rows are free then, as
        they are where it is cancelled."""
        if ticket in self._abandoned:
            raise _abandoned(ticket)
        progress = Progress()
        call = asyncio.ensure_future(self._engine.generate(requests, progress))
        self._calls[ticket] = (call, progress)
        self._samples[ticket] = sum(len(request.seeds) for request in requests)
        try:
            await asyncio.wait({call})
            if call.cancelled():
                raise _abandoned(ticket)
            return pack_completions(call.result())
        finally:
            call.cancel()
            del self._calls[ticket], self._samples[ticket]

    def unfinished(self) -> dict[Ticket, int]:
        """By call, how many of its samples have not ended."""
        return {
            ticket: self._samples[ticket] - progress.num_ended
            for ticket, (_, progress) in self._calls.items()
        }

    async def progress(
        self, ticket: Ticket, known: Sequence[Sequence[int]]
    ) -> PackedCompletions | None:
        """What each sample of the call has beyond its first `known` tokens, its version spans in
        whole; None where the call has ended, or has not begun."""
        under_way = self._calls.get(ticket)
        if under_way is None:
            return None
        found = await under_way[1].read()
        return pack_completions(
            [
                [
                    _beyond(completion, count)
                    for completion, count in zip(group, counts, strict=True)
                ]
                for group, counts in zip(found, known, strict=True)
            ]
            if found
            else []
        )

    def abandon(self, tickets: Sequence[Ticket]) -> None:
        """Ends these calls, also those that are still on their way here: nobody waits for them."""
        for ticket in tickets:
            if ticket in self._calls:
                self._calls[ticket][0].cancel()
            else:
                self._abandoned.append(ticket)


def _abandoned(ticket: Ticket) -> CallAbandoned:
    return CallAbandoned(f"call {ticket.number} of {ticket.holder} was abandoned")


def _beyond(completion: Completion, count: int) -> Completion:
    return replace(
        completion,
        token_ids=completion.token_ids[count:],
        logprobs=completion.logprobs[count:],
    )
