"""The length rule: 1 for short trajectories, falling to 0 for long ones."""

from __future__ import annotations

from manta.envs.protocols import Services
from manta.envs.records import Task, Trajectory
from manta.envs.rewards.scope import at_once
from manta.envs.rewards.version import version_of


class Length:
    """1 up to `target` trained tokens, then linearly down to 0 at `limit` and beyond.

    Raises ValueError unless 0 <= target < limit.
    """

    def __init__(self, target: int, limit: int) -> None:
        if not 0 <= target < limit:
            raise ValueError(f"target {target} and limit {limit}: need 0 <= target < limit")
        self._target = target
        self._limit = limit
        self.version = version_of("length", {"target": target, "limit": limit}, type(self))

    @at_once
    async def score(self, task: Task, trajectory: Trajectory, services: Services) -> float:
        num_tokens = int(trajectory.loss_mask.sum())
        share = (self._limit - num_tokens) / (self._limit - self._target)
        return min(1.0, max(0.0, share))
