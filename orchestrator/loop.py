"""The step loop of a training stage: take, assemble, learn, publish. One loop for every staleness.

| coroutine | consumes | waits for | unblocked by |
| --- | --- | --- | --- |
| `Supply.run` | free slots of the feed | a slot | `free` (weights live, or filtered) |
| `Supply._make` | admissions | an environment worker | its block |
| `StageLoop._collect` | finished groups, in order | the oldest group | `Supply._make` |
| `StageLoop._learn` | the step's plan | all learner ranks | their reports in the mailbox |
| `Publisher.publish` | the report | every engine | pause, load, probe, resume |
| `LearnerGroup.ended` | nothing | the group's end | a rank's failure |
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from manta.actors.mailbox import StepReport, StepWork
from manta.algorithms.settings import AlgorithmSettings
from manta.envs.records import GroupId, StepPlan
from manta.orchestrator.assemble import assemble, filter_reason
from manta.orchestrator.ledger import Entry, Ledger, Outcome
from manta.orchestrator.pools import MailboxClient
from manta.orchestrator.progress import Progress
from manta.orchestrator.publish import Published
from manta.orchestrator.recorder import Recorder
from manta.orchestrator.supply import Finished, Supply
from manta.orchestrator.wait import Waits, unless

Group = tuple[GroupId, Finished]


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """What the loop of one stage needs to know. `deadline_seconds` bounds every wait."""

    stage: str
    algorithm: AlgorithmSettings
    prompts_per_step: int
    steps: int
    deadline_seconds: float


@dataclass(frozen=True, slots=True)
class LoopHooks:
    """What happens around a step, decided elsewhere. All take the run's global step.

    `is_published`: whether the step's weights go to the engines, by `publish`. `save_to`: the
    learner's folder if the step is to be checkpointed. `after`: evaluation and checkpoint.
    """

    learning_rate: Callable[[int], float]
    is_published: Callable[[int], bool]
    save_to: Callable[[int], str | None]
    publish: Callable[[StepReport], Awaitable[Published]]
    after: Callable[[int], Awaitable[None]]


class StageLoop:
    def __init__(
        self,
        settings: LoopSettings,
        hooks: LoopHooks,
        supply: Supply,
        client: MailboxClient,
        ledger: Ledger,
        recorder: Recorder,
        progress: Progress,
        waits: Waits,
    ) -> None:
        self._settings, self._hooks, self._supply, self._client = settings, hooks, supply, client
        self._ledger, self._recorder, self._progress, self._waits = (
            ledger,
            recorder,
            progress,
            waits,
        )
        self._filtered: list[Entry] = []

    async def run(self, should_stop: asyncio.Event) -> None:
        """Steps until the stage's last step, or until `should_stop`."""
        while self._progress.stage_step < self._settings.steps and not should_stop.is_set():
            step = self._progress.step + 1
            groups = await unless(should_stop, self._collect(step))
            if groups is None:
                return
            with self._recorder.phase("assemble"):
                plan = self._assemble(step, groups)
            report = await self._learn(plan, groups)
            published = await self._publish(report) if self._hooks.is_published(step) else None
            await self._settle(step, groups)
            self._progress.advance()
            self._recorder.step(
                self._progress, [finished.summary for _, finished in groups], report, published
            )
            await self._hooks.after(step)

    async def _collect(self, step: int) -> list[Group]:
        """The step's groups, strictly in admission order; filtered ones make room at once."""
        groups: list[Group] = []
        with self._recorder.phase("generate"):
            while len(groups) < self._settings.prompts_per_step:
                group, finished = await self._waits.wait(
                    f"group {len(groups) + 1} of {self._settings.prompts_per_step} from the "
                    "environment workers",
                    self._supply.take(step),
                    self._settings.deadline_seconds,
                )
                reason = filter_reason(self._settings.algorithm, finished.summary)
                if reason is None:
                    groups.append((group, finished))
                else:
                    self._filtered.append(self._entry(step, group, finished, "filtered", reason))
                    await self._supply.free([group])
        return groups

    def _assemble(self, step: int, groups: Sequence[Group]) -> StepPlan:
        summaries = [finished.summary for _, finished in groups]
        return assemble(step, summaries, self._settings.algorithm)

    async def _learn(self, plan: StepPlan, groups: Sequence[Group]) -> StepReport:
        """Hands the step to the learner ranks; rank 0's report."""
        blocks = list(dict.fromkeys(finished.block for _, finished in groups))
        index = {block: i for i, block in enumerate(blocks)}
        work = StepWork(
            stage=self._settings.stage,
            plan=plan,
            blocks=tuple(blocks),
            place_G=tuple((index[f.block], f.place) for _, f in groups),
            learning_rate=self._hooks.learning_rate(plan.step),
            hand_over=self._hooks.is_published(plan.step),
            save_to=self._hooks.save_to(plan.step),
        )
        with self._recorder.phase("learn"):
            await self._client.put(work)
            reports = await self._waits.wait(
                f"the learner ranks to finish step {plan.step}",
                self._client.result(plan.step),
                self._settings.deadline_seconds,
            )
        return reports[0]

    async def _publish(self, report: StepReport) -> Published:
        with self._recorder.phase("publish"):
            return await self._hooks.publish(report)

    async def _settle(self, step: int, groups: Sequence[Group]) -> None:
        """Writes the step into the ledger and frees its slots: the weights are live."""
        dropped = [
            Entry(self._settings.stage, group, "dropped", step, reason)
            for group, reason in self._supply.dropped()
        ]
        trained = [self._entry(step, group, finished, "trained") for group, finished in groups]
        self._ledger.record([*dropped, *self._filtered, *trained])
        self._filtered = []
        await self._supply.free([group for group, _ in groups])
        self._supply.feed.settle(step)

    def _entry(
        self, step: int, group: GroupId, finished: Finished, outcome: Outcome, reason: str = ""
    ) -> Entry:
        content_hash = finished.summary.content_hash
        return Entry(self._settings.stage, group, outcome, step, reason, content_hash)
