"""A queue before a model that scores: what waits while it is busy is scored together, next.

Owns the gathering, who gets which part of the result, and how long requests took. What is scored is
the scorer's business (`manta.actors.scorers`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Scored = TypeVar("Scored")
T = TypeVar("T")

_REMEMBERED = 256
"""Requests whose seconds are kept."""


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """`calls` answered so far, `waiting` items now, `seconds` of the last calls, wait included."""

    calls: int
    waiting: int
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Request(Generic[Item, Scored]):
    items: Sequence[Item]
    answer: asyncio.Future[Scored]
    since: float


class ScoringQueue(Generic[Item, Scored]):
    """Collects requests and runs `score` in a thread, over everything pending at once; `part` is
    what of its result belongs to a slice of the items. Queues before one model share its lock
    `in_use`."""

    def __init__(
        self,
        score: Callable[[Sequence[Item]], Scored],
        part: Callable[[Scored, slice], Scored],
        in_use: asyncio.Lock | None = None,
    ) -> None:
        self._score, self._part = score, part
        self._pending: list[_Request[Item, Scored]] = []
        self._running: asyncio.Task[None] | None = None
        self._in_use = asyncio.Lock() if in_use is None else in_use
        self._calls = 0
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)

    async def score(self, items: Sequence[Item]) -> Scored:
        """Raises what `score` raised over the batch that this request was part of."""
        answer: asyncio.Future[Scored] = asyncio.get_running_loop().create_future()
        self._pending.append(_Request(items, answer, time.perf_counter()))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await answer

    async def between(self, change: Callable[[], T]) -> T:
        """Runs `change` in a thread between two batches, such as the loading of other weights."""
        async with self._in_use:
            return await asyncio.to_thread(change)

    def figures(self) -> QueueFigures:
        waiting = sum(len(request.items) for request in self._pending)
        return QueueFigures(self._calls, waiting, tuple(self._seconds))

    async def _run(self) -> None:
        while self._pending:
            async with self._in_use:
                batch, self._pending = self._pending, []
                items = [item for request in batch for item in request.items]
                scoring = asyncio.ensure_future(asyncio.to_thread(self._score, items))
                await asyncio.wait([scoring])
            start = 0
            for request in batch:
                end = start + len(request.items)
                self._answer(request, scoring, slice(start, end))
                start = end

    def _answer(
        self, request: _Request[Item, Scored], scoring: asyncio.Future[Scored], items: slice
    ) -> None:
        """Hands the part of `items`, or the error, to a caller that still waits."""
        self._calls += 1
        self._seconds.append(time.perf_counter() - request.since)
        if request.answer.done():
            return
        if (error := scoring.exception()) is not None:
            request.answer.set_exception(error)
        else:
            request.answer.set_result(self._part(scoring.result(), items))
