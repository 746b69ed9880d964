"""A slice of the soak (`python -m tests.chaos.soak`): one run that loses a node and two workers."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest

from tests.chaos.faults import (
    DRIVER,
    LATEST_SECONDS,
    ON_THE_HEAD,
    Fault,
    Hit,
    Kind,
    schedule,
)
from tests.chaos.tally import Tally
from tests.chaos.town import town
from tests.chaos.trial import Trial, check, kill_driver, run_trial
from tests.e2e import runs

pytestmark = pytest.mark.e2e
KINDS: tuple[Kind, ...] = get_args(Kind)

SEED = "CHAOS_SEED"
"""In the environment, to meet the moments of a run that failed once more."""


def drawn_faults() -> tuple[Fault, ...]:
    """The same ones each time, at moments within a step that a new seed decides."""
    seed = int(os.environ.get(SEED, time.time_ns() % 2**32))
    print(f"{SEED}={seed}")
    draw = random.Random(seed)
    fixed: Sequence[tuple[int, Kind, str]] = (
        (2, "kill", "environment"),
        (5, "lose node", "learner"),
        (8, "freeze", "rollout"),
    )
    return tuple(
        Fault(step, draw.uniform(0.0, LATEST_SECONDS), kind, role, draw.randrange(1 << 16))
        for step, kind, role in fixed
    )


def test_a_run_under_faults_ends_as_one_without(finished: Path, tmp_path: Path) -> None:
    steps = runs.last_step(runs.TINY)
    roles = ("learner_node", "rollout_node", "environment_node")
    with town(nodes=3, roles=roles) as nodes:
        trial = run_trial(
            nodes,
            runs.TINY,
            tmp_path,
            drawn_faults(),
            "run.deterministic=true",
            "health.every_seconds=1",
            "health.frozen_after_seconds=3",
        )
        check(trial, nodes, Trial(finished, steps, (), 0.0, ""))
    stood = [hit.what.rpartition(" on ")[2] for hit in trial.hits if hit.is_delivered]
    assert stood == ["environment_node", "learner_node", "rollout_node"], trial.hits


def test_schedules_follow_from_their_seed() -> None:
    drawn = [schedule(seed, 3, 12, ("rollout", "driver"), ("kill", "freeze")) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [fault.step for fault in drawn[2]] == sorted(fault.step for fault in drawn[2])
    assert all(f.kind == "kill" for faults in drawn for f in faults if f.role == "driver")


def test_a_node_is_lost_only_where_the_driver_does_not_stand() -> None:
    roles = (DRIVER, *ON_THE_HEAD, "rollout")
    faults = [fault for seed in range(40) for fault in schedule(seed, 3, 12, roles, KINDS)]
    assert {fault.role for fault in faults} == set(roles)
    assert {fault.role for fault in faults if fault.kind == "lose node"} == {"rollout"}
    [only] = schedule(0, 1, 12, ("router", "learner"), ("lose node",))
    assert only.role == "learner"
    with pytest.raises(ValueError, match="none of lose node can happen to any of router"):
        schedule(0, 1, 12, ("router",), ("lose node",))


def test_a_schedule_none_of_whose_faults_was_delivered_proves_nothing() -> None:
    kill, stall = Fault(1, 0.1, "kill", "rollout", 0), Fault(12, 0.1, "stall", "router", 0)
    late = Hit(stall, "the run had ended", is_delivered=False)
    tally = Tally()
    tally.note([Hit(kill, "process 1", is_delivered=True), late], "")
    tally.note([late], "")
    tally.note([late], "not done")
    first, killed, stalled, last = tally.lines()
    assert first.startswith("1 of 4 faults")
    assert (killed, stalled) == ("  kill rollout: 1 of 1", "  stall router: 0 of 3")
    assert last == (
        "1 of 3 schedules held; 1 more had no fault delivered, and prove nothing; 1 failed"
    )
    assert tally.failed == 1


def test_a_driver_that_has_ended_by_itself_was_not_killed() -> None:
    fault = Fault(1, 0.1, "kill", DRIVER, 0)
    with subprocess.Popen(["true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        hit = kill_driver(ended, fault)
    assert not hit.is_delivered and str(hit).endswith("the driver had ended")
    with subprocess.Popen(["sleep", "600"]) as lives:
        assert kill_driver(lives, fault).is_delivered
