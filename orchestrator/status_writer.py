"""Keeps `status.json` as new as the run: every two seconds, and when its step or stage changes.

Owns when it is written. A disk that is full, or gone, is told once and ends nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from manta.actors.processes import this_process
from manta.orchestrator import status
from manta.orchestrator.display import DisplayState
from manta.orchestrator.health import Health, WorkerReport
from manta.orchestrator.status import RayStatus, State, Status, WaitStatus
from manta.orchestrator.wait import Waits

EVERY_SECONDS = 2.0
_LOOK_SECONDS = 0.25


class StatusWriter:
    """`moment` is what the display shows, `tell` gets a sentence."""

    def __init__(
        self,
        path: Path,
        run: str,
        moment: Callable[[], DisplayState],
        waits: Waits,
        ray: RayStatus,
        incarnation: Callable[[], int],
        tell: Callable[[str], None],
    ) -> None:
        self._path, self._run, self._moment, self._waits = path, run, moment, waits
        self._ray, self._incarnation, self._tell = ray, incarnation, tell
        self.health: Health | None = None
        self.state: State = "starting"
        self._has_failed = False

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            shown = self._shown()
            self.write()
            end = time.monotonic() + EVERY_SECONDS
            while self._shown() == shown and time.monotonic() < end:
                await asyncio.sleep(_LOOK_SECONDS)

    def workers(self) -> tuple[WorkerReport, ...]:
        """All that are there now."""
        return () if self.health is None else tuple(self.health.workers())

    def end(self, state: State, error: str | None) -> None:
        """The last word of this life of the driver."""
        self.state = state
        self.write(error)

    def write(self, error: str | None = None) -> None:
        """Writes down this moment."""
        try:
            status.write(self._path, self._status(error or ""))
        except OSError as failure:
            if not self._has_failed:
                self._tell(f"{self._path.name} could not be written: {failure}")
            self._has_failed = True

    def _shown(self) -> tuple[State, str, int]:
        moment = self._moment()
        return self.state, moment.stage, moment.step

    def _status(self, error: str) -> Status:
        moment, now = self._moment(), time.time()
        shift = now - time.monotonic()
        health = self.health
        return Status(
            written=now,
            state=self.state,
            run=self._run,
            stage=moment.stage,
            stage_step=moment.stage_step,
            stage_steps=moment.stage_steps,
            step=moment.step,
            seconds=round(moment.seconds, 3),
            incarnation=self._incarnation(),
            driver=this_process(),
            ray=self._ray,
            waits=tuple(
                WaitStatus(each.name, each.since + shift, each.deadline_seconds)
                for each in self._waits.current()
            ),
            workers=self.workers(),
            departed=() if health is None else tuple(health.departed()),
            error=error,
        )
