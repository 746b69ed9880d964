"""Components into rewards: who is asked when, for how long, and what the formula makes of it.

Owns the running of components and the making of `Score`s. The rules are the other files here;
where components run (in which process) is the caller's business.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import TypeAlias, TypeVar, cast

from manta.envs.failures import RewardFailed, WorldBroke
from manta.envs.protocols import (
    BatchReward,
    GroupReward,
    Reward,
    Services,
    TrajectoryReward,
)
from manta.envs.records import Detail, Score, Task, Trajectory
from manta.envs.rewards.formula import Formula
from manta.envs.rewards.scope import answers_at_once, rewards_within, scope_of
from manta.envs.rewards.within import LARGEST, check_detail, whose, within
from manta.envs.side_by_side import side_by_side

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a component has cost so far: calls, their seconds, and those that the world broke."""

    calls: int = 0
    seconds: float = 0.0
    broken: int = 0


@dataclass(frozen=True, slots=True)
class Broken:
    """In place of values: why the world gave none."""

    reason: str


Given: TypeAlias = "float | Detail | None"
Values: TypeAlias = "list[Given | Broken]"


class Composition:
    """A formula over named components.

    Components that the formula leaves out are measured and kept in the scores all the same.
    `within` weighs what components say of turns, steps and tokens, by component
    (`manta.envs.rewards.within`). `deadline_seconds` bounds each call of a component.

    A component that runs past its deadline, or raises TimeoutError or WorldBroke, is absent for
    the samples of that call, with a note in their scores. Where that leaves the formula nothing to
    go on, or `within` without what it weighs, the score's value is NaN, and the sample is dropped
    rather than scored 0. Any other exception is a bug and comes out as RewardFailed with the
    component's name. So is a number that is not finite, of a component, of a part, or of the
    formula: RewardFailed names component, task and sample.

    Raises ValueError where the formula or `within` names a component that is not there, or a
    component is none.
    """

    def __init__(
        self,
        formula: Formula,
        components: Mapping[str, Reward],
        deadline_seconds: float = 30.0,
        within: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        formula.check(components)
        for name in within:
            check_within(name, components)
        self.formula, self.within = formula, within
        self.deadline_seconds = deadline_seconds
        scopes = {name: scope_of(name, reward) for name, reward in components.items()}
        self.versions = {name: reward.version for name, reward in components.items()}
        self._trajectory = {
            name: cast(TrajectoryReward, reward)
            for name, reward in components.items()
            if scopes[name] == "trajectory"
        }
        self._at_once = {name for name, each in components.items() if answers_at_once(each)}
        self._group = {
            name: cast(GroupReward, reward)
            for name, reward in components.items()
            if scopes[name] == "group"
        }
        self.batch_components = {
            name: cast(BatchReward, reward)
            for name, reward in components.items()
            if scopes[name] == "batch"
        }
        self._usage = dict.fromkeys(components, Usage())

    def usage(self) -> Mapping[str, Usage]:
        """By component, since this object was made."""
        return dict(self._usage)

    async def score_group(
        self, task: Task, trajectories: Sequence[Trajectory], services: Services
    ) -> tuple[Score, ...]:
        """Scores by every trajectory- and group-scope component; those that wait for something are
        at work side by side."""
        calls = {
            name: partial(self._by_trajectory, name, reward, task, trajectories, services)
            for name, reward in self._trajectory.items()
        } | {
            name: partial(self._by_group, name, reward, task, trajectories, services)
            for name, reward in self._group.items()
        }
        columns = {name: await call() for name, call in calls.items() if name in self._at_once}
        waits = {name: call() for name, call in calls.items() if name not in self._at_once}
        if waits:
            columns |= dict(zip(waits, await side_by_side(list(waits.values())), strict=True))
        return tuple(
            self._score(trajectory, {name: values[i] for name, values in columns.items()})
            for i, trajectory in enumerate(trajectories)
        )

    async def score_batch(
        self, groups: Sequence[tuple[Task, Sequence[Trajectory]]], services: Services
    ) -> list[dict[str, list[float | None]]]:
        """Per group of a step, the values of every batch-scope component, for `finish`.

        A component that the world broke is absent for the whole step.
        """
        by_group: list[dict[str, list[float | None]]] = [{} for _ in groups]
        for name, reward in self.batch_components.items():
            values = await self._call(name, "a step", partial(reward.score_batch, groups, services))
            if isinstance(values, Broken):
                values = [[None] * len(trajectories) for _, trajectories in groups]
            expected = [len(trajectories) for _, trajectories in groups]
            if [len(of_group) for of_group in values] != expected:
                raise RewardFailed(f"reward {name!r} gave values of another shape than the step's")
            for found, of_group, (_, members) in zip(by_group, values, groups, strict=True):
                found[name] = [
                    _finite_or_none(f"reward {name!r} gave", value, trajectory)
                    for value, trajectory in zip(of_group, members, strict=True)
                ]
        return by_group

    def finish(
        self,
        trajectories: Sequence[Trajectory],
        scores: Sequence[Score],
        batch_values: Mapping[str, Sequence[float | None]],
    ) -> tuple[Score, ...]:
        """The `scores` of a group's `trajectories` with its batch-scope values (one per sample) and
        a new total."""
        finished: list[Score] = []
        for i, (trajectory, score) in enumerate(zip(trajectories, scores, strict=True)):
            found = {name: values[i] for name, values in batch_values.items()}
            added = {name: value for name, value in found.items() if value is not None}
            components = {**score.components, **added}
            value = self._total(trajectory, components)
            finished.append(replace(score, components=components, value=value))
        return tuple(finished)

    def _total(self, trajectory: Trajectory, components: Mapping[str, float]) -> float:
        try:
            value = self.formula.evaluate(components)
        except ValueError as error:
            raise RewardFailed(f"{error}, {whose(trajectory)}") from error
        what = f"formula {self.formula.text!r} with {dict(components)} is"
        return _finite(what, value, trajectory)

    def _score(self, trajectory: Trajectory, values: Mapping[str, Given | Broken]) -> Score:
        details = {name: v for name, v in values.items() if isinstance(v, Detail)}
        numbers = {name: v.value if isinstance(v, Detail) else v for name, v in values.items()}
        components = {name: v for name, v in numbers.items() if isinstance(v, float)}
        broken = {name: v.reason for name, v in values.items() if isinstance(v, Broken)}
        left = self.formula.names & (components.keys() | self.batch_components.keys())
        is_lost = not left and not self.formula.names.isdisjoint(broken)
        is_lost |= not self.within.keys().isdisjoint(broken)
        spans, columns = within(trajectory, details, self.within)
        return Score(
            value=math.nan if is_lost else self._total(trajectory, components),
            components=components,
            spans=spans,
            columns=columns,
            note="; ".join(broken.values()),
        )

    async def _by_trajectory(
        self,
        name: str,
        reward: TrajectoryReward,
        task: Task,
        trajectories: Sequence[Trajectory],
        services: Services,
    ) -> Values:
        calls = [
            partial(
                self._call, name, f"task {task.id}", partial(reward.score, task, each, services)
            )
            for each in trajectories
        ]
        if name in self._at_once:
            found = [await call() for call in calls]
        else:
            found = await side_by_side([call() for call in calls])
        return [
            v if isinstance(v, Broken) else self._checked(name, v, trajectory)
            for v, trajectory in zip(found, trajectories, strict=True)
        ]

    async def _by_group(
        self,
        name: str,
        reward: GroupReward,
        task: Task,
        trajectories: Sequence[Trajectory],
        services: Services,
    ) -> Values:
        found = await self._call(
            name, f"task {task.id}", partial(reward.score_group, task, trajectories, services)
        )
        if isinstance(found, Broken):
            return [found] * len(trajectories)
        if len(found) != len(trajectories):
            raise RewardFailed(
                f"reward {name!r}, task {task.id}: {len(found)} values for {len(trajectories)} "
                "trajectories"
            )
        return [
            self._checked(name, value, trajectory)
            for value, trajectory in zip(found, trajectories, strict=True)
        ]

    def _checked(self, name: str, given: Given, trajectory: Trajectory) -> Given:
        """What a component gave. Raises RewardFailed where it could not train."""
        what = f"reward {name!r} gave"
        if isinstance(given, Detail):
            check_detail(name, given, trajectory)
            return replace(given, value=_finite_or_none(what, given.value, trajectory))
        if given is not None and name in self.within:
            raise RewardFailed(
                f"{what} {given} for the whole, {whose(trajectory)}, and nothing within it: a "
                "component of reward.within gives a Detail"
            )
        return _finite_or_none(what, given, trajectory)

    async def _call(self, name: str, what: str, score: Callable[[], Awaitable[T]]) -> T | Broken:
        start = time.perf_counter()
        broken: Broken | None = None
        try:
            if name in self._at_once:
                return await score()
            async with asyncio.timeout(self.deadline_seconds):
                return await score()
        except TimeoutError:
            broken = Broken(f"{name}: no answer within {self.deadline_seconds:g} s")
        except WorldBroke as error:
            broken = Broken(f"{name}: {error}")
        except Exception as error:
            # The component's own, of whatever kind: code of others runs here. Nothing is swallowed,
            # it ends the run under the name of component and task, which it knows nothing of
            raise RewardFailed(
                f"reward {name!r}, {what}: {type(error).__name__}: {error}"
            ) from error
        finally:
            before = self._usage[name]
            self._usage[name] = Usage(
                before.calls + 1,
                before.seconds + time.perf_counter() - start,
                before.broken + (broken is not None),
            )
        return broken


def check_within(name: str, components: Mapping[str, Reward]) -> None:
    """Raises ValueError where there is no component `name` that says anything of parts."""
    if name not in components:
        raise ValueError(f"within: there is no component {name!r}; there are {sorted(components)}")
    reward = components[name]
    if not rewards_within(reward) or scope_of(name, reward) == "batch":
        raise ValueError(
            f"within: the component {name!r} ({type(reward).__name__}) says nothing of parts of a "
            "trajectory: choose one that does, such as by_turn"
        )


def _finite(what: str, value: float, trajectory: Trajectory) -> float:
    """`value` as a float. Raises RewardFailed where it could not train."""
    if not abs(value) <= LARGEST:
        raise RewardFailed(
            f"{what} {value}, {whose(trajectory)}: a reward must be a finite number that a "
            "float32 holds; return None where it does not apply, raise WorldBroke where it could "
            "not be computed"
        )
    return float(value)


def _finite_or_none(what: str, value: float | None, trajectory: Trajectory) -> float | None:
    return None if value is None else _finite(what, value, trajectory)
