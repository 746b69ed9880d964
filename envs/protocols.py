"""The seams of the world: task source, environment, tokenizer, reward, and what they are handed.

Each is a Protocol of at most five methods. Implementations are found in literal registries
(`manta.envs.registry`) or named `module:attribute` in the run file. This file owns no behaviour.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from manta.envs.records import (
    Completion,
    Detail,
    GenerateRequest,
    Json,
    Message,
    ReferenceStatistics,
    Score,
    Shown,
    Task,
    Trajectory,
)

Split: TypeAlias = Literal["train", "eval"]
Scope: TypeAlias = Literal["trajectory", "group", "batch"]

Generate: TypeAlias = Callable[[Sequence[GenerateRequest]], Awaitable[list[list[Completion]]]]
"""Completions for each request, in order; the implementation finds an engine."""

ScoreGroup: TypeAlias = Callable[[Task, Sequence[Trajectory]], Awaitable[tuple[Score, ...]]]
"""Scores of a group's trajectories by every trajectory- and group-scope component."""

ScoreReference: TypeAlias = Callable[[Sequence[Trajectory]], Awaitable[ReferenceStatistics]]


class TaskSource(Protocol):
    """Tasks by index. Random access is what makes order, retry and resume exact."""

    def __len__(self) -> int: ...

    def task(self, index: int) -> Task:
        """The task at `index` in 0..len-1, the same at every call."""
        ...


class Env(Protocol):
    """A task family: where tasks come from and how an episode goes on after the policy spoke.

    `single_turn` says that `reply` is None after the policy's first turn, so that the samples of a
    task are one engine request. `manta.envs.families.family.Family` gives the usual defaults.
    """

    single_turn: bool

    def source(self, split: Split) -> TaskSource: ...

    def gold(self, task: Task) -> str:
        """A full answer that the family's verifier scores 1, as the policy would have written it.

        Raises ValueError where the family has no gold answers.
        """
        ...

    async def reply(self, task: Task, messages: Sequence[Message]) -> Message | None:
        """The environment's turn after the policy's (`messages[-1]`). None ends the episode, and so
        does a `LastWord`, which is still heard."""
        ...

    def budgets(self, task: Task, num_samples: int, max_new_tokens: int) -> tuple[int, ...]:
        """The most new tokens of each sample, all turns together, in 1..max_new_tokens."""
        ...

    def validate(self, task: Task) -> None:
        """Raises ValueError naming the task where it has a gold answer that is not scored 1."""
        ...


class Answer(NamedTuple):
    """A written answer to a task, and the reward that it is given."""

    text: str
    reward: float


@runtime_checkable
class Compares(Protocol):
    """An environment that has several written answers to a task, some better than others."""

    num_answers: int

    def answers(self, task: Task) -> tuple[Answer, ...]:
        """`num_answers` answers as the policy would have written them, the best one (`Env.gold`)
        first."""
        ...


class Tokenizer(Protocol):
    """Text to tokens and back, without torch. Ids are below `vocab_size`."""

    vocab_size: int
    eos_id: int
    pad_id: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids`, special tokens left out."""
        ...


class Scorer(Protocol):
    """A model that scores, by its name in the run file; `version` names its weights.

    One `Score` for each of `shown`, in order. What a model says goes where its kind belongs: one
    number into `value`, several named ones into `components`, one a step or turn into `spans`, one
    a token (or a vector) into `columns`.
    """

    @property
    def version(self) -> str: ...

    async def __call__(self, shown: Sequence[Shown]) -> list[Score]:
        """Raises WorldBroke where no worker answered in time."""
        ...


@dataclass(frozen=True, slots=True)
class Services:
    """What a reward may call beside itself: named engines and scorers, each with its own deadline.
    A reward says which scorers it calls by an attribute `scorers`, a tuple of names."""

    engines: Mapping[str, Generate] = field(default_factory=dict)
    scorers: Mapping[str, Scorer] = field(default_factory=dict)


class TrajectoryReward(Protocol):
    """A component that sees one trajectory; `version` names rule and parameters."""

    version: str

    async def score(
        self, task: Task, trajectory: Trajectory, services: Services
    ) -> float | Detail | None:
        """The component's value; None where it does not apply (absent, not 0). One that also says
        something of turns, steps or tokens gives a `Detail`, and has `rewards_within = True`."""
        ...


class GroupReward(Protocol):
    """A component that sees all samples of one task."""

    version: str

    async def score_group(
        self, task: Task, trajectories: Sequence[Trajectory], services: Services
    ) -> Sequence[float | Detail | None]: ...


class BatchReward(Protocol):
    """A component that sees every group of a step, in plan order."""

    version: str

    async def score_batch(
        self, groups: Sequence[tuple[Task, Sequence[Trajectory]]], services: Services
    ) -> list[list[float | None]]: ...


Reward: TypeAlias = TrajectoryReward | GroupReward | BatchReward
Options: TypeAlias = Mapping[str, Json]
"""Options of a plug-in as they stand in the run file; its constructor takes them by keyword."""
