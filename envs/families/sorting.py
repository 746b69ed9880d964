"""Letters to be put in order: answers that a small model learns both to give and to judge."""

from __future__ import annotations

from string import ascii_lowercase

from manta.envs.families.family import Family
from manta.envs.protocols import Split, TaskSource
from manta.envs.records import Task
from manta.envs.rewards.exact import Exact
from manta.envs.sources.enumerated import EnumeratedSplits


class Sorting(Family):
    """Prompts such as `dacbc=`, answered by `abccd`.

    Every text of `length` letters, the first `letters` of the alphabet, is a prompt once. `seed`
    decides which `eval_size` of them are held out. Raises ValueError for numbers out of range, or
    a size that leaves a split empty.
    """

    def __init__(
        self, length: int = 6, letters: int = 10, eval_size: int = 512, seed: int = 0
    ) -> None:
        if not 2 <= length <= 12:
            raise ValueError(f"sorting: length is {length}: it must lie in 2..12")
        if not 2 <= letters <= len(ascii_lowercase):
            raise ValueError(
                f"sorting: letters is {letters}: it must lie in 2..{len(ascii_lowercase)}"
            )
        self._length, self._letters = length, letters
        self._splits = EnumeratedSplits("sorting", letters**length, eval_size, seed, self._task)
        self.verifier = Exact()

    def source(self, split: Split) -> TaskSource:
        return self._splits.source(split)

    def gold(self, task: Task) -> str:
        return str(task.reference)

    def _task(self, index: int) -> Task:
        text = ""
        for _ in range(self._length):
            index, which = divmod(index, self._letters)
            text += ascii_lowercase[which]
        return Task(
            id=f"sorting/{text}",
            prompt=f"{text}=",
            reference="".join(sorted(text)),
            env="sorting",
        )
