"""How many workers there should be, in virtual time."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from manta.actors.worker_range import WorkerRange
from manta.orchestrator.scaling import Demand, Scaling

Scene = Callable[[float], tuple[float, bool]]


class Told:
    """A scaling that is told once a second; steps take `step_seconds`."""

    def __init__(self, least: int, most: int, step_seconds: float = 10.0) -> None:
        self.now = 0.0
        self.step_seconds = step_seconds
        self.scaling = Scaling(WorkerRange(least, most), lambda: self.now)
        self.changes: list[tuple[float, int]] = []

    def during(self, seconds: float, scene: Scene) -> int:
        """`scene` says what is needed, and whether that is waited for, at a time within a step."""
        end = self.now + seconds
        before = self.scaling.target
        while self.now < end:
            self.now += 1.0
            needed, is_waited_for = scene(self.now % self.step_seconds)
            steps = int(self.now / self.step_seconds)
            target = self.scaling.tell(Demand(needed, is_waited_for, steps))
            if target != before:
                self.changes.append((self.now, target))
            before = target
        return self.scaling.target


def always(needed: float) -> Scene:
    return lambda at: (needed, True)


def ready(at: float) -> tuple[float, bool]:
    """Groups lie ready: engines are full, and nobody waits for them."""
    return 50.0, False


def test_it_starts_with_the_least_and_grows_within_seconds_to_what_is_needed() -> None:
    told = Told(2, 8)
    assert told.scaling.target == 2
    assert told.during(5, always(4.2)) == 5
    assert told.changes[0][0] <= 5


def test_it_never_leaves_its_bounds() -> None:
    told = Told(2, 8)
    assert told.during(30, always(100)) == 8
    assert told.during(1200, always(0)) == 2
    assert {target for _, target in told.changes} <= set(range(2, 9))


def test_a_moment_of_demand_is_none() -> None:
    told = Told(1, 8)
    told.during(60, lambda at: (8.0 if at < 2 else 1.0, True))
    assert told.changes == []


def test_short_steps_grow_too_though_each_has_a_moment_without_need() -> None:
    told = Told(1, 8, step_seconds=4.0)
    assert told.during(12, lambda at: (4.0, True) if at >= 1 else (0.0, False)) == 4


def test_nothing_grows_for_groups_that_nobody_waits_for() -> None:
    told = Told(1, 8)
    assert told.during(600, ready) == 1


def test_it_shrinks_after_idle_time_to_what_was_needed_at_most() -> None:
    told = Told(1, 8)
    told.during(10, always(8))
    assert told.during(50, always(3)) == 8, "not yet idle for long"
    assert told.during(300, always(3)) == 3
    assert told.changes[1][0] >= 10 + 60


@pytest.mark.parametrize("step_seconds", [10.0, 200.0])
def test_engines_that_stand_idle_while_the_learner_computes_stay(step_seconds: float) -> None:
    """On-policy steps: half of each is sampling, which all engines are needed for."""
    told = Told(1, 8, step_seconds)
    told.during(
        40 * step_seconds, lambda at: (8.0, True) if at < step_seconds / 2 else (0.0, False)
    )
    assert [target for _, target in told.changes] == [8]


def test_a_learner_that_never_waits_lets_engines_go_little_by_little() -> None:
    told = Told(1, 16)
    told.during(10, always(16))
    told.during(70, ready)
    assert told.scaling.target == 12
    told.during(1000, ready)
    targets = [target for _, target in told.changes]
    assert targets == sorted(targets, reverse=True)[: len(targets)]
    assert told.scaling.target == 1


def test_a_load_at_the_brink_changes_little() -> None:
    """With 4 engines somebody waits, with 8 nobody does: what was let go too early is kept longer
    each time."""
    told = Told(1, 8)

    def brink(at: float) -> tuple[float, bool]:
        return 8.0, told.scaling.target < 8

    told.during(2 * 3600, brink)
    grown = [at for at, target in told.changes if target == 8]
    assert len(grown) <= 8
    gaps = [later - earlier for earlier, later in itertools.pairwise(grown)]
    assert all(later > 1.5 * earlier for earlier, later in itertools.pairwise(gaps[:4]))
