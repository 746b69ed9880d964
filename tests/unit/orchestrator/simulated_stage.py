"""A training stage in virtual time: the very feed, supply and loop, and a world that is random.

Groups take lognormal times, some break, some for good, some cannot teach; the learner and the
publish take theirs. Everything follows from the seed.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from manta.actors.lanes import Admission, BlockSummary, Broken
from manta.actors.step_work import StepReport, StepWork
from manta.algorithms.presets import PRESETS
from manta.envs.records import GroupId, GroupSummary, WeightVersion
from manta.envs.sources.order import EpochOrder
from manta.envs.step_records import Update
from manta.orchestrator.age_policy import AgePolicy
from manta.orchestrator.alarms import Alarm
from manta.orchestrator.attempts import MAX_ATTEMPTS
from manta.orchestrator.expected_lengths import ExpectedLengths
from manta.orchestrator.feed import Feed
from manta.orchestrator.ledger import Entry, Ledger, read_ledger
from manta.orchestrator.length_cap import LengthCap
from manta.orchestrator.progress import Progress
from manta.orchestrator.publish import Published
from manta.orchestrator.simulation import stage as simulation
from manta.orchestrator.step_groups import LeftOut
from manta.orchestrator.supply import Finished
from tests.e2e.place_account import problems
from tests.unit.orchestrator.groups import summary

NUM_TASKS = 97


@dataclass
class Weights:
    """What the engines serve: the step of their weights."""

    step: int = 0


@dataclass
class RandomPool:
    """Makes groups in random times, under whatever weights are served meanwhile."""

    seed: int
    weights: Weights
    breaking: float
    flat: float
    sigma: float
    num_workers: int = 1
    cancelled: Counter[GroupId] = field(default_factory=Counter)
    started: list[GroupId] = field(default_factory=list)

    async def run_block(
        self, lane: str, admissions: Sequence[Admission]
    ) -> tuple[str, BlockSummary]:
        self.started += [admission.id for admission in admissions]
        try:
            made = await asyncio.gather(*(self._make(admission.id) for admission in admissions))
        except asyncio.CancelledError:
            self.cancelled.update(admission.id for admission in admissions)
            raise
        return str(admissions), BlockSummary(tuple(made))

    async def _make(self, group: GroupId) -> GroupSummary | Broken:
        by_place = random.Random(f"{self.seed}/{group.epoch}/{group.position}")
        by_attempt = random.Random(f"{self.seed}/{group}")
        seconds = by_place.lognormvariate(0.0, self.sigma)
        is_flat = by_place.random() < self.flat
        is_cursed = by_place.random() < self.breaking / 4
        await asyncio.sleep(by_attempt.uniform(0.0, 0.1))
        oldest = WeightVersion(self.weights.step, 0)
        if is_cursed or by_attempt.random() < self.breaking:
            await asyncio.sleep(by_attempt.uniform(0.0, seconds))
            return Broken(group, "the world broke")
        await asyncio.sleep(seconds)
        newest = WeightVersion(self.weights.step, 0)
        made = summary(group, (1.0, 1.0) if is_flat else (0.0, 1.0))
        counts = {oldest: np.array([2, 1], np.int32)}
        counts[newest] = counts.get(newest, np.zeros(2, np.int32)) + np.array([0, 1], np.int32)
        return replace(made, oldest=oldest, newest=newest, tokens_by_version=counts)


@dataclass
class RandomLearner:
    """A learner group of one rank."""

    seconds: float
    works: list[StepWork] = field(default_factory=list)

    async def put(self, work: StepWork) -> None:
        self.works.append(work)

    async def result(self, step: int) -> dict[int, StepReport]:
        await asyncio.sleep(self.seconds)
        return {0: StepReport(Update(WeightVersion(step, 0), {}, "hash"), (), {})}


class Recorder:
    def __init__(self) -> None:
        self.steps: list[tuple[int, Sequence[GroupSummary]]] = []
        self.alarms: list[Alarm] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        yield

    def step(
        self,
        progress: Progress,
        summaries: Sequence[GroupSummary],
        report: StepReport,
        published: Published | None,
        left_out: Sequence[LeftOut],
    ) -> None:
        self.steps.append((progress.step, summaries))

    def alarm(self, alarm: Alarm) -> None:
        self.alarms.append(alarm)


class SimulatedStage:
    """`steps` steps of `prompts` groups out of `feed`."""

    num_tasks = NUM_TASKS
    earlier: Sequence[Entry] = ()
    """Of the lives before this one."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        feed: Feed[Finished],
        prompts: int,
        ages: AgePolicy,
        steps: int = 25,
        groups_per_call: int = 1,
        breaking: float = 0.1,
        flat: float = 0.15,
        sigma: float = 1.0,
        lengths: ExpectedLengths | None = None,
        cap: LengthCap | None = None,
        algorithm: str = "dapo",
        pool: object = None,
    ) -> None:
        """Without a `pool`, one of random times."""
        draw = random.Random(seed)
        self._ledger_file = folder / f"ledger-{seed}.jsonl"
        self.weights = Weights()
        self.pool = RandomPool(seed, self.weights, breaking, flat, sigma)
        self.learner = RandomLearner(draw.uniform(0.1, 3.0))
        self.recorder = Recorder()
        self._publish_seconds = draw.uniform(0.0, 0.5)
        self._parts = simulation.StageParts(
            simulation.SimulatedStage(
                feed, PRESETS[algorithm], prompts, steps, groups_per_call, ages, cap, lengths
            ),
            Ledger(self._ledger_file),
            pool or self.pool,  # type: ignore[arg-type]
            self.learner,  # type: ignore[arg-type]
            self._publish,
            self.recorder,
            self._after,
        )
        self.supply, self.loop = self._parts.supply, self._parts.loop

    async def run(self) -> None:
        await self._parts.run()

    @property
    def entries(self) -> list[Entry]:
        return read_ledger(self._ledger_file)

    async def _publish(self, report: StepReport) -> Published:
        """Engines take the new weights some time before the publish is done."""
        await asyncio.sleep(self._publish_seconds)
        self.weights.step = report.update.version.step
        await asyncio.sleep(self._publish_seconds)
        return Published(report.update.version, 0.0, ())

    async def _after(self, step: int) -> None:
        """Every group that was admitted is settled once, or outstanding, in any state."""
        state = self.loop.feed_state(step)
        entries = [*self.earlier, *self.entries]
        found = problems(entries, state, self.num_tasks, given_up_after=MAX_ATTEMPTS)
        assert not found, found


def order() -> EpochOrder:
    return EpochOrder(NUM_TASKS, seed=3)
