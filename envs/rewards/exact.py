"""The exact-answer verifier: 1 where the answer is the reference, else 0."""

from __future__ import annotations

from manta.envs.records import Task
from manta.envs.rewards import answer
from manta.envs.rewards.answer import Extraction, Part, of_reference
from manta.envs.rewards.artifact import ArtifactReward
from manta.envs.rewards.version import version_of


class Exact(ArtifactReward):
    """Compares the extracted answer with `task.reference`: numbers by value, texts by their words.

    Options `extract` and `after` are those of `manta.envs.rewards.answer.Extraction`. A text
    without an answer is wrong.
    """

    def __init__(self, extract: Part = "whole", after: str | None = None) -> None:
        self.extraction = Extraction(extract, after)
        self.version = version_of("exact", {"extract": extract, "after": after}, type(self), answer)

    def judge(self, task: Task, artifact: str) -> float:
        """Raises ValueError naming the task where its reference is neither text nor number."""
        try:
            reference = of_reference(task.reference)
        except ValueError as error:
            raise ValueError(f"task {task.id}: {error}") from error
        return float(self.extraction.answer(artifact) == reference)
