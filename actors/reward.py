"""The reward worker: a Ray shell over reward compositions, one per lane."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING

from manta.actors.alive import Alive
from manta.actors.lanes import Lane
from manta.actors.scorer_calls import ScorerCalls
from manta.actors.step_scores import FinalScores, score_step
from manta.actors.step_work import Place
from manta.actors.work import Work
from manta.envs.packing import Block, PackedTrajectories
from manta.envs.protocols import Services
from manta.envs.records import Score, Task
from manta.envs.registry import build
from manta.envs.rewards.compose import Composition
from manta.envs.rewards.formula import Formula
from manta.envs.rewards.scope import scorers_of
from manta.envs.side_by_side import side_by_side

if TYPE_CHECKING:
    from manta.actors.scorer_client import ScorerPlace


class RewardWorker(Alive):
    def __init__(self, scorers: Sequence[ScorerPlace] = ()) -> None:
        self._lanes: dict[str, Composition] = {}
        self._scorers: dict[str, ScorerCalls] = {each.name: each.calls() for each in scorers}
        self._services = Services(scorers=self._scorers)
        self._work = Work()
        self._edition = 0

    async def meet(self, edition: int, scorers: Sequence[ScorerPlace]) -> None:
        """These are the workers of the scorers from now on. Calls of one caller may overtake each
        other: an earlier edition changes nothing."""
        if edition >= self._edition:
            self._edition = edition
            for each in scorers:
                self._scorers[each.name].meet(each.endpoints())

    async def open(
        self, lane: Lane, scorer_versions: Mapping[str, str] = MappingProxyType({})
    ) -> Mapping[str, str]:
        """Builds the lane's composition; returns the version of each component, with those of the
        scorers that it calls, which are the `scorer_versions` by name."""
        assert lane.reward is not None
        self._work.runs_on(asyncio.get_running_loop())
        for name, version in scorer_versions.items():
            self._scorers[name].version = version
        components = {
            name: build("reward", kind, options)
            for name, (kind, options) in lane.reward.components.items()
        }
        self._lanes[lane.name] = Composition(
            Formula(lane.reward.formula),
            components,
            lane.reward.deadline_seconds,
            lane.reward.within,
        )
        return {
            name: " ".join(
                [reward.version, *(scorer_versions[each] for each in scorers_of(name, reward))]
            )
            for name, reward in components.items()
        }

    async def score_groups(
        self, lane: str, tasks: Sequence[Task], counts: Sequence[int], packed: PackedTrajectories
    ) -> list[tuple[Score, ...]]:
        """Scores of `counts[i]` trajectories of `tasks[i]`, all groups side by side."""
        flat = iter(packed.unpack())
        composition = self._lanes[lane]
        with self._work.under_way():
            return await side_by_side(
                [
                    composition.score_group(task, list(islice(flat, count)), self._services)
                    for task, count in zip(tasks, counts, strict=True)
                ]
            )

    async def scores_steps(self, lane: str) -> bool:
        return bool(self._lanes[lane].batch_components)

    async def score_step(
        self, lane: str, places: Sequence[Place], *blocks: Block
    ) -> list[FinalScores]:
        groups = [blocks[block].groups[entry] for block, entry in places]
        with self._work.under_way():
            return await score_step(self._lanes[lane], groups, self._services)

    async def quiet(self) -> None:
        """Returns once nothing is being scored."""
        await self._work.quiet()

    async def busy(self) -> float:
        """See `Work.busy`. To be called in the group `LIFE`: a loop that is taken answers late."""
        return self._work.busy()
