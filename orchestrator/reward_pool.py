"""The reward workers, from the driver's side."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import ray

from manta.actors.lanes import Lane
from manta.actors.mailbox import Place
from manta.actors.reward import RewardWorker
from manta.actors.step_scores import FinalScores
from manta.envs.packing import Block
from manta.orchestrator.pools import start
from manta.orchestrator.scorer_pool import ScorerPool


class RewardPool:
    """Reward workers, which call the scorers that are there."""

    def __init__(self, workers: int, cpus: float, scorers: ScorerPool) -> None:
        self._scorers = scorers
        places = scorers.places()
        self.handles = [start(RewardWorker, cpus, places) for _ in range(workers)]

    async def open(self, lane: Lane) -> Mapping[str, str]:
        """Opens `lane` on every worker, once the scorers that it calls have their models; the
        version of each component."""
        assert lane.reward is not None
        versions = await self._scorers.ready(lane.reward.scorers)
        opened: list[Mapping[str, str]] = await asyncio.gather(
            *(handle.open.remote(lane, versions) for handle in self.handles)
        )
        return opened[0]

    async def scores_steps(self, lane: str) -> bool:
        """Whether `lane` has components that look at a whole step."""
        return await self.handles[0].scores_steps.remote(lane)

    async def score_step(
        self, lane: str, places: Sequence[Place], blocks: Sequence[ray.ObjectRef[Block]]
    ) -> list[FinalScores]:
        """Final scores of the step's groups, in order; group g is at `places[g]` in `blocks`.

        Always asks the same worker: a component may remember the steps before.
        """
        return await self.handles[0].score_step.remote(lane, places, *blocks)
