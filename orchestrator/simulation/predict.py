"""What a run would take: a stage simulated in virtual time, and the figures that come of it.

Owns what is counted: whole steps after the first ones, which fill the pipeline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from manta.orchestrator.simulation import virtual_clock
from manta.orchestrator.simulation.engine import EngineSeconds
from manta.orchestrator.simulation.lengths import Lengths
from manta.orchestrator.simulation.speeds import Speeds
from manta.orchestrator.simulation.stage import SimulatedStage, StageParts, StepTimes, ledger_in
from manta.orchestrator.simulation.world import SimulatedLearner, SimulatedWorld, WorldShape


@dataclass(frozen=True, slots=True)
class Prediction:
    """Means over the steps that count. `engines_idle` is the share of time in which an engine does
    nothing, `rows_idle` that of its rows without a sample; `learner_idle` that of the learner.
    Staleness is of groups, by their oldest token, in steps. Tokens are those that train."""

    step_seconds: float
    tokens_per_second: float
    samples_per_second: float
    engines_idle: float
    rows_idle: float
    learner_idle: float
    staleness_mean: float
    staleness_max: int


@dataclass(frozen=True, slots=True)
class _Mark:
    """Where the counters stood at a moment."""

    at: float
    engines: EngineSeconds
    learner: float


def predict(
    stage: Callable[[int], SimulatedStage],
    world: WorldShape,
    speeds: Speeds,
    lengths: Lengths,
    filling: int,
    counted: int,
) -> Prediction:
    """Simulates `filling` steps that do not count and `counted` that do; `stage` makes the stage of
    so many steps, anew for every prediction."""
    with TemporaryDirectory(prefix="manta-plan-") as folder:
        found = _simulated(Path(folder), stage(filling + counted), world, speeds, lengths, filling)
        return virtual_clock.run(found)


async def _simulated(
    folder: Path,
    stage: SimulatedStage,
    shape: WorldShape,
    speeds: Speeds,
    lengths: Lengths,
    filling: int,
) -> Prediction:
    loop = asyncio.get_running_loop()
    world, learner = SimulatedWorld(shape, speeds, lengths), SimulatedLearner(speeds.learner)
    times = StepTimes()
    marks: list[_Mark] = []

    def mark() -> None:
        marks.append(_Mark(loop.time(), _total(world), learner.busy))

    async def after(step: int) -> None:
        await asyncio.sleep(speeds.overheads.step)
        if step in (filling, stage.steps):
            mark()

    if filling == 0:
        mark()
    ledger = ledger_in(folder)
    parts = StageParts(stage, ledger, world, learner, world.publish, times, after)
    await parts.run()
    ledger.close()
    [begin, end] = marks
    return _prediction(begin, end, times, shape, filling)


def _total(world: SimulatedWorld) -> EngineSeconds:
    total = EngineSeconds()
    for engine in world.engines.values():
        engine.settle()
        total.busy += engine.seconds.busy
        total.rows += engine.seconds.rows
    return total


def _prediction(
    begin: _Mark, end: _Mark, times: StepTimes, shape: WorldShape, filling: int
) -> Prediction:
    counted = times.steps[filling:]
    seconds = end.at - begin.at
    all_engines = seconds * shape.engines
    ages = [age for step in counted for age in step.ages]
    return Prediction(
        step_seconds=seconds / len(counted),
        tokens_per_second=sum(step.tokens for step in counted) / seconds,
        samples_per_second=sum(step.samples for step in counted) / seconds,
        engines_idle=1 - (end.engines.busy - begin.engines.busy) / all_engines,
        rows_idle=1 - (end.engines.rows - begin.engines.rows) / (all_engines * shape.max_rows),
        learner_idle=1 - (end.learner - begin.learner) / seconds,
        staleness_mean=sum(ages) / len(ages),
        staleness_max=max(ages),
    )
