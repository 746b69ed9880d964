"""Learner ranks that have been started and have not enlisted: nobody but Ray knows of them.

Owns finding and ending them. One that stopped before it enlisted would keep Ray Train waiting for
ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress

import ray

from manta.orchestrator.job_actors import RANK, killed_there, living, this_job

_SECONDS = 30.0


async def end_unlisted(enlisted: Collection[int]) -> list[int]:
    """Kills the processes of this run's ranks, but for those of `enlisted`; who they were. One that
    cannot be reached is left for the next time."""
    actors = await asyncio.to_thread(living, this_job())
    found = [a for a in actors if a.kind == RANK and a.pid and a.pid not in enlisted]
    killed = []
    for actor in found:
        with suppress(TimeoutError, ray.exceptions.RayError):
            async with asyncio.timeout(_SECONDS):
                await killed_there(actor)
            killed.append(actor.pid)
    return killed
