"""Numbers of workers in a run file: what is read, asked of the cluster, and refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from manta.actors.worker_range import WorkerRange
from manta.orchestrator.placement import Cluster, NotEnoughResources, check_resources
from manta.orchestrator.pool_check import pool_problems
from manta.orchestrator.role_needs import RoleNeed, role_needs
from manta.orchestrator.run_file import dump
from manta.orchestrator.run_file import load as load_file
from tests.unit.orchestrator.tiny_run import load


def test_a_number_and_a_range_are_read_and_written_back(tmp_path: Path) -> None:
    loaded = load(
        tmp_path, "rollout.workers={min: 1, max: 4}", "environment.workers=2", "rollout.standby=1"
    )
    assert loaded.rollout.sizes == WorkerRange(1, 4)
    assert loaded.environment.sizes == WorkerRange(2, 2)
    assert list(pool_problems(loaded)) == []
    again = tmp_path / "again.yaml"
    again.write_text(dump(loaded))
    assert load_file(again) == loaded


def test_the_cluster_must_hold_the_least_and_the_plan_shows_the_most(tmp_path: Path) -> None:
    loaded = load(
        tmp_path, "rollout.workers={min: 1, max: 400}", "rollout.threads=1", "rollout.standby=1"
    )
    [need] = [need for need in role_needs(loaded) if need.role == "rollout"]
    assert need == RoleNeed("rollout", 2, 1.0, 0, more=399)
    assert str(need.sizes) == "2 to 401"
    check_resources(loaded, Cluster("", 3.0, 0.0, ({"CPU": 3.0},)))
    with pytest.raises(NotEnoughResources, match="2 rollout x 1"):
        check_resources(loaded, Cluster("", 2.0, 0.0, ({"CPU": 2.0},)))


REFUSED = [
    ("rollout.workers=0", "rollout.workers: is 0, must be at least 1"),
    ("rollout.workers={min: 0, max: 2}", "rollout.workers.min: is 0, must be at least 1"),
    ("environment.workers={min: 3, max: 2}",
     "environment.workers.min: is 3, above max (2): a run starts with min workers and never has "
     "more than max"),
    ("reward_workers.workers={min: 1, max: 2, idle_seconds: 0}",
     "reward_workers.workers.idle_seconds: is 0, must be above 0"),
    ("reward_workers.workers={min: 1, max: 2} run.deterministic=true",
     "reward_workers.workers: is a range, but in a run with run.deterministic nothing may depend "
     "on when workers come and go: give one number"),
    ("rollout.workers={min: 1, max: 2} rollout.placement=colocated",
     "rollout.workers: is a range, but colocated engines stay beside the learner's ranks: give "
     "one number"),
    ("rollout.workers={min: 1, max: 2} publish.transport=nccl",
     "rollout.workers: is a range, but engines that transport nccl sends to stay as they are: "
     "give one number"),
    ("learner.workers=0", "learner.workers: is 0, must be at least 1"),
    ("learner.workers={min: 0, max: 2}", "learner.workers.min: is 0, must be at least 1"),
    ("learner.workers={min: 3, max: 2}",
     "learner.workers.min: is 3, above max (2): the group has as many ranks as there is place for, "
     "never fewer than min nor more than max"),
    ("learner.workers={min: 1, max: 2, settle_seconds: -1}",
     "learner.workers.settle_seconds: is -1, must be at least 0"),
    ("learner.workers={min: 1, max: 2} run.deterministic=true",
     "learner.workers: is a range, but in a run with run.deterministic sums must not depend on how "
     "many ranks share them: give one number"),
    ("learner.workers={min: 1, max: 2} rollout.placement=colocated",
     "learner.workers: is a range, but colocated engines stay beside the learner's ranks: give one "
     "number"),
    ("rollout.standby=-1", "rollout.standby: is -1, must be at least 0"),
    ("rollout.standby=1 publish.transport=ipc",
     "rollout.standby: engines that transport ipc sends to stay as they are, so nothing would "
     "stand in for long: set 0"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "told"), REFUSED)
def test_refuses(tmp_path: Path, overrides: str, told: str) -> None:
    loaded = load(tmp_path, *re.split(r" (?=\w+\.)", overrides))
    assert list(pool_problems(loaded)) == [told]


def test_a_range_of_one_number_is_that_number(tmp_path: Path) -> None:
    loaded = load(tmp_path, "rollout.workers={min: 2, max: 2}", "run.deterministic=true")
    assert list(pool_problems(loaded)) == []
