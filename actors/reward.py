"""The reward worker: a Ray shell over reward compositions, one per lane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ray

from manta.actors.lanes import Lane
from manta.actors.mailbox import Block
from manta.envs.protocols import Services
from manta.envs.records import Score, Task, Trajectory
from manta.envs.rewards.compose import Composition


@ray.remote(max_concurrency=10000)
class RewardWorker:
    def __init__(self) -> None:
        self._lanes: dict[str, Composition] = {}

    async def open(self, lane: Lane) -> Mapping[str, str]:
        """Builds the lane's composition; returns the version of each component."""
        assert lane.reward is not None
        composition = build_composition(lane.reward)
        self._lanes[lane.name] = composition
        return composition.versions

    async def score_group(
        self, lane: str, task: Task, trajectories: Sequence[Trajectory]
    ) -> tuple[Score, ...]:
        return await self._lanes[lane].score_group(task, trajectories, Services())
