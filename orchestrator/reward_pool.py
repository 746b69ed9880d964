"""The reward workers, from the driver's side."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import ray
from ray.actor import ActorHandle

from manta.actors.lanes import Lane
from manta.actors.reward import RewardWorker
from manta.actors.step_scores import FinalScores
from manta.actors.step_work import Place
from manta.envs.packing import Block
from manta.orchestrator.lane_pool import LanePool
from manta.orchestrator.pools import start
from manta.orchestrator.scorer_pool import ScorerPool


class RewardPool(LanePool[RewardWorker]):
    """Reward workers, which call the scorers that are there."""

    role = "reward worker"

    def __init__(self, workers: int, cpus: float, scorers: ScorerPool) -> None:
        self._cpus, self._scorers = cpus, scorers
        self._numbers = itertools.count()
        super().__init__(workers)
        scorers.tell_of_changes(self._spread_news)

    # As the role of its seats

    def start(self, seat: int) -> tuple[str, ActorHandle[RewardWorker]]:
        name = f"reward-{next(self._numbers)}"
        return name, start(RewardWorker, self._cpus, self._scorers.places(), role="reward")

    async def leave(self, name: str) -> None:
        worker = self.living.workers[name]
        await self.lost(name)
        await worker.quiet.remote()

    # What the rest of the driver asks for

    async def open(self, lane: Lane) -> Mapping[str, str]:
        """Opens `lane` on every worker, once the scorers that it calls have their models; the
        version of each component."""
        assert lane.reward is not None
        versions = await self._scorers.ready(lane.reward.scorers)
        self._lanes[lane.name] = lane, versions
        opened: list[Mapping[str, str]] = await self.living.tell_all(
            lambda worker: worker.open.remote(lane, versions)
        )
        return opened[0]

    async def scores_steps(self, lane: str) -> bool:
        """Whether `lane` has components that look at a whole step."""
        found: bool = await self.living.ask_one(lambda worker: worker.scores_steps.remote(lane))
        return found

    async def score_step(
        self, lane: str, places: Sequence[Place], blocks: Sequence[ray.ObjectRef[Block]]
    ) -> list[FinalScores]:
        """Final scores of the step's groups, in order; group g is at `places[g]` in `blocks`.

        Always asks the same worker, the oldest: a component may remember the steps before. What it
        remembers dies with it.
        """
        found: list[FinalScores] = await self.living.ask_one(
            lambda worker: worker.score_step.remote(lane, places, *blocks)
        )
        return found

    async def _introduce(self, worker: ActorHandle[RewardWorker]) -> None:
        await worker.meet.remote(self._edition, self._scorers.places())
