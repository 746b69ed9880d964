"""The step loop over scripted engines, learner and publisher: what happens, and in which order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from manta.actors.lanes import Admission, Broken
from manta.actors.step_scores import FinalScores
from manta.actors.step_work import StepReport, StepWork
from manta.algorithms.presets import PRESETS
from manta.algorithms.settings import AlgorithmSettings
from manta.envs.records import GroupId, GroupSummary, Json, WeightVersion
from manta.envs.sources.order import EpochOrder
from manta.envs.step_records import Update
from manta.orchestrator.alarms import Alarm
from manta.orchestrator.config import MismatchGuardConfig
from manta.orchestrator.feed import Feed
from manta.orchestrator.ledger import Entry, Ledger, read_ledger
from manta.orchestrator.loop import LoopHooks, LoopSettings, StageLoop
from manta.orchestrator.mismatch import MismatchTooLarge, MismatchWatch
from manta.orchestrator.progress import Progress
from manta.orchestrator.publish import Published
from manta.orchestrator.step_groups import LeftOut, StepGroups
from manta.orchestrator.supply import Finished, Supply
from manta.orchestrator.wait import DeadlineMissed, Waits, unless_ended
from tests.unit.orchestrator.groups import Outcome, Script, ScriptedPool, summary, turns

PROMPTS = 2
DAPO = PRESETS["dapo"]


class Recorder:
    """Remembers the summaries of every step."""

    def __init__(self, events: list[str]) -> None:
        self.steps: list[Sequence[GroupSummary]] = []
        self.left_out: list[Sequence[LeftOut]] = []
        self.alarms: list[Alarm] = []
        self._events = events

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        yield

    def step(
        self,
        progress: Progress,
        summaries: Sequence[GroupSummary],
        report: StepReport,
        published: Published | None,
        left_out: Sequence[LeftOut],
    ) -> None:
        self._events.append(f"recorded {progress.step}")
        self.steps.append(summaries)
        self.left_out.append(left_out)

    def alarm(self, alarm: Alarm) -> None:
        self.alarms.append(alarm)

    def event(self, name: str, fields: Mapping[str, Json], text: str = "") -> None:
        self._events.append(f"{name} {fields['step']}")


class LearnerClient:
    """A learner group of one rank that answers at once, unless it has to `hang` at a step;
    `metrics` by step are what it reports."""

    def __init__(
        self, events: list[str], hang: int | None, metrics: Mapping[int, Mapping[str, float]]
    ) -> None:
        self.works: list[StepWork] = []
        self._events, self._hang, self._metrics = events, hang, metrics

    async def put(self, work: StepWork) -> None:
        self._events.append(f"put {work.plan.step}")
        self.works.append(work)

    async def result(self, step: int) -> dict[int, StepReport]:
        if step == self._hang:
            await asyncio.Event().wait()
        self._events.append(f"learnt {step}")
        update = Update(WeightVersion(step, 0), self._metrics.get(step, {}), "hash")
        return {0: StepReport(update, (), {})}


@dataclass
class Stage:
    """A loop with everything around it scripted; `version` is what the engines serve."""

    folder: Path
    script: Script
    staleness: int = 0
    algorithm: AlgorithmSettings = DAPO
    steps: int = 3
    fixed_groups: int | None = None
    unpublished: Sequence[int] = ()
    hang: int | None = None
    metrics: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    deadline: float = 10.0
    score_step: Callable[[StepGroups], object] | None = None
    events: list[str] = field(default_factory=list)
    version: int = 0
    gaps: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pool = ScriptedPool(self._made)
        slots = (self.staleness + 1) * PROMPTS
        feed: Feed[Finished] = Feed(EpochOrder(1000, 0, shuffle=False), slots, False)
        self.supply = Supply(feed, self.pool, "rl", 1)  # type: ignore[arg-type]
        self.client = LearnerClient(self.events, self.hang, self.metrics)
        self.recorder = Recorder(self.events)
        self.progress = Progress("rl", step=10)
        self.ledger = Ledger(self.folder / "ledger.jsonl")
        hooks = LoopHooks(
            learning_rate=lambda step: step / 100,
            is_published=lambda step: step not in self.unpublished,
            save_to=self._save_to,
            inspect=MismatchWatch(
                MismatchGuardConfig(),
                "embedded",
                self,  # type: ignore[arg-type]
                self.recorder,  # type: ignore[arg-type]
                Waits(),
                asyncio.Event(),
                self.deadline,
            ),
            publish=self._publish,
            after=self._after,
            score_step=self.score_step,  # type: ignore[arg-type]
        )
        self.loop = StageLoop(
            LoopSettings(
                "rl",
                self.algorithm,
                PROMPTS,
                self.steps,
                self.deadline,
                fixed_groups=self.fixed_groups,
            ),
            hooks,
            self.supply,
            self.client,  # type: ignore[arg-type]
            self.ledger,
            self.recorder,  # type: ignore[arg-type]
            self.progress,
            Waits(),
        )

    async def run(self, should_stop: asyncio.Event | None = None) -> None:
        looping = asyncio.wait_for(self.loop.run(should_stop or asyncio.Event()), 20)
        await unless_ended(looping, self.supply.run())

    @property
    def entries(self) -> list[Entry]:
        return read_ledger(self.folder / "ledger.jsonl")

    def _made(self, admission: Admission) -> Outcome:
        outcome = self.script(admission)
        self.events.append(f"made {admission.id.position}")
        if isinstance(outcome, GroupSummary):
            version = WeightVersion(self.version, 0)
            return replace(outcome, oldest=version, newest=version)
        return outcome

    async def _save_to(self, step: int) -> str | None:
        return "folder" if step == 12 else None

    async def _publish(self, report: StepReport) -> Published:
        self.version = report.update.version.step
        self.events.append(f"published {self.version}")
        return Published(report.update.version, 0.0, ())

    async def _after(self, step: int) -> None:
        self.events.append(f"after {step}")


def varied(admission: Admission) -> Outcome:
    return summary(admission.id)


def flat(*places: int) -> Script:
    """The groups at `places` have equal rewards."""
    return lambda a: summary(a.id, (1.0, 1.0) if a.id.position in places else (0.0, 1.0))


def around(events: list[str]) -> list[str]:
    return [event for event in events if not event.startswith("made")]


async def test_a_step_is_collected_learnt_published_recorded(tmp_path: Path) -> None:
    stage = Stage(tmp_path, varied)
    await stage.run()
    assert around(stage.events) == [
        f"{what} {step}"
        for step in (11, 12, 13)
        for what in ("put", "learnt", "published", "recorded", "after")
    ]
    assert (stage.progress.step, stage.progress.stage_step) == (13, 3)
    work = stage.client.works[1]
    assert (work.stage, work.learning_rate, work.hand_over) == ("rl", 0.12, True)
    assert [w.save_to for w in stage.client.works] == [None, "folder", None]
    assert work.plan.groups == (GroupId(0, 2, 0), GroupId(0, 3, 0))
    assert work.blocks == ("block-2", "block-3")
    assert [g.position for g in stage.supply.feed.state(0).outstanding] == [6, 7], (
        "what is settled is forgotten"
    )
    assert work.place_G == ((0, 0), (1, 0))


async def test_groups_without_a_pair_are_filtered_and_others_become_pairs(tmp_path: Path) -> None:
    stage = Stage(tmp_path, flat(1), algorithm=PRESETS["dpo"], steps=1, fixed_groups=1)
    await stage.run()
    [work] = stage.client.works
    assert work.plan.pair_P2.tolist() == [[1, 0], [3, 2]]
    told = [(e.group.position, e.outcome, e.reason.partition(":")[0]) for e in stage.entries]
    assert told == [(1, "filtered", "no_pair"), (0, "trained", ""), (2, "trained", "")]


async def test_data_of_which_nothing_can_train_ends_the_run(tmp_path: Path) -> None:
    flat_all = flat(*range(1000))
    stage = Stage(tmp_path, flat_all, algorithm=PRESETS["dpo"], fixed_groups=3)
    with pytest.raises(
        RuntimeError, match=r"none of the 3 groups of stage rl can train; .* no_pair"
    ):
        await stage.run()
    assert len([event for event in stage.events if event.startswith("made")]) < 10


async def test_on_policy_nothing_is_made_before_its_weights_are_live(tmp_path: Path) -> None:
    stage = Stage(tmp_path, flat(1, 3))
    await stage.run()
    for summaries, version in zip(stage.recorder.steps, (0, 11, 12), strict=True):
        assert [s.oldest.step for s in summaries if s.oldest] == [version, version]


async def test_with_staleness_groups_are_made_ahead_but_not_too_far(tmp_path: Path) -> None:
    stage = Stage(tmp_path, varied, staleness=2, steps=6)
    await stage.run()
    made_before = stage.events[: stage.events.index("published 11")]
    assert [event for event in made_before if event.startswith("made")] == [
        f"made {i}" for i in range(3 * PROMPTS)
    ]
    served = [0, 0, 0, 11, 12, 13]
    for summaries, version in zip(stage.recorder.steps, served, strict=True):
        assert {s.oldest.step for s in summaries if s.oldest} == {version}


@pytest.mark.parametrize("staleness", [0, 2])
async def test_filtered_groups_are_replaced_and_told(tmp_path: Path, staleness: int) -> None:
    stage = Stage(tmp_path, flat(0, 3), staleness, steps=2)
    await stage.run()
    trained = [[g.position for g in work.plan.groups] for work in stage.client.works]
    assert trained == [[1, 2], [4, 5]]
    assert [(e.group.position, e.outcome, e.step) for e in stage.entries] == [
        (0, "filtered", 11),
        (1, "trained", 11),
        (2, "trained", 11),
        (3, "filtered", 12),
        (4, "trained", 12),
        (5, "trained", 12),
    ]
    assert stage.entries[0].reason == "zero_variance: all rewards of the group are equal"
    left_out = [[each.summary.id.position for each in step] for step in stage.recorder.left_out]
    assert left_out == [[0], [3]]
    assert stage.recorder.left_out[0][0].reason == stage.entries[0].reason
    assert stage.recorder.alarms == []
    assert stage.entries[1].reason == ""
    assert stage.entries[3].content_hash == "hash-0-3"
    assert {e.stage for e in stage.entries} == {"rl"}


async def test_a_step_that_filters_leave_empty_is_told_of(tmp_path: Path) -> None:
    stage = Stage(tmp_path, flat(*range(1, 25)), steps=2)
    await stage.run()
    (alarm,) = stage.recorder.alarms
    assert alarm.what == "20 groups were filtered for step 11, which has 1 of 2"
    assert alarm.cause == "zero_variance left 20 out"


async def test_broken_attempts_are_told_before_the_step_they_delayed(tmp_path: Path) -> None:
    def script(admission: Admission) -> Outcome:
        is_broken = admission.id == GroupId(0, 1, 0)
        return Broken(admission.id, "gone") if is_broken else varied(admission)

    stage = Stage(tmp_path, script, steps=1)
    await stage.run()
    assert [(tuple(e.group), e.outcome, e.reason) for e in stage.entries] == [
        ((0, 1, 0), "dropped", "gone"),
        ((0, 0, 0), "trained", ""),
        ((0, 1, 1), "trained", ""),
    ]


async def test_a_step_whose_weights_stay_with_the_learner_is_not_published(tmp_path: Path) -> None:
    stage = Stage(tmp_path, varied, unpublished=(11, 12))
    await stage.run()
    assert [e for e in stage.events if e.startswith("published")] == ["published 13"]
    assert [work.hand_over for work in stage.client.works] == [False, False, True]


async def test_a_stop_while_collecting_trains_nothing_and_loses_nothing(tmp_path: Path) -> None:
    should_stop = asyncio.Event()

    def script(admission: Admission) -> Outcome:
        if admission.id.position == 5:
            should_stop.set()
        if admission.id.position == 2:
            return summary(admission.id, (1.0, 1.0))
        return varied(admission)

    # Step 12 takes 2 (filtered), 3 and then waits for 4, which finishes late.
    stage = Stage(tmp_path, script, staleness=1)
    stage.pool._delay = lambda admission: 400 if admission.id.position == 4 else 0
    await stage.run(should_stop)
    assert stage.progress.step == 11
    assert len(stage.client.works) == 1
    assert [e.group.position for e in stage.entries] == [0, 1]
    state = stage.loop.feed_state(11)
    assert [g.position for g in state.outstanding] == [2, 3, 4, 5, 6]
    assert state.position == 7


async def test_a_stop_during_a_step_lets_it_finish(tmp_path: Path) -> None:
    should_stop = asyncio.Event()
    stage = Stage(tmp_path, varied)
    publish = stage._publish

    async def stop_and_publish(report: StepReport) -> Published:
        should_stop.set()
        return await publish(report)

    stage.loop._hooks = replace(stage.loop._hooks, publish=stop_and_publish)
    await stage.run(should_stop)
    assert around(stage.events)[-1] == "after 11"
    assert [e.group.position for e in stage.entries] == [0, 1]


async def test_a_state_for_a_checkpoint_has_what_broke_in_the_ledger(tmp_path: Path) -> None:
    """Else a group dropped for good would be neither outstanding nor in the ledger."""

    def script(admission: Admission) -> Outcome:
        is_broken = admission.id.position == 3
        return Broken(admission.id, "gone") if is_broken else varied(admission)

    stage = Stage(tmp_path, script, staleness=1, steps=1)
    stage.pool._delay = lambda admission: 100 if admission.id.position == 3 else 0

    async def after(step: int) -> None:
        assert [e.outcome for e in stage.entries] == ["trained", "trained"]
        await turns(500)

    stage.loop._hooks = replace(stage.loop._hooks, after=after)
    await stage.run()
    state = stage.loop.feed_state(11)
    accounted = {e.group[:2] for e in stage.entries} | {g[:2] for g in state.outstanding}
    assert accounted == {(0, i) for i in range(state.position)}
    attempts = [e.group.attempt for e in stage.entries if e.group.position == 3]
    assert attempts == [0, 1, 2]


def mismatch(kl: float) -> dict[str, float]:
    return {"mismatch/same_version/kl": kl, "mismatch/same_version/gap_max": 1.0}


async def test_a_mismatch_is_told_and_past_the_limit_ends_the_run_before_its_weights_are_served(
    tmp_path: Path,
) -> None:
    metrics = {11: mismatch(1e-9), 12: mismatch(0.01), 13: mismatch(0.3)}
    stage = Stage(tmp_path, varied, steps=4, metrics=metrics)
    with pytest.raises(MismatchTooLarge, match=r"step 13: .* KL 0\.3 per token"):
        await stage.run()
    told = "mismatch between engine and learner"
    assert around(stage.events)[5:] == [
        *("put 12", "learnt 12", f"{told} 12", "published 12", "recorded 12", "after 12"),
        *("put 13", "learnt 13", f"{told} 13"),
    ]
    assert {e.step for e in stage.entries} == {11, 12}, "what the last step learnt is not settled"


async def test_a_learner_that_does_not_answer_is_named(tmp_path: Path) -> None:
    stage = Stage(tmp_path, varied, hang=11, deadline=0.05)
    with pytest.raises(DeadlineMissed, match="the learner ranks to finish step 11"):
        await stage.run()
    assert stage.entries == []


class Rarer:
    """Final scores: the group's place decides the first sample's reward; remembers what it saw."""

    def __init__(self) -> None:
        self.seen: list[list[GroupId]] = []

    async def __call__(self, groups: StepGroups) -> list[FinalScores]:
        self.seen.append(groups.ids)
        return [
            FinalScores(
                np.array([id.position / 2, 1.0], np.float32),
                {"rarity": np.array([0.25, np.nan], np.float32)},
            )
            for id in groups.ids
        ]


async def test_batch_scope_rewards_reach_plan_metrics_and_filter(tmp_path: Path) -> None:
    rarer = Rarer()
    stage = Stage(tmp_path, flat(0, 1), algorithm=replace(DAPO, divide_by_std=False), steps=2)
    stage.loop._hooks = replace(stage.loop._hooks, score_step=rarer)
    await stage.run()
    # Groups 0 and 1 looked flat before: they are in the step all the same.
    assert rarer.seen == [[(0, 0, 0), (0, 1, 0)], [(0, 2, 0), (0, 3, 0)]]
    first, second = (work.plan.coefficients for work in stage.client.works)
    np.testing.assert_allclose(first["advantage"], [-0.5, 0.5, -0.25, 0.25])
    np.testing.assert_allclose(second["advantage"], [0, 0, 0.25, -0.25])
    assert second["keep"].tolist() == [0, 0, 1, 1]
    assert stage.recorder.steps[0][1].rewards.tolist() == [0.5, 1.0]
    assert list(stage.recorder.steps[0][1].components) == ["rarity"]
    outcomes = [(e.group.position, e.outcome) for e in stage.entries]
    assert outcomes == [(0, "trained"), (1, "trained"), (2, "filtered"), (3, "trained")]
    assert stage.entries[0].content_hash == "hash-0-0", "what ranks write down of the group"
