"""How the groups of a lane are made: sampled from an engine, given by the family, or read back.

Plain objects; where completions, scores and reference statistics come from is handed in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from manta.actors.lanes import Admission, Lane
from manta.envs.companion import reference_statistics
from manta.envs.episode import Limits, Speaker, prompt_ids
from manta.envs.group import (
    REFERENCED_AT,
    Draw,
    Scoring,
    annotated_group,
    compared_group,
    given_group,
    run_group,
)
from manta.envs.hindsight import Relabeller
from manta.envs.protocols import Compares, Env, Generate, ScoreGroup, ScoreReference, TaskSource
from manta.envs.records import (
    COMPANION,
    Bool,
    GroupId,
    Int32,
    Sampling,
    Score,
    ScoredGroup,
    Task,
    Trajectory,
)
from manta.envs.registry import build
from manta.envs.render import Renderer
from manta.envs.tokenizer import build_tokenizer
from manta.envs.trajectory_files import TrajectoryReader
from manta.envs.transcript import given_trajectory
from manta.envs.written_samples import WrittenSamples

E = TypeVar("E")


class Production(Protocol):
    @property
    def num_tasks(self) -> int: ...

    async def make(self, admission: Admission) -> ScoredGroup:
        """The group at `admission`. Raises GroupBroken where the world broke."""
        ...


@dataclass(frozen=True, slots=True)
class SampledGroups:
    """Groups that an engine samples; `written` are what rows beside the samples are taken from, if
    the lane has such."""

    env: Env
    source: TaskSource
    renderer: Renderer
    speaker: Speaker
    lane: Lane
    limits: Limits
    scoring: Scoring
    written: WrittenSamples | None = None
    relabeller: Relabeller | None = None

    @property
    def num_tasks(self) -> int:
        return len(self.source)

    async def make(self, admission: Admission) -> ScoredGroup:
        lane = self.lane
        draw = Draw(
            admission.id,
            lane.seed,
            lane.purpose,
            lane.samples_per_prompt,
            redundant=lane.redundant_samples,
            companion=lane.companion,
        )
        limits = self.limits
        if admission.cap is not None:
            limits = replace(limits, max_new_tokens=min(admission.cap, limits.max_new_tokens))
        task = self.source.task(admission.index)
        beside = None if self.written is None else self.written.pick(task, admission.id.epoch)
        if self.relabeller is not None:
            num_prompt = len(prompt_ids(task, self.renderer, limits))
            limits = replace(limits, context=self.relabeller.room(task, num_prompt))
        return await run_group(
            self.env, task, self.renderer, self.speaker, draw, limits, self.scoring, beside
        )


@dataclass(frozen=True, slots=True)
class GivenGroups(Generic[E]):
    """Answers that a family has written, in groups as `write` makes them of a task: the gold one
    alone, or all."""

    env: E
    write: Callable[[E, Task, Renderer, GroupId, Limits, Scoring], Awaitable[ScoredGroup]]
    source: TaskSource
    renderer: Renderer
    limits: Limits
    scoring: Scoring

    @property
    def num_tasks(self) -> int:
        return len(self.source)

    async def make(self, admission: Admission) -> ScoredGroup:
        task = self.source.task(admission.index)
        return await self.write(
            self.env, task, self.renderer, admission.id, self.limits, self.scoring
        )


@dataclass(frozen=True, slots=True)
class WrittenGroups:
    """Groups read back from a folder of trajectories, scores and all; where this run's reference is
    asked for, under its log-probs, and not under those that were written."""

    reader: TrajectoryReader
    reference: ScoreReference | None = None

    @property
    def num_tasks(self) -> int:
        return len(self.reader)

    async def make(self, admission: Admission) -> ScoredGroup:
        group = self.reader.group(admission.index)
        # When its reference was ready is nothing of this step
        timings = {name: at for name, at in group.timings.items() if name != REFERENCED_AT}
        group = replace(group, id=admission.id, timings=timings)
        if self.reference is None:
            return group
        beside = group.companion
        reference, logprobs = await reference_statistics(
            self.reference, group.trajectories, None if beside is None else beside.trajectory
        )
        if beside is not None:
            beside = replace(beside, reference_logprobs=logprobs)
        return replace(group, reference=reference, companion=beside)


@dataclass(frozen=True, slots=True)
class AnnotatedGroups:
    """Groups read back, and scored again by what `scoring` has; `has_reward`: by rewards too."""

    reader: TrajectoryReader
    scoring: Scoring
    has_reward: bool

    @property
    def num_tasks(self) -> int:
        return len(self.reader)

    async def make(self, admission: Admission) -> ScoredGroup:
        group = replace(self.reader.group(admission.index), id=admission.id)
        scoring = self.scoring
        if not self.has_reward:
            scoring = replace(scoring, score=_as_written(group), versions=group.reward_versions)
        return await annotated_group(group, scoring)


@dataclass(frozen=True, slots=True)
class RelabelledGroups:
    """The groups of another production, as they train."""

    production: Production
    relabeller: Relabeller

    @property
    def num_tasks(self) -> int:
        return self.production.num_tasks

    async def make(self, admission: Admission) -> ScoredGroup:
        return self.relabeller.relabelled(await self.production.make(admission))


def build_production(
    lane: Lane, tokenizer: str, generate: Generate, scoring: Scoring
) -> Production:
    """What makes the groups of `lane`.

    Raises ValueError where the lane's environment, tokenizer or folder cannot be used.
    """
    if lane.hindsight is None:
        return _as_made(lane, tokenizer, generate, scoring, None)
    text = build_tokenizer(tokenizer)
    renderers = [Renderer(text, tag=tag) for tag in lane.hindsight.tags]
    limits = Limits(lane.max_new_tokens, lane.context)
    relabeller = Relabeller(lane.hindsight, renderers, limits)
    made = _as_made(lane, tokenizer, generate, scoring, relabeller)
    return RelabelledGroups(made, relabeller)


def _as_made(
    lane: Lane,
    tokenizer: str,
    generate: Generate,
    scoring: Scoring,
    relabeller: Relabeller | None,
) -> Production:
    if lane.trajectories is not None:
        reader = TrajectoryReader(lane.trajectories)
        if lane.is_annotated:
            return AnnotatedGroups(reader, scoring, lane.reward is not None)
        return WrittenGroups(reader, scoring.reference)
    text = build_tokenizer(tokenizer)
    renderer = Renderer(text, tag=lane.tag)
    env = build("env", lane.env, lane.env_options)
    source = env.source(lane.split)
    limits = Limits(lane.max_new_tokens, lane.context)
    if lane.compares:
        if not isinstance(env, Compares):
            raise ValueError(
                f"environment {lane.env!r} has one written answer a task, nothing to compare: use "
                "one with several, such as preferences, or set samples_from to policy"
            )
        return GivenGroups(env, compared_group, source, renderer, limits, scoring)
    if lane.samples_from == "given":
        return GivenGroups(env, given_group, source, renderer, limits, scoring)
    stops = () if lane.ignore_eos else (text.eos_id,)
    sampling = Sampling(lane.temperature, lane.top_p, lane.top_k, stops)
    speaker = Speaker(generate, sampling)
    written = None
    if lane.companions_from is not None:
        written = WrittenSamples(lane.companions_from, lane.seed, lane.purpose)
    return SampledGroups(env, source, renderer, speaker, lane, limits, scoring, written, relabeller)


class GoldRows:
    """The tokens of gold answers, for their likelihood under a policy."""

    def __init__(self, lane: Lane, tokenizer: str) -> None:
        self._env = build("env", lane.env, lane.env_options)
        self._source = self._env.source(lane.split)
        self._renderer = Renderer(build_tokenizer(tokenizer), tag=lane.tag)
        self._limits = Limits(lane.max_new_tokens, lane.context)

    def row(self, index: int) -> tuple[Int32, Bool]:
        """Prompt plus gold answer, cut to the context, and which tokens are the answer's."""
        task = self._source.task(index)
        prompt = prompt_ids(task, self._renderer, self._limits)
        answer = self._renderer.answer_ids(self._env.gold(task))
        whole = given_trajectory(task.id, prompt, answer, "")
        return whole.token_ids[: self._limits.context], whole.loss_mask[: self._limits.context]


def _as_written(group: ScoredGroup) -> ScoreGroup:
    async def score(task: Task, trajectories: Sequence[Trajectory]) -> tuple[Score, ...]:
        if group.companion is not None and trajectories[0].sample == COMPANION:
            return (group.companion.score,)
        return group.scores

    return score


async def unscored(task: Task, trajectories: Sequence[Trajectory]) -> tuple[Score, ...]:
    """Scores of a lane without rewards: what is imitated counts as right."""
    return tuple(Score(1.0, {}) for _ in trajectories)
