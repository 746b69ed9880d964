"""A later life of a run on a cluster that has become too small for it: it waits.

A node that was lost takes the resources of its workers along, and another one may take its place.
At the start of a run what is missing is a mistake, and refused (`manta.orchestrator.placement`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from manta.envs.records import Json
from manta.orchestrator.placement import NotEnoughResources
from manta.orchestrator.side_thread import in_thread
from manta.orchestrator.wait import DeadlineMissed, Waits

_LOOK_SECONDS = 1.0


async def await_room(
    check: Callable[[], None],
    waits: Waits,
    deadline_seconds: float,
    event: Callable[[str, Mapping[str, Json]], None],
) -> None:
    """Returns once `check` raises NotEnoughResources no more, which is told as an `event` once.

    Raises NotEnoughResources, with what is still missing, after the deadline.
    """
    missing: list[NotEnoughResources] = []

    async def look() -> None:
        while True:
            try:
                return await in_thread(check)
            except NotEnoughResources as error:
                if not missing:
                    event("run waits for nodes", {"why": str(error)})
                missing[:] = [error]
            await asyncio.sleep(_LOOK_SECONDS)

    try:
        name = "the cluster to have again what the run asks for"
        await waits.wait(name, look(), deadline_seconds)
    except DeadlineMissed:
        if not missing:
            raise
        raise NotEnoughResources(
            "the cluster has lost what the run needs, and did not get it back in "
            f"{deadline_seconds:g} s: {missing[0]}. Start the run again once it is there: it goes "
            "on from its newest checkpoint"
        ) from missing[0]
