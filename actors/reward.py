"""The reward worker: a Ray shell over reward compositions, one per lane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

from manta.actors.lanes import Lane
from manta.actors.mailbox import Place
from manta.actors.step_scores import FinalScores, score_step
from manta.envs.packing import Block, PackedTrajectories
from manta.envs.protocols import Services
from manta.envs.records import Score, Task
from manta.envs.registry import build
from manta.envs.rewards.compose import Composition
from manta.envs.rewards.formula import Formula
from manta.envs.side_by_side import side_by_side


class RewardWorker:
    def __init__(self) -> None:
        self._lanes: dict[str, Composition] = {}

    async def open(self, lane: Lane) -> Mapping[str, str]:
        """Builds the lane's composition; returns the version of each component."""
        assert lane.reward is not None
        components = {
            name: build("reward", kind, options)
            for name, (kind, options) in lane.reward.components.items()
        }
        self._lanes[lane.name] = Composition(
            Formula(lane.reward.formula), components, lane.reward.deadline_seconds
        )
        return self._lanes[lane.name].versions

    async def score_groups(
        self, lane: str, tasks: Sequence[Task], counts: Sequence[int], packed: PackedTrajectories
    ) -> list[tuple[Score, ...]]:
        """Scores of `counts[i]` trajectories of `tasks[i]`, all groups side by side."""
        flat = iter(packed.unpack())
        composition = self._lanes[lane]
        return await side_by_side(
            [
                composition.score_group(task, list(islice(flat, count)), Services())
                for task, count in zip(tasks, counts, strict=True)
            ]
        )

    async def scores_steps(self, lane: str) -> bool:
        return bool(self._lanes[lane].batch_components)

    async def score_step(
        self, lane: str, places: Sequence[Place], *blocks: Block
    ) -> list[FinalScores]:
        groups = [blocks[block].groups[entry] for block, entry in places]
        return await score_step(self._lanes[lane], groups, Services())
