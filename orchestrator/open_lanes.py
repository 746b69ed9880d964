"""Opening lanes: on the reward workers first, then on the environment workers."""

from __future__ import annotations

from collections.abc import Mapping

from manta.actors.lanes import Lane
from manta.orchestrator.build import Crew
from manta.orchestrator.wait import Waits


async def open_lane(crew: Crew, lane: Lane, waits: Waits, deadline_seconds: float) -> int:
    """Gets every worker ready to make and score groups of `lane`; the number of its tasks."""
    versions: Mapping[str, str] = {}
    if lane.reward is not None:
        called = f" and scorers {', '.join(lane.reward.scorers)}" if lane.reward.scorers else ""
        versions = await waits.wait(
            f"the reward workers{called} to open lane {lane.name}",
            crew.rewards.open(lane),
            deadline_seconds,
        )
    return await waits.wait(
        f"the environment workers to open lane {lane.name}",
        crew.environment.open(lane, versions),
        deadline_seconds,
    )
