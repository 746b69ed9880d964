"""Learner ranks that have been started and have not enlisted: nobody but Ray knows of them.

Owns finding and ending them. One that stopped before it enlisted would keep Ray Train waiting for
ever.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from manta.orchestrator.job_actors import living

_KIND = "RayTrainWorker"
_SECONDS = 30.0


async def end_unlisted(enlisted: Collection[int]) -> list[int]:
    """Kills the processes of this run's ranks, but for those of `enlisted`; who they were. One that
    cannot be reached is left for the next time."""
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    actors = await asyncio.to_thread(living, job)
    found = [a for a in actors if a.kind == _KIND and a.pid and a.pid not in enlisted]
    killed = []
    for actor in found:
        place = NodeAffinitySchedulingStrategy(actor.node, soft=False)
        killing = ray.remote(_kill).options(num_cpus=0, scheduling_strategy=place)
        with suppress(TimeoutError, ray.exceptions.RayError):
            async with asyncio.timeout(_SECONDS):
                await killing.remote(actor.pid)
            killed.append(actor.pid)
    return killed


def _kill(pid: int) -> None:
    # The number may be another process's by now
    name = Path(f"/proc/{pid}/cmdline")
    if name.exists() and name.read_bytes().startswith(f"ray::{_KIND}".encode()):
        os.kill(pid, signal.SIGKILL)
