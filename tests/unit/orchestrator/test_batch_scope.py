"""A batch-scope reward from sampled text to the advantages that the learner is handed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from manta.actors.lanes import Admission, BlockSummary, Lane
from manta.actors.production import Production, build_production
from manta.actors.reward import RewardWorker
from manta.actors.step_scores import FinalScores
from manta.algorithms.presets import PRESETS
from manta.envs.group import Scoring
from manta.envs.packing import Block, pack
from manta.envs.records import GroupId, Score, Task, Trajectory
from manta.envs.summaries import summarise
from manta.envs.tokenizer import build_tokenizer
from manta.orchestrator.step_groups import StepGroups
from tests.unit.actors.lanes import TOKENIZER, lane, rewards
from tests.unit.envs.scripted import ScriptedEngine
from tests.unit.orchestrator.groups import summary
from tests.unit.orchestrator.test_loop import Stage

LANE = lane(reward=rewards("correct + rarity", correct="exact", rarity="rarity"))


class WorldInOneProcess:
    """An environment pool whose blocks stay here; `answers` are a group's, by position."""

    num_workers = 1

    def __init__(self, lane: Lane, rewards: RewardWorker, answers: dict[int, Sequence[str]]):
        self.blocks: dict[str, Block] = {}
        self._lane, self._rewards, self._answers = lane, rewards, answers

    async def run_block(
        self, lane: str, admissions: Sequence[Admission]
    ) -> tuple[str, BlockSummary]:
        groups = [await self._production(a.id.position).make(a) for a in admissions]
        name = f"block-{len(self.blocks)}"
        self.blocks[name] = Block(tuple(groups))
        return name, BlockSummary(tuple(summarise(group) for group in groups))

    def _production(self, position: int) -> Production:
        async def score(task: Task, trajectories: Sequence[Trajectory]) -> tuple[Score, ...]:
            sizes, packed = [len(trajectories)], pack(list(trajectories))
            [scores] = await self._rewards.score_groups(self._lane.name, [task], sizes, packed)
            return scores

        speaks = ScriptedEngine(
            build_tokenizer(TOKENIZER),
            lambda _, sample: self._answers.get(position, ("0", "0"))[sample],
        )
        return build_production(self._lane, TOKENIZER, speaks.generate, Scoring(score))


async def test_the_step_s_rarity_decides_the_advantages(tmp_path: Path) -> None:
    worker = RewardWorker()
    await worker.open(LANE)
    assert await worker.scores_steps(LANE.name)
    answers = {0: ["77", "77"], 1: ["77", "88"], 2: ["66", "66"], 3: ["66", "66"]}
    pool = WorldInOneProcess(LANE, worker, answers)

    async def score_step(groups: StepGroups) -> list[FinalScores]:
        blocks = [pool.blocks[name] for name in groups.blocks]
        return await worker.score_step(LANE.name, groups.places, *blocks)

    algorithm = replace(PRESETS["dapo"], divide_by_std=False)
    stage = Stage(tmp_path, lambda a: summary(a.id), algorithm=algorithm, steps=2)
    stage.supply._pool, stage.supply._groups_per_call = pool, 2
    stage.loop._hooks = replace(stage.loop._hooks, score_step=score_step)
    await stage.run()

    first, second = stage.client.works
    assert first.plan.groups == (GroupId(0, 0, 0), GroupId(0, 1, 0))
    # Three of the step's four answers are 77, so its rarity is 1/4, that of 88 is 3/4.
    shown = stage.recorder.steps[0]
    assert [s.rewards.tolist() for s in shown] == [[0.25, 0.25], [0.25, 0.75]]
    assert [s.components["rarity"].tolist() for s in shown] == [[0.25, 0.25], [0.25, 0.75]]
    assert [s.components["correct"].tolist() for s in shown] == [[0, 0], [0, 0]]
    np.testing.assert_allclose(first.plan.coefficients["advantage"], [0, 0, -0.25, 0.25])
    assert first.plan.coefficients["keep"].tolist() == [0, 0, 1, 1]
    # All answers alike: nothing to learn from the whole step, and it still goes by.
    assert second.plan.coefficients["keep"].tolist() == [0, 0, 0, 0]
    outcomes = [entry.outcome for entry in stage.entries]
    assert outcomes == ["filtered", "trained", "filtered", "filtered"]
    stored = [group.content_hash() for block in pool.blocks.values() for group in block.groups]
    assert [entry.content_hash for entry in stage.entries] == stored[: len(outcomes)]


async def test_only_the_step_s_own_groups_of_a_block_count() -> None:
    worker = RewardWorker()
    await worker.open(LANE)
    pool = WorldInOneProcess(LANE, worker, {0: ["11", "22"], 1: ["11", "11"], 2: ["22", "33"]})
    admissions = [Admission(GroupId(0, i, 0), i) for i in range(3)]
    for admitted in (admissions[:2], admissions[2:]):
        await pool.run_block("rl", admitted)
    blocks = [pool.blocks["block-0"], pool.blocks["block-1"]]
    scores = await worker.score_step("rl", [(1, 0), (0, 0)], *blocks)
    assert [f.components["rarity"].tolist() for f in scores] == [[0.5, 0.75], [0.75, 0.5]]
    assert all(f.rewards.dtype == np.float32 for f in scores)


async def test_absent_values_are_nan_and_the_formula_goes_on_without() -> None:
    worker = RewardWorker()
    component = f"{__name__}:FirstOnly"
    await worker.open(lane(reward=rewards("correct + first", correct="exact", first=component)))
    pool = WorldInOneProcess(LANE, worker, {0: ["11", "22"]})
    await pool.run_block("rl", [Admission(GroupId(0, 0, 0), 0)])
    [final] = await worker.score_step("rl", [(0, 0)], pool.blocks["block-0"])
    np.testing.assert_array_equal(final.components["first"], [0.5, np.nan])
    assert final.rewards.tolist() == [0.5, 0.0]


async def test_other_lanes_have_no_step_to_score() -> None:
    worker = RewardWorker()
    await worker.open(lane(reward=rewards("correct", correct="exact")))
    assert not await worker.scores_steps("rl")


class FirstOnly:
    """Applies to the first sample of each group."""

    version = "first-only#1"

    async def score_batch(
        self, groups: Sequence[tuple[Task, Sequence[Trajectory]]], services: object
    ) -> list[list[float | None]]:
        return [[0.5] + [None] * (len(trajectories) - 1) for _, trajectories in groups]
