"""Which of a task's written samples stands beside those of an epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from manta.envs.failures import GroupBroken
from manta.envs.records import ScoredGroup, Task
from manta.envs.trajectory_files import TrajectoryReader, write_groups
from manta.envs.written_samples import WrittenSamples
from tests.tiny import groups_of

TASK = Task("task-0", "prompt", None, "tiny")


def written(folder: Path) -> list[ScoredGroup]:
    """Six groups of three tasks in two files, four samples of each task; the last group of each
    has a companion too."""
    groups = [
        replace(group, task=replace(TASK, id=f"task-{position % 3}"))
        for position, group in enumerate(groups_of((3, 1, 2, 1, 3, 2)))
    ]
    beside = [each.companion for each in groups_of((1, 1, 1), companion="greedy")]
    groups[3:] = [
        replace(group, companion=companion)
        for group, companion in zip(groups[3:], beside, strict=True)
    ]
    write_groups(folder / "step=1" / "written.parquet", groups[:4], 1)
    write_groups(folder / "step=2" / "written.parquet", groups[4:], 2)
    return groups


def test_samples_are_found_by_task_and_companions_are_none(tmp_path: Path) -> None:
    written(tmp_path)
    assert TrajectoryReader(tmp_path).samples_by_task() == {
        "task-0": [(0, 0), (0, 1), (0, 2), (3, 0)],
        "task-1": [(1, 0), (4, 0), (4, 1), (4, 2)],
        "task-2": [(2, 0), (2, 1), (5, 0), (5, 1)],
    }


def test_every_one_comes_before_any_comes_again(tmp_path: Path) -> None:
    groups = written(tmp_path)
    samples = WrittenSamples(tmp_path, 7, "rl/train")
    for number in range(3):
        task = replace(TASK, id=f"task-{number}")
        own = [t for group in groups[number::3] for t in group.trajectories]
        found = [samples.pick(task, epoch).token_ids.tobytes() for epoch in range(8)]
        assert set(found[:4]) == {t.token_ids.tobytes() for t in own} and len(own) == 4
        assert found[:4] == found[4:]


def test_the_choice_follows_from_seed_purpose_task_and_epoch(tmp_path: Path) -> None:
    """Whoever reads, and whatever was read before."""
    written(tmp_path)
    one, other = (WrittenSamples(tmp_path, 7, "rl/train") for _ in range(2))
    forth = [one.pick(TASK, epoch).token_ids.tobytes() for epoch in range(4)]
    back = [other.pick(TASK, epoch).token_ids.tobytes() for epoch in reversed(range(4))]
    assert forth == back[::-1]
    starts = {
        WrittenSamples(tmp_path, seed, purpose).pick(TASK, 0).token_ids.tobytes()
        for seed in range(8)
        for purpose in ("rl/train", "rl@2/train")
    }
    assert len(starts) == 4, "the start is drawn"


def test_a_task_without_samples_breaks_its_group_by_name(tmp_path: Path) -> None:
    written(tmp_path)
    told = f"task task-9: no sample of it is written in {tmp_path}, which has 3 tasks: let the"
    with pytest.raises(GroupBroken, match=told):
        WrittenSamples(tmp_path, 0, "").pick(replace(TASK, id="task-9"), 0)
