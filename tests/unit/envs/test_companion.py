"""The row beside a group's samples: how it is made and scored; samples know nothing of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from manta.envs.failures import GroupBroken, WorldBroke
from manta.envs.group import Scoring, run_group
from manta.envs.records import (
    COMPANION,
    GIVEN,
    CompanionKind,
    CompanionSummary,
    Score,
    ScoredGroup,
    Task,
    Trajectory,
)
from manta.envs.summaries import summarise
from tests.unit.envs.scripted import ABORT, ScriptedEngine
from tests.unit.envs.test_group import (
    LIMITS,
    RENDERER,
    SCORING,
    Guess,
    Halved,
    draw,
    lengths,
    score,
    speaker,
    sums,
)


def says(*answers: str) -> ScriptedEngine:
    """The i-th request gets the i-th answer for all of its samples, the last one from there on."""
    return ScriptedEngine(RENDERER.tokenizer, lambda call, _: answers[min(call, len(answers) - 1)])


async def made(
    kind: CompanionKind, engine: ScriptedEngine, scoring: Scoring = SCORING, redundant: int = 0
) -> ScoredGroup:
    env, task = sums()
    drawn = replace(draw(2), companion=kind, redundant=redundant)
    return await run_group(env, task, RENDERER, speaker(engine), drawn, LIMITS, scoring)


async def test_a_greedy_one_is_a_request_of_its_own_and_no_sample() -> None:
    _, task = sums()
    engine = says("0", str(task.reference))
    group = await made("greedy", engine)
    samples, greedy = engine.requests
    assert (samples.sampling.temperature, greedy.sampling.temperature) == (0.7, 0.0)
    assert greedy.sampling == replace(samples.sampling, temperature=0.0)
    assert greedy.prefix.tolist() == samples.prefix.tolist()
    assert greedy.budgets == (8,)
    assert [t.artifact for t in group.trajectories] == ["0", "0"]
    assert [s.value for s in group.scores] == [0.0, 0.0]
    assert group.companion is not None and group.companion.kind == "greedy"
    beside = group.companion.trajectory
    assert (beside.sample, beside.model) == (COMPANION, "policy")
    assert beside.artifact == str(task.reference)
    assert group.companion.score.value == 1.0
    assert group.row(COMPANION) is beside is group.rows[-1]
    summary = summarise(group)
    tokens = len(RENDERER.answer_ids(str(task.reference)))
    told = CompanionSummary("greedy", 1.0, tokens, len(beside.token_ids))
    assert summary.companion == told
    assert summary.rewards.tolist() == [0.0, 0.0] and len(summary.num_tokens) == 2
    assert {version: count.tolist() for version, count in summary.tokens_by_version.items()} == {
        span.version: [1, 1] for span in group.trajectories[0].weight_versions
    }


@pytest.mark.parametrize("redundant", [0, 1])
async def test_samples_are_the_same_with_and_without_one(redundant: int) -> None:
    engines = [says("12") for _ in range(3)]
    kinds: tuple[CompanionKind, ...] = ("none", "greedy", "given")
    groups = [
        await made(kind, engine, redundant=redundant)
        for kind, engine in zip(kinds, engines, strict=True)
    ]
    asked = [engine.requests[0] for engine in engines]
    assert {(r.seeds, r.budgets, r.enough) for r in asked} == {
        (asked[0].seeds, asked[0].budgets, asked[0].enough)
    }
    assert [len(engine.requests) for engine in engines] == [1, 2, 1]
    assert engines[1].requests[1].seeds[0] not in asked[0].seeds
    assert engines[1].requests[1].enough is None
    assert {len(group.trajectories) for group in groups} == {2}
    assert {group.cut_off for group in groups} == {groups[0].cut_off}
    # What trains is another thing, or is held against another thing
    assert len({group.content_hash() for group in groups}) == 3


async def test_budgets_of_samples_do_not_depend_on_it() -> None:
    _, task = sums()
    engine = says("12345")
    drawn = replace(draw(3), companion="greedy")
    await run_group(Halved(), task, RENDERER, speaker(engine), drawn, LIMITS, SCORING)
    assert [request.budgets for request in engine.requests] == [(8, 8, 4), (8,)]


async def test_a_given_one_is_the_gold_answer() -> None:
    env, task = sums()
    engine = says("0")
    group = await made("given", engine, replace(SCORING, reference=lengths))
    assert group.companion is not None and group.companion.kind == "given"
    beside = group.companion.trajectory
    assert (beside.model, beside.sample, beside.logprobs) == (GIVEN, COMPANION, None)
    prompt, answer = RENDERER.prompt_ids(task), RENDERER.answer_ids(env.gold(task))
    assert beside.token_ids.tolist() == [*prompt, *answer]
    assert group.companion.score.value == 1.0
    assert group.reference is not None and len(group.reference.logprobs) == 2
    assert summarise(group).oldest is not None, "the samples have versions"


async def test_each_side_is_scored_without_the_other() -> None:
    seen: list[list[int]] = []

    async def look(task: Task, trajectories: Sequence[Trajectory]) -> tuple[Score, ...]:
        seen.append([each.sample for each in trajectories])
        return await score(task, trajectories)

    await made("greedy", says("1"), Scoring(look))
    assert sorted(seen) == [[COMPANION], [0, 1]]


async def test_an_environment_of_several_turns_has_a_greedy_episode() -> None:
    env = Guess()
    task = env.source("train").task(0)
    engine = says("3", "7")
    drawn = replace(draw(1), companion="greedy")
    group = await run_group(env, task, RENDERER, speaker(engine), drawn, LIMITS, SCORING)
    assert group.companion is not None
    assert len(group.companion.trajectory.turns) == 4
    temperatures = [request.sampling.temperature for request in engine.requests]
    assert sorted(temperatures) == [0.0, 0.0, 0.7]
    assert {request.session for request in engine.requests} == {str(drawn.group)}


async def test_a_group_without_its_companion_is_broken() -> None:
    with pytest.raises(WorldBroke, match="the engine aborted the greedy sample"):
        await made("greedy", says("1", ABORT))

    async def half(task: Task, trajectories: Sequence[Trajectory]) -> tuple[Score, ...]:
        return tuple(
            Score(math.nan if t.sample == COMPANION else 1.0, {}, note="judge: late")
            for t in trajectories
        )

    with pytest.raises(GroupBroken, match="the companion has no score: judge: late"):
        await made("given", says("1"), Scoring(half))
