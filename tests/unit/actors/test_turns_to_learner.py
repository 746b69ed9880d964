"""Rewards of turns, all the way: from an environment that answers to advantages of tokens."""

from __future__ import annotations

import pickle
import statistics

import numpy as np
import pytest
import torch

from manta.actors.collectives import alone
from manta.actors.plan_tensors import places_of
from manta.actors.rows import rows_of
from manta.actors.step_tokens import StepTokens
from manta.algorithms.aggregate import Denominators
from manta.algorithms.presets import PRESETS
from manta.envs.episode import Limits, Speaker
from manta.envs.families.arithmetic import Arithmetic
from manta.envs.group import Draw, Scoring, run_group
from manta.envs.packing import Block
from manta.envs.protocols import Services
from manta.envs.records import GroupId, Sampling, ScoredGroup
from manta.envs.registry import build
from manta.envs.render import Renderer
from manta.envs.rewards.compose import Composition
from manta.envs.rewards.formula import Formula
from manta.envs.summaries import summarise
from manta.envs.tokenizer import ByteTokenizer
from manta.orchestrator.assemble import assemble
from tests.unit.envs.scripted import ScriptedEngine

TALKS = {"right": ["R"], "late": ["x", "R"], "never": ["long", "y", "z"], "last": ["y", "x", "R"]}
"""What each sample says, turn by turn; R is the right sum."""


async def talked(position: int, samples: tuple[str, ...]) -> ScoredGroup:
    """A group of `samples`, each an episode of its own, scored by turn."""
    env, renderer = Arithmetic(digits=1, eval_size=20, tries=3), Renderer(ByteTokenizer())
    task = env.source("train").task(position)
    right = str(task.reference)
    composition = Composition(
        Formula("correct"),
        {
            "correct": build("reward", "exact", {}),
            "tries": build("reward", "by_turn", {"rule": "exact"}),
        },
        within={"tries": 0.5},
    )
    turns = iter(text for name in samples for text in TALKS[name])
    script = [right if text == "R" else text for text in turns]
    engine = ScriptedEngine(renderer.tokenizer, lambda call, sample: script[call])
    made = [
        await run_group(
            env,
            task,
            renderer,
            Speaker(engine.generate, Sampling()),
            Draw(GroupId(0, position, 0), 0, "x", 1),
            Limits(max_new_tokens=10, context=200),
            Scoring(lambda task, made: composition.score_group(task, made, Services())),
        )
        for _ in samples
    ]
    return ScoredGroup(
        id=GroupId(0, position, 0),
        task=task,
        trajectories=tuple(each.trajectories[0] for each in made),
        scores=tuple(each.scores[0] for each in made),
        reference=None,
        reward_versions={},
        timings={},
    )


async def test_turns_of_an_episode_become_mapo_s_advantages() -> None:
    settings = PRESETS["mapo"]
    names = (("right", "late", "never"), ("late", "last", "never", "right"))
    groups = [await talked(position, samples) for position, samples in enumerate(names)]
    # The driver sees summaries alone, the ranks the blocks
    plan = assemble(1, [summarise(group) for group in groups], settings)
    travelled = pickle.loads(pickle.dumps(Block(tuple(groups)))).groups
    rows = rows_of(plan, {group.id: group for group in travelled}, range(7))
    tokens = StepTokens(
        settings, tuple(plan.coefficients), rows, None, alone, places=places_of(plan, rows)
    )
    found = tokens.batch(rows, Denominators(1.0, 1.0))
    wanted: list[float] = []
    for samples, group in zip(names, groups, strict=True):
        paid = []
        for name in samples:
            rewards = [0.5 * (text == "R") for text in TALKS[name]]
            rewards[-1] += float(TALKS[name][-1] == "R")
            paid.append(rewards)
        returns = [[sum(rewards[k:]) for k in range(len(rewards))] for rewards in paid]
        for i, trajectory in enumerate(group.trajectories):
            turns = [turn for turn in trajectory.turns if turn.role == "assistant"]
            assert len(turns) == len(paid[i])
            for k, turn in enumerate(turns):
                others = [each[k] for each in returns if len(each) > k]
                own = [reward for each in paid for reward in each]
                value = 0.5 * normed(returns[i][k], others) + 0.5 * normed(paid[i][k], own)
                wanted += [value] * (turn.end - turn.start)
    assert int(plan.num_tokens_N.sum()) == len(wanted)
    assert found.advantage_T.tolist() == pytest.approx(wanted, abs=1e-5)
    assert torch.isfinite(found.advantage_T).all()
    assert np.ptp(found.advantage_T.numpy()) > 1


def normed(value: float, among: list[float]) -> float:
    if len(among) < 2:
        return 0.0
    return (value - statistics.fmean(among)) / (statistics.stdev(among) + 1e-6)
