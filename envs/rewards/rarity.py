"""Batch scope: answers that are rare among all answers of a step score high."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from manta.envs.protocols import Services
from manta.envs.records import Task, Trajectory
from manta.envs.rewards import answer
from manta.envs.rewards.answer import Extraction, Part
from manta.envs.rewards.version import version_of


class Rarity:
    """1 - (share of the step's answers that equal this one, itself included), in [0, 1).

    The options are those of `manta.envs.rewards.answer.Extraction`; samples without an answer
    count as answering alike.
    """

    def __init__(self, extract: Part = "whole", after: str | None = None) -> None:
        self._extraction = Extraction(extract, after)
        self.version = version_of(
            "rarity", {"extract": extract, "after": after}, type(self), answer
        )

    async def score_batch(
        self, groups: Sequence[tuple[Task, Sequence[Trajectory]]], services: Services
    ) -> list[list[float | None]]:
        answers = [[self._extraction.answer(t.artifact) for t in group] for _, group in groups]
        counts = Counter(each for group in answers for each in group)
        return [[1.0 - counts[each] / counts.total() for each in group] for group in answers]
