"""Sums of small integers: the demo family, learnable in a minute by a tiny model."""

from __future__ import annotations

from collections.abc import Sequence

from manta.envs.chat_template import POLICY
from manta.envs.families.family import Family
from manta.envs.protocols import Split, TaskSource
from manta.envs.records import LastWord, Message, Task
from manta.envs.rewards.exact import Exact
from manta.envs.sources.enumerated import EnumeratedSplits

OPERATIONS = ("+", "-", "*")


class Arithmetic(Family):
    """Prompts such as `47+85=`, answered by `132`.

    Every pair of operands of up to `digits` digits stands once under each of `operations`: 10,000
    prompts for one operation and two digits. `seed` decides which `eval_size` of them are held
    out; `a+b` and `b+a` are different prompts. Tasks are tagged with their operation.
    With `tries` above 1 a wrong answer is answered `no`, and the policy may give another one, that
    many in all. With `last_word` a wrong answer that was the last one is answered too, which ends
    the episode: feedback to learn from.
    Raises ValueError for unknown or repeated operations, or sizes that leave a split empty.
    """

    def __init__(
        self,
        operations: Sequence[str] = ("+",),
        digits: int = 2,
        eval_size: int = 512,
        seed: int = 0,
        tries: int = 1,
        last_word: bool = False,
    ) -> None:
        if tries < 1:
            raise ValueError(f"arithmetic: tries is {tries}: it must be 1 or more")
        unknown = [each for each in operations if each not in OPERATIONS]
        if unknown or not operations or len(set(operations)) < len(operations):
            raise ValueError(
                f"arithmetic: operations {list(operations)}: give each of {list(OPERATIONS)} at "
                "most once"
            )
        if not 1 <= digits <= 9:
            raise ValueError(f"arithmetic: digits is {digits}: it must lie in 1..9")
        self._operations = tuple(operations)
        self._base = 10**digits
        total = len(self._operations) * self._base**2
        self._splits = EnumeratedSplits("arithmetic", total, eval_size, seed, self._task)
        self.verifier = Exact()
        self.single_turn = tries == 1 and not last_word
        self._tries = tries
        self._has_last_word = last_word

    def source(self, split: Split) -> TaskSource:
        return self._splits.source(split)

    def gold(self, task: Task) -> str:
        return str(task.reference)

    async def reply(self, task: Task, messages: Sequence[Message]) -> Message | None:
        tried = sum(message.role == POLICY for message in messages)
        if self.single_turn or self.verifier.judge(task, messages[-1].content):
            return None
        if tried < self._tries:
            return Message("user", "no")
        return LastWord("user", "no") if self._has_last_word else None

    def _task(self, index: int) -> Task:
        which, operands = divmod(index, self._base**2)
        left, right = divmod(operands, self._base)
        operation = self._operations[which]
        results = {"+": left + right, "-": left - right, "*": left * right}
        problem = f"{left}{operation}{right}"
        return Task(
            id=f"arithmetic/{problem}",
            prompt=f"{problem}=",
            reference=results[operation],
            env="arithmetic",
            tags=(operation,),
        )
