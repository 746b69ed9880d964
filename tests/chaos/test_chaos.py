"""A slice of the soak (`python -m tests.chaos.soak`): one run that loses a node and two workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.faults import Fault, schedule
from tests.chaos.town import town
from tests.chaos.trial import Trial, check, run_trial
from tests.e2e import runs

pytestmark = pytest.mark.e2e

FAULTS = (
    Fault(2, 0.1, "kill", "environment", 0),
    Fault(5, 0.2, "lose node", "learner", 0),
    Fault(9, 0.1, "freeze", "rollout", 0),
)


def test_a_run_under_faults_ends_as_one_without(finished: Path, tmp_path: Path) -> None:
    steps = runs.last_step(runs.TINY)
    roles = ("learner_node", "rollout_node", "environment_node")
    with town(nodes=3, roles=roles) as nodes:
        trial = run_trial(
            nodes,
            runs.TINY,
            tmp_path,
            FAULTS,
            "run.deterministic=true",
            "health.every_seconds=1",
            "health.frozen_after_seconds=3",
        )
        check(trial, nodes, Trial(finished, steps, (), 0.0, ""))
    stood = [hit.split(" on ")[1] for hit in trial.hits]
    assert stood == ["environment_node", "learner_node", "rollout_node"], trial.hits


def test_schedules_follow_from_their_seed() -> None:
    drawn = [schedule(seed, 3, 12, ("rollout", "driver"), ("kill", "freeze")) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [fault.step for fault in drawn[2]] == sorted(fault.step for fault in drawn[2])
    assert all(f.kind == "kill" for faults in drawn for f in faults if f.role == "driver")
