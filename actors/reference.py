"""The reference-model worker: a Ray shell that batches scoring requests over one scorer.

Requests that arrive while the scorer is busy are scored together in its next pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import torch

from manta.actors.models.causal import build_model
from manta.actors.models.spec import ModelSpec
from manta.actors.scorers.logprob import LogprobScorer
from manta.actors.weights import Receipt, Weights
from manta.envs.records import ReferenceStatistics, Trajectory


class ScoringQueue:
    """Collects requests and runs the scorer in a thread, everything pending at once."""

    def __init__(self, scorer: LogprobScorer) -> None:
        self._scorer = scorer
        self._pending: list[tuple[Sequence[Trajectory], asyncio.Future[ReferenceStatistics]]] = []
        self._running: asyncio.Task[None] | None = None

    async def score(self, trajectories: Sequence[Trajectory]) -> ReferenceStatistics:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[ReferenceStatistics] = loop.create_future()
        self._pending.append((trajectories, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._pending:
            batch, self._pending = self._pending, []
            rows = [trajectory for trajectories, _ in batch for trajectory in trajectories]
            try:
                statistics = await asyncio.to_thread(self._scorer.score, rows)
            except (ValueError, RuntimeError) as error:
                for _, future in batch:
                    future.set_exception(error)
                continue
            start = 0
            for trajectories, future in batch:
                end = start + len(trajectories)
                future.set_result(
                    ReferenceStatistics(statistics.version, statistics.logprobs[start:end])
                )
                start = end


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
        if threads:
            torch.set_num_threads(threads)
        self._scorer = LogprobScorer(
            build_model(model, vocab_size, seed), "initial", tokens_per_batch, temperature
        )
        self._queue = ScoringQueue(self._scorer)

    async def score(self, trajectories: Sequence[Trajectory]) -> ReferenceStatistics:
        return await self._queue.score(trajectories)

    async def load(self, weights: Weights) -> Receipt:
        """Makes `weights` the reference; the receipt hashes what arrived."""
        return await asyncio.to_thread(self._scorer.load, weights)
