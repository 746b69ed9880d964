"""The table that both sides of a comparison read."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.grpo_work import GrpoWork
from benchmarks.pinned_lengths import PinnedLengths, even_share, pinned_table
from manta.envs.sources.order import EpochOrder


def test_a_task_is_the_same_in_a_longer_table() -> None:
    short, long = (pinned_table("long_tail", tasks, 8, 3) for tasks in (4, 9))
    assert np.array_equal(short.prompts, long.prompts[:4])
    assert np.array_equal(short.lengths, long.lengths[:4])
    assert len({short.text(task) for task in range(4)}) == 4


def test_lengths_are_distributed_as_said() -> None:
    lengths = pinned_table("long_tail", 2000, 8, 0).lengths
    assert lengths.min() >= 1
    assert lengths.max() == 256
    assert np.median(lengths) == pytest.approx(16, abs=1)
    assert np.log(lengths).std() == pytest.approx(1.0, abs=0.05)
    assert set(pinned_table("uniform", 5, 8, 0).lengths.flatten().tolist()) == {64}


def test_the_environment_gives_the_budgets_of_its_table() -> None:
    env = PinnedLengths("long_tail", tasks=6, samples=4, seed=7)
    table = pinned_table("long_tail", 6, 4, 7)
    tasks = [env.source("train").task(index) for index in range(6)]
    assert [env.budgets(task, 4, 256) for task in tasks] == [
        tuple(row) for row in table.lengths.tolist()
    ]
    assert tasks[5].prompt == table.text(5)
    with pytest.raises(ValueError, match="pins 4 samples"):
        env.budgets(tasks[0], 8, 256)


def test_the_reward_is_the_share_of_even_ids() -> None:
    assert even_share([0, 1, 2, 4]) == 0.75


def test_the_steps_follow_the_order_of_a_run_and_meet_every_task_once() -> None:
    work = GrpoWork("uniform", steps=3, prompts=4, seed=2)
    steps = work.tasks_by_step()
    order = EpochOrder(12, 2)
    assert steps[1] == [order.index(0, place) for place in range(4, 8)]
    assert sorted(task for step in steps for task in step) == list(range(12))
    assert GrpoWork.read(work.written()) == work
