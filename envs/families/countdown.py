"""Countdown: reach a target with given numbers and + - * /, each number used exactly once."""

from __future__ import annotations

import hashlib
import random
from typing import cast

from manta.envs.families.family import Family
from manta.envs.protocols import Split, TaskSource
from manta.envs.records import Json, Task
from manta.envs.rewards.expression import Expression
from manta.envs.sources.generator import GeneratedSource

EVAL_SHARE = 8


class Countdown(Family):
    """Prompts such as `Make 24 from 3 5 7 2: `, answered by an expression such as `((7+5)*2)`.

    Task i of a split is drawn from `seed` and i, and has a solution by construction: its `numbers`
    operands (1 to `largest`) were combined, through positive whole numbers only, into its target
    (at most `largest_target`). A problem (numbers in any order, target) belongs to `eval` where its
    hash says so, one in eight, so that the splits share none; within a split problems can repeat.
    Raises ValueError for sizes that leave nothing to draw.
    """

    def __init__(
        self,
        numbers: int = 4,
        largest: int = 25,
        largest_target: int = 100,
        train_size: int = 100_000,
        eval_size: int = 512,
        seed: int = 0,
    ) -> None:
        if not 2 <= numbers <= 8 or largest < 10 or largest_target < 10:
            raise ValueError(
                f"countdown: numbers {numbers} must lie in 2..8, largest {largest} and "
                f"largest_target {largest_target} must be at least 10"
            )
        if train_size < 1 or eval_size < 1:
            raise ValueError(f"countdown: train_size {train_size} and eval_size {eval_size} >= 1")
        self._numbers = numbers
        self._largest = largest
        self._largest_target = largest_target
        self._sizes: dict[Split, int] = {"train": train_size, "eval": eval_size}
        self._seed = seed
        self.verifier = Expression()

    def source(self, split: Split) -> TaskSource:
        return GeneratedSource(self._sizes[split], lambda index: self._task(split, index))

    def gold(self, task: Task) -> str:
        return str(task.facts["solution"])

    def _task(self, split: Split, index: int) -> Task:
        draw = random.Random(f"countdown/{self._seed}/{split}/{index}")
        while True:
            numbers = [1 + int(draw.random() * self._largest) for _ in range(self._numbers)]
            target, solution = _combined(numbers, draw)
            if target <= self._largest_target and _split(numbers, target) == split:
                break
        listed = " ".join(str(number) for number in numbers)
        return Task(
            id=f"countdown/{split}/{index}",
            prompt=f"Make {target} from {listed}: ",
            reference={"numbers": cast("list[Json]", numbers), "target": target},
            env="countdown",
            facts={"solution": solution},
        )


def _combined(numbers: list[int], draw: random.Random) -> tuple[int, str]:
    """A value and an expression that gives it, out of all `numbers`."""
    pool = [(number, str(number)) for number in numbers]
    while len(pool) > 1:
        (left, left_text), (right, right_text) = (
            pool.pop(int(draw.random() * len(pool))) for _ in range(2)
        )
        choices = [(left + right, "+"), (left * right, "*")]
        if left > right:
            choices.append((left - right, "-"))
        if left % right == 0:
            choices.append((left // right, "/"))
        value, operation = choices[int(draw.random() * len(choices))]
        pool.append((value, f"({left_text}{operation}{right_text})"))
    return pool[0]


def _split(numbers: list[int], target: int) -> Split:
    """The same for every order of the numbers."""
    text = f"{sorted(numbers)}/{target}"
    bucket = hashlib.sha256(text.encode()).digest()[0] % EVAL_SHARE
    return "eval" if bucket == 0 else "train"
