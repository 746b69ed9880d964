"""An environment and a reward that block, as one that runs a program or asks a server does; for
tests. A file ends it: from then on nothing takes long."""

from __future__ import annotations

import time
from pathlib import Path

from manta.envs.families.arithmetic import Arithmetic
from manta.envs.protocols import Services
from manta.envs.records import Task, Trajectory


class SlowSums(Arithmetic):
    """Takes `seconds` for each group; once the file `until` is there, answers are one token."""

    def __init__(self, seconds: float, until: str) -> None:
        super().__init__(digits=1, eval_size=20)
        self._seconds, self._until = seconds, Path(until)

    def budgets(self, task: Task, num_samples: int, max_new_tokens: int) -> tuple[int, ...]:
        if self._until.exists():
            return (1,) * num_samples
        time.sleep(self._seconds)
        return super().budgets(task, num_samples, max_new_tokens)


class Asks:
    """Takes `seconds` for each answer, until the file `until` is there."""

    version = "asks"

    def __init__(self, seconds: float, until: str) -> None:
        self._seconds, self._until = seconds, Path(until)

    async def score(self, task: Task, trajectory: Trajectory, services: Services) -> float | None:
        if not self._until.exists():
            time.sleep(self._seconds)
        return float(trajectory.token_ids[-1])
