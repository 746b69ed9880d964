"""The base of task families: the usual answers to what every environment is asked.

Owns defaults only. An environment need not derive from it; `manta.envs.protocols.Env` is the seam.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from manta.envs.protocols import Split, TaskSource
from manta.envs.records import Message, Task
from manta.envs.rewards.artifact import ArtifactReward


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

    def validate(self, task: Task) -> None:
        try:
            gold = self.gold(task)
        except ValueError:
            return
        value = self.verifier.judge(task, gold)
        if value != 1.0:
            raise ValueError(
                f"task {task.id}: its gold answer {gold[-80:]!r} is scored {value}, not 1, against "
                f"the reference {task.reference!r:.80}: correct the task or drop it from the data"
            )
