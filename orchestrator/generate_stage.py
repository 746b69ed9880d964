"""A stage that writes trajectories and trains nothing: samples, or written ones scored again.

Both go through the same lane, feed, ledger and checkpoints. What is sampled ends after the stage's
steps; what is annotated when every written group has been taken once.
"""

from __future__ import annotations

import asyncio
import math

from manta.actors.lanes import Lane
from manta.envs.records import GroupId
from manta.envs.sources.order import EpochOrder
from manta.orchestrator.adoption import serving
from manta.orchestrator.config import StageConfig
from manta.orchestrator.feed import Feed, FeedState
from manta.orchestrator.lanes import annotate_lane, train_lane
from manta.orchestrator.ledger import Entry
from manta.orchestrator.open_lanes import open_lane
from manta.orchestrator.reference_use import needs_reference
from manta.orchestrator.run_context import RunContext
from manta.orchestrator.stage_reference import StageReference
from manta.orchestrator.supply import Exhausted, Finished, Supply
from manta.orchestrator.wait import unless


class GenerateStage:
    def __init__(self, run: RunContext, stage: StageConfig) -> None:
        self._run, self._stage = run, stage
        self._is_annotated = stage.kind == "annotate"

    async def run(self, feed_state: FeedState | None) -> bool:
        """Writes groups into the stage's product in progress, `prompts_per_step` a step, to the
        stage's end, or until a stop; whether it came to the end."""
        async with serving(self._run, self._stage):
            is_done = await self._write_all(feed_state)
        return is_done

    async def _write_all(self, feed_state: FeedState | None) -> bool:
        run, stage = self._run, self._stage
        run.products.reopen(stage.name)
        make_lane = annotate_lane if self._is_annotated else train_lane
        lane = make_lane(run.run_file, stage, run.products)
        if needs_reference(run.run_file, stage):
            await StageReference(run, stage).open()
        await self._open(lane, feed_state)
        async with asyncio.TaskGroup() as tasks:
            supplying = tasks.create_task(self._supply.run())
            while not self._is_done and not run.should_stop.is_set():
                groups = await unless(run.should_stop, self._collect(run.progress.step + 1))
                if groups is not None:
                    await self._write(groups)
            supplying.cancel()
        if not self._is_done and run.saved_step < run.progress.step:
            await self._save()
        await run.commits.settled()
        return self._is_done

    async def _open(self, lane: Lane, feed_state: FeedState | None) -> None:
        run, stage = self._run, self._stage
        num_tasks = await open_lane(run.crew, lane, run.waits, run.deadline_seconds)
        order = EpochOrder(num_tasks, run.run_file.run.seed, shuffle=not self._is_annotated)
        self._feed: Feed[Finished] = Feed(
            order,
            2 * stage.prompts_per_step,
            run.run_file.run.deterministic,
            num_epochs=1 if self._is_annotated else math.inf,
        )
        if feed_state is not None:
            self._feed.restore(feed_state)
        per_call = run.run_file.groups_per_call(stage)
        self._supply = Supply(self._feed, run.crew.environment, lane.name, per_call)
        steps = -(-num_tasks // stage.prompts_per_step) if self._is_annotated else stage.steps
        run.recorder.enter_stage(stage.name, steps, self._feed, run.progress)

    @property
    def _is_done(self) -> bool:
        if self._is_annotated:
            return self._feed.is_exhausted
        return self._run.progress.stage_step >= self._stage.steps

    async def _collect(self, step: int) -> list[tuple[GroupId, Finished]]:
        """The step's groups; fewer where there are no more."""
        groups: list[tuple[GroupId, Finished]] = []
        with self._run.recorder.phase("generate"):
            while len(groups) < self._stage.prompts_per_step:
                try:
                    taken = await self._run.waits.wait(
                        f"group {len(groups) + 1} of {self._stage.prompts_per_step} from the "
                        "environment workers",
                        self._supply.take(step),
                        self._run.deadline_seconds,
                    )
                except Exhausted:
                    break
                groups.append(taken)
        return groups

    async def _write(self, groups: list[tuple[GroupId, Finished]]) -> None:
        """Writes one step's groups, then their ledger entries, then a checkpoint if due."""
        run, name = self._run, self._stage.name
        step = run.progress.step + 1
        if groups:
            folder = run.directory.product_in_progress(name) / f"step={step}"
            blocks = list(dict.fromkeys(finished.block for _, finished in groups))
            await run.waits.wait(
                f"an environment worker to write the groups of step {step}",
                run.crew.environment.write(
                    str(folder / "written.parquet"), step, [group for group, _ in groups], blocks
                ),
                run.deadline_seconds,
            )
        written = [Entry(name, g, "written", step, "", f.summary.content_hash) for g, f in groups]
        self._record_dropped(step)
        run.ledger.record(written)
        self._supply.settle(step)
        await self._supply.free([group for group, _ in groups])
        run.progress.advance()
        run.recorder.step(run.progress, [f.summary for _, f in groups], None, None)
        if self._is_done or run.progress.stage_step % run.run_file.checkpoint.every_steps == 0:
            await self._save()
        run.stop_when_late()

    async def _save(self) -> None:
        run, step = self._run, self._run.progress.step
        await run.commits.begin(step)
        self._record_dropped(step)
        run.checkpoint(self._supply.state(step), self._is_done, has_learner=False)

    def _record_dropped(self, step: int) -> None:
        name = self._stage.name
        self._run.ledger.record(
            [Entry(name, g, "dropped", step, reason) for g, reason in self._supply.dropped()]
        )
