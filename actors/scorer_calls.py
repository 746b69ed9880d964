"""Calls to a named scorer: one of its workers answers, and another one where that is lost.

Owns who is asked, for how long, and what becomes of a call whose worker died. Knows no Ray: workers
are `ScorerEndpoint`s (`manta.actors.scorer_client`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Sequence
from itertools import islice
from typing import Protocol

from manta.actors.coalesce import Coalescer
from manta.envs.failures import WorkerLost, WorldBroke
from manta.envs.packing import PackedShown, pack_shown
from manta.envs.records import Score, Shown


class ScorerLost(WorkerLost):
    """The worker that a call was made to is gone."""


class ScorerEndpoint(Protocol):
    """One worker, from afar."""

    def score(self, packed: PackedShown) -> Awaitable[list[Score]]:
        """Raises ScorerLost where the worker is gone."""
        ...


class ScorerCalls:
    """The scorer `name` as a reward calls it; what a turn of the event loop asks travels together.

    A call goes to the worker with the fewest late and then the fewest outstanding calls. Where that
    dies the call is made again elsewhere, be it on one that comes later (`meet`); where no answer
    comes within `deadline_seconds`, the world broke, and whoever asked tries its group again.
    """

    def __init__(
        self, name: str, endpoints: Sequence[ScorerEndpoint], deadline_seconds: float
    ) -> None:
        self._name, self._deadline = name, deadline_seconds
        self._numbers = itertools.count()
        self._living = self._numbered(endpoints)
        self._come = asyncio.Event()
        self._outstanding: Counter[int] = Counter()
        self._late: Counter[int] = Counter()
        self._version: str | None = None
        self._asked: Coalescer[Sequence[Shown], list[Score]] = Coalescer(self._ask)

    def meet(self, endpoints: Sequence[ScorerEndpoint]) -> None:
        """From now on these are all that there are; they have their models. Calls under way go on
        where they are."""
        self._living = self._numbered(endpoints)
        self._come.set()

    @property
    def version(self) -> str:
        """Of the model that the workers hold; they are told before anything is scored."""
        assert self._version is not None, f"scorer {self._name} has no model yet"
        return self._version

    @version.setter
    def version(self, version: str) -> None:
        self._version = version

    async def __call__(self, shown: Sequence[Shown]) -> list[Score]:
        """Raises WorldBroke; what else a worker raises is a bug, or a score that is none."""
        return await self._asked(shown)

    async def _ask(self, asked: list[Sequence[Shown]]) -> list[list[Score]]:
        packed = pack_shown([each for shown in asked for each in shown])
        try:
            scores = await asyncio.wait_for(self._by_any(packed), self._deadline)
        except TimeoutError:
            told = "gave no answer" if self._living else "has no worker, and none came back,"
            raise WorldBroke(f"scorer '{self._name}' {told} within {self._deadline:g} s") from None
        flat = iter(scores)
        return [list(islice(flat, len(shown))) for shown in asked]

    async def _by_any(self, packed: PackedShown) -> list[Score]:
        while True:
            while not self._living:
                self._come.clear()
                await self._come.wait()
            i = min(self._living, key=lambda i: (self._late[i], self._outstanding[i]))
            self._outstanding[i] += 1
            try:
                scores = await self._living[i].score(packed)
            except ScorerLost:
                self._living.pop(i, None)
            except asyncio.CancelledError:
                self._late[i] += 1
                raise
            else:
                self._late[i] = 0
                return scores
            finally:
                self._outstanding[i] -= 1

    def _numbered(self, endpoints: Sequence[ScorerEndpoint]) -> dict[int, ScorerEndpoint]:
        return {next(self._numbers): endpoint for endpoint in endpoints}
