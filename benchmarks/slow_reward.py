"""A reward that takes its time, as a judge does: a plug-in for `async_speedup`."""

from __future__ import annotations

import asyncio
import random

from benchmarks.simulated_cluster import REWARD_SECONDS
from manta.envs.protocols import Services
from manta.envs.records import Task, Trajectory


class SlowReward:
    """A number in 0..1 by the sample's tokens, after 0 to `REWARD_SECONDS` seconds."""

    version = "slow/1"

    async def score(self, task: Task, trajectory: Trajectory, services: Services) -> float:
        draw = random.Random(trajectory.token_ids.tobytes())
        await asyncio.sleep(draw.uniform(0.0, REWARD_SECONDS))
        return draw.random()
