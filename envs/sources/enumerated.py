"""The two splits of tasks that can be counted: a seeded few are held out, the others train."""

from __future__ import annotations

from collections.abc import Callable

from manta.envs.protocols import Split, TaskSource
from manta.envs.records import Task
from manta.envs.sources.generator import GeneratedSource
from manta.envs.sources.shuffle import Shuffle


class EnumeratedSplits:
    """Tasks 0..total-1, each in one split: `to_task` makes one from its number alone.

    `env` and `seed` decide which `eval_size` of them are held out. Raises ValueError for a size
    that leaves a split empty.
    """

    def __init__(
        self, env: str, total: int, eval_size: int, seed: int, to_task: Callable[[int], Task]
    ) -> None:
        if not 0 < eval_size < total:
            raise ValueError(
                f"{env}: eval_size is {eval_size}: it must lie in 1..{total - 1}, there are "
                f"{total} prompts"
            )
        self._order = Shuffle(total, f"{env}/{seed}")
        self._eval_size = eval_size
        self._to_task = to_task

    def source(self, split: Split) -> TaskSource:
        if split == "eval":
            return GeneratedSource(self._eval_size, lambda i: self._to_task(self._order[i]))
        size = self._order.length - self._eval_size
        return GeneratedSource(size, lambda i: self._to_task(self._order[self._eval_size + i]))
