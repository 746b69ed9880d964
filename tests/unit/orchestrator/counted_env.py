"""An environment that counts which tasks it was asked for."""

from __future__ import annotations

from typing import ClassVar

from manta.envs.families.family import Family
from manta.envs.protocols import Split, TaskSource
from manta.envs.records import Task
from manta.envs.rewards.exact import Exact
from manta.envs.sources.generator import GeneratedSource


class Counted(Family):
    """`size` training tasks whose prompts are `1` repeated; counts how many were asked for."""

    asked: ClassVar[list[int]] = []

    def __init__(
        self, size: int, eval_size: int = 2, has_gold: bool = True, reference: str = "22"
    ) -> None:
        self.verifier = Exact()
        self._reference = reference
        self._sizes = {"train": size, "eval": eval_size}
        self._has_gold = has_gold

    def source(self, split: Split) -> TaskSource:
        return GeneratedSource(self._sizes[split], lambda index: self._task(split, index))

    def gold(self, task: Task) -> str:
        if not self._has_gold:
            raise ValueError("env 'counted' has no gold answers: it cannot be learnt by sft")
        return "22"

    def _task(self, split: Split, index: int) -> Task:
        if split == "train":
            self.asked.append(index)
        return Task(f"counted/{split}/{index}", "1" * (1 + index % 3), self._reference, "counted")
