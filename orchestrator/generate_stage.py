"""A stage that samples and writes trajectories, and trains nothing."""

from __future__ import annotations

import asyncio

from manta.envs.records import GroupId
from manta.envs.sources.order import EpochOrder
from manta.orchestrator.config import StageConfig
from manta.orchestrator.feed import Feed, FeedState
from manta.orchestrator.lanes import train_lane
from manta.orchestrator.ledger import Entry
from manta.orchestrator.run_context import RunContext
from manta.orchestrator.supply import Finished, Supply
from manta.orchestrator.wait import unless


class GenerateStage:
    def __init__(self, run: RunContext, stage: StageConfig) -> None:
        self._run, self._stage = run, stage

    async def run(self, feed_state: FeedState | None) -> None:
        """`steps` times `prompts_per_step` groups into `products/STAGE/`, or until a stop."""
        run, stage = self._run, self._stage
        lane = train_lane(run.run_file, stage, run.directory)
        versions = await run.crew.rewards.open(lane) if lane.reward else {}
        num_tasks = await run.crew.environment.open(lane, versions)
        order = EpochOrder(num_tasks, run.run_file.run.seed)
        feed: Feed[Finished] = Feed(
            order, 2 * stage.prompts_per_step, run.run_file.run.deterministic
        )
        if feed_state is not None:
            feed.restore(feed_state)
        per_call = run.run_file.groups_per_call(stage)
        self._supply = Supply(feed, run.crew.environment, lane.name, per_call)
        run.recorder.enter_stage(stage.name, stage.steps, feed, run.progress)
        async with asyncio.TaskGroup() as tasks:
            supplying = tasks.create_task(self._supply.run())
            while run.progress.stage_step < stage.steps and not run.should_stop.is_set():
                groups = await unless(run.should_stop, self._collect(run.progress.step + 1))
                if groups is not None:
                    await self._write(groups)
            supplying.cancel()
        if run.progress.stage_step < stage.steps and run.committed_step < run.progress.step:
            await self._save()

    async def _collect(self, step: int) -> list[tuple[GroupId, Finished]]:
        with self._run.recorder.phase("generate"):
            return [
                await self._run.waits.wait(
                    f"group {i + 1} of {self._stage.prompts_per_step} from the environment workers",
                    self._supply.take(step),
                    self._run.deadline_seconds,
                )
                for i in range(self._stage.prompts_per_step)
            ]

    async def _write(self, groups: list[tuple[GroupId, Finished]]) -> None:
        """Writes one step's groups, then their ledger entries, then a checkpoint if due."""
        run, name = self._run, self._stage.name
        step = run.progress.step + 1
        folder = run.directory.product(name) / f"step={step}"
        blocks = list(dict.fromkeys(finished.block for _, finished in groups))
        await run.crew.environment.write(
            str(folder / "written.parquet"), step, [group for group, _ in groups], blocks
        )
        written = [Entry(name, g, "written", step, "", f.summary.content_hash) for g, f in groups]
        self._record_dropped(step)
        run.ledger.record(written)
        self._supply.settle(step)
        await self._supply.free([group for group, _ in groups])
        run.progress.advance()
        run.recorder.step(run.progress, [f.summary for _, f in groups], None, None)
        is_last = run.progress.stage_step == self._stage.steps
        if is_last or run.progress.stage_step % run.run_file.checkpoint.every_steps == 0:
            await self._save()
        run.stop_when_late()

    async def _save(self) -> None:
        run, step = self._run, self._run.progress.step
        run.checkpoints.begin(step)
        self._record_dropped(step)
        is_last = run.progress.stage_step == self._stage.steps
        await run.commit(self._supply.state(step), is_last)

    def _record_dropped(self, step: int) -> None:
        name = self._stage.name
        self._run.ledger.record(
            [Entry(name, g, "dropped", step, reason) for g, reason in self._supply.dropped()]
        )
