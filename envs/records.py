"""The records that flow through a run, each stage making a new frozen type.

`Task -> Completion -> Trajectory -> ScoredGroup -> StepPlan -> Update`. Arrays are numpy, so that
Ray moves them without a copy; a field never means "filled in later". This file owns the shape of
the data and its content hash. It does not know how anything is computed or moved.

Shapes: T generated tokens, L tokens of a whole trajectory, N rows (trajectories) of a step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Int32: TypeAlias = npt.NDArray[np.int32]
Float32: TypeAlias = npt.NDArray[np.float32]
Bool: TypeAlias = npt.NDArray[np.bool_]
Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
FinishReason: TypeAlias = Literal["stop", "length", "abort"]

GIVEN = "given"
"""`Trajectory.model` of an answer that no engine sampled (gold answers, demonstrations)."""


WRITTEN = "written"
"""`Trajectory.model` of a companion that another stage sampled."""

CompanionKind: TypeAlias = Literal["none", "greedy", "given", "written"]
"""A prompt's further row beside its samples: the policy's greedy answer, the gold one, or a sample
that another stage has written."""

COMPANION = -1
"""The sample index of that row, which is no sample."""


MARGIN = "margin"
"""The fact of a task with two given answers by how much the first is to be preferred."""


class Message(NamedTuple):
    role: str
    content: str


class LastWord(Message):
    """An environment's turn with which the episode ends: the policy hears it, and says no more."""

    __slots__ = ()


class GroupId(NamedTuple):
    """Where a group stands in the data order, and which try at it this is."""

    epoch: int
    position: int
    attempt: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.position}.{self.attempt}"


class WeightVersion(NamedTuple):
    """The weights after `step` steps, made by the learner group's `incarnation`-th life."""

    step: int
    incarnation: int

    def __str__(self) -> str:
        return f"{self.step}.{self.incarnation}"


class VersionSpan(NamedTuple):
    """From token `start` on, tokens were sampled under `version`."""

    start: int
    version: WeightVersion


@dataclass(frozen=True, slots=True)
class Media:
    kind: str
    content_hash: str
    reference: str


@dataclass(frozen=True, slots=True)
class Task:
    """One problem. `reference` is what a verifier needs (gold answer, tests, schema)."""

    id: str
    prompt: str | tuple[Message, ...]
    reference: Json
    env: str
    tags: tuple[str, ...] = ()
    facts: Mapping[str, float | str] = field(default_factory=dict)
    media: tuple[Media, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. `top_p` 1 and `top_k` 0 mean no truncation; temperature 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """`len(seeds)` samples that continue one prefix.

    `budgets[i]` bounds the new tokens of sample i. A stop token ends a sample and belongs to it.
    The last `drawn` tokens of the prefix were drawn by an earlier request with these seeds: the
    random stream goes on behind them. Requests with one `session` share the start of their prefix.
    With `enough` the request is done once that many samples have ended (more, where several end at
    once): the others are cut where they are, with finish reason `abort`.
    """

    prefix: Int32
    seeds: tuple[int, ...]
    budgets: tuple[int, ...]
    sampling: Sampling
    drawn: int = 0
    session: str = ""
    enough: int | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine returns for one sample.

    `logprobs` float32[T] are those of the behaviour policy: of the distribution that the token was
    drawn from, after temperature and truncation (at temperature 0: of the untempered one).
    """

    token_ids: Int32
    logprobs: Float32
    weight_versions: tuple[VersionSpan, ...]
    finish_reason: FinishReason
    extras: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Turn:
    """Tokens `start:end` of a trajectory were spoken by `role`, saying `text`; an episode of one
    turn has that as its artifact alone."""

    role: str
    start: int
    end: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One episode as tokens. `loss_mask` bool[L] is True where a token trains.

    `logprobs` float32[L] (0 where the policy did not speak) is None where no ratio is needed, or
    where a row trains otherwise than it was sampled (`manta.envs.hindsight`).
    `artifact` is what rewards and people look at: for text, the policy's decoded last turn.
    """

    task_id: str
    sample: int
    model: str
    token_ids: Int32
    loss_mask: Bool
    logprobs: Float32 | None
    weight_versions: tuple[VersionSpan, ...]
    turns: tuple[Turn, ...]
    finish_reason: FinishReason
    artifact: str
    parent: tuple[str, int] | None = None
    payload: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    media: tuple[Media, ...] = ()
    env_info: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Span:
    """A named value over tokens `start:end`: a step's or a turn's score."""

    name: str
    start: int
    end: int
    value: float


TOKEN_REWARDS = "reward"
"""The column of a score whose numbers are rewards within the trajectory, each paid at its token."""


@dataclass(frozen=True, slots=True)
class Detail:
    """What a reward component says of a trajectory, of the `spans` of it, and of each of its tokens
    (`column`, float32[L]). `value` None: there is no one number (absent, not 0)."""

    value: float | None
    spans: tuple[Span, ...] = ()
    column: Float32 | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """A trajectory's reward and its named components. An absent component is absent, not 0.

    `value` is NaN where the world broke and left nothing to score: such a sample never trains.
    `spans` and `columns` are by component (a span is called `COMPONENT/NAME`), but for the column
    `TOKEN_REWARDS`, in which `manta.envs.rewards.within` has weighed them.
    """

    value: float
    components: Mapping[str, float]
    spans: tuple[Span, ...] = ()
    columns: Mapping[str, Float32] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a scorer looks at as one thing: trajectories of a task, of which most scorers take one
    and those that compare take several."""

    task: Task
    trajectories: tuple[Trajectory, ...]


class Likeliest(NamedTuple):
    """What a model says where each of a trajectory's T trained tokens (`loss_mask`) stands: its k
    likeliest tokens `ids` int32[T, k], the likeliest first; `logprobs` float32[T, k + 1] of these,
    and last of all others together; `weights` float32[T], how much it counts there."""

    ids: Int32
    logprobs: Float32
    weights: Float32


@dataclass(frozen=True, slots=True)
class ReferenceStatistics:
    """Log-probs of each trajectory's tokens under the reference model `version`, float32[L], and
    what else it finds likely, where that was asked for (else there is none of any)."""

    version: str
    logprobs: tuple[Float32, ...]
    likeliest: tuple[Likeliest, ...] = ()

    def part(self, kept: Sequence[int]) -> ReferenceStatistics:
        """Those of the trajectories `kept`."""
        likeliest = tuple(self.likeliest[i] for i in kept) if self.likeliest else ()
        return ReferenceStatistics(self.version, tuple(self.logprobs[i] for i in kept), likeliest)


@dataclass(frozen=True, slots=True)
class Companion:
    """The further row of a group (its `sample` is `COMPANION`): the policy's greedy answer, with
    the model `GIVEN` the environment's, with `WRITTEN` a sample of another stage.

    The reference looks at the latter alone: `reference_logprobs` float32[L] are under the version
    of the group's statistics.
    """

    trajectory: Trajectory
    score: Score
    reference_logprobs: Float32 | None = None

    @property
    def kind(self) -> CompanionKind:
        kinds: Mapping[str, CompanionKind] = {GIVEN: "given", WRITTEN: "written"}
        return kinds.get(self.trajectory.model, "greedy")


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A task with its trajectories and their scores, in sample order.

    `cut_off` is how many tokens each redundant sample had when the group was complete without it.
    The `companion` is none of the samples: what is measured of them leaves it out, and `reference`
    is of them alone.
    """

    id: GroupId
    task: Task
    trajectories: tuple[Trajectory, ...]
    scores: tuple[Score, ...]
    reference: ReferenceStatistics | None
    reward_versions: Mapping[str, str]
    timings: Mapping[str, float]
    cut_off: tuple[int, ...] = ()
    companion: Companion | None = None

    @property
    def rows(self) -> tuple[Trajectory, ...]:
        """The samples, and behind them the companion."""
        beside = self.companion
        return self.trajectories if beside is None else (*self.trajectories, beside.trajectory)

    @property
    def row_scores(self) -> tuple[Score, ...]:
        """Of `rows`."""
        return self.scores if self.companion is None else (*self.scores, self.companion.score)

    @property
    def row_references(self) -> tuple[Float32 | None, ...]:
        """Of `rows` the reference's log-probs; None where it did not look."""
        own: tuple[Float32 | None, ...] = (None,) * len(self.trajectories)
        if self.reference is not None:
            own = self.reference.logprobs
        return own if self.companion is None else (*own, self.companion.reference_logprobs)

    def row(self, sample: int) -> Trajectory:
        """The trajectory of sample `sample`, which may be `COMPANION`."""
        return self.rows[-1] if sample == COMPANION else self.trajectories[sample]

    def content_hash(self) -> str:
        """SHA-256 of what trains: task, tokens, masks, behaviour log-probs and rewards."""
        digest = hashlib.sha256(self.task.id.encode())
        for trajectory, score in zip(self.rows, self.row_scores, strict=True):
            digest.update(trajectory.token_ids.tobytes())
            digest.update(trajectory.loss_mask.tobytes())
            if trajectory.logprobs is not None:
                digest.update(trajectory.logprobs.tobytes())
            digest.update(np.float64(score.value).tobytes())
            if TOKEN_REWARDS in score.columns:
                digest.update(score.columns[TOKEN_REWARDS].tobytes())
        return digest.hexdigest()


class CompanionSummary(NamedTuple):
    """The scalars of a group's companion; tokens and bounds as in `GroupSummary`."""

    kind: CompanionKind
    reward: float
    num_tokens: int
    length: int
    is_truncated: bool = False


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """The scalars of a group, small enough for the driver; one entry per sample in each array.

    `components` holds NaN where a component is absent. `num_tokens` counts trained tokens,
    `lengths` all tokens. `oldest` and `newest` bound the weight versions sampled from (None for
    given answers), `tokens_by_version` int32[n] counts each sample's trained tokens by the version
    they were sampled under. `num_too_old` more left the loss for their age. `is_truncated` bool[n]
    is True where a bound on its length ended a sample; `cut_off` is as in `ScoredGroup`. `margin`
    is by how much the preferred of two given answers is to be preferred (the task's fact `margin`).
    The `companion`, where the group has one, is in no array.
    """

    id: GroupId
    task_id: str
    rewards: Float32
    components: Mapping[str, Float32]
    num_tokens: Int32
    lengths: Int32
    is_truncated: Bool
    oldest: WeightVersion | None
    newest: WeightVersion | None
    content_hash: str
    timings: Mapping[str, float]
    tokens_by_version: Mapping[WeightVersion, Int32] = field(default_factory=dict)
    num_too_old: int = 0
    cut_off: tuple[int, ...] = ()
    margin: float = 0.0
    companion: CompanionSummary | None = None


def version_ranges(trajectory: Trajectory) -> list[tuple[WeightVersion, int, int]]:
    """(version, start, end) of each of the trajectory's spans; the last one ends with it."""
    spans = trajectory.weight_versions
    ends = [*(span.start for span in spans), len(trajectory.token_ids)][1:]
    return [(span.version, span.start, end) for span, end in zip(spans, ends, strict=True)]
