"""What the stages of a run share: its workers, its files, and how far it is."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field

from manta.actors.stored_folder import WrittenFile
from manta.orchestrator.build import Crew
from manta.orchestrator.checkpoint import Checkpoints
from manta.orchestrator.commits import Commits
from manta.orchestrator.config import RunFile
from manta.orchestrator.feed import FeedState
from manta.orchestrator.ledger import Ledger
from manta.orchestrator.lives import Lives
from manta.orchestrator.named_weights import NamedWeights
from manta.orchestrator.products import Products
from manta.orchestrator.progress import Progress
from manta.orchestrator.publish import Published
from manta.orchestrator.recorder import Recorder
from manta.orchestrator.run_directory import RunDirectory
from manta.orchestrator.run_state import RunState
from manta.orchestrator.storage import Storage
from manta.orchestrator.wait import Waits


@dataclass(slots=True)
class RunContext:
    """`deadline` is when `run.max_hours` are over, by `time.monotonic()`; `saved_step` has the
    newest checkpoint that is there, or being made. `adoptions` numbers the orders to take other
    weights."""

    run_file: RunFile
    directory: RunDirectory
    crew: Crew
    checkpoints: Checkpoints
    commits: Commits
    ledger: Ledger
    recorder: Recorder
    progress: Progress
    waits: Waits
    storage: Storage
    lives: Lives
    products: Products
    named: NamedWeights
    adoptions: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    should_stop: asyncio.Event = field(default_factory=asyncio.Event)
    saved_step: int = -1
    deadline: float = float("inf")

    @property
    def incarnation(self) -> int:
        """The number of the present learner group's life."""
        return self.lives.incarnation

    @property
    def deadline_seconds(self) -> float:
        return self.run_file.run.deadline_seconds

    def stop_when_late(self) -> None:
        """Asks for a stop once `run.max_hours` are over."""
        if time.monotonic() > self.deadline and not self.should_stop.is_set():
            self.recorder.event("max_hours reached", {})
            self.should_stop.set()

    def published(self, published: Published) -> None:
        """Says what went wrong in a publish that went on."""
        for name, problem in published.problems:
            self.recorder.event("weights not proven", {"engine": name, "why": problem})
        for name in published.retired:
            self.recorder.event("engine retired", {"engine": name})

    def checkpoint(
        self,
        feed: FeedState | None,
        ends_stage: bool,
        has_learner: bool,
        others: Awaitable[tuple[WrittenFile, ...]] | None = None,
    ) -> None:
        """Has the checkpoint of the current step, which was begun, committed as soon as the learner
        ranks, if they take part, have written theirs, and `others` bring the same folder what they
        have; where the run stands is taken down now."""
        best_by = self.run_file.checkpoint.best_by
        state = RunState(
            step=self.progress.step,
            stage=self.progress.stage,
            stage_step=self.progress.stage_step,
            ends_stage=ends_stage,
            feed=feed,
            ledger_position=self.ledger.position(),
            metrics_position=self.recorder.metrics_position(),
            incarnation=self.incarnation,
            score=self.recorder.value(best_by, self.progress.step),
        )
        self.saved_step = self.progress.step
        self.commits.start(state, has_learner, others)
