"""Completions by hand, and an engine on call: what it makes, and when it dies, is scripted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from manta.actors.dispatch import EngineLost
from manta.actors.leases import Ask, Lease, Ticket
from manta.actors.router_figures import EngineLife
from manta.envs.packing import PackedCompletions, pack_completions
from manta.envs.records import (
    Completion,
    FinishReason,
    GenerateRequest,
    Sampling,
    VersionSpan,
    WeightVersion,
)


def request(
    *budgets: int, first: int = 0, stops: tuple[int, ...] = (), session: str = ""
) -> GenerateRequest:
    """Seeds are `first`, `first + 1`, ..."""
    seeds = tuple(range(first, first + len(budgets)))
    return GenerateRequest(
        np.array([1, 2], np.int32), seeds, budgets, Sampling(stop_token_ids=stops), session=session
    )


def made(ids: Sequence[int], reason: FinishReason = "abort", *spans: tuple[int, int]) -> Completion:
    """`spans` are (start, step); log-probs are minus the ids."""
    tokens = np.array(ids, np.int32)
    versions = tuple(VersionSpan(start, WeightVersion(step, 0)) for start, step in spans)
    return Completion(tokens, -tokens.astype(np.float32), versions, reason)


class OnCall:
    """Token i of a sample's stream is `100 * seed + i`, so that what it makes tells which seed and
    place of the stream it was drawn from. It has made `visible` tokens of every sample when it is
    looked at; a call ends after `looks` looks, by death if it `dies`."""

    def __init__(self, step: int, visible: int = 0, looks: int = 0, dies: bool = False) -> None:
        self.requests: list[list[GenerateRequest]] = []
        self.abandoned: list[Ticket] = []
        self._version = WeightVersion(step, 0)
        self._visible, self._looks, self._dies = visible, looks, dies
        self._ends = asyncio.Event()
        if looks == 0:
            self._ends.set()

    @property
    def num_asked(self) -> int:
        """Tokens that it was asked for."""
        return sum(sum(r.budgets) for call in self.requests for r in call)

    async def generate(
        self, ticket: Ticket, requests: Sequence[GenerateRequest]
    ) -> PackedCompletions:
        self.requests.append(list(requests))
        await self._ends.wait()
        if self._dies:
            raise EngineLost("killed")
        return pack_completions(self._so_far(requests, 10**9))

    async def progress(
        self, ticket: Ticket, known: Sequence[Sequence[int]]
    ) -> PackedCompletions | None:
        self._looks -= 1
        if self._looks <= 0:
            self._ends.set()
        found = self._so_far(self.requests[-1], self._visible)
        return pack_completions(
            [
                [
                    Completion(c.token_ids[k:], c.logprobs[k:], c.weight_versions, c.finish_reason)
                    for c, k in zip(group, counts, strict=True)
                ]
                for group, counts in zip(found, known, strict=True)
            ]
        )

    def abandon(self, ticket: Ticket) -> None:
        self.abandoned.append(ticket)

    def _so_far(self, requests: Sequence[GenerateRequest], visible: int) -> list[list[Completion]]:
        return [
            [
                made(
                    [100 * seed + r.drawn + i for i in range(min(budget, visible))],
                    "length" if budget <= visible else "abort",
                    (0, self._version.step),
                )
                for seed, budget in zip(r.seeds, r.budgets, strict=True)
            ]
            for r in requests
        ]


class OneAfterTheOther:
    """A router that hands out `engines` in turn, the last one for ever. `events` is what it was
    told."""

    def __init__(self, *engines: OnCall) -> None:
        self.asks: list[Ask] = []
        self.events: list[tuple[str, Ticket, int]] = []
        self._engines = engines

    async def acquire(self, ask: Ask) -> tuple[Lease, OnCall]:
        place = min(len(self.asks), len(self._engines) - 1)
        self.asks.append(ask)
        lease = Lease(ask.ticket, EngineLife(f"e{place}", 0), ask.rows, ask.tokens)
        return lease, self._engines[place]

    def release(self, ticket: Ticket, generated: int) -> None:
        self.events.append(("release", ticket, generated))

    async def lose(self, ticket: Ticket) -> None:
        self.events.append(("lose", ticket, 0))
