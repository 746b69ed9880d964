from __future__ import annotations

import pytest

from manta.actors.processes import HostFigures
from manta.orchestrator.alarms import (
    IDLE_STEPS,
    WINDOW,
    PlaceAlarms,
    StepAlarms,
)

GIB = 1 << 30
HEALTHY = {
    "time/step": 5.0,
    "time/generate": 3.0,
    "time/learner/step": 1.5,
    "rollout/idle_share": 0.6,
    "router/waiting": 3.0,
}


def kinds(alarms: StepAlarms, steps: list[dict[str, float]], stage: str = "rl") -> list[str]:
    return [alarm.kind for step in steps for alarm in alarms.step(stage, HEALTHY | step)]


def test_a_healthy_run_raises_none() -> None:
    steps = [{"time/step": 5.0 + i % 7} for i in range(200)]
    assert kinds(StepAlarms(), steps) == []


def test_a_step_far_above_the_median_names_the_phase_that_took_it() -> None:
    alarms = StepAlarms()
    assert kinds(alarms, [{}] * 12) == []
    (alarm,) = alarms.step("rl", HEALTHY | {"time/step": 40.0, "time/generate": 37.0})
    assert alarm.kind == "slow step"
    assert "a step took 40.0 s, usual are 5.0 s" in str(alarm)
    assert ". 34.0 s more than usual went to making samples. Look for long answers" in str(alarm)


def test_a_slow_step_is_told_again_only_after_one_that_was_not() -> None:
    slow = {"time/step": 60.0}
    assert kinds(StepAlarms(), [*[{}] * 12, slow, slow, {}, slow]) == ["slow step"] * 2


def test_the_first_steps_of_a_stage_are_no_measure() -> None:
    alarms = StepAlarms()
    assert kinds(alarms, [{}] * 12) == []
    assert kinds(alarms, [{"time/step": 60.0}], stage="next") == []


def test_engines_that_are_idle_all_the_time_are_told_once() -> None:
    idle = [{"rollout/idle_share": 0.97, "time/generate": 0.1}] * (2 * IDLE_STEPS)
    assert kinds(StepAlarms(), idle) == ["engines idle"]
    assert kinds(StepAlarms(is_colocated=True), idle) == []
    assert kinds(StepAlarms(), idle[: IDLE_STEPS - 1]) == []


def test_more_rows_than_are_used_are_no_idle_engines() -> None:
    assert kinds(StepAlarms(), [{"rollout/idle_share": 0.99}] * 200) == []


def test_a_learner_that_waits_all_the_time_is_told_once() -> None:
    assert kinds(StepAlarms(), [{"time/learner/step": 0.01}] * 80) == ["learner idle"]


def test_a_queue_that_grows_is_told_and_one_that_swings_is_not() -> None:
    grows = [{"router/waiting": 10.0 * 1.15**i} for i in range(WINDOW)]
    assert kinds(StepAlarms(), grows) == ["queue router/waiting"]
    swings = [{"router/waiting": 200.0 * (i % 2)} for i in range(100)]
    assert kinds(StepAlarms(), swings) == []
    scorer = [{"scorer/taste/queue": 10.0 * 1.15**i} for i in range(WINDOW)]
    assert kinds(StepAlarms(), scorer) == ["queue scorer/taste/queue"]


@pytest.mark.parametrize(
    ("figures", "kind"),
    [
        (HostFigures(0.9, 0.1, 9 * GIB), "memory a"),
        (HostFigures(0.1, 0.93, 9 * GIB), "session disk a"),
    ],
)
def test_a_machine_is_told_once_until_it_is_well_again(figures: HostFigures, kind: str) -> None:
    alarms, well = PlaceAlarms(), HostFigures(0.5, 0.5, 100 * GIB)
    looks = [well, figures, figures, well, figures]
    found = [[alarm.kind for alarm in alarms.host("a", each)] for each in looks]
    assert found == [[], [kind], [], [], [kind]]


def test_a_run_directory_needs_room_for_the_next_checkpoint() -> None:
    alarms = PlaceAlarms()
    assert alarms.run_directory(10 * GIB, GIB) == []
    (alarm,) = alarms.run_directory(10 * GIB, 6 * GIB)
    assert "10.0 GiB are free" in alarm.what and "6.0 GiB" in alarm.cause
    assert PlaceAlarms().run_directory(GIB // 2, 0) != []


def test_groups_that_break_often_are_told() -> None:
    alarms = PlaceAlarms()
    assert alarms.groups(2, 100) == []
    assert alarms.groups(10, 150) == [], "too few to tell"
    (alarm,) = alarms.groups(30, 180)
    assert "28 of the last 80 groups" in alarm.what
    assert PlaceAlarms().groups(16, 1000) == []
