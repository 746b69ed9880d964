"""What the stages of a run share: its workers, its files, and how far it is."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from manta.orchestrator.build import Crew
from manta.orchestrator.checkpoint import Checkpoint, Checkpoints, RunState
from manta.orchestrator.config import RunFile
from manta.orchestrator.feed import FeedState
from manta.orchestrator.ledger import Ledger
from manta.orchestrator.progress import Progress
from manta.orchestrator.recorder import Recorder
from manta.orchestrator.run_directory import RunDirectory
from manta.orchestrator.wait import Waits


@dataclass(slots=True)
class RunContext:
    """`deadline` is when `run.max_hours` are over, by `time.monotonic()`."""

    run_file: RunFile
    directory: RunDirectory
    crew: Crew
    checkpoints: Checkpoints
    ledger: Ledger
    recorder: Recorder
    progress: Progress
    waits: Waits
    incarnation: int
    should_stop: asyncio.Event = field(default_factory=asyncio.Event)
    committed_step: int = -1
    deadline: float = float("inf")

    @property
    def deadline_seconds(self) -> float:
        return self.run_file.run.deadline_minutes * 60

    def stop_when_late(self) -> None:
        """Asks for a stop once `run.max_hours` are over."""
        if time.monotonic() > self.deadline and not self.should_stop.is_set():
            self.recorder.event("max_hours reached", {})
            self.should_stop.set()

    async def commit(self, feed: FeedState | None, ends_stage: bool) -> Checkpoint:
        """Makes the checkpoint of the current step visible; the learner has written its part."""
        state = RunState(
            step=self.progress.step,
            stage=self.progress.stage,
            stage_step=self.progress.stage_step,
            ends_stage=ends_stage,
            feed=feed,
            ledger_position=self.ledger.position(),
            metrics_position=self.recorder.metrics_position(),
            incarnation=self.incarnation,
        )
        with self.recorder.phase("checkpoint"):
            checkpoint = await asyncio.to_thread(self.checkpoints.commit, state)
            await self.crew.client.forget(self.progress.step)
        self.committed_step = self.progress.step
        self.recorder.event("checkpoint", {"step": state.step})
        return checkpoint
