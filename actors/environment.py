"""The environment worker: a Ray shell that makes groups for the lanes it has opened.

It finds engines through the router, and scores through the reward and reference workers it was
given. How a group is made is in `manta.actors.production`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence

import ray
from ray.actor import ActorHandle

from manta.actors.lanes import Admission, BlockSummary, Broken, Lane
from manta.actors.mailbox import Block
from manta.actors.production import GoldRows, Production, build_production, unscored
from manta.actors.reference import ReferenceWorker
from manta.actors.reward import RewardWorker
from manta.actors.router import Router
from manta.envs.failures import WorldBroke
from manta.envs.group import Scoring
from manta.envs.records import (
    Completion,
    GenerateRequest,
    GroupId,
    GroupSummary,
    ReferenceStatistics,
    Score,
    ScoredGroup,
    Task,
    Trajectory,
    summarise,
)
from manta.envs.trajectory_files import write_groups


class EnvironmentWorker:
    def __init__(
        self,
        tokenizer: str,
        router: ActorHandle[Router],
        rewards: Sequence[ActorHandle[RewardWorker]],
        references: Sequence[ActorHandle[ReferenceWorker]],
    ) -> None:
        self._tokenizer = tokenizer
        self._router = router
        self._rewards = itertools.cycle(rewards)
        self._references = itertools.cycle(references)
        self._lanes: dict[str, Production] = {}
        self._opened: dict[str, Lane] = {}
        self._gold: dict[str, GoldRows] = {}

    async def open(self, lane: Lane, versions: Mapping[str, str]) -> int:
        """Gets ready to make groups of `lane`, scored by rewards of these `versions`; the number
        of tasks in its source."""

        async def score(task: Task, trajectories: Sequence[Trajectory]) -> tuple[Score, ...]:
            return await next(self._rewards).score_group.remote(lane.name, task, trajectories)

        scoring = Scoring(
            score if lane.reward else unscored,
            versions,
            self._score_reference if lane.uses_reference else None,
        )
        self._lanes[lane.name] = build_production(lane, self._tokenizer, self._generate, scoring)
        self._opened[lane.name] = lane
        return self._lanes[lane.name].num_tasks

    @ray.method(num_returns=2)
    async def run_block(
        self, lane: str, admissions: Sequence[Admission]
    ) -> tuple[Block, BlockSummary]:
        """Makes the groups of `admissions` side by side."""
        production = self._lanes[lane]

        async def run(admission: Admission) -> ScoredGroup | Broken:
            try:
                return await production.make(admission)
            except (WorldBroke, ray.exceptions.RayActorError) as error:
                return Broken(admission.id, f"{type(error).__name__}: {error}")

        results = await asyncio.gather(*(run(admission) for admission in admissions))
        summaries: list[GroupSummary | Broken] = [
            result if isinstance(result, Broken) else summarise(result) for result in results
        ]
        block = tuple(result for result in results if not isinstance(result, Broken))
        return block, BlockSummary(tuple(summaries))

    async def gold_logprob(self, lane: str, indices: Sequence[int]) -> list[float]:
        """Mean log-prob per token that an engine gives the gold answer of each task."""
        gold = self._gold.get(lane)
        if gold is None:
            gold = self._gold[lane] = GoldRows(self._opened[lane], self._tokenizer)
        rows = [gold.row(index) for index in indices]
        lease, engine = await self._router.acquire.remote(sum(len(ids) for ids, _ in rows))
        try:
            logprobs = await engine.logprobs.remote([ids for ids, _ in rows])
        finally:
            self._router.release.remote(lease)
        return [
            float(values[mask].mean()) for values, (_, mask) in zip(logprobs, rows, strict=True)
        ]

    async def write(self, path: str, step: int, ids: Sequence[GroupId], *blocks: Block) -> None:
        """Writes the groups `ids`, which `blocks` hold, as trajectories."""
        groups = {group.id: group for block in blocks for group in block}
        await asyncio.to_thread(write_groups, path, [groups[name] for name in ids], step)

    async def _generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        tokens = sum(len(r.prefix) + sum(r.budgets) for r in requests)
        lease, engine = await self._router.acquire.remote(tokens)
        try:
            return await engine.generate.remote(requests)
        except ray.exceptions.ActorDiedError:
            self._router.lose.remote(lease)
            raise
        finally:
            self._router.release.remote(lease)

    async def _score_reference(self, trajectories: Sequence[Trajectory]) -> ReferenceStatistics:
        return await next(self._references).score.remote(trajectories)
