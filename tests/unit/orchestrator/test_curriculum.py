"""The order by pass rate: against plain loops, over crashes, and resumed at every step."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from manta.actors.lanes import Admission, BlockSummary
from manta.envs.records import GroupId, GroupSummary
from manta.envs.sources.order import EpochOrder
from manta.orchestrator.age_policy import AgePolicy
from manta.orchestrator.carrying_feed import CarryingFeed
from manta.orchestrator.curriculum import Curriculum, PassRate, arrange, pass_rate
from manta.orchestrator.curriculum_settings import CurriculumSettings
from manta.orchestrator.feed import Feed, FeedState
from manta.orchestrator.ledger import Entry
from manta.orchestrator.racing_feed import RacingFeed
from manta.orchestrator.run_state import RunState, run_state
from manta.orchestrator.simulation import virtual_clock
from manta.orchestrator.supply import Finished
from tests.unit.orchestrator.groups import summary
from tests.unit.orchestrator.simulated_stage import SimulatedStage
from tests.unit.orchestrator.test_feed import World

NAN = float("nan")
TASKS, PROMPTS, SAMPLES = 11, 4, 4
BAND = CurriculumSettings(nearest_to=0.5, low=0.1, high=0.9)
CURRICULA = st.builds(
    CurriculumSettings,
    nearest_to=st.sampled_from([None, 0.0, 0.5, 0.7, 1.0]),
    low=st.sampled_from([0.0, 0.1, 0.3]),
    high=st.sampled_from([0.6, 0.9, 1.0]),
    rest_epochs=st.integers(1, 3),
)
RATES = st.builds(
    PassRate, st.sampled_from([right / 6 for right in range(7)]), st.just(0), st.integers(0, 3)
)


@given(CURRICULA, st.integers(1, 30), st.data())
def test_an_order_is_what_plain_loops_say(
    rule: CurriculumSettings, num_tasks: int, data: st.DataObject
) -> None:
    known = data.draw(st.dictionaries(st.integers(0, num_tasks - 1), RATES))
    found = arrange(rule, known, num_tasks, epoch=6, seed=1)
    order = found.order_N.tolist()
    assert sorted(order) == list(range(num_tasks)), "every task has one place"
    rests = []
    for task in range(num_tasks):
        last = known.get(task)
        is_out = last is not None and not rule.low <= last.rate <= rule.high
        rests.append(is_out and last is not None and last.rested < rule.rest_epochs)
    assert found.would_be_empty == all(rests)
    left_out = [] if all(rests) else [task for task in range(num_tasks) if rests[task]]
    assert sorted(order[found.num_taken :]) == left_out
    mean = sum(last.rate for last in known.values()) / max(1, len(known))
    expected = [known[task].rate if task in known else mean for task in order[: found.num_taken]]
    if rule.nearest_to is not None:
        away = [abs(rate - rule.nearest_to) for rate in expected]
        assert all(near <= far + 1e-8 for near, far in pairwise(away))


def test_easy_to_hard_and_what_is_uncertain_first() -> None:
    rates = [1.0, 0.0, 0.5, 0.25, 0.75, 2 / 3]
    known = {task: PassRate(rate, 0) for task, rate in enumerate(rates)}

    def order(nearest_to: float, seed: int = 0) -> list[int]:
        rule = CurriculumSettings(nearest_to=nearest_to)
        return arrange(rule, known, 6, 1, seed).order_N.tolist()

    assert order(1.0) == [0, 4, 5, 2, 3, 1]
    assert order(0.0) == [1, 3, 2, 5, 4, 0]
    assert order(0.5)[:2] == [2, 5]
    by_variance = sorted(rates, key=lambda p: -p * (1 - p))
    assert [rates[task] * (1 - rates[task]) for task in order(0.5)] == pytest.approx(
        [p * (1 - p) for p in by_variance]
    )
    assert len({tuple(order(0.5, seed)) for seed in range(40)}) == 4, "equals come in any order"


def test_rates_that_are_equally_far_are_equal() -> None:
    """1/3 and 2/3 are not, in floating point."""
    known = {0: PassRate(1 / 3, 0), 1: PassRate(2 / 3, 0)}
    rule = CurriculumSettings(nearest_to=0.5)
    firsts = {arrange(rule, known, 2, 1, seed).order_N.tolist()[0] for seed in range(20)}
    assert firsts == {0, 1}


@pytest.mark.parametrize(("rest_epochs", "expected"), [(1, [0, 2, 4, 6, 8]), (2, [0, 3, 6])])
def test_what_is_left_out_rests_and_comes_back(rest_epochs: int, expected: list[int]) -> None:
    """Task 0 is always right: it comes in epoch 0, and then after each rest."""
    rule = CurriculumSettings(high=0.9, rest_epochs=rest_epochs)
    curriculum = Curriculum(rule, "correct", EpochOrder(2, 0), step=0)
    came = []
    for epoch in range(9):
        if epoch:
            curriculum.begin(epoch)
        places = range(curriculum.num_places(epoch))
        tasks = [curriculum.index(epoch, place) for place in places]
        came += [epoch] * (0 in tasks)
        made = [
            made_of(GroupId(epoch, place, 0), 4 if task == 0 else 2)
            for place, task in zip(places, tasks, strict=True)
        ]
        curriculum.settle(epoch, made, {epoch})
        share = curriculum.metrics()["curriculum/skipped_share"]
        assert share == (0.0 if 0 in tasks else 0.5)
    assert came == expected


def made_of(group: GroupId, right: int, samples: int = SAMPLES) -> GroupSummary:
    values = [1.0] * right + [0.0] * (samples - right)
    return summary(group, values, {"correct": values})


def test_a_pass_rate_is_of_the_samples_that_have_the_component() -> None:
    group = summary(GroupId(0, 0, 0), (1, 1, 0, 0), {"correct": (1.0, 0.4, NAN, 0.6)})
    assert pass_rate(group, "correct") == 2 / 3
    assert pass_rate(group, "judge") is None
    assert pass_rate(summary(GroupId(0, 0, 0), (1, 1), {"correct": (NAN, NAN)}), "correct") is None


def test_the_last_time_counts_and_nothing_where_nothing_is_known() -> None:
    curriculum = Curriculum(BAND, "correct", EpochOrder(1, 0), step=3)
    curriculum.begin(1)
    [begun] = curriculum.begun()
    assert (begun.epoch, begun.step, begun.skipped) == (1, 3, ()) and curriculum.begun() == []
    both = [made_of(GroupId(1, 0, 0), 2), made_of(GroupId(0, 0, 0), 4)]
    curriculum.settle(4, both, {1})
    assert curriculum._known == {0: PassRate(0.5, 1)}, "of the later epoch, whichever comes first"
    assert "curriculum/pass_rate_before" not in curriculum.metrics()
    curriculum.settle(5, [summary(GroupId(1, 0, 0), (1.0, 1.0))], {1})
    assert curriculum._known == {0: PassRate(0.5, 1)}
    assert curriculum.metrics() == {
        "curriculum/epoch": 1,
        "curriculum/skipped_share": 0,
        "curriculum/pass_rate_before": 0.5,
    }


class CurriculumWorld(World):
    """The world of the feed under a curriculum: what its groups come to follows from their places;
    a crash goes through the checkpoint's file."""

    def order_from(self, state: FeedState | None) -> Curriculum:
        rule = CurriculumSettings(nearest_to=0.7, low=0.1, high=0.9, rest_epochs=2)
        self.curriculum = Curriculum(rule, "correct", EpochOrder(self.length, 1), self.published)
        if state is not None:
            assert state.curriculum is not None
            self.curriculum.restore(through_json(state).curriculum)
        return self.curriculum

    def note(self, step: int) -> None:
        groups = [*self.filtered, *self.taken]
        made = [made_of(group, random.Random(str(group[:2])).randrange(5)) for group in groups]
        self.curriculum.settle(step, made, self.feed.state(step).open_epochs)

    def state(self) -> FeedState:
        return replace(self.feed.state(self.published), curriculum=self.curriculum.state())


TestCurriculumWorld = CurriculumWorld.TestCase
TestCurriculumWorld.settings = settings(max_examples=30, stateful_step_count=60, deadline=None)


def through_json(state: FeedState) -> FeedState:
    """As a checkpoint's file gives it back."""
    whole = RunState(0, "rl", 0, False, state, 0, 0, 0)
    back = run_state(json.loads(json.dumps(asdict(whole)))).feed
    assert back == state and back is not None
    return back


def test_a_checkpoint_of_other_tasks_is_refused() -> None:
    state = Curriculum(BAND, "correct", EpochOrder(1200, 0), 0).state()
    with pytest.raises(ValueError, match=r"orders of 1,200 tasks, and the environment has 1,100"):
        Curriculum(BAND, "correct", EpochOrder(1100, 0), 0).restore(state)
    with pytest.raises((ValueError, TypeError)):
        Curriculum(BAND, "correct", EpochOrder(1200, 0), 0).restore(replace(state, rates="bm8="))


class Learning:
    """Makes groups in random times; what they come to follows from task and epoch, if they are not
    all right."""

    num_workers = 1

    def __init__(self, is_all_right: bool = False) -> None:
        self._is_all_right = is_all_right

    async def run_block(
        self, lane: str, admissions: Sequence[Admission]
    ) -> tuple[str, BlockSummary]:
        made = []
        for admission in admissions:
            group, task = admission.id, admission.index
            await asyncio.sleep(random.Random(str(group)).lognormvariate(0, 1))
            draw = random.Random(f"{task}/{group.epoch}")
            chance = 1 if self._is_all_right else 0.1 + 0.8 * task / TASKS
            right = sum(draw.random() < chance for _ in range(SAMPLES))
            made.append(replace(made_of(group, right), content_hash=f"{task}: {right}"))
        return str(admissions), BlockSummary(tuple(made))


Told = tuple[str, tuple[int, int], int, str, str]


class Stage(SimulatedStage):
    """A stage under a curriculum, from the start or from `state` at `step`, where the ledger had
    the `earlier` entries; `states` by step, each with the entries that the ledger had."""

    num_tasks = TASKS

    def __init__(
        self,
        folder: Path,
        feed_of: Callable[[Curriculum], Feed[Finished]],
        rule: CurriculumSettings,
        algorithm: str,
        step: int = 0,
        state: FeedState | None = None,
        earlier: Sequence[Entry] = (),
        prompts: int = PROMPTS,
        is_all_right: bool = False,
    ) -> None:
        curriculum = Curriculum(rule, "correct", EpochOrder(TASKS, 5), step)
        if state is not None:
            assert state.curriculum is not None
            curriculum.restore(state.curriculum)
        feed = feed_of(curriculum)
        if state is not None:
            feed.restore(state)
        folder.mkdir(exist_ok=True)
        super().__init__(
            folder, step, feed, prompts, AgePolicy(), steps=STEPS, algorithm=algorithm,
            pool=Learning(is_all_right),
        )  # fmt: skip
        self.supply.curriculum = curriculum
        self.loop._progress.step = self.loop._progress.stage_step = step
        lost = () if state is None else state.outstanding
        self.earlier = [*earlier, *(Entry("rl", g, "dropped", step, STOPPED) for g in lost)]
        self.states: dict[int, tuple[FeedState, list[Entry]]] = {}

    async def _after(self, step: int) -> None:
        await super()._after(step)
        state = through_json(self.loop.feed_state(step))
        self.states[step] = (state, self.entries)

    @property
    def told(self) -> list[Told]:
        return told(self.entries)


STEPS = 14
STOPPED = "the run stopped before it was trained"


def told(entries: Sequence[Entry]) -> list[Told]:
    """What became of the places, without the attempts."""
    return [
        (e.outcome, (e.group.epoch, e.group.position), e.step, e.reason, e.content_hash)
        for e in entries
        if e.outcome != "dropped"
    ]


@pytest.mark.parametrize("staleness", [0, 2])
@pytest.mark.parametrize("algorithm", ["grpo", "dapo"])
def test_a_stage_resumed_at_any_step_goes_on_as_if_it_had_not_stopped(
    tmp_path: Path, staleness: int, algorithm: str
) -> None:
    """`dapo` filters groups, whose slots are free within a step."""

    def feed_of(order: Curriculum) -> Feed[Finished]:
        return Feed(order, (staleness + 1) * PROMPTS, keeps_place=True)

    whole = Stage(tmp_path / "whole", feed_of, BAND, algorithm)
    virtual_clock.run(whole.run())
    outcomes = {outcome for outcome, *_ in whole.told}
    assert outcomes == {"trained", "skipped"} | ({"filtered"} if algorithm == "dapo" else set())
    last = max(epoch for _, (epoch, _), *_ in whole.told)
    assert last >= 4
    for step, (state, earlier) in whole.states.items():
        if step == STEPS:
            continue
        again = Stage(tmp_path / str(step), feed_of, BAND, algorithm, step, state, earlier)
        virtual_clock.run(again.run())
        assert told(earlier) + again.told == whole.told
        assert {s: strip(state) for s, (state, _) in again.states.items()} == {
            s: strip(state) for s, (state, _) in whole.states.items() if s > step
        }


def strip(state: FeedState) -> FeedState:
    """Without the attempts."""
    return replace(state, outstanding=tuple(g._replace(attempt=0) for g in state.outstanding))


@pytest.mark.parametrize(
    "feed_of",
    [
        lambda order: RacingFeed(order, PROMPTS, PROMPTS + 2),
        lambda order: CarryingFeed(order, PROMPTS, PROMPTS + 2, 1),
    ],
)
def test_feeds_that_take_what_finishes_first_lose_and_repeat_nothing(
    tmp_path: Path, feed_of: Callable[[Curriculum], Feed[Finished]]
) -> None:
    whole = Stage(tmp_path / "whole", feed_of, BAND, "grpo")
    virtual_clock.run(whole.run())
    state, earlier = whole.states[7]
    assert state.epoch > 0
    again = Stage(tmp_path / "again", feed_of, BAND, "grpo", 7, state, earlier)
    virtual_clock.run(again.run())
    for history in (whole.told, told(earlier) + again.told):
        places = [place for _, place, *_ in history]
        assert len(places) == len(set(places))
        tasks = [(epoch, task_of(each)) for each in history for epoch in [each[1][0]]]
        assert len(tasks) == len(set(tasks)), "a task came twice in an epoch"
        assert {(1, task) for task in range(TASKS)} <= set(tasks), "none is missing in a whole one"


def task_of(each: Told) -> int:
    outcome, _, _, reason, content = each
    return int((reason.removeprefix("task ") if outcome == "skipped" else content).split(":")[0])


def test_where_all_would_be_left_out_all_come_and_it_is_told_once(tmp_path: Path) -> None:
    """Every step is an epoch, and every sample right."""

    def feed_of(order: Curriculum) -> Feed[Finished]:
        return Feed(order, TASKS, keeps_place=True)

    stage = Stage(tmp_path, feed_of, BAND, "grpo", prompts=TASKS, is_all_right=True)
    virtual_clock.run(stage.run())
    assert {outcome for outcome, *_ in stage.told} == {"trained"}
    alarms = [alarm for alarm in stage.recorder.alarms if alarm.kind == "empty epoch"]
    assert [alarm.what for alarm in alarms] == [
        "the curriculum would have left every task out of epoch 1, and takes them all"
    ]
