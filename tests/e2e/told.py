"""A reward that fails unless its worker was told a secret; for tests."""

from __future__ import annotations

import hashlib
import os

from manta.envs.protocols import Services
from manta.envs.records import Task, Trajectory


class Told:
    version = "told"

    def __init__(self, name: str, sha256: str) -> None:
        self._name, self._sha256 = name, sha256

    async def score(self, task: Task, trajectory: Trajectory, services: Services) -> float | None:
        """0. Raises ValueError where the variable is not what it should be."""
        value = os.environ.get(self._name, "")
        if hashlib.sha256(value.encode()).hexdigest() != self._sha256:
            raise ValueError(f"this worker was not told {self._name}")
        return 0.0
