"""The bookkeeping of the benchmark; what it measures is its own business."""

from __future__ import annotations

import pytest

from benchmarks.effective_time import (
    BAR,
    LEARNER,
    OTHERS,
    STEP_SECONDS,
    WARM_UP,
    Fault,
    Timed,
    figures,
    run_file,
    schedule,
)
from manta.orchestrator import run_file as run_files
from manta.orchestrator import survey
from manta.orchestrator.cross_check import cross_check
from manta.orchestrator.yaml_tree import dump


def test_a_tenth_of_the_measured_steps_is_hit_as_the_seed_says() -> None:
    roles = (*OTHERS, LEARNER)
    for seed in range(20):
        faults = schedule(seed, 60, roles)
        assert faults == schedule(seed, 60, roles)
        steps = [fault.step for fault in faults]
        assert len(set(steps)) == 6 and steps == sorted(steps)
        assert steps[0] >= WARM_UP and steps[-1] + 2 < WARM_UP + 60
        assert all(0 <= fault.delay_seconds <= STEP_SECONDS for fault in faults)
    drawn = {fault.role for seed in range(20) for fault in schedule(seed, 60, roles)}
    assert drawn == {"rollout", "environment", "reward", "learner"}


def test_the_ratio_is_over_the_same_steps_and_each_role_s_cost_is_told() -> None:
    """Ten steps of 5 s; one that is hit takes 2 s longer, that of a learner 10 s."""
    undisturbed = Timed({step: 100.0 + 5.0 * step for step in range(1, WARM_UP + 11)})
    faults = [Fault(WARM_UP + 2, 1.0, "rollout", 0), Fault(WARM_UP + 6, 1.0, LEARNER, 0)]
    late = {WARM_UP + 3: 2.0, WARM_UP + 7: 10.0}
    disturbed = Timed(
        {
            step: end + 7.0 + sum(seconds for hit, seconds in late.items() if step >= hit)
            for step, end in undisturbed.ends.items()
        }
    )
    ratio, learner, rollout = figures("any role", 10, undisturbed, disturbed, faults)
    assert ratio.value == pytest.approx(100 * 50 / 62)
    assert (ratio.samples, ratio.bar, ratio.holds()) == ([(50.0, 62.0)], BAR, False)
    assert learner.name == "any role: learner killed 1 times, cost of one"
    assert (learner.value, rollout.value) == (10.0, 2.0)


def test_the_run_file_is_one_that_can_work(tmp_path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(dump(run_file(tmp_path, "undisturbed", 60)))
    loaded = run_files.load(path)
    assert not cross_check(loaded, survey.look(loaded))
