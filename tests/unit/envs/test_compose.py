import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from manta.envs.failures import RewardFailed, WorldBroke
from manta.envs.protocols import Reward, Services
from manta.envs.records import Score, Task, Trajectory
from manta.envs.rewards.compose import Composition
from manta.envs.rewards.distinct import Distinct
from manta.envs.rewards.exact import Exact
from manta.envs.rewards.format import Format
from manta.envs.rewards.formula import Formula
from manta.envs.rewards.length import Length
from manta.envs.rewards.rarity import Rarity
from manta.envs.rewards.scope import answers_at_once, at_once, scope_of
from tests.unit.envs.scripted import said, task

SERVICES = Services()


class Judge:
    """Values by what was written: `slow` never answers, `gone` breaks, `skip` does not apply."""

    version = "judge#1"

    async def score(self, task: Task, trajectory: Trajectory, services: Services) -> float | None:
        match trajectory.artifact:
            case "slow":
                await asyncio.sleep(60)
            case "gone":
                raise WorldBroke("the judge is gone")
            case "skip":
                return None
            case "bug":
                raise KeyError("verdict")
            case "nan":
                return math.nan
        return 0.5


class SlowGroup:
    version = "slow-group#1"

    async def score_group(
        self, task: Task, trajectories: Sequence[Trajectory], services: Services
    ) -> list[float | None]:
        await asyncio.sleep(60)
        return [1.0 for _ in trajectories]


class ShortGroup:
    version = "short-group#1"

    async def score_group(
        self, task: Task, trajectories: Sequence[Trajectory], services: Services
    ) -> list[float | None]:
        return []


class Numbers:
    """Every sample's own text as its value, by trajectory, by group or for the step."""

    version = "numbers#1"


class OfTrajectory(Numbers):
    async def score(self, task: Task, trajectory: Trajectory, services: Services) -> float:
        return float(trajectory.artifact)


class OfGroup(Numbers):
    async def score_group(
        self, task: Task, trajectories: Sequence[Trajectory], services: Services
    ) -> list[float | None]:
        return [float(each.artifact) for each in trajectories]


class OfStep(Numbers):
    async def score_batch(
        self, groups: Sequence[tuple[Task, Sequence[Trajectory]]], services: Services
    ) -> list[list[float | None]]:
        return [[float(each.artifact) for each in members] for _, members in groups]


def compose(formula: str, **components: Reward) -> Composition:
    return Composition(Formula(formula), components, deadline_seconds=0.05)


async def score(composition: Composition, *texts: str) -> tuple[Score, ...]:
    return await composition.score_group(task(), [said(text) for text in texts], SERVICES)


async def test_components_and_formula() -> None:
    composition = compose(
        "correct + 0.1 * format", correct=Exact(), format=Format("[0-9]"), distinct=Distinct()
    )
    first, second, third = await score(composition, "7", "8", "7.0")
    assert first.value == pytest.approx(1.1)
    assert first.components == {"correct": 1.0, "format": 1.0, "distinct": 0.5}
    assert second.value == pytest.approx(0.1)
    assert third.value == 1.0
    assert composition.versions["correct"] == Exact().version
    assert composition.usage()["correct"].calls == 3
    assert composition.usage()["distinct"].calls == 1
    assert composition.usage()["format"].seconds > 0


class Who:
    """Notes whose task asks."""

    version = "who#1"

    def __init__(self) -> None:
        self.asked_by: list[asyncio.Task[None] | None] = []

    @at_once
    async def score(self, task: Task, trajectory: Trajectory, services: Services) -> float:
        self.asked_by.append(asyncio.current_task())
        return 1.0


class WaitingExact(Exact):
    async def score(self, task: Task, trajectory: Trajectory, services: Services) -> float | None:
        await asyncio.sleep(60)
        return 1.0


async def test_what_awaits_nothing_costs_no_task_what_overrides_it_keeps_its_deadline() -> None:
    who, waiting = Who(), WaitingExact()
    scores = await score(compose("who", who=who, waiting=waiting), "7", "8")
    assert who.asked_by == [asyncio.current_task()] * 2
    assert {each.note for each in scores} == {"waiting: no answer within 0.05 s"}
    assert all(map(answers_at_once, (who, Exact(), Format("."), Length(1, 2))))
    assert not any(map(answers_at_once, (waiting, Judge(), Distinct())))


async def test_what_does_not_apply_is_absent_and_no_fault() -> None:
    composition = compose("correct + judge", correct=Exact(), judge=Judge())
    [applies, skipped] = await score(composition, "7", "skip")
    assert applies.components == {"correct": 1.0, "judge": 0.5}
    assert skipped.components == {"correct": 0.0}
    assert skipped.note == ""
    assert composition.usage()["judge"].broken == 0


async def test_a_broken_world_leaves_the_component_out_with_a_note() -> None:
    composition = compose("correct + judge", correct=Exact(), judge=Judge())
    fine, slow, gone = await score(composition, "7", "slow", "gone")
    assert fine.note == ""
    assert slow.components == {"correct": 0.0}
    assert slow.note == "judge: no answer within 0.05 s"
    assert gone.note == "judge: the judge is gone"
    assert [s.value for s in (fine, slow, gone)] == [1.5, 0.0, 0.0]
    usage = composition.usage()["judge"]
    assert (usage.calls, usage.broken) == (3, 2)
    assert usage.seconds >= 0.05


async def test_a_broken_world_that_leaves_nothing_is_no_zero() -> None:
    composition = compose("judge", judge=Judge(), correct=Exact())
    fine, slow, skipped = await score(composition, "7", "slow", "skip")
    assert fine.value == 0.5
    assert math.isnan(slow.value)
    assert skipped.value == 0.0
    group = compose("slow", slow=SlowGroup())
    assert all(math.isnan(s.value) for s in await score(group, "a", "b"))


async def test_a_bug_in_a_component_ends_with_its_name() -> None:
    composition = compose("judge", judge=Judge())
    with pytest.raises(RewardFailed, match=r"reward 'judge', task t: KeyError: 'verdict'"):
        await score(composition, "7", "bug")
    with pytest.raises(RewardFailed, match="reward 'judge' gave nan"):
        await score(composition, "nan")
    with pytest.raises(RewardFailed, match="reward 'judge' gave nan, task t, sample 0: a reward"):
        await score(composition, "nan", "7")
    with pytest.raises(RewardFailed, match="0 values for 1 trajectories"):
        await score(compose("short", short=ShortGroup()), "7")


def numbered(*texts: str) -> list[Trajectory]:
    return [replace(said(text), task_id="t9", sample=i) for i, text in enumerate(texts)]


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf", "1e39"])
@pytest.mark.parametrize("kind", [OfTrajectory, OfGroup, OfStep])
async def test_a_number_that_could_not_train_names_component_task_and_sample(
    kind: type[Reward], bad: str
) -> None:
    """Of every scope, also where the formula leaves the component out; 1e39 is no float32."""
    composition = compose("2", own=kind())
    groups = [(task(name="t9"), numbered("1", "2", bad))]
    told = rf"reward 'own' gave {float(bad)}, task t9, sample 2: a reward must".replace("+", r"\+")
    with pytest.raises(RewardFailed, match=told):
        await composition.score_group(*groups[0], SERVICES)
        await composition.score_batch(groups, SERVICES)


@pytest.mark.parametrize(
    ("formula", "told"),
    [
        ("own * own", r"formula 'own \* own' with {'own': 1e\+30} is 1.*e\+60, task t9, sample 1"),
        ("1 / (own - 1e30)", r"divides by zero with {'own': 1e\+30}, task t9, sample 1"),
        ("own * own * own * own * own * own * own * own * own * own * own", "is inf .*sample 1"),
    ],
)
async def test_a_formula_that_makes_one_names_task_and_sample(formula: str, told: str) -> None:
    members = numbered("1", "1e30")
    for kind in (OfTrajectory, OfStep):
        composition = compose(formula, own=kind())
        with pytest.raises(RewardFailed, match=told):
            scores = await composition.score_group(task(), members, SERVICES)
            values = await composition.score_batch([(task(), members)], SERVICES)
            composition.finish(members, scores, values[0])


async def test_batch_components_are_left_for_the_step() -> None:
    composition = compose("correct * rarity", correct=Exact(), rarity=Rarity())
    assert set(composition.batch_components) == {"rarity"}
    texts = [("7", "8"), ("7", "9")]
    groups = [(task(), [said(text) for text in group]) for group in texts]
    scores = [await composition.score_group(task(), group, SERVICES) for _, group in groups]
    assert [s.components for s in scores[0]] == [{"correct": 1.0}, {"correct": 0.0}]
    values = await composition.score_batch(groups, SERVICES)
    finished = [
        composition.finish(g, s, v) for (_, g), s, v in zip(groups, scores, values, strict=True)
    ]
    assert [[s.value for s in group] for group in finished] == [[0.5, 0.0], [0.5, 0.0]]
    assert finished[0][0].components == {"correct": 1.0, "rarity": 0.5}
    [kept, absent] = composition.finish(groups[0][1], scores[0], {"rarity": [1.0, None]})
    assert (kept.value, absent.value) == (1.0, 0.0)
    assert "rarity" not in absent.components


async def test_a_timed_out_component_beside_a_batch_one_waits_for_it() -> None:
    composition = compose("judge + rarity", judge=Judge(), rarity=Rarity())
    [score_of_slow] = await score(composition, "slow")
    assert score_of_slow.value == 0.0
    [finished] = composition.finish([said("slow")], [score_of_slow], {"rarity": [0.75]})
    assert finished.value == 0.75


@pytest.mark.parametrize(
    ("formula", "components", "message"),
    [
        ("corect", {"correct": Exact()}, "did you mean 'correct'"),
        ("x", {"x": object()}, "has none of the methods"),
    ],
)
def test_compositions_that_are_none(
    formula: str, components: Mapping[str, Reward], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Composition(Formula(formula), components)


def test_scopes() -> None:
    class Both(SlowGroup, Judge):
        pass

    class Nameless:
        async def score(self, task: Task, trajectory: Trajectory, services: Services) -> float:
            return 1.0

    assert scope_of("x", Exact()) == "trajectory"
    assert scope_of("x", Distinct()) == "group"
    assert scope_of("x", Rarity()) == "batch"
    with pytest.raises(ValueError, match="exactly one"):
        scope_of("x", Both())
    with pytest.raises(ValueError, match="no `version`"):
        scope_of("x", Nameless())
