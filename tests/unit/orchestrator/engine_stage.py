"""A training stage in virtual time over a simulated engine: the very groups, feed, supply and loop.

256 samples a step on 64 rows, lognormal lengths with sigma 1 and a longest of 16 medians; half of
the log-length's variance is the task's. Everything follows from the seeds, so that its figures are
exact.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import simulated_cluster as cluster
from manta.actors.engines.occupancy import Occupancy, RowSeconds
from manta.actors.engines.settings import SimulatedSettings
from manta.actors.engines.simulated import SimulatedEngine
from manta.actors.engines.token_clock import TokenClock
from manta.actors.lanes import Admission, BlockSummary
from manta.actors.production import build_production, unscored
from manta.actors.step_work import StepReport
from manta.actors.weights import Weights, content_hash
from manta.envs.group import Scoring
from manta.envs.records import GroupId, GroupSummary, WeightVersion
from manta.envs.sources.order import EpochOrder
from manta.envs.summaries import summarise
from manta.orchestrator.age_policy import AgePolicy
from manta.orchestrator.expected_lengths import ExpectedLengths
from manta.orchestrator.feed import Feed
from manta.orchestrator.length_cap import LengthCap
from manta.orchestrator.publish import Published
from manta.orchestrator.supply import Finished
from tests.unit.actors.lanes import TOKENIZER, lane
from tests.unit.orchestrator.simulated_stage import SimulatedStage

TASKS = 4 * cluster.PROMPTS
LENGTHS = SimulatedSettings(
    cluster.TOKENS_PER_SECOND, cluster.MEDIAN, cluster.SIGMA, length_prompt_share=0.5
)


class EnginePool:
    """Makes groups in this process, on one engine whose clock is the event loop's."""

    def __init__(self, redundant: int) -> None:
        now = asyncio.get_running_loop().time
        self.occupancy = Occupancy(cluster.ROWS, now)
        self.engine = SimulatedEngine(
            LENGTHS, 19, 1024, cluster.ROWS, WeightVersion(0, 0), self.occupancy, TokenClock(now)
        )
        self.num_workers = 1
        self.caps: list[int | None] = []
        sums = lane(
            env_options={"digits": 2, "eval_size": 20},
            samples_per_prompt=cluster.SAMPLES,
            redundant_samples=redundant,
            context=1024,
            max_new_tokens=cluster.CAP,
        )
        self._production = build_production(
            sums, TOKENIZER, self.engine.generate, Scoring(unscored)
        )

    async def run_block(
        self, lane: str, admissions: Sequence[Admission]
    ) -> tuple[str, BlockSummary]:
        self.caps += [admission.cap for admission in admissions]
        groups = [await self._production.make(admission) for admission in admissions]
        return str(admissions), BlockSummary(tuple(summarise(group) for group in groups))


class EngineStage(SimulatedStage):
    """Publishes to the engine; `rows` is how busy it was, by step."""

    num_tasks = TASKS

    def __init__(self, folder: Path, pool: EnginePool, **settings: object) -> None:
        super().__init__(folder, 0, pool=pool, algorithm="grpo", **settings)  # type: ignore[arg-type]
        self.engines = pool
        self.rows: list[RowSeconds] = []
        self.learner.seconds = cluster.UPDATE_SECONDS

    async def _publish(self, report: StepReport) -> Published:
        data, version = np.zeros(8, np.uint8), report.update.version
        await self.engines.engine.pause()
        self.rows.append(self.engines.occupancy.take())
        await self.engines.engine.load(Weights(version, (), data, content_hash((), data)))
        await self.engines.engine.resume()
        return Published(version, 0.0, ())


@dataclass(frozen=True)
class Measured:
    """Of the steps that count: seconds each, share of row-seconds without a sample, and summaries
    by step."""

    step_seconds: float
    idle_share: float
    steps: list[tuple[int, Sequence[GroupSummary]]]
    stage: EngineStage

    @property
    def trained(self) -> list[GroupId]:
        return [each.id for _, summaries in self.steps for each in summaries]


async def measure(
    folder: Path,
    feed: Feed[Finished],
    ages: AgePolicy,
    redundant: int = 0,
    cap: LengthCap | None = None,
    longest_first: bool = False,
    steps: int = 12,
) -> Measured:
    """A stage of `steps` steps, the first four of which, an epoch, do not count."""
    stage = EngineStage(
        folder,
        EnginePool(redundant),
        feed=feed,
        prompts=cluster.PROMPTS,
        ages=ages,
        steps=steps,
        lengths=ExpectedLengths() if longest_first else None,
        cap=cap,
    )
    ends: list[float] = []
    after = stage.loop._hooks.after

    async def note(step: int) -> None:
        await after(step)
        ends.append(asyncio.get_running_loop().time())

    object.__setattr__(stage.loop._hooks, "after", note)
    await stage.run()
    rows = sum(stage.rows[4:], RowSeconds())
    seconds = (ends[-1] - ends[3]) / (steps - 4)
    return Measured(seconds, 1 - rows.busy / rows.total, stage.recorder.steps[4:], stage)


def order() -> EpochOrder:
    return EpochOrder(TASKS, seed=3)
