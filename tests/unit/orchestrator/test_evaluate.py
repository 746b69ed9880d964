from __future__ import annotations

from collections.abc import Sequence

import pytest

from manta.actors.lanes import Admission, Broken
from manta.orchestrator.config import EvaluateConfig
from manta.orchestrator.evaluate import EvaluationLost, NothingEvaluated, evaluate
from manta.orchestrator.rebirth import Rebirths
from tests.unit.actors.lanes import lane
from tests.unit.orchestrator.groups import Outcome, ScriptedPool, summary


class Pool(ScriptedPool):
    async def gold_logprob(self, lane: str, indices: Sequence[int]) -> list[float]:
        return [-float(index) for index in indices]


def marked(admission: Admission) -> Outcome:
    """Tasks 0, 3, 6, ... are answered right by their first sample; 1 breaks; nothing applies to
    2."""
    place = admission.id.position
    if place == 1:
        return Broken(admission.id, "gone")
    correct = {} if place == 2 else {"correct": (float(place % 3 == 0), 0.0)}
    return summary(admission.id, (1.0, 0.0), correct)


async def test_the_first_tasks_are_evaluated_in_blocks_over_the_workers() -> None:
    pool = Pool(marked)
    found = await evaluate(pool, lane(), EvaluateConfig(prompts=7), num_tasks=100)  # type: ignore[arg-type]
    # The one that breaks is tried again
    assert sorted(len(call) for call in pool.calls) == [1, 1, 3, 4]
    assert (found.num_samples, found.num_broken) == (12, 1)
    assert found.accuracy == pytest.approx(3 / 12)
    assert found.reward == 0.5
    assert found.mean_tokens == 2.0
    assert found.gold_logprob is None


async def test_there_may_be_fewer_tasks_than_asked_for() -> None:
    settings = EvaluateConfig(prompts=256, gold_likelihood=True)
    pool = Pool(lambda a: summary(a.id, (1.0,), {"correct": (1.0,)}))
    found = await evaluate(pool, lane(), settings, num_tasks=5)  # type: ignore[arg-type]
    assert (found.num_samples, found.accuracy) == (5, 1.0)
    assert found.gold_logprob == -2.0


async def test_several_samples_of_a_task_say_how_often_one_is_right() -> None:
    right = {0: (1.0, 0.0, 0.0, 0.0), 1: (0.0,) * 4, 2: (1.0, 1.0, 0.0, 0.0)}
    pool = Pool(lambda a: summary(a.id, (0.0,) * 4, {"correct": right[a.id.position]}))
    settings = EvaluateConfig(prompts=3, samples_per_prompt=4, temperature=1.0)
    found = await evaluate(pool, lane(), settings, num_tasks=3)  # type: ignore[arg-type]
    assert found.pass_at == {
        "pass_at/1": pytest.approx(0.25),
        "pass_at/2": pytest.approx((1 / 2 + 0 + 5 / 6) / 3),
        "pass_at/4": pytest.approx(2 / 3),
    }
    assert found.told == "held-out accuracy 25.0%, pass@4 66.7%"


async def test_groups_that_all_went_with_workers_are_another_life_s_to_make() -> None:
    pool = Pool(lambda a: Broken(a.id, "gone", is_lost=True))
    with pytest.raises(EvaluationLost) as lost:
        await evaluate(pool, lane(), EvaluateConfig(), num_tasks=2)  # type: ignore[arg-type]
    assert Rebirths(1).follows(lost.value, 0)


async def test_what_breaks_once_counts_as_made() -> None:
    seen: set[int] = set()

    def breaking(admission: Admission) -> Outcome:
        place = admission.id.position
        if place not in seen:
            seen.add(place)
            return Broken(admission.id, "gone")
        return summary(admission.id, (1.0,), {"correct": (float(place),)})

    found = await evaluate(Pool(breaking), lane(), EvaluateConfig(), num_tasks=4)  # type: ignore[arg-type]
    assert (found.num_samples, found.accuracy) == (4, 0.75)


async def test_a_metric_that_no_group_has_is_told() -> None:
    pool = Pool(lambda a: summary(a.id, (1.0,), {"format": (1.0,)}))
    with pytest.raises(ValueError, match=r"evaluate\.metric is 'correct', the reward has"):
        await evaluate(pool, lane(), EvaluateConfig(), num_tasks=5)  # type: ignore[arg-type]


async def test_nothing_evaluated_is_no_accuracy_of_0() -> None:
    pool = Pool(lambda a: Broken(a.id, "gone"))
    told = "none of the 5 groups of lane .* tried again and again: gone$"
    with pytest.raises(NothingEvaluated, match=told):
        await evaluate(pool, lane(), EvaluateConfig(), num_tasks=5)  # type: ignore[arg-type]
