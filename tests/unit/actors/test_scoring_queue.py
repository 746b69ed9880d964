from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from manta.actors.reference import statistics_of
from manta.actors.scoring_queue import ScoringQueue
from manta.actors.weights import Receipt, Weights
from manta.envs.records import ReferenceStatistics, Trajectory, WeightVersion
from tests.unit.actors.test_weight_store import weights
from tests.unit.envs.scripted import said


class GatedScorer:
    """Scores a trajectory by its number of tokens, once `gate` is open; an artifact `bug` raises.

    `events` says how many trajectories each batch had, and when weights came."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.version = "v1"
        self.events: list[int | str] = []

    def score(self, trajectories: Sequence[Trajectory]) -> ReferenceStatistics:
        self.events.append(len(trajectories))
        assert self.gate.wait(10)
        if any(trajectory.artifact == "bug" for trajectory in trajectories):
            raise KeyError("bug")
        logprobs = tuple(np.full(1, len(t.token_ids), np.float32) for t in trajectories)
        return ReferenceStatistics(self.version, logprobs)

    def load(self, weights: Weights) -> Receipt:
        self.events.append(f"load {weights.version}")
        self.version = "v2"
        return Receipt(weights.version, weights.sha256)


def queue_over(scorer: GatedScorer) -> ScoringQueue[Trajectory, ReferenceStatistics]:
    return ScoringQueue(scorer.score, statistics_of)


async def busy(scorer: GatedScorer, count: int = 1) -> None:
    """Waits until the scorer has been asked `count` times."""
    while len(scorer.events) < count:
        await asyncio.sleep(0.001)


def numbers(statistics: ReferenceStatistics) -> list[int]:
    return [int(row[0]) - 2 for row in statistics.logprobs]


async def test_what_is_pending_is_scored_together_and_comes_back_apart() -> None:
    scorer = GatedScorer()
    queue = queue_over(scorer)
    first = asyncio.create_task(queue.score([said("a")]))
    await busy(scorer)
    others = [
        asyncio.create_task(queue.score([said("x" * size) for size in sizes]))
        for sizes in ((2, 3), (4,), ())
    ]
    await asyncio.sleep(0)
    scorer.gate.set()
    assert numbers(await first) == [1]
    found = await asyncio.gather(*others)
    assert [numbers(statistics) for statistics in found] == [[2, 3], [4], []]
    assert {statistics.version for statistics in found} == {"v1"}
    assert scorer.events == [1, 3]


async def test_an_error_reaches_every_caller_of_its_batch_and_no_other() -> None:
    scorer = GatedScorer()
    queue = queue_over(scorer)
    fine = asyncio.create_task(queue.score([said("a")]))
    await busy(scorer)
    broken = [asyncio.create_task(queue.score([said(text)])) for text in ("bug", "innocent")]
    await asyncio.sleep(0)
    scorer.gate.set()
    assert numbers(await fine) == [1]
    for call in broken:
        with pytest.raises(KeyError, match="bug"):
            await asyncio.wait_for(call, 5)
    assert numbers(await asyncio.wait_for(queue.score([said("bb")]), 5)) == [2]


async def test_a_caller_that_left_spoils_nothing_for_the_others() -> None:
    scorer = GatedScorer()
    queue = queue_over(scorer)
    first = asyncio.create_task(queue.score([said("a")]))
    await busy(scorer)
    leaving, staying = (asyncio.create_task(queue.score([said("bb")])) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    leaving.cancel()
    scorer.gate.set()
    assert numbers(await asyncio.wait_for(staying, 5)) == [2]


async def test_weights_come_between_two_batches() -> None:
    """What was asked for before is scored as a whole by the old ones, what waited by the new."""
    scorer = GatedScorer()
    queue = queue_over(scorer)
    first = asyncio.create_task(queue.score([said("a"), said("b")]))
    await busy(scorer)
    loading = asyncio.create_task(queue.between(lambda: scorer.load(weights(3))))
    await asyncio.sleep(0.01)
    later = asyncio.create_task(queue.score([said("c")]))
    await asyncio.sleep(0)
    assert scorer.events == [2]
    scorer.gate.set()
    assert (await loading).version == WeightVersion(3, 0)
    old, new = await first, await later
    assert (old.version, new.version) == ("v1", "v2")
    assert numbers(old) == [1, 1]
    assert scorer.events == [2, "load 3.0", 1]


async def test_figures_say_what_waits_and_how_long_calls_took() -> None:
    scorer = GatedScorer()
    queue = queue_over(scorer)
    first = asyncio.create_task(queue.score([said("a")]))
    await busy(scorer)
    second = asyncio.create_task(queue.score([said("b"), said("c")]))
    await asyncio.sleep(0.02)
    assert (queue.figures().calls, queue.figures().waiting) == (0, 2)
    scorer.gate.set()
    await asyncio.gather(first, second)
    figures = queue.figures()
    assert (figures.calls, figures.waiting, len(figures.seconds)) == (2, 0, 2)
    assert min(figures.seconds) >= 0.02
