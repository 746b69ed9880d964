"""What a rule costs a sample on top of its own work: exact answer, format and length in a formula.

Groups of 2 and of 16 samples, side by side as a reward worker scores them, of rules that are marked
as answering at once; against the same rules unmarked, each a task with a deadline, and against the
bound, a loop that does nothing but call the three rules. Processor time of one thread, the three
taking turns; each ratio is that of one turn.

    python -m benchmarks.reward_calls [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from benchmarks.report import Figure, write
from manta.envs.families.arithmetic import Arithmetic
from manta.envs.protocols import Services, TrajectoryReward
from manta.envs.records import Detail, Task, Trajectory
from manta.envs.registry import build
from manta.envs.rewards.compose import Composition
from manta.envs.rewards.exact import Exact
from manta.envs.rewards.format import Format
from manta.envs.rewards.formula import Formula
from manta.envs.rewards.length import Length
from manta.envs.side_by_side import side_by_side
from manta.envs.transcript import given_trajectory

CLAIM = "Three rules a sample: marked as answering at once, against tasks, and the bare calls"
SAMPLES = 1024
SERVICES = Services()
Group = tuple[Task, list[Trajectory]]


class Unmarked:
    """A reward that does not say that it awaits nothing."""

    def __init__(self, reward: TrajectoryReward) -> None:
        self._reward, self.version = reward, reward.version

    async def score(
        self, task: Task, trajectory: Trajectory, services: Services
    ) -> float | Detail | None:
        return await self._reward.score(task, trajectory, services)


def rules() -> dict[str, Exact | Format | Length]:
    return {"correct": Exact(), "number": Format("[0-9]{1,3}"), "short": Length(4, 8)}


def groups(size: int) -> list[Group]:
    env = build("env", "arithmetic", {})
    assert isinstance(env, Arithmetic)
    source, tokens = env.source("train"), np.arange(5, dtype=np.int32)
    tasks = [source.task(index) for index in range(SAMPLES // size)]
    return [
        (task, [given_trajectory(task.id, tokens, tokens, env.gold(task))] * size) for task in tasks
    ]


def composed(
    components: dict[str, TrajectoryReward],
) -> Callable[[Sequence[Group]], Awaitable[object]]:
    composition = Composition(Formula("correct + 0.1 * number"), dict(components))

    async def score(whole: Sequence[Group]) -> object:
        return await side_by_side([composition.score_group(*each, SERVICES) for each in whole])

    return score


async def bare(whole: Sequence[Group]) -> None:
    each = list(rules().values())
    for task, trajectories in whole:
        for trajectory in trajectories:
            for rule in each:
                await rule.score(task, trajectory, SERVICES)


def microseconds(
    score: Callable[[Sequence[Group]], Awaitable[object]], whole: list[Group]
) -> float:
    async def timed() -> float:
        begin = time.process_time()
        await score(whole)
        return time.process_time() - begin

    return asyncio.run(timed()) / SAMPLES * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    at_once = composed(dict(rules()))
    as_tasks = composed({name: Unmarked(rule) for name, rule in rules().items()})
    found = []
    for size in (2, 16):
        whole = groups(size)
        turns = [
            tuple(microseconds(score, whole) for score in (at_once, as_tasks, bare))
            for _ in range(rounds + 1)
        ][1:]  # the first one warms up
        label = f"groups of {size}"
        cost, tasks, calls = (statistics.median(side) for side in zip(*turns, strict=True))
        ratio = statistics.median(theirs / ours for ours, theirs, _ in turns)
        found += [
            Figure(f"{label}: speed, of tasks'", ratio, "x", 2, None, "higher", turns),
            Figure(f"{label}: at once", cost, "us a sample", None, None, "lower", [cost]),
            Figure(f"{label}: as tasks", tasks, "us a sample", None, None, "lower", [tasks]),
            Figure(f"{label}: bare calls", calls, "us a sample", None, None, "lower", [calls]),
        ]
    write("reward_calls", CLAIM, found, [], 1)


if __name__ == "__main__":
    main()
