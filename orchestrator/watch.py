"""What accompanies a run from its first worker to its end: watchdog, status file, alarms.

Owns the wiring of these three, and how often places are looked at.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from manta.actors.muster import Heartbeat
from manta.orchestrator.alarms import PlaceAlarms
from manta.orchestrator.controller_signs import ControllerSigns
from manta.orchestrator.health import Health, Rules
from manta.orchestrator.health_watch import HealthWatch
from manta.orchestrator.learner_group import LearnerGroup
from manta.orchestrator.pools import MailboxClient
from manta.orchestrator.roster import roster
from manta.orchestrator.run_context import RunContext
from manta.orchestrator.side_thread import in_thread
from manta.orchestrator.status_writer import StatusWriter

_PLACES_SECONDS = 10.0
"""How often memory, and with it disks, are looked at: a worker can take 10% of a machine in less
than a minute."""


@asynccontextmanager
async def accompanied(run: RunContext, status: StatusWriter) -> AsyncIterator[None]:
    """Beside what runs inside; ends with it. A failure of its own ends what runs inside."""
    settings = run.run_file.health
    health = Health(
        Rules(settings.every_seconds, settings.frozen_after_seconds, run.run_file.start_seconds)
    )
    status.health, run.waits.witness = health, health.witness
    learner = run.crew.learner
    ranks = None if learner is None else _Ranks(run.crew.client, learner)
    controllers = ControllerSigns(lambda: learner is not None and not learner.has_ended)
    watch = HealthWatch(
        lambda: roster(run.crew), ranks, controllers, health, run.recorder.event, run.waits
    )
    async with asyncio.TaskGroup() as tasks:
        beside = [tasks.create_task(each) for each in (watch.run(), status.run())]
        beside.append(tasks.create_task(_look_at_places(run, health)))
        try:
            yield
        finally:
            for task in beside:
                task.cancel()


class _Ranks:
    """Those that have left on being told to need say nothing any more."""

    def __init__(self, client: MailboxClient, learner: LearnerGroup) -> None:
        self._client, self._learner = client, learner

    async def heartbeats(self) -> Sequence[Heartbeat]:
        return () if self._learner.has_ended else await self._client.heartbeats()


async def _look_at_places(run: RunContext, health: Health) -> None:
    alarms, root = PlaceAlarms(), run.directory.root
    while True:
        found = alarms.groups(run.ledger.broken, run.ledger.settled)
        for name, figures in health.hosts().items():
            found += alarms.host(name, figures)
        free, newest = await in_thread(_room, root)
        found += alarms.run_directory(free, newest)
        for alarm in found:
            run.recorder.alarm(alarm)
        await asyncio.sleep(_PLACES_SECONDS)


def _room(root: Path) -> tuple[int, int]:
    """Bytes that are free below `root`, and of the newest checkpoint there."""
    free = shutil.disk_usage(root).free
    folders = sorted((root / "checkpoints").glob("step=*"))
    try:
        newest = sum(file.stat().st_size for each in folders[-1:] for file in each.rglob("*"))
    except FileNotFoundError:
        newest = 0  # it made room for a newer one while it was looked at: that is measured next
    return free, newest
