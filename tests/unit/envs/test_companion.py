"""The row beside a group's samples: how it is made and scored; samples know nothing of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from manta.envs.failures import GroupBroken, WorldBroke
from manta.envs.group import Scoring, annotated_group, run_group
from manta.envs.records import (
    COMPANION,
    GIVEN,
    WRITTEN,
    CompanionKind,
    CompanionSummary,
    ReferenceStatistics,
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
    kind: CompanionKind,
    engine: ScriptedEngine,
    scoring: Scoring = SCORING,
    redundant: int = 0,
    written: Trajectory | None = None,
) -> ScoredGroup:
    env, task = sums()
    drawn = replace(draw(2), companion=kind, redundant=redundant)
    return await run_group(env, task, RENDERER, speaker(engine), drawn, LIMITS, scoring, written)


async def sampled_before(answer: str) -> Trajectory:
    """The second sample of a group without companion, as a stage writes it."""
    return (await made("none", says(answer))).trajectories[1]


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
    engines = [says("12") for _ in range(4)]
    kinds: tuple[CompanionKind, ...] = ("none", "greedy", "given", "written")
    written = await sampled_before("7")
    groups = [
        await made(kind, engine, redundant=redundant, written=written)
        for kind, engine in zip(kinds, engines, strict=True)
    ]
    asked = [engine.requests[0] for engine in engines]
    assert {(r.seeds, r.budgets, r.enough) for r in asked} == {
        (asked[0].seeds, asked[0].budgets, asked[0].enough)
    }
    assert [len(engine.requests) for engine in engines] == [1, 2, 1, 1]
    assert engines[1].requests[1].seeds[0] not in asked[0].seeds
    assert engines[1].requests[1].enough is None
    assert {len(group.trajectories) for group in groups} == {2}
    assert {group.cut_off for group in groups} == {groups[0].cut_off}
    # What trains is another thing, or is held against another thing
    assert len({group.content_hash() for group in groups}) == 4


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


async def test_a_written_one_is_what_another_stage_sampled() -> None:
    """Scored by the rewards of this stage, under its reference; who sampled it is nobody here."""
    _, task = sums()
    written = await sampled_before(str(task.reference))
    group = await made("written", says("0"), replace(SCORING, reference=lengths), written=written)
    assert group.companion is not None and group.companion.kind == "written"
    beside = group.companion.trajectory
    assert (beside.model, beside.sample) == (WRITTEN, COMPANION)
    assert (beside.logprobs, beside.weight_versions) == (None, ())
    assert beside.token_ids.tolist() == written.token_ids.tolist()
    assert beside.loss_mask.tolist() == written.loss_mask.tolist()
    assert written.logprobs is not None and written.sample == 1, "it is as it was"
    assert [score.value for score in group.row_scores] == [0.0, 0.0, 1.0]
    # It looks at all three at once, the companion behind the samples
    assert group.reference is not None and len(group.reference.logprobs) == 2
    assert group.companion.reference_logprobs is not None
    assert [set(row.tolist()) for row in group.row_references if row is not None] == [{0}, {1}, {2}]
    told = summarise(group)
    assert told.companion is not None and told.companion.kind == "written"
    assert (told.companion.reward, told.companion.is_truncated) == (1.0, False)
    assert len(told.rewards) == len(told.num_tokens) == 2
    spans = [span.version for t in group.trajectories for span in t.weight_versions]
    assert (told.oldest, told.newest) == (min(spans), max(spans))
    cut = replace(written, finish_reason="length")
    told = summarise(await made("written", says("0"), written=cut))
    assert told.companion is not None and told.companion.is_truncated
    assert not told.is_truncated.any()


async def test_what_was_written_under_another_prompt_is_refused() -> None:
    written = await sampled_before("1")
    other = replace(written, token_ids=np.where(np.arange(len(written.token_ids)), 3, 4))
    with pytest.raises(ValueError, match="begins with other tokens than its prompt: let both"):
        await made("written", says("0"), written=other)


async def test_what_the_reference_said_stays_where_it_is_not_asked_again() -> None:
    written = await sampled_before("1")
    group = await made("written", says("0"), replace(SCORING, reference=lengths), written=written)
    again = await annotated_group(group, SCORING)
    assert again.companion is not None
    for ours, theirs in zip(again.row_references, group.row_references, strict=True):
        assert ours is not None and theirs is not None
        assert ours.tolist() == theirs.tolist()

    async def higher(trajectories: Sequence[Trajectory]) -> ReferenceStatistics:
        found = await lengths(trajectories)
        return ReferenceStatistics("other", tuple(each + 10 for each in found.logprobs))

    asked = await annotated_group(group, replace(SCORING, reference=higher))
    assert [set(row.tolist()) for row in asked.row_references if row is not None] == [
        {10},
        {11},
        {12},
    ]


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
