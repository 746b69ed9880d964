"""The driver's look at how much its workers have to do, and the growing and shrinking of pools.

Owns what the demand of each role is measured by. The decision is `manta.orchestrator.scaling`'s,
joining and leaving the seats'.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from manta.actors.router_figures import RouterFigures
from manta.actors.worker_range import WorkerRange
from manta.envs.records import Json
from manta.orchestrator.environment_pool import EnvironmentPool
from manta.orchestrator.reward_pool import RewardPool
from manta.orchestrator.rollout_pool import RolloutPool
from manta.orchestrator.scaling import Demand, Scaling

_SECONDS = 0.25
"""Short steps have moments in which nothing is needed."""
_FULL = 0.7
"""Of a worker's time: above, calls wait for it."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of the three roles whose pools may grow."""

    rollout: WorkerRange
    environment: WorkerRange
    reward: WorkerRange


class Elastic:
    """`is_waited_for`: does somebody wait for groups now? `steps`: how many the run has made."""

    def __init__(
        self,
        sizes: Sizes,
        max_rows: int,
        rollout: RolloutPool,
        environment: EnvironmentPool,
        rewards: RewardPool,
        is_waited_for: Callable[[], bool],
        steps: Callable[[], int],
        event: Callable[[str, Mapping[str, Json]], None],
    ) -> None:
        self._max_rows = max_rows
        self._rollout, self._environment, self._rewards = rollout, environment, rewards
        self._is_waited_for, self._steps, self._event = is_waited_for, steps, event
        self._scalings = {
            role: Scaling(range_)
            for role, range_ in (
                ("rollout", sizes.rollout),
                ("environment", sizes.environment),
                ("reward", sizes.reward),
            )
            if not range_.is_fixed
        }

    async def run(self) -> None:
        """Looks four times a second, until cancelled."""
        while self._scalings:
            await self.look()
            await asyncio.sleep(_SECONDS)

    async def look(self) -> None:
        if "rollout" in self._scalings:
            needed = engines_needed(await self._rollout.figures(), self._max_rows)
            self._decide("rollout", needed, self._rollout.resize)
        if "environment" in self._scalings:
            busy = await self._environment.busy()
            self._decide("environment", busy / _FULL, self._environment.seats.resize)
        if "reward" in self._scalings:
            busy = await self._rewards.busy()
            self._decide("reward", busy / _FULL, self._rewards.seats.resize)

    def _decide(self, role: str, needed: float, resize: Callable[[int], None]) -> None:
        scaling = self._scalings[role]
        before = scaling.target
        target = scaling.tell(Demand(needed, self._is_waited_for(), self._steps()))
        if target != before:
            self._event(f"{role} workers wanted", {"from": before, "to": target})
            resize(target)


def engines_needed(figures: RouterFigures, max_rows: int) -> float:
    """Engines that all rows under way and waiting would fill."""
    return math.ceil((figures.rows + figures.waiting_rows) / max_rows)
