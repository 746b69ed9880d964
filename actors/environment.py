"""The environment worker: a Ray shell that makes groups for the lanes it has opened.

It finds engines through the router, and scores through the reward and reference workers it was
told of last. How a group is made is in `manta.actors.production`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from contextvars import ContextVar
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import ray

from manta.actors.alive import Alive
from manta.actors.coalesce import Coalescer
from manta.actors.colleagues import ColleagueLost, Colleagues
from manta.actors.dispatch import Dispatch, DispatchSettings
from manta.actors.lanes import Admission, BlockSummary, Broken, Lane
from manta.actors.leases import Ask
from manta.actors.production import GoldRows, Production, build_production, unscored
from manta.actors.router_client import RemoteRouter
from manta.actors.router_figures import EngineLife
from manta.actors.work import Work
from manta.envs.failures import WorkerLost, WorldBroke
from manta.envs.group import Scoring
from manta.envs.packing import Block, PackedReferences, pack
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
)
from manta.envs.summaries import summarise
from manta.envs.trajectory_files import write_groups

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from manta.actors.reference import ReferenceWorker
    from manta.actors.reward import RewardWorker
    from manta.actors.router import Router

T = TypeVar("T")
_Group: TypeAlias = tuple[Task, Sequence[Trajectory]]
_COMPLETE: ContextVar[Coalescer[GenerateRequest, list[Completion]]] = ContextVar("complete")
"""The engine calls of the block that is being made: another block may go to another engine."""


class EnvironmentWorker(Alive):
    def __init__(
        self,
        name: str,
        tokenizer: str,
        router: ActorHandle[Router],
        dispatch: DispatchSettings,
        rewards: Sequence[ActorHandle[RewardWorker]],
        references: Sequence[ActorHandle[ReferenceWorker]],
    ) -> None:
        """`name` is what the router knows this worker by."""
        self._tokenizer = tokenizer
        self._router = RemoteRouter(router)
        self._dispatch = Dispatch(self._router, name, dispatch)
        self._rewards = Colleagues("reward worker", rewards)
        self._references = Colleagues("reference worker", references)
        self._work = Work()
        self._edition = 0
        self._lanes: dict[str, Production] = {}
        self._opened: dict[str, Lane] = {}
        self._gold: dict[str, GoldRows] = {}

    async def meet(
        self,
        edition: int,
        rewards: Sequence[ActorHandle[RewardWorker]],
        references: Sequence[ActorHandle[ReferenceWorker]],
    ) -> None:
        """These are the reward and reference workers from now on. Calls of one caller may overtake
        each other: an earlier edition changes nothing."""
        if edition >= self._edition:
            self._edition = edition
            self._rewards.meet(rewards)
            self._references.meet(references)

    async def open(self, lane: Lane, versions: Mapping[str, str]) -> int:
        """Gets ready to make groups of `lane`, scored by rewards of these `versions`; the number
        of tasks in its source."""

        async def score(groups: list[_Group]) -> list[tuple[Score, ...]]:
            packed = pack([t for _, trajectories in groups for t in trajectories])
            tasks = [task for task, _ in groups]
            counts = [len(trajectories) for _, trajectories in groups]
            return await self._rewards.ask(
                lambda worker: _told_apart(
                    worker.score_groups.remote(lane.name, tasks, counts, packed)
                )
            )

        scores: Coalescer[_Group, tuple[Score, ...]] = Coalescer(score)

        scoring = Scoring(
            (lambda task, trajectories: scores((task, trajectories))) if lane.reward else unscored,
            versions,
            self._reference_statistics(lane.reference_top_k) if lane.uses_reference else None,
        )
        self._work.runs_on(asyncio.get_running_loop())
        self._lanes[lane.name] = build_production(lane, self._tokenizer, self._generate, scoring)
        self._opened[lane.name] = lane
        return self._lanes[lane.name].num_tasks

    @ray.method(num_returns=2)
    async def run_block(
        self, lane: str, admissions: Sequence[Admission]
    ) -> tuple[Block, BlockSummary]:
        """Makes the groups of `admissions` side by side."""
        production = self._lanes[lane]
        first = min(admission.rank for admission in admissions)
        _COMPLETE.set(self._completions((self._opened[lane].priority, *first)))

        async def run(admission: Admission) -> ScoredGroup | Broken:
            try:
                return await production.make(admission)
            # A call that this group shared with a cancelled one ends with that one.
            except (
                WorldBroke,
                ray.exceptions.RayActorError,
                ray.exceptions.TaskCancelledError,
            ) as error:
                return Broken(
                    admission.id,
                    f"{type(error).__name__}: {error}",
                    is_lost=isinstance(error, WorkerLost) or not isinstance(error, WorldBroke),
                )

        results = await asyncio.gather(*(run(admission) for admission in admissions))
        summaries: list[GroupSummary | Broken] = [
            result if isinstance(result, Broken) else summarise(result) for result in results
        ]
        groups = tuple(result for result in results if not isinstance(result, Broken))
        return Block(groups), BlockSummary(tuple(summaries))

    async def busy(self) -> float:
        """See `Work.busy`. To be called in the group `LIFE`: a loop that is taken answers late."""
        return self._work.busy()

    async def gold_logprob(self, lane: str, indices: Sequence[int]) -> list[float]:
        """Mean log-prob per token that an engine gives the gold answer of each task."""
        gold = self._gold.get(lane)
        if gold is None:
            gold = self._gold[lane] = GoldRows(self._opened[lane], self._tokenizer)
        rows = [gold.row(index) for index in indices]
        tokens = sum(len(ids) for ids, _ in rows)
        rank = (self._opened[lane].priority,)
        ask = Ask(self._dispatch.ticket(), rank, rows=0, tokens=tokens)
        _, engine = await self._router.acquire(ask)
        try:
            logprobs = await engine.logprobs([ids for ids, _ in rows])
        finally:
            self._router.release(ask.ticket, 0)
        return [
            float(values[mask].mean()) for values, (_, mask) in zip(logprobs, rows, strict=True)
        ]

    async def write(self, path: str, step: int, ids: Sequence[GroupId], *blocks: Block) -> None:
        """Writes the groups `ids`, which `blocks` hold, as trajectories."""
        groups = {group.id: group for block in blocks for group in block.groups}
        await asyncio.to_thread(write_groups, path, [groups[name] for name in ids], step)

    async def _generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        complete = _COMPLETE.get()
        return list(await asyncio.gather(*(complete(request) for request in requests)))

    def _completions(self, rank: tuple[int, ...]) -> Coalescer[GenerateRequest, list[Completion]]:
        """The engine calls of one block, whose sessions it knows."""
        homes: dict[str, EngineLife] = {}
        return Coalescer(lambda requests: self._dispatch.generate(requests, rank, homes))

    def _reference_statistics(
        self, top_k: int
    ) -> Coalescer[Sequence[Trajectory], ReferenceStatistics]:
        """What the reference says of groups, with that many likely tokens where it is above 0."""

        async def score(groups: list[Sequence[Trajectory]]) -> list[ReferenceStatistics]:
            flat = [trajectory for trajectories in groups for trajectory in trajectories]
            packed = pack(flat)
            answer: PackedReferences = await self._references.ask(
                lambda worker: _told_apart(worker.score.remote(packed, top_k))
            )
            [whole] = answer.unpack([flat])
            assert whole is not None
            ends = list(accumulate(map(len, groups), initial=0))
            return [whole.part(range(start, end)) for start, end in pairwise(ends)]

        return Coalescer(score)


async def _told_apart(answer: Awaitable[T]) -> T:
    try:
        return await answer
    except ray.exceptions.RayActorError as error:
        raise ColleagueLost(f"a worker was lost: {error}") from error
