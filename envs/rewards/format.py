"""The format rule: 1 where the whole answer matches a pattern, else 0."""

from __future__ import annotations

import re

from manta.envs.records import Task
from manta.envs.rewards.artifact import ArtifactReward
from manta.envs.rewards.version import version_of


class Format(ArtifactReward):
    """Full match of the regular expression `pattern`, which the run file's author writes.

    A text longer than `max_characters` scores 0 without being matched: the cap is what bounds the
    time of a pattern that backtracks, so keep it near the length of a good answer, and avoid
    nested repeats such as `(a+)+`. `.` does not match a newline unless the pattern says `(?s)`.
    Raises ValueError where the pattern does not compile or the cap is below 1.
    """

    def __init__(self, pattern: str, max_characters: int = 2000) -> None:
        if max_characters < 1:
            raise ValueError(f"max_characters is {max_characters}: it must be at least 1")
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"pattern {pattern!r} at character {error.pos}: {error.msg}"
            ) from error
        self._max_characters = max_characters
        self.version = version_of(
            "format", {"pattern": pattern, "max_characters": max_characters}, type(self)
        )

    def judge(self, task: Task, artifact: str) -> float:
        if len(artifact) > self._max_characters:
            return 0.0
        return float(self._pattern.fullmatch(artifact) is not None)
