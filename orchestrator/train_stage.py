"""A training stage: opens its lanes, brings weights where they belong, and runs the step loop.

Owns what happens around the loop: what the stage starts from, evaluation, checkpoints. The loop
itself is `manta.orchestrator.loop`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from manta.actors.step_scores import FinalScores
from manta.actors.step_work import StepReport
from manta.actors.stored_folder import WrittenFile
from manta.algorithms.settings import AlgorithmSettings
from manta.envs.sources.order import EpochOrder
from manta.orchestrator.adoption import start_from
from manta.orchestrator.config import StageConfig
from manta.orchestrator.examiner import Examiner
from manta.orchestrator.expected_lengths import ExpectedLengths
from manta.orchestrator.feed import FeedState
from manta.orchestrator.lanes import train_lane
from manta.orchestrator.loop import LoopHooks, LoopSettings, ScoreStep, StageLoop
from manta.orchestrator.mismatch import MismatchWatch
from manta.orchestrator.model_names import parse_mixed, steps_named
from manta.orchestrator.open_lanes import open_lane
from manta.orchestrator.publish import Published
from manta.orchestrator.reference_use import needs_reference
from manta.orchestrator.run_context import RunContext
from manta.orchestrator.stage_feed import stage_ages, stage_cap, stage_curriculum, stage_feed
from manta.orchestrator.stage_rates import StageRates
from manta.orchestrator.stage_reference import StageReference
from manta.orchestrator.step_groups import StepGroups
from manta.orchestrator.supply import Supply


class TrainStage:
    def __init__(self, run: RunContext, stage: StageConfig) -> None:
        assert stage.algorithm is not None
        self._run, self._stage = run, stage
        self._algorithm: AlgorithmSettings = stage.algorithm
        self._examiner = Examiner(run, stage)
        is_referred = needs_reference(run.run_file, stage)
        self._reference = StageReference(run, stage) if is_referred else None
        self._first = run.progress.step - run.progress.stage_step
        self._save_at = steps_named(run.run_file)
        self._saving_to: str | None = None
        self._regroups_for = ""

    async def run(self, feed_state: FeedState | None) -> bool:
        """From wherever the run stands in this stage to its end, or to a stop; whether it came to
        its end."""
        run, stage = self._run, self._stage
        if stage.start_from is not None and run.progress.stage_step == 0:
            await start_from(run, stage, parse_mixed(stage.start_from))
        lane = train_lane(run.run_file, stage, run.products)
        num_tasks = await open_lane(run.crew, lane, run.waits, run.deadline_seconds)
        has_batch_scope = lane.reward is not None and await run.waits.wait(
            f"a reward worker to say whether lane {lane.name} has batch-scope rewards",
            run.crew.rewards.scores_steps(lane.name),
            run.deadline_seconds,
        )
        score_step = self._score_step if has_batch_scope else None
        await self._examiner.open()
        if self._reference is not None:
            await self._reference.open()
        if run.progress.stage_step == 0:
            await self._examiner.examine()
        self._supply = self._supply_from(feed_state, lane.name, num_tasks)
        self._loop = StageLoop(
            self._loop_settings(num_tasks),
            self._hooks(score_step),
            self._supply,
            run.crew.mailbox,
            run.ledger,
            run.recorder,
            run.progress,
            run.waits,
        )
        supply = self._supply
        run.recorder.enter_stage(
            stage.name, stage.steps, supply.feed, run.progress, supply.cap, supply.curriculum
        )
        assert run.crew.learner is not None
        async with asyncio.TaskGroup() as tasks:
            beside = [
                tasks.create_task(self._supply.run()),
                tasks.create_task(run.crew.learner.ended()),
                tasks.create_task(run.commits.failed()),
            ]
            await self._loop.run(run.should_stop)
            await run.commits.settled()
            for task in beside:
                task.cancel()
        is_done = run.progress.stage_step >= stage.steps
        if not is_done:
            await self._save_and_stop()
        return is_done

    def _supply_from(self, feed_state: FeedState | None, lane: str, num_tasks: int) -> Supply:
        """Where the loop takes its groups from: from the start, or from a checkpoint's state on."""
        run, stage = self._run, self._stage
        order = EpochOrder(num_tasks, run.run_file.run.seed)
        curriculum = stage_curriculum(stage, order, run.progress.step, feed_state)
        feed = stage_feed(run.run_file, stage, curriculum or order)
        if feed_state is not None:
            feed.restore(feed_state)
        return Supply(
            feed,
            run.crew.environment,
            lane,
            run.run_file.groups_per_call(stage),
            stage_ages(run.run_file, stage),
            ExpectedLengths() if run.run_file.rollout.dispatch == "longest_first" else None,
            stage_cap(run.run_file, stage, feed_state),
            curriculum,
        )

    def _loop_settings(self, num_tasks: int) -> LoopSettings:
        cap = self._run.run_file.rollout.cap
        return LoopSettings(
            self._stage.name,
            self._algorithm,
            self._stage.prompts_per_step,
            self._stage.steps,
            self._run.deadline_seconds,
            stage_ages(self._run.run_file, self._stage),
            masks_truncated=(
                self._stage.samples_to_train and cap is not None and cap.then == "mask"
            ),
            fixed_groups=None if self._stage.samples_to_train else num_tasks,
        )

    def _hooks(self, score_step: ScoreStep | None) -> LoopHooks:
        rates = StageRates(self._run.run_file, self._stage)
        return LoopHooks(
            learning_rate=lambda step: rates.policy(step - self._first - 1),
            is_published=self._is_published,
            save_to=self._save_to,
            inspect=self._watch(),
            publish=self._publish,
            after=self._after,
            score_step=score_step,
            residents=lambda step: rates.residents(step - self._first - 1),
        )

    def _watch(self) -> MismatchWatch:
        run = self._run
        return MismatchWatch(
            run.run_file.mismatch_guard,
            run.run_file.rollout.engine,
            run.crew.publisher,
            run.recorder,
            run.waits,
            run.should_stop,
            run.deadline_seconds,
        )

    def _is_last(self, step: int) -> bool:
        return step - self._first == self._stage.steps

    def _is_saved(self, step: int) -> bool:
        every = self._run.run_file.checkpoint.every_steps
        is_due = (step - self._first) % every == 0 or step in self._save_at
        return self._is_last(step) or is_due or bool(self._regroups_for)

    def _is_examined(self, step: int) -> bool:
        return self._is_last(step) or self._examiner.is_due(step - self._first)

    def _is_published(self, step: int) -> bool:
        return self._stage.samples_to_train or self._is_examined(step)

    async def _publish(self, report: StepReport) -> Published:
        published = await self._run.crew.publisher.publish(report)
        self._run.published(published)
        if self._reference is not None:
            await self._reference.published(report, report.update.version.step - self._first)
        return published

    def _score_step(self, groups: StepGroups) -> Awaitable[list[FinalScores]]:
        return self._run.crew.rewards.score_step(self._stage.name, groups.places, groups.blocks)

    async def _after(self, step: int) -> None:
        if self._is_examined(step):
            await self._examiner.examine()
        if self._is_saved(step):
            state = self._loop.feed_state(step)
            # Also at the end: the stage goes on from there where its steps are raised
            others = self._reference_saving()
            self._run.checkpoint(state, self._is_last(step), has_learner=True, others=others)
        if self._regroups_for and not self._run.should_stop.is_set():
            await self._regroup()
        self._run.stop_when_late()

    def _reference_saving(self) -> Awaitable[tuple[WrittenFile, ...]] | None:
        return None if self._reference is None else self._reference.saving(self._saving_to)

    async def _regroup(self) -> None:
        """Once the step's checkpoint is there, ranks go, and others go on from it."""
        run = self._run
        assert run.crew.learner is not None
        await run.commits.settled()
        await run.waits.wait(
            "the mailbox to tell the learner ranks to leave",
            run.crew.learner.regroup(self._regroups_for),
            run.deadline_seconds,
        )

    async def _save_to(self, step: int) -> str | None:
        learner = self._run.crew.learner
        assert learner is not None
        # By the end of the step it may wish for something else, or for nothing
        self._regroups_for = "" if self._is_last(step) else learner.wish
        self._saving_to = await self._run.commits.begin(step) if self._is_saved(step) else None
        return self._saving_to

    async def _save_and_stop(self) -> None:
        """Ranks save as they leave their loop, unless the step has a checkpoint already."""
        run = self._run
        assert run.crew.learner is not None
        is_saved = run.saved_step == run.progress.step
        self._saving_to = None if is_saved else await run.commits.begin(run.progress.step)
        await run.waits.wait(
            "the mailbox to tell the learner ranks to stop",
            run.crew.client.stop(self._saving_to),
            run.deadline_seconds,
        )
        await run.waits.wait(
            "the learner group to save and leave", run.crew.learner.ended(), run.deadline_seconds
        )
        if not is_saved:
            state = self._loop.feed_state(run.progress.step)
            others = self._reference_saving()
            run.checkpoint(state, ends_stage=False, has_learner=True, others=others)
            await run.commits.settled()
