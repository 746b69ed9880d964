"""Group scope: samples that answer as others of their group do share the value 1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from manta.envs.protocols import Services
from manta.envs.records import Task, Trajectory
from manta.envs.rewards import answer
from manta.envs.rewards.answer import Extraction, Part
from manta.envs.rewards.version import version_of


class Distinct:
    """1 / (number of the group's samples with the same answer), in (0, 1].

    The options are those of `manta.envs.rewards.answer.Extraction`; samples without an answer
    count as answering alike.
    """

    def __init__(self, extract: Part = "whole", after: str | None = None) -> None:
        self._extraction = Extraction(extract, after)
        self.version = version_of(
            "distinct", {"extract": extract, "after": after}, type(self), answer
        )

    async def score_group(
        self, task: Task, trajectories: Sequence[Trajectory], services: Services
    ) -> list[float | None]:
        answers = [self._extraction.answer(t.artifact) for t in trajectories]
        counts = Counter(answers)
        return [1.0 / counts[each] for each in answers]
