"""The base of task families: the usual answers to what every environment is asked.

Owns defaults only. An environment need not derive from it; `manta.envs.protocols.Env` is the seam.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from manta.envs.protocols import Split, TaskSource
from manta.envs.records import Message, Task
from manta.envs.rewards.artifact import ArtifactReward

SPLITS: tuple[Split, ...] = ("train", "eval")


class Family(ABC):
    """Single-turn tasks with gold answers. `verifier` is the reward that says what is right.

    A family of several turns sets `single_turn` to False and overrides `reply`.
    """

    single_turn: bool = True
    verifier: ArtifactReward

    @abstractmethod
    def source(self, split: Split) -> TaskSource: ...

    @abstractmethod
    def gold(self, task: Task) -> str: ...

    async def reply(self, task: Task, messages: Sequence[Message]) -> Message | None:
        return None

    def budgets(self, task: Task, num_samples: int, max_new_tokens: int) -> tuple[int, ...]:
        return (max_new_tokens,) * num_samples

    def validate(self, limit: int | None = None) -> None:
        for split in SPLITS:
            source = self.source(split)
            for index in range(len(source) if limit is None else min(limit, len(source))):
                task = source.task(index)
                gold = self.gold(task)
                value = self.verifier.judge(task, gold)
                if value != 1.0:
                    raise ValueError(
                        f"task {task.id} ({split} {index}): its gold answer {gold[-80:]!r} is "
                        f"scored {value}, not 1, against the reference {task.reference!r:.80}: "
                        "correct the task or drop it from the data"
                    )
