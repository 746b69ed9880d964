"""What a simulated run does its work with: engines behind the very router, workers, learner.

Owns the stand-ins for what the driver calls: environment workers (`run_block`), the learner's
mailbox and a publish. They take the time that `Speeds` says, and make summaries with the lengths
that `Lengths` draws, under the versions that engines served meanwhile. Decides nothing: admission,
order, routing and the loop are the product's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np

from manta.actors.engine_state import Word
from manta.actors.lanes import Admission, BlockSummary
from manta.actors.leases import Ask, Lease, Ticket
from manta.actors.routing import Routing
from manta.actors.sharding import kept_rows
from manta.actors.step_work import Adopt, StepReport, StepWork
from manta.envs.records import CompanionKind, CompanionSummary, GroupId, GroupSummary, WeightVersion
from manta.envs.side_by_side import side_by_side
from manta.envs.step_records import Update
from manta.orchestrator.publish import Published
from manta.orchestrator.simulation.engine import MadeRow, PacedEngine
from manta.orchestrator.simulation.lengths import GroupLengths, Lengths
from manta.orchestrator.simulation.speeds import LearnerSpeed, Speeds
from manta.orchestrator.supply import BlockRef


class DrawnGroup(NamedTuple):
    """The lengths of a group's samples, and of its companion (0: it has none)."""

    samples: GroupLengths
    companion: int


_EVEN = np.array([0.0, 1.0], np.float32)


@dataclass(frozen=True, slots=True)
class WorldShape:
    """How much of everything there is, and what a group is. `flat_share` of the groups have equal
    rewards, and are filtered where the algorithm does so. A `companion` is as long as samples are,
    and where it is greedy a request of its own."""

    engines: int
    max_rows: int
    most_rows: int
    samples: int
    max_new_tokens: int
    is_adaptive: bool = False
    spare_samples: int = 0
    companion: CompanionKind = "none"
    environment_workers: int = 1
    reference_workers: int = 0
    flat_share: float = 0.0
    recomputes: bool = True
    seed: int = 0


class _Line:
    """A worker with one thread: what is asked of it waits for what was asked before."""

    def __init__(self) -> None:
        self._free_at = 0.0

    async def take(self, seconds: float) -> None:
        now = asyncio.get_running_loop().time()
        self._free_at = max(now, self._free_at) + seconds
        await asyncio.sleep(self._free_at - now)


class SimulatedWorld:
    """Engines, the router before them, and the workers that make groups."""

    def __init__(
        self,
        shape: WorldShape,
        speeds: Speeds,
        lengths: Lengths,
        kind: type[PacedEngine] = PacedEngine,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._shape, self._speeds, self._lengths = shape, speeds, lengths
        self.engines = {
            f"policy-{i}": kind(speeds.engine, shape.max_rows, shape.recomputes)
            for i in range(shape.engines)
        }
        self.routing = Routing(
            shape.max_rows, shape.most_rows, shape.is_adaptive, self._unfinished, loop.time
        )
        for name in self.engines:
            self.routing.tell(name, "join")
            self.routing.tell(name, "serve")
        self.num_workers = shape.environment_workers
        self._outstanding = [0] * shape.environment_workers
        self._lines = [_Line() for _ in range(shape.environment_workers)]
        self._references = [_Line() for _ in range(shape.reference_workers)]
        self._tickets = self._scored = 0

    async def run_block(
        self, lane: str, admissions: Sequence[Admission]
    ) -> tuple[BlockRef, BlockSummary]:
        """Makes groups as `EnvironmentPool.run_block` does; a name stands for the block."""
        worker = min(range(self.num_workers), key=self._outstanding.__getitem__)
        self._outstanding[worker] += 1
        seconds = self._speeds.overheads.group * len(admissions) / 2
        try:
            await self._lines[worker].take(seconds)
            drawn = [self._draw(admission) for admission in admissions]
            calls = list(self._calls(drawn))
            rank = (1, *min(admission.rank for admission in admissions))
            made = await side_by_side([self._call(worker, call, rank) for call in calls])
            rows = [group for groups in made for group in groups]
            await self._score(drawn)
            await self._lines[worker].take(seconds)
        finally:
            self._outstanding[worker] -= 1
        groups = [
            self._summary(admission.id, lengths, group)
            for admission, lengths, group in zip(admissions, drawn, rows, strict=True)
        ]
        return cast("BlockRef", str(admissions[0].id)), BlockSummary(tuple(groups))

    async def publish(self, report: StepReport) -> Published:
        """Engines stand still, and go on under the new weights."""
        version = report.update.version
        for name, engine in self.engines.items():
            self._tell(name, "pause")
            engine.pause()
        await asyncio.sleep(self._speeds.overheads.publish)
        for name, engine in self.engines.items():
            engine.load(version.step)
            engine.resume()
            self._tell(name, "serve")
        return Published(version, 0.0, ())

    def _draw(self, admission: Admission) -> DrawnGroup:
        """By place, not by attempt: a group that is made again draws the same lengths."""
        shape, place = self._shape, admission.id
        generator = np.random.default_rng((shape.seed, place.epoch, place.position))
        count = shape.samples + shape.spare_samples
        drawn = self._lengths.draw(generator, count + (shape.companion != "none"))
        most = shape.max_new_tokens if admission.cap is None else admission.cap
        answers = np.minimum(drawn.answers, most)
        return DrawnGroup(GroupLengths(drawn.prompt, answers[:count]), int(answers[count:].sum()))

    def _requests(self, group: DrawnGroup) -> list[list[int]]:
        """The lengths of what engines are asked for."""
        samples = group.samples.answers.tolist()
        return [samples, [group.companion]] if self._shape.companion == "greedy" else [samples]

    def _calls(self, drawn: Sequence[DrawnGroup]) -> list[list[DrawnGroup]]:
        """Groups that travel together, as `manta.actors.dispatch` packs them."""
        shape = self._shape
        rows = shape.samples + shape.spare_samples + (shape.companion == "greedy")
        per_call = max(1, (shape.most_rows - shape.max_rows) // max(1, rows))
        return [list(drawn[i : i + per_call]) for i in range(0, len(drawn), per_call)]

    async def _call(
        self, worker: int, groups: Sequence[DrawnGroup], rank: tuple[int, ...]
    ) -> list[list[MadeRow]]:
        """The samples of each group."""
        self._tickets += 1
        ticket = Ticket(f"environment-{worker}", self._tickets)
        answers = [(group, lengths) for group in groups for lengths in self._requests(group)]
        rows = sum(len(lengths) for _, lengths in answers)
        prompts = [group.samples.prompt for group, _ in answers]
        tokens = sum(prompts) + rows * self._shape.max_new_tokens
        ask = Ask(ticket, rank, rows, tokens)
        lease = await self._acquire(ask)
        try:
            made = await self.engines[lease.engine].run(
                ticket,
                prompts,
                [lengths for _, lengths in answers],
                self._shape.spare_samples,
            )
        finally:
            self._release(ticket)
        return made[:: len(answers) // len(groups)]

    async def _acquire(self, ask: Ask) -> Lease:
        return await self.routing.acquire(ask)

    def _tell(self, engine: str, word: Word) -> None:
        self.routing.tell(engine, word)

    def _release(self, ticket: Ticket) -> None:
        self.routing.release(ticket)

    async def _score(self, drawn: Sequence[DrawnGroup]) -> None:
        """Rewards and the reference look at a block side by side."""
        overheads = self._speeds.overheads
        looks = [asyncio.sleep(overheads.reward)] if overheads.reward > 0 else []
        if self._references and overheads.reference_per_token > 0:
            tokens = sum(each.samples.prompt + int(each.samples.answers.sum()) for each in drawn)
            self._scored += 1
            line = self._references[self._scored % len(self._references)]
            looks.append(line.take(tokens * overheads.reference_per_token))
        await side_by_side(looks)

    def _summary(self, group: GroupId, drawn: DrawnGroup, rows: Sequence[MadeRow]) -> GroupSummary:
        prompt, kind = drawn.samples.prompt, self._shape.companion
        whole = [row for row in rows if not row.is_cut]
        spare = len(whole) - self._shape.samples
        cut = [row for row in rows if row.is_cut] + (whole[-spare:] if spare > 0 else [])
        whole = whole[: self._shape.samples]
        count = len(whole)
        tokens = np.array([sum(row.tokens_by_version.values()) for row in whole], np.int32)
        steps = sorted({step for row in whole for step in row.tokens_by_version})
        by_version = {
            WeightVersion(step, 0): np.array(
                [row.tokens_by_version.get(step, 0) for row in whole], np.int32
            )
            for step in steps
        }
        is_flat = self._shape.flat_share > 0 and (
            np.random.default_rng((self._shape.seed, *group[:2], 1)).random()
            < self._shape.flat_share
        )
        reward = 0.0 if is_flat else 0.5
        beside = CompanionSummary(kind, reward, drawn.companion, drawn.companion + prompt)
        return GroupSummary(
            id=group,
            task_id=str(group.position),
            rewards=np.zeros(count, np.float32) if is_flat else np.resize(_EVEN, count),
            components={},
            num_tokens=tokens,
            lengths=tokens + np.int32(prompt),
            is_truncated=np.zeros(count, np.bool_),
            oldest=WeightVersion(steps[0], 0),
            newest=WeightVersion(steps[-1], 0),
            content_hash="",
            timings={},
            tokens_by_version=by_version,
            cut_off=tuple(sum(row.tokens_by_version.values()) for row in cut),
            companion=None if kind == "none" else beside,
        )

    async def _unfinished(self, engine: str) -> Mapping[Ticket, int]:
        return await self.engines[engine].unfinished()


class SimulatedLearner:
    """A learner group behind its mailbox; `busy` are the seconds in which it stepped."""

    def __init__(self, speed: LearnerSpeed) -> None:
        self.busy = 0.0
        self._speed = speed
        self._seconds = 0.0

    async def put(self, work: StepWork) -> None:
        lengths = work.plan.lengths_N[kept_rows(work.plan)]
        self._seconds = self._speed.step_seconds(int(lengths.sum()), int(lengths.max(initial=0)))

    async def result(self, step: int) -> Mapping[int, StepReport]:
        await asyncio.sleep(self._seconds)
        self.busy += self._seconds
        return {0: StepReport(Update(WeightVersion(step, 0), {}, ""), (), {})}

    async def adopt(self, order: Adopt) -> Mapping[int, StepReport]:
        """No stage of a simulation begins with other weights."""
        raise AssertionError(f"nobody asked for order {order.number}")
