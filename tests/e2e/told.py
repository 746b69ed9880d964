"""A reward that fails unless its worker was told a secret, and not the driver's; for tests."""

from __future__ import annotations

import hashlib
import os

import ray

from manta.envs.protocols import Services
from manta.envs.records import Task, Trajectory


class Told:
    version = "told"

    def __init__(self, name: str, sha256: str, drivers: str, drivers_sha256: str) -> None:
        """`name` is a variable of everybody, `drivers` one of the driver's alone, which checks the
        run file before it joins the cluster."""
        self._name, self._sha256, self._drivers = name, sha256, drivers
        if not ray.is_initialized() and _hash(drivers) != drivers_sha256:
            raise ValueError(f"the driver was not told {drivers}")

    async def score(self, task: Task, trajectory: Trajectory, services: Services) -> float | None:
        """0. Raises ValueError where a variable is not what it should be."""
        if _hash(self._name) != self._sha256:
            raise ValueError(f"this worker was not told {self._name}")
        if self._drivers in os.environ:
            raise ValueError(f"this worker was told {self._drivers}")
        return 0.0


def _hash(name: str) -> str:
    return hashlib.sha256(os.environ.get(name, "").encode()).hexdigest()
