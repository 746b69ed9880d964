"""The base of rewards that look at a trajectory's artifact alone."""

from __future__ import annotations

from abc import ABC, abstractmethod

from manta.envs.protocols import Services
from manta.envs.records import Task, Trajectory
from manta.envs.rewards.scope import at_once


class ArtifactReward(ABC):
    """A trajectory-scope component: `judge` sees the task and what the policy wrote."""

    version: str

    @abstractmethod
    def judge(self, task: Task, artifact: str) -> float | None:
        """The component's value; None where it does not apply."""

    @at_once
    async def score(self, task: Task, trajectory: Trajectory, services: Services) -> float | None:
        return self.judge(task, trajectory.artifact)
