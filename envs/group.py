"""Groups: the samples of one task side by side, scored together.

Owns seeds, budgets, which samples are whole, and timings. How one episode goes on is
`manta.envs.episode`; what a score is made of is `manta.envs.rewards.compose`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, TypeVar

from manta.envs.companion import make_companion, reference_statistics
from manta.envs.episode import Limits, Speaker, finished, given_episode, prompt_ids, run_episode
from manta.envs.failures import GroupBroken, WorldBroke
from manta.envs.protocols import Compares, Env, ScoreGroup, ScoreReference
from manta.envs.records import (
    COMPANION,
    Companion,
    CompanionKind,
    Float32,
    GenerateRequest,
    GroupId,
    Int32,
    ReferenceStatistics,
    Score,
    ScoredGroup,
    Task,
    Trajectory,
)
from manta.envs.render import Renderer
from manta.envs.seeds import sample_seed
from manta.envs.side_by_side import ending, side_by_side

S = TypeVar("S")
T = TypeVar("T")

REFERENCED_AT = "referenced_at"
"""Among the timings of a group: when the reference's statistics came, in seconds since 1970."""


class _Episodes(NamedTuple):
    """`reasons` are of the samples that the world broke, `cut_off` the tokens of redundant ones."""

    whole: list[Trajectory]
    reasons: list[str]
    cut_off: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Scoring:
    """What looks at a group: its rewards, their versions, and the reference model if any."""

    score: ScoreGroup
    versions: Mapping[str, str] = field(default_factory=dict)
    reference: ScoreReference | None = None


@dataclass(frozen=True, slots=True)
class Draw:
    """Which samples of which group: with the same draw an engine returns the same samples.

    `purpose` keeps the streams of training and evaluation apart (such as `rl/train`). `redundant`
    more samples are begun, and the first `num_samples` to end make the group. The `companion` has a
    stream of its own, so that the samples are the same with and without one.
    Raises ValueError unless 1 <= min_samples <= num_samples and redundant >= 0.
    """

    group: GroupId
    run_seed: int
    purpose: str
    num_samples: int
    min_samples: int = 1
    redundant: int = 0
    companion: CompanionKind = "none"

    def __post_init__(self) -> None:
        if not 1 <= self.min_samples <= self.num_samples:
            raise ValueError(
                f"min_samples is {self.min_samples}: it must lie in 1..{self.num_samples}, the "
                "samples per prompt"
            )
        if self.redundant < 0:
            raise ValueError(f"redundant samples are {self.redundant}: give 0 or more")

    @property
    def num_begun(self) -> int:
        return self.num_samples + self.redundant

    def seed(self, sample: int, turn: int) -> int:
        return sample_seed(
            self.run_seed, self.purpose, self.group.epoch, self.group.position, sample, turn
        )


async def run_group(
    env: Env,
    task: Task,
    renderer: Renderer,
    speaker: Speaker,
    draw: Draw,
    limits: Limits,
    scoring: Scoring,
    written: Trajectory | None = None,
) -> ScoredGroup:
    """The samples of `task`, run and scored.

    A single-turn environment's samples are one engine request; otherwise the episodes run side by
    side. Samples that the world broke (aborted by an engine, or left without a score) are dropped.
    A companion (`manta.envs.companion`; `written` is what it makes a written one of) is made beside
    them, and scored by itself: neither's score depends on the other. `timings` are the seconds of
    `generate`, `score` and, with a reference, `reference`, and when it was done.

    Raises ValueError where the prompt does not fit the context, or redundant samples are asked of
    an environment of several turns; GroupBroken where fewer than `min_samples` or no companion are
    whole."""
    prompt = prompt_ids(task, renderer, limits)
    budgets = _budgets(env, task, draw.num_begun, limits, len(prompt))
    if env.single_turn:
        episodes = _one_turn(task, prompt, renderer, speaker, draw, budgets)
    elif draw.redundant:
        raise ValueError(
            f"environment {task.env!r} has several turns, so that its samples are requests of "
            "their own, which end one by one: set rollout.redundant_samples to 0"
        )
    else:
        episodes = _many_turns(env, task, renderer, speaker, draw, budgets, limits)
    companion: Trajectory | None = None
    if draw.companion == "none":
        made, seconds = await _timed(episodes)
    else:
        # Asked for by itself: more samples may have other budgets
        [budget] = _budgets(env, task, 1, limits, len(prompt))
        beside = make_companion(
            draw.companion,
            env,
            task,
            renderer,
            speaker,
            seed=partial(draw.seed, COMPANION),
            budget=budget,
            limits=limits,
            session=str(draw.group),
            written=written,
        )
        (made, companion), seconds = await _timed(_both(episodes, beside))
    trajectories, reasons = made.whole, made.reasons
    _at_least(draw, task, len(trajectories), reasons)
    group = await _scored(draw.group, task, trajectories, scoring, seconds, companion)
    group = replace(group, cut_off=made.cut_off)
    unscored = [score.note for score in group.scores if math.isnan(score.value)]
    group = _whole(group) if unscored else group
    _at_least(draw, task, len(group.scores), [*reasons, *unscored])
    return group


async def given_group(
    env: Env, task: Task, renderer: Renderer, group: GroupId, limits: Limits, scoring: Scoring
) -> ScoredGroup:
    """The gold answer of `task` as a group of one trajectory whose model is GIVEN.

    The answer and its end token train; there are no log-probs. Scored like any other group.
    Raises ValueError where the environment has no gold answer or it does not fit the context,
    GroupBroken where the world broke and left it without a score.
    """
    trajectory = given_episode(task, renderer, limits, env.gold(task), 0, "gold answer")
    scored = await _scored(group, task, [trajectory], scoring, 0.0)
    if math.isnan(scored.scores[0].value):
        raise GroupBroken(f"task {task.id}: the gold answer has no score: {scored.scores[0].note}")
    return scored


async def compared_group(
    env: Compares, task: Task, renderer: Renderer, group: GroupId, limits: Limits, scoring: Scoring
) -> ScoredGroup:
    """All written answers of `task`, the best one first, as a group whose model is GIVEN.

    Their rewards are those of the environment; of `scoring` only the reference looks at them.
    Raises ValueError where one does not fit the context.
    """
    answers = env.answers(task)
    trajectories = [
        given_episode(task, renderer, limits, answer.text, sample, f"answer {sample}")
        for sample, answer in enumerate(answers)
    ]

    async def score(task: Task, trajectories: Sequence[Trajectory]) -> tuple[Score, ...]:
        return tuple(Score(answer.reward, {}) for answer in answers)

    return await _scored(group, task, trajectories, replace(scoring, score=score), 0.0)


async def annotated_group(group: ScoredGroup, scoring: Scoring) -> ScoredGroup:
    """A written `group` with new scores, and with new reference statistics if there is a reference.

    Raises GroupBroken where the world broke and left no sample, or not the companion, with a score.
    """
    beside = None if group.companion is None else group.companion.trajectory
    again = await _scored(group.id, group.task, group.trajectories, scoring, 0.0, beside)
    again = replace(
        again,
        reference=again.reference or group.reference,
        companion=_still_compared(again, group.companion),
        timings={**again.timings, "generate": group.timings.get("generate", 0.0)},
        cut_off=group.cut_off,
    )
    unscored = [score.note for score in again.scores if math.isnan(score.value)]
    if len(unscored) == len(again.scores):
        raise GroupBroken(f"task {group.task.id}: no sample has a score: {unscored[0]}")
    return _whole(again) if unscored else again


def _still_compared(again: ScoredGroup, before: Companion | None) -> Companion | None:
    """The companion of `again`, with what the reference said where it was not asked again."""
    if again.companion is None or before is None or again.reference is not None:
        return again.companion
    return replace(again.companion, reference_logprobs=before.reference_logprobs)


def _budgets(env: Env, task: Task, count: int, limits: Limits, num_prompt: int) -> tuple[int, ...]:
    budgets = env.budgets(task, count, limits.max_new_tokens)
    in_bounds = all(1 <= budget <= limits.max_new_tokens for budget in budgets)
    if len(budgets) != count or not in_bounds:
        raise ValueError(
            f"environment {task.env!r}, task {task.id}: budgets {budgets} must be "
            f"{count} numbers in 1..{limits.max_new_tokens}"
        )
    room = limits.context - num_prompt
    return tuple(min(budget, room) for budget in budgets)


async def _both(samples: Awaitable[T], companion: Awaitable[S]) -> tuple[T, S]:
    """Side by side; neither outlives the other's failure."""
    of_samples, of_companion = asyncio.ensure_future(samples), asyncio.ensure_future(companion)
    async with ending(of_samples, of_companion):
        return await asyncio.gather(of_samples, of_companion)


async def _one_turn(
    task: Task,
    prompt: Int32,
    renderer: Renderer,
    speaker: Speaker,
    draw: Draw,
    budgets: tuple[int, ...],
) -> _Episodes:
    seeds = tuple(draw.seed(sample, 0) for sample in range(draw.num_begun))
    enough = draw.num_samples if draw.redundant else None
    request = GenerateRequest(prompt, seeds, budgets, speaker.sampling, enough=enough)
    [completions] = await speaker.generate([request])
    whole: list[Trajectory] = []
    reasons: list[str] = []
    cut_off: list[int] = []
    for sample, (completion, _) in enumerate(zip(completions, seeds, strict=True)):
        # Where more ended at once than are wanted, chance decides, and not their length.
        if len(whole) == draw.num_samples or (enough and completion.finish_reason == "abort"):
            cut_off.append(len(completion.token_ids))
            continue
        try:
            whole.append(finished(task, prompt, completion, sample, speaker, renderer))
        except WorldBroke as error:
            reasons.append(str(error))
    return _Episodes(whole, reasons, tuple(cut_off))


async def _many_turns(
    env: Env,
    task: Task,
    renderer: Renderer,
    speaker: Speaker,
    draw: Draw,
    budgets: tuple[int, ...],
    limits: Limits,
) -> _Episodes:
    async def episode(sample: int, budget: int) -> Trajectory | str:
        try:
            return await run_episode(
                env,
                task,
                renderer,
                speaker,
                sample=sample,
                seed=partial(draw.seed, sample),
                budget=budget,
                limits=limits,
                session=str(draw.group),
            )
        except WorldBroke as error:
            return str(error)

    results = await side_by_side([episode(i, budget) for i, budget in enumerate(budgets)])
    whole = [result for result in results if isinstance(result, Trajectory)]
    return _Episodes(whole, [result for result in results if isinstance(result, str)])


async def _scored(
    group: GroupId,
    task: Task,
    trajectories: Sequence[Trajectory],
    scoring: Scoring,
    seconds_to_generate: float,
    companion: Trajectory | None = None,
) -> ScoredGroup:
    timings = {"generate": seconds_to_generate}
    scoring_task = asyncio.ensure_future(_timed(_scores(scoring, task, trajectories, companion)))
    looking = _statistics(scoring.reference, trajectories, companion)
    reference_task = asyncio.ensure_future(looking)
    async with ending(scoring_task), ending(reference_task):
        scored, looked = await asyncio.gather(scoring_task, reference_task)
    (scores, beside), timings["score"] = scored
    reference = beside_logprobs = None
    if looked is not None:
        (reference, beside_logprobs), timings["reference"] = looked
        timings[REFERENCED_AT] = time.time()
    if len(scores) != len(trajectories):
        raise ValueError(
            f"task {task.id}: {len(scores)} scores came back for {len(trajectories)} trajectories"
        )
    return ScoredGroup(
        id=group,
        task=task,
        trajectories=tuple(trajectories),
        scores=scores,
        reference=reference,
        reward_versions=scoring.versions,
        timings=timings,
        companion=None
        if companion is None
        else _companion(task, companion, beside, beside_logprobs),
    )


async def _scores(
    scoring: Scoring, task: Task, trajectories: Sequence[Trajectory], companion: Trajectory | None
) -> tuple[tuple[Score, ...], tuple[Score, ...]]:
    """Of the samples and of the companion, each without the other."""
    own = scoring.score(task, trajectories)
    if companion is None:
        return await own, ()
    return await _both(own, scoring.score(task, [companion]))


def _companion(
    task: Task, trajectory: Trajectory, scores: Sequence[Score], reference: Float32 | None
) -> Companion:
    [score] = scores
    if math.isnan(score.value):
        raise GroupBroken(f"task {task.id}: the companion has no score: {score.note}")
    return Companion(trajectory, score, reference)


async def _statistics(
    reference: ScoreReference | None,
    trajectories: Sequence[Trajectory],
    companion: Trajectory | None,
) -> tuple[tuple[ReferenceStatistics, Float32 | None], float] | None:
    if reference is None:
        return None
    return await _timed(reference_statistics(reference, trajectories, companion))


async def _timed(awaitable: Awaitable[T]) -> tuple[T, float]:
    start = time.perf_counter()
    return await awaitable, time.perf_counter() - start


def _whole(group: ScoredGroup) -> ScoredGroup:
    """`group` without the samples that have no score."""
    kept = [i for i, score in enumerate(group.scores) if not math.isnan(score.value)]
    return replace(
        group,
        trajectories=tuple(group.trajectories[i] for i in kept),
        scores=tuple(group.scores[i] for i in kept),
        reference=None if group.reference is None else group.reference.part(kept),
    )


def _at_least(draw: Draw, task: Task, num_whole: int, reasons: Sequence[str]) -> None:
    if num_whole < draw.min_samples:
        raise GroupBroken(
            f"group {draw.group}, task {task.id}: {num_whole} of {draw.num_samples} samples are "
            f"whole, fewer than min_samples {draw.min_samples}; first reason: {reasons[0]}"
        )
