"""The reference-model worker: a Ray shell that batches scoring requests over one scorer.

Requests that arrive while the scorer is busy are scored together in its next pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from manta.actors.cores import available_cores
from manta.actors.models.spec import ModelSpec
from manta.actors.weights import Receipt, Weights
from manta.envs.packing import PackedTrajectories
from manta.envs.records import Float32, ReferenceStatistics, Trajectory


class Scorer(Protocol):
    def score(self, trajectories: Sequence[Trajectory]) -> ReferenceStatistics: ...

    def load(self, weights: Weights) -> Receipt: ...


class ScoringQueue:
    """Collects requests and runs the scorer in a thread, everything pending at once."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._pending: list[tuple[Sequence[Trajectory], asyncio.Future[ReferenceStatistics]]] = []
        self._running: asyncio.Task[None] | None = None
        self._in_use = asyncio.Lock()

    async def score(self, trajectories: Sequence[Trajectory]) -> ReferenceStatistics:
        """Raises what the scorer raised over the batch that this request was part of."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[ReferenceStatistics] = loop.create_future()
        self._pending.append((trajectories, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await future

    async def load(self, weights: Weights) -> Receipt:
        """Takes other weights, between two batches."""
        async with self._in_use:
            return await asyncio.to_thread(self._scorer.load, weights)

    async def _run(self) -> None:
        while self._pending:
            async with self._in_use:
                batch, self._pending = self._pending, []
                rows = [trajectory for trajectories, _ in batch for trajectory in trajectories]
                scoring = asyncio.ensure_future(asyncio.to_thread(self._scorer.score, rows))
                await asyncio.wait([scoring])
            start = 0
            for trajectories, future in batch:
                end = start + len(trajectories)
                _answer(future, scoring, slice(start, end))
                start = end


def _answer(
    future: asyncio.Future[ReferenceStatistics],
    scoring: asyncio.Future[ReferenceStatistics],
    rows: slice,
) -> None:
    """Hands `rows` of the result, or the error, to a caller that still waits."""
    if future.done():
        return
    if (error := scoring.exception()) is not None:
        future.set_exception(error)
    else:
        statistics = scoring.result()
        future.set_result(ReferenceStatistics(statistics.version, statistics.logprobs[rows]))


class ReferenceWorker:
    def __init__(
        self,
        model: ModelSpec,
        vocab_size: int,
        seed: int,
        threads: int,
        tokens_per_batch: int,
        temperature: float,
    ) -> None:
        # Imported here: the driver and environment workers name this class without loading torch.
        import torch

        from manta.actors.models.causal import build_model
        from manta.actors.scorers.logprob import LogprobScorer

        torch.set_num_threads(threads or available_cores())
        scorer = LogprobScorer(
            build_model(model, vocab_size, seed), "initial", tokens_per_batch, temperature
        )
        self._queue = ScoringQueue(scorer)

    async def score(self, packed: PackedTrajectories) -> tuple[str, Float32]:
        """The reference's version, and the statistics of all trajectories back to back."""
        statistics = await self._queue.score(packed.unpack())
        return statistics.version, np.concatenate(statistics.logprobs)

    async def load(self, weights: Weights) -> Receipt:
        """Makes `weights` the reference; the receipt hashes what arrived."""
        return await self._queue.load(weights)
