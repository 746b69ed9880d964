"""Evaluation: held-out tasks in a lane of their own, outside slots and ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import ray

from manta.actors.lanes import Admission, Broken, Lane
from manta.envs.records import Float32, GroupId, GroupSummary
from manta.orchestrator.attempts import Attempts, lost_with
from manta.orchestrator.config import EvaluateConfig
from manta.orchestrator.environment_pool import EnvironmentPool
from manta.orchestrator.outcomes import pass_at

_TASKS_PER_CALL = 64


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`accuracy`: share of samples whose `metric` component is above 0.5 (absent: it is not).
    `gold_logprob`: mean log-prob per token of the gold answers, if asked for. `gold_reward`: mean
    and standard deviation of the reward's gold component, where it names one. `num_broken`: tasks
    that could not be made in any attempt, and count in nothing else here. `pass_at`: by its name
    (`pass_at/8`), where there are several samples of a task (`manta.orchestrator.outcomes`)."""

    accuracy: float
    reward: float
    mean_tokens: float
    num_samples: int
    gold_logprob: float | None
    reward_std: float = 0.0
    gold_reward: tuple[float, float] | None = None
    num_broken: int = 0
    pass_at: Mapping[str, float] = field(default_factory=dict)

    @property
    def passes(self) -> list[str]:
        """`pass@8 75.0%` and the like, the largest K last."""
        return [f"{name.replace('_at/', '@')} {value:.1%}" for name, value in self.pass_at.items()]

    @property
    def told(self) -> str:
        """In words."""
        return ", ".join([f"held-out accuracy {self.accuracy:.1%}", *self.passes[-1:]])


class NothingEvaluated(RuntimeError):
    """No held-out group could be made."""


class EvaluationLost(NothingEvaluated):
    """Every one of them went with a worker that was lost: workers of another life may stay."""


async def evaluate(
    pool: EnvironmentPool, lane: Lane, settings: EvaluateConfig, num_tasks: int
) -> Evaluation:
    """Runs the first `settings.prompts` tasks of `lane`, the same ones every time.

    Raises NothingEvaluated where every group broke, ValueError where `metric` is no component.
    """
    count = min(settings.prompts, num_tasks)
    admissions = [Admission(GroupId(0, i, 0), i) for i in range(count)]
    size = max(1, min(_TASKS_PER_CALL, -(-count // max(1, pool.num_workers))))
    blocks = [admissions[i : i + size] for i in range(0, count, size)]
    results = await asyncio.gather(*(_made(pool, lane, block) for block in blocks))
    groups = [group for block in results for group in block]
    summaries = [group for group in groups if not isinstance(group, Broken)]
    broken = [group for group in groups if isinstance(group, Broken)]
    if not summaries:
        reasons = sorted({group.reason for group in broken})
        kind = EvaluationLost if all(group.is_lost for group in broken) else NothingEvaluated
        raise kind(
            f"none of the {count} groups of lane {lane.name} could be made, each was tried "
            f"again and again: {'; '.join(reasons[:3])}"
        )
    metric = _component(summaries, settings.metric)
    gold = None
    if settings.gold_likelihood:
        values = await asyncio.gather(
            *(pool.gold_logprob(lane.name, [a.index for a in b]) for b in blocks)
        )
        gold = float(np.mean([v for block in values for v in block]))
    rewards = np.concatenate([s.rewards for s in summaries])
    held_against = None if lane.reward is None else lane.reward.gold
    return Evaluation(
        accuracy=float(np.mean(metric > 0.5)),
        reward=float(np.mean(rewards)),
        mean_tokens=float(np.mean(np.concatenate([s.num_tokens for s in summaries]))),
        num_samples=len(metric),
        gold_logprob=gold,
        reward_std=float(np.std(rewards)),
        gold_reward=None if held_against is None else _moments(_component(summaries, held_against)),
        num_broken=len(broken),
        pass_at=pass_at(summaries, settings.metric) if settings.samples_per_prompt > 1 else {},
    )


async def _made(
    pool: EnvironmentPool, lane: Lane, block: Sequence[Admission]
) -> list[GroupSummary | Broken]:
    """What became of each group, in order. Those that broke are tried again, as often as in
    training."""
    found: dict[int, GroupSummary | Broken] = {}
    attempts = Attempts()
    left = list(block)
    while left:
        again = []
        for admission, outcome in zip(left, await _run(pool, lane, left), strict=True):
            found[admission.index] = outcome
            if isinstance(outcome, Broken) and attempts.may_retry(outcome):
                again.append(admission)
        left = again
    return [found[a.index] for a in block]


async def _run(
    pool: EnvironmentPool, lane: Lane, block: Sequence[Admission]
) -> Sequence[GroupSummary | Broken]:
    """One attempt at each."""
    try:
        return (await pool.run_block(lane.name, block))[1].groups
    except ray.exceptions.RayActorError as error:
        return lost_with(block, error)


def _moments(values: Float32) -> tuple[float, float]:
    """Mean and standard deviation of what is there."""
    return float(np.nanmean(values)), float(np.nanstd(values))


def _component(summaries: Sequence[GroupSummary], metric: str) -> Float32:
    """The component of every sample; NaN where it is absent, which a whole group may be."""
    names = sorted({name for summary in summaries for name in summary.components})
    if metric not in names:
        raise ValueError(f"evaluate.metric is {metric!r}, the reward has {names}")
    return np.concatenate(
        [s.components.get(metric, np.full(len(s.rewards), np.nan, np.float32)) for s in summaries]
    )
