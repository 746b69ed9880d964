"""Calls to a scorer's workers: gathered, made again elsewhere; what is lost is never scored 0."""

from __future__ import annotations

import asyncio
import math

import pytest

from manta.actors.scorer_calls import ScorerCalls, ScorerLost
from manta.envs.failures import WorldBroke
from manta.envs.packing import PackedShown
from manta.envs.protocols import Services
from manta.envs.records import Score, Shown
from manta.envs.rewards.compose import Composition
from manta.envs.rewards.exact import Exact
from manta.envs.rewards.formula import Formula
from manta.envs.rewards.reward_model import RewardModel
from tests.unit.envs.scripted import said, task


class Worker:
    """Scores by the length of the artifact; `state` may become `dead` or `frozen`."""

    def __init__(self, state: str = "well") -> None:
        self.state = state
        self.asked: list[int] = []

    async def score(self, packed: PackedShown) -> list[Score]:
        shown = packed.unpack()
        self.asked.append(len(shown))
        if self.state == "dead":
            raise ScorerLost("killed")
        if self.state == "frozen":
            await asyncio.sleep(60)
        return [Score(float(len(each.trajectories[0].artifact)), {}) for each in shown]


def shown(*texts: str) -> list[Shown]:
    return [Shown(task(), (said(text),)) for text in texts]


def values(scores: list[Score]) -> list[float]:
    return [score.value for score in scores]


async def test_what_a_turn_asks_travels_together_and_comes_back_apart() -> None:
    worker = Worker()
    calls = ScorerCalls("preference", [worker], 5.0)
    found = await asyncio.gather(calls(shown("a", "bb")), calls(shown()), calls(shown("ccc")))
    assert [values(scores) for scores in found] == [[1.0, 2.0], [], [3.0]]
    assert worker.asked == [3]


async def test_a_dead_worker_s_call_goes_to_another_and_it_gets_no_more() -> None:
    dying, well = Worker("dead"), Worker()
    calls = ScorerCalls("preference", [dying, well], 5.0)
    assert values(await calls(shown("a"))) == [1.0]
    assert values(await calls(shown("bb"))) == [2.0]
    assert (dying.asked, well.asked) == ([1], [1, 1])


async def test_side_by_side_calls_go_to_the_worker_with_the_fewest() -> None:
    workers = [Worker("frozen"), Worker()]
    calls = ScorerCalls("preference", workers, 5.0)
    held = asyncio.create_task(calls(shown("a")))
    await asyncio.sleep(0.01)
    assert values(await calls(shown("bb"))) == [2.0]
    held.cancel()
    assert [worker.asked for worker in workers] == [[1], [1]]


async def test_a_frozen_worker_breaks_the_world_and_is_asked_last_from_then_on() -> None:
    workers = [Worker("frozen"), Worker()]
    calls = ScorerCalls("preference", workers, 0.05)
    with pytest.raises(WorldBroke, match=r"'preference' gave no answer within 0\.05 s"):
        await calls(shown("a"))
    for _ in range(2):
        assert values(await calls(shown("a"))) == [1.0]
    assert workers[0].asked == [1]


async def test_without_a_worker_samples_stay_unscored_and_other_components_count() -> None:
    calls = ScorerCalls("preference", [Worker("dead"), Worker("dead")], 0.05)
    components = {"preference": RewardModel("preference"), "correct": Exact()}
    services = Services(scorers={"preference": calls})
    alone = Composition(Formula("preference"), components)
    [score] = await alone.score_group(task(), [said("7")], services)
    assert math.isnan(score.value)
    assert score.components == {"correct": 1.0}
    assert score.note == (
        "preference: scorer 'preference' has no worker, and none came back, within 0.05 s"
    )


async def test_a_call_whose_workers_have_died_goes_to_one_that_comes() -> None:
    calls = ScorerCalls("preference", [Worker("dead")], 5.0)
    call = asyncio.create_task(calls(shown("a")))
    await asyncio.sleep(0.01)
    assert not call.done()
    newcomer = Worker()
    calls.meet([newcomer])
    assert values(await call) == [1.0]
    assert newcomer.asked == [1]


async def test_the_component_is_measured_beside_a_formula_without_it() -> None:
    services = Services(scorers={"preference": ScorerCalls("preference", [Worker()], 5.0)})
    components = {"preference": RewardModel("preference"), "correct": Exact()}
    composition = Composition(Formula("preference"), components)
    first, second = await composition.score_group(task(), [said("7"), said("777")], services)
    assert (first.value, second.value) == (1.0, 3.0)
    assert first.components == {"preference": 1.0, "correct": 1.0}
    assert second.components == {"preference": 3.0, "correct": 0.0}
