"""Predictions against what can be worked out, and against published figures of the same cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from benchmarks import simulated_cluster as cluster
from manta.algorithms.presets import PRESETS
from manta.envs.sources.order import EpochOrder
from manta.orchestrator.age_policy import AgePolicy
from manta.orchestrator.feed import Feed
from manta.orchestrator.racing_feed import RacingFeed
from manta.orchestrator.simulation.lengths import LognormalLengths
from manta.orchestrator.simulation.predict import Prediction, predict
from manta.orchestrator.simulation.speeds import EngineSpeed, LearnerSpeed, Overheads, Speeds
from manta.orchestrator.simulation.stage import SimulatedStage
from manta.orchestrator.simulation.world import WorldShape
from manta.orchestrator.wait import DeadlineMissed

EQUAL = LognormalLengths(5, 10.0, 0.0)


def stage(prompts: int, staleness: int, per_call: int) -> Callable[[int], SimulatedStage]:
    def made(steps: int) -> SimulatedStage:
        feed = Feed(EpochOrder(1000, 0), (staleness + 1) * prompts, keeps_place=False)
        ages = AgePolicy(staleness)
        return SimulatedStage(feed, PRESETS["grpo"], prompts, steps, per_call, ages)

    return made


def predicted(
    speeds: Speeds, world: WorldShape, prompts: int, staleness: int = 0, per_call: int = 1
) -> Prediction:
    made = stage(prompts, staleness, per_call)
    return predict(made, world, speeds, EQUAL, staleness + 1, 4)


def test_a_step_on_policy_is_the_sum_of_its_parts() -> None:
    """4 groups of 2 samples of 10 tokens on two engines of 4 rows: 10 decode steps of 0.1 s."""
    overheads = Overheads(group=0.2, reward=0.5, publish=0.25, step=0.125)
    speeds = Speeds(EngineSpeed(0.1), LearnerSpeed(1.0, 0.01, ranks=2), overheads)
    world = WorldShape(2, 4, 5, 2, 64, environment_workers=4)
    found = predicted(speeds, world, prompts=4)
    learn = 1.0 + 0.01 * 8 * 15 / 2
    # What the driver does between two steps is done while the next groups are made already
    assert found.step_seconds == pytest.approx(0.2 + 1.0 + 0.5 + learn + 0.25, abs=1e-4)
    assert found.tokens_per_second == pytest.approx(80 / found.step_seconds)
    assert found.learner_idle == pytest.approx(1 - learn / found.step_seconds, abs=1e-4)
    assert found.engines_idle == pytest.approx(1 - 1.0 / found.step_seconds, abs=1e-4)
    assert (found.staleness_mean, found.staleness_max) == (0.0, 0)


@pytest.mark.parametrize(
    ("algorithm", "decodes", "trains"), [("remax", 2, 1), ("grao", 1, 2), ("xpo", 1, 2)]
)
def test_a_companion_takes_a_row_of_an_engine_or_of_the_learner(
    algorithm: str, decodes: int, trains: int
) -> None:
    """4 prompts of one sample of 10 tokens, on 4 rows: 10 decode steps, or twice as many."""

    def made(steps: int) -> SimulatedStage:
        feed = Feed(EpochOrder(1000, 0), 4, keeps_place=False)
        settings = replace(PRESETS[algorithm], samples_per_prompt=1)
        return SimulatedStage(feed, settings, 4, steps, 1, AgePolicy(0))

    speeds = Speeds(EngineSpeed(0.1), LearnerSpeed(1.0, 0.01), Overheads())
    kind = PRESETS[algorithm].companion
    world = WorldShape(1, 4, 5, 1, 64, environment_workers=4, companion=kind)
    found = predict(made, world, speeds, EQUAL, 1, 4)
    learn = 1.0 + 0.01 * 4 * 15 * trains
    assert found.step_seconds == pytest.approx(decodes * 1.0 + learn, abs=1e-4)
    assert found.tokens_per_second == pytest.approx(40 / found.step_seconds)


def test_environment_workers_have_one_thread_each() -> None:
    speeds = Speeds(EngineSpeed(0.1), LearnerSpeed(1.0, 0.0), Overheads(group=1.0))
    one = predicted(speeds, WorldShape(1, 8, 16, 1, 64, environment_workers=1), prompts=4)
    four = predicted(speeds, WorldShape(1, 8, 16, 1, 64, environment_workers=4), prompts=4)
    # Half of a group's work comes before its samples: the last one begins 1.5 s later. Of the other
    # half, done in the order in which samples end, half a second stands behind the last end
    assert one.step_seconds - four.step_seconds == pytest.approx(2.0, abs=1e-4)


def test_working_ahead_hides_the_shorter_of_the_two() -> None:
    speeds = Speeds(EngineSpeed(0.1), LearnerSpeed(3.0, 0.0), Overheads())
    found = predicted(speeds, WorldShape(1, 64, 80, 2, 64), prompts=4, staleness=1)
    assert found.step_seconds == pytest.approx(3.0, abs=0.01)
    assert found.staleness_mean == 1.0


def test_asynchrony_gains_what_it_gains_in_the_real_loop() -> None:
    """The cluster of `benchmarks.async_speedup`, whose aims come from a simulation of its own:
    1.94x, 2.75x and 3.4x over synchronous at staleness 1, 2 and 4."""
    speeds = Speeds(
        EngineSpeed(1 / cluster.TOKENS_PER_SECOND),
        LearnerSpeed(cluster.UPDATE_SECONDS, 0.0),
        Overheads(),
    )
    world = WorldShape(1, cluster.ROWS, cluster.ROWS * 5 // 4, cluster.SAMPLES, cluster.CAP)
    lengths = LognormalLengths(8, cluster.MEDIAN, cluster.SIGMA)
    seconds = {
        staleness: predict(
            stage(cluster.PROMPTS, staleness, 8),
            world,
            speeds,
            lengths,
            6,
            20,
        ).step_seconds
        for staleness in (0, 1, 2, 4)
    }
    gains = [seconds[0] / seconds[staleness] for staleness in (1, 2, 4)]
    assert gains == pytest.approx([1.94, 2.75, 3.4], rel=0.06)


def test_groups_that_are_overtaken_free_their_rows() -> None:
    def made(steps: int) -> SimulatedStage:
        feed = RacingFeed(EpochOrder(1000, 0), 8, 10)
        return SimulatedStage(feed, PRESETS["grpo"], 8, steps)

    speeds = Speeds(EngineSpeed(0.01), LearnerSpeed(0.1, 0.0), Overheads())
    world = WorldShape(2, 16, 20, 4, 256)
    found = predict(made, world, speeds, LognormalLengths(8, 16.0, 1.0), 2, 8)
    plain = predict(stage(8, 0, 1), world, speeds, LognormalLengths(8, 16.0, 1.0), 2, 8)
    assert 0.1 < found.step_seconds < plain.step_seconds


def test_what_never_ends_is_told() -> None:
    """No engine: nobody will ever make a group."""
    speeds = Speeds(EngineSpeed(0.01), LearnerSpeed(0.1, 0.0), Overheads())
    with pytest.raises(DeadlineMissed, match="group 1 of 2"):
        predicted(speeds, WorldShape(0, 16, 20, 4, 256), prompts=2)
