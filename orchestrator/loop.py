"""The step loop of a training stage: take, assemble, learn, publish. One loop for every staleness.

| coroutine | consumes | waits for | unblocked by |
| --- | --- | --- | --- |
| `Supply.run` | free slots of the feed | a slot | `free` (weights live, or filtered) |
| `Supply._make` | admissions | an environment worker | its block |
| `StageLoop._collect` | finished groups, in order | the oldest group | `Supply._make` |
| `StageLoop._score` | the step's groups | batch-scope rewards, if any | a reward worker |
| `StageLoop._learn` | the step's plan | all learner ranks | their reports in the mailbox |
| `LoopHooks.save_to` | a step to be checkpointed | the checkpoint before | `Commits` |
| `SharedDevice.put` (colocated) | the step's work | every engine to sleep | the engines |
| `LoopHooks.inspect` | the report | nothing; Ctrl-C where publishing is paused | a person |
| `Publisher.publish` | the report | every engine | pause, load, probe, resume |
| `LearnerGroup.ended` | nothing | the group's end | a rank's failure |

When a group that cannot teach is filtered depends on when its rewards are final. Without
batch-scope components they are when it is finished: it is left out while the step is collected, and
another one takes its place. With them they depend on which groups make up the step, so that
replacing one would change the rewards of all the others: every group stays in the step, and the
plan keeps one that cannot teach out of the loss (`keep` 0). Either way the ledger says
`filtered`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from manta.actors.backends.schedule import NO_RESIDENTS, ResidentRates
from manta.actors.step_scores import FinalScores
from manta.actors.step_work import StepReport, StepWork
from manta.algorithms.settings import AlgorithmSettings
from manta.envs.records import GroupSummary
from manta.orchestrator.age_policy import NO_LIMIT, AgePolicy
from manta.orchestrator.alarms import Alarm
from manta.orchestrator.assemble import assemble, filter_reason
from manta.orchestrator.feed import FeedState
from manta.orchestrator.learning_alarms import MANY_STEPS, hardly_filled, nothing_left
from manta.orchestrator.ledger import Entry, Ledger, Outcome
from manta.orchestrator.progress import Progress
from manta.orchestrator.publish import Published
from manta.orchestrator.shared_device import StepMailbox
from manta.orchestrator.step_groups import LeftOut, StepGroup, StepGroups
from manta.orchestrator.supply import Supply
from manta.orchestrator.wait import Waits, unless

ScoreStep: TypeAlias = Callable[[StepGroups], Awaitable[Sequence[FinalScores]]]


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """What the loop of one stage needs to know. `deadline_seconds` bounds every wait; `ages` says
    what is too old to train; `masks_truncated`: samples that a bound ended carry no loss. Where
    groups are given or written, `fixed_groups` is how many there are: the same ones come again."""

    stage: str
    algorithm: AlgorithmSettings
    prompts_per_step: int
    steps: int
    deadline_seconds: float
    ages: AgePolicy = NO_LIMIT
    masks_truncated: bool = False
    fixed_groups: int | None = None


@dataclass(frozen=True, slots=True)
class LoopHooks:
    """What happens around a step, decided elsewhere. All take the run's global step.

    `is_published`: whether the step's weights go to the engines, by `publish`. `save_to`: the
    learner's folder if the step is to be checkpointed, once the checkpoint before is there.
    `inspect` looks at what the learner reports before anything is done with its weights, and raises
    where the run must not go on. `after`: evaluation, and the commit of the checkpoint, which goes
    on beside the next steps.
    `score_step`: the final scores of a step's groups, None without batch-scope components.
    `residents`: what trains beside the policy.
    """

    learning_rate: Callable[[int], float]
    is_published: Callable[[int], bool]
    save_to: Callable[[int], Awaitable[str | None]]
    inspect: Callable[[StepReport], Awaitable[None]]
    publish: Callable[[StepReport], Awaitable[Published]]
    after: Callable[[int], Awaitable[None]]
    score_step: ScoreStep | None = None
    residents: Callable[[int], ResidentRates] = lambda step: NO_RESIDENTS


class StepRecorder(Protocol):
    """What the loop tells of itself: the part of `Recorder` that it calls."""

    def phase(self, name: str) -> AbstractContextManager[None]: ...

    def step(
        self,
        progress: Progress,
        summaries: Sequence[GroupSummary],
        report: StepReport,
        published: Published | None,
        left_out: Sequence[LeftOut],
    ) -> None:
        """`left_out` were filtered while the step was collected."""
        ...

    def alarm(self, alarm: Alarm) -> None: ...


class StageLoop:
    def __init__(
        self,
        settings: LoopSettings,
        hooks: LoopHooks,
        supply: Supply,
        mailbox: StepMailbox,
        ledger: Ledger,
        recorder: StepRecorder,
        progress: Progress,
        waits: Waits,
    ) -> None:
        self._settings, self._hooks, self._supply, self._mailbox = settings, hooks, supply, mailbox
        self._ledger, self._recorder, self._progress, self._waits = (
            ledger,
            recorder,
            progress,
            waits,
        )
        self._filtered: list[Entry] = []
        self._left_out: list[LeftOut] = []
        """Of the step that is being made."""
        self._left_out_in_a_row = 0

    async def run(self, should_stop: asyncio.Event) -> None:
        """Steps until the stage's last step, or until `should_stop`."""
        while self._progress.stage_step < self._settings.steps and not should_stop.is_set():
            step = self._progress.step + 1
            groups = await unless(should_stop, self._collect(step))
            if groups is None:
                return
            groups = await self._score(step, groups)
            report = await self._learn(step, groups)
            await self._hooks.inspect(report)
            published = await self._publish(report) if self._hooks.is_published(step) else None
            await self._settle(step, groups)
            self._progress.advance()
            summaries, left_out = groups.summaries, self._left_out
            self._recorder.step(self._progress, summaries, report, published, left_out)
            await self._hooks.after(step)

    def feed_state(self, step: int) -> FeedState:
        """The feed's state for a checkpoint at `step`, everything that broke or was skipped so far
        being in the ledger. Take the ledger's position at once, before anything is awaited."""
        self._record_skipped()
        self._record_dropped(step)
        return self._supply.state(step)

    async def _collect(self, step: int) -> StepGroups:
        """The step's groups, in the feed's order; filtered ones make room at once."""
        groups: list[StepGroup] = []
        self._left_out = []
        with self._recorder.phase("generate"):
            while len(groups) < self._settings.prompts_per_step:
                group, finished = await self._waits.wait(
                    f"group {len(groups) + 1} of {self._settings.prompts_per_step} from the "
                    "environment workers",
                    self._supply.take(step),
                    self._settings.deadline_seconds,
                )
                taken = StepGroup(group, finished)
                if self._hooks.score_step is None and (reason := self._filter_reason(taken)):
                    self._filtered.append(self._entry(step, taken))
                    self._left_out.append(LeftOut(finished.summary, reason))
                    self._check_that_some_train()
                    self._tell_of_filters(step, len(groups))
                    await self._supply.free([group])
                else:
                    self._left_out_in_a_row = 0
                    groups.append(taken)
        self._supply.close()
        oldest = self._settings.ages.oldest_that_trains(step)
        return StepGroups(tuple(groups)).without_older(oldest)

    def _check_that_some_train(self) -> None:
        """Sampled groups may turn out otherwise the next time, others never do: in two epochs each
        one comes by."""
        self._left_out_in_a_row += 1
        most = self._settings.fixed_groups
        if most is not None and self._left_out_in_a_row >= 2 * most:
            raise RuntimeError(
                f"none of the {most} groups of stage {self._settings.stage} can train; the last "
                f"one was left out for: {self._filtered[-1].reason}. Give it other data"
            )

    def _tell_of_filters(self, step: int, kept: int) -> None:
        """A step that is never full is a run that stands still: no wait is over its deadline."""
        wanted = self._settings.prompts_per_step
        if len(self._left_out) == MANY_STEPS * wanted:
            reasons = [each.reason for each in self._left_out]
            self._recorder.alarm(hardly_filled(step, kept, wanted, reasons))

    async def _score(self, step: int, groups: StepGroups) -> StepGroups:
        """`groups` with their final rewards."""
        if self._hooks.score_step is None:
            return groups
        with self._recorder.phase("score"):
            final = await self._waits.wait(
                f"the batch-scope rewards of step {step}",
                self._hooks.score_step(groups),
                self._settings.deadline_seconds,
            )
        return groups.scored(final)

    async def _learn(self, step: int, groups: StepGroups) -> StepReport:
        """Hands the step to the learner ranks; rank 0's report."""
        with self._recorder.phase("assemble"):
            settings = self._settings
            oldest = settings.ages.oldest_that_trains(step)
            plan = assemble(
                step, groups.summaries, settings.algorithm, oldest, settings.masks_truncated
            )
        work = StepWork(
            stage=self._settings.stage,
            plan=plan,
            blocks=groups.blocks,
            place_G=groups.places,
            learning_rate=self._hooks.learning_rate(step),
            hand_over=self._hooks.is_published(step),
            save_to=await self._hooks.save_to(step),
            residents=self._hooks.residents(step),
        )
        with self._recorder.phase("learn"):
            await self._waits.wait(
                f"the mailbox to take step {step}",
                self._mailbox.put(work),
                self._settings.deadline_seconds,
            )
            reports = await self._waits.wait(
                f"the learner ranks to finish step {step}",
                self._mailbox.result(step),
                self._settings.deadline_seconds,
            )
        return reports[0]

    async def _publish(self, report: StepReport) -> Published:
        with self._recorder.phase("publish"):
            return await self._hooks.publish(report)

    async def _settle(self, step: int, groups: StepGroups) -> None:
        """Writes the step into the ledger and frees its slots: the weights are live."""
        self._record_skipped()
        self._record_dropped(step)
        self._ledger.record(self._filtered)
        self._ledger.record([self._entry(step, group) for group in groups.members])
        self._filtered = []
        left_out = (each.summary for each in self._left_out)
        self._supply.settle(step, [*groups.summaries, *left_out])
        await self._supply.free(groups.ids)

    def _record_skipped(self) -> None:
        """What epochs that began since the last time leave out."""
        curriculum, stage = self._supply.curriculum, self._settings.stage
        for begun in () if curriculum is None else curriculum.begun():
            self._ledger.record(
                [Entry(stage, g, "skipped", begun.step, reason) for g, reason in begun.skipped]
            )
            if begun.would_be_empty:
                self._recorder.alarm(nothing_left(begun.epoch))

    def _record_dropped(self, step: int) -> None:
        stage = self._settings.stage
        self._ledger.record(
            [Entry(stage, g, "dropped", step, reason) for g, reason in self._supply.dropped()]
        )

    def _entry(self, step: int, group: StepGroup) -> Entry:
        """What became of a consumed group."""
        reason = self._filter_reason(group) or ""
        outcome: Outcome = "filtered" if reason else "trained"
        content_hash = group.finished.summary.content_hash
        return Entry(self._settings.stage, group.id, outcome, step, reason, content_hash)

    def _filter_reason(self, group: StepGroup) -> str | None:
        settings = self._settings
        return filter_reason(settings.algorithm, group.finished.summary, settings.masks_truncated)
