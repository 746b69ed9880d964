"""The group stage of a step, on the driver, over scalars: filters, advantages, units.

Token tensors never come here: the plan holds rows and coefficients, the ranks pull the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from manta.algorithms.filters import GroupSamples, Selection, select
from manta.algorithms.group_stage import NO_PAIR, NONE_KEPT, group_stage
from manta.algorithms.pairs import Pairs, short_of
from manta.algorithms.settings import AlgorithmSettings
from manta.envs.records import COMPANION, Bool, GroupSummary
from manta.envs.step_records import StepPlan


def selection(
    settings: AlgorithmSettings, summary: GroupSummary, masks_truncated: bool = False
) -> Selection:
    """Which samples of a group train, and why none does where that is so."""
    everything = tuple(range(len(summary.rewards)))
    if not np.isfinite(summary.rewards).all():
        return Selection(everything)  # to be refused by name, where rewards are read
    rewards = summary.rewards[_can_train(summary, masks_truncated)]
    if settings.is_paired and not _has_pair(settings, summary, masks_truncated):
        by = f" by {settings.pair_margin:g} or more" if settings.pair_margin else ""
        which = "no two samples that can train have rewards that differ"
        if settings.pairs == "companion":
            which = "no sample that can train has another reward than the row beside it"
        return Selection((), f"{NO_PAIR}: {which}{by}")
    bound = settings.keep_above if settings.selects_rows else None
    if bound is not None and not (rewards > bound).any():
        told = f"{NONE_KEPT}: no sample that can train has a reward above {bound:g}"
        return Selection((), told)
    if not settings.filters:
        return Selection(everything)
    parts = {name: values.tolist() for name, values in summary.components.items()}
    beside = None
    if settings.companion != "none" and summary.companion is not None:
        beside = summary.companion.reward
    return select(settings.filters, GroupSamples(summary.rewards.tolist(), parts, beside))


def filter_reason(
    settings: AlgorithmSettings, summary: GroupSummary, masks_truncated: bool = False
) -> str | None:
    """Why a group is left out of training, or None."""
    return selection(settings, summary, masks_truncated).reason or None


def _has_pair(settings: AlgorithmSettings, summary: GroupSummary, masks_truncated: bool) -> bool:
    """Whether any two rows that are compared differ in reward, by the margin at least."""
    whole = _with_companion(settings, summary)
    can_train = _can_train(whole, masks_truncated)
    samples = slice(len(summary.rewards))
    compared = whole.rewards[samples][can_train[samples]].tolist()
    if settings.pairs == "companion":
        beside = float(whole.rewards[-1])
        farthest = max(compared, key=lambda reward: abs(reward - beside), default=beside)
        compared = [farthest, beside] if can_train[-1] else []
    low, high = min(compared, default=0.0), max(compared, default=0.0)
    return high > low and short_of(settings.pair_margin, high, low) <= 0


def _can_train(summary: GroupSummary, masks_truncated: bool) -> Bool:
    """bool[n]: samples with a trained token, which carry a loss."""
    can_train = summary.num_tokens > 0
    return can_train & ~summary.is_truncated if masks_truncated else can_train


def assemble(
    step: int,
    summaries: Sequence[GroupSummary],
    settings: AlgorithmSettings,
    oldest_version: int | None = None,
    masks_truncated: bool = False,
) -> StepPlan:
    """The plan of `step` over `summaries`, in admission order. Tokens of weights before step
    `oldest_version` are not counted in them, and do not train. With `masks_truncated` samples that
    a bound ended count in their group's baseline and carry no loss (overlong filtering of DAPO,
    arXiv 2503.14476), nor are they compared with others. Where a loss couples rows, those of a
    group are one unit. A companion that the algorithm has is its group's last row.

    Raises ValueError where a reward is not finite, or a group lacks its companion."""
    if settings.reads_rewards:
        _refuse_broken(summaries)
    summaries = [_with_companion(settings, summary) for summary in summaries]
    sizes = [len(summary.rewards) for summary in summaries]
    group_N = np.repeat(np.arange(len(summaries), dtype=np.int32), sizes)
    rewards_N = np.concatenate([summary.rewards for summary in summaries])
    sample_N = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
    has_companion = settings.companion != "none"
    if has_companion:
        sample_N[np.cumsum(sizes) - 1] = COMPANION
    eligible_N = np.concatenate([_can_train(each, masks_truncated) for each in summaries])
    stage = group_stage(
        settings,
        torch.from_numpy(rewards_N),
        torch.from_numpy(group_N),
        torch.from_numpy(eligible_N),
        torch.from_numpy(np.concatenate([summary.num_tokens for summary in summaries])),
        _components(summaries),
        torch.from_numpy(sample_N == COMPANION) if has_companion else None,
    )
    columns = {name: value.numpy() for name, value in stage.coefficients.items()}
    if masks_truncated:
        is_truncated_N = np.concatenate([summary.is_truncated for summary in summaries])
        columns["keep"] = np.where(is_truncated_N, np.float32(0), columns["keep"])
    plan = StepPlan(
        step=step,
        groups=tuple(summary.id for summary in summaries),
        group_N=group_N,
        sample_N=sample_N,
        unit_N=np.arange(len(group_N), dtype=np.int32),
        coefficients=columns,
        lengths_N=np.concatenate([summary.lengths for summary in summaries]),
        num_tokens_N=np.concatenate([summary.num_tokens for summary in summaries]),
        oldest_version=oldest_version,
    )
    if settings.unit != "row":
        plan = replace(plan, unit_N=group_N)
    return plan if stage.pairs is None else _with_pairs(plan, settings, stage.pairs, summaries)


def _with_pairs(
    plan: StepPlan,
    settings: AlgorithmSettings,
    pairs: Pairs,
    summaries: Sequence[GroupSummary],
) -> StepPlan:
    """A pair's margin is the one that its data give; for weights by margin, where they give none,
    by how much its rewards differ."""
    chosen_P, rejected_P = (side.numpy() for side in pairs)
    margins = np.array([summary.margin for summary in summaries], np.float32)
    margin_P = margins[plan.group_N[chosen_P]]
    if settings.margin_weight is not None:
        rewards_N = np.concatenate([summary.rewards for summary in summaries])
        apart_P = rewards_N[chosen_P] - rewards_N[rejected_P]
        margin_P = np.where(margin_P != 0, margin_P, apart_P).astype(np.float32)
    return replace(
        plan,
        pair_P2=torch.stack(pairs, dim=1).numpy().astype(np.int32),
        margin_P=margin_P,
    )


def _with_companion(settings: AlgorithmSettings, summary: GroupSummary) -> GroupSummary:
    """`summary` with its companion at the end of every array, where the algorithm has one."""
    if settings.companion == "none":
        return summary
    beside = summary.companion
    if beside is None or beside.kind != settings.companion:
        found = "none" if beside is None else f"a {beside.kind} one"
        raise ValueError(
            f"task {summary.task_id}, group {summary.id}: the algorithm needs a "
            f"{settings.companion} companion and the group has {found}: learn from groups that "
            "were made with algorithm.companion set so, or let the policy sample"
        )
    absent = np.float32(np.nan)
    return replace(
        summary,
        rewards=np.append(summary.rewards, np.float32(beside.reward)),
        components={name: np.append(v, absent) for name, v in summary.components.items()},
        num_tokens=np.append(summary.num_tokens, np.int32(beside.num_tokens)),
        lengths=np.append(summary.lengths, np.int32(beside.length)),
        is_truncated=np.append(summary.is_truncated, beside.is_truncated),
    )


def _components(summaries: Sequence[GroupSummary]) -> dict[str, torch.Tensor]:
    """The components of all samples by name, NaN where one is absent."""
    names = sorted({name for summary in summaries for name in summary.components})
    return {
        name: torch.from_numpy(
            np.concatenate(
                [
                    summary.components.get(name, np.full(len(summary.rewards), np.nan, np.float32))
                    for summary in summaries
                ]
            )
        )
        for name in names
    }


def _refuse_broken(summaries: Sequence[GroupSummary]) -> None:
    """Raises ValueError naming the first sample whose reward could not train. Those that the world
    broke left their groups before; one that is here was written so, or made by a bug."""
    for summary in summaries:
        for sample in np.flatnonzero(~np.isfinite(summary.rewards)):
            components = {
                name: float(values[sample]) for name, values in summary.components.items()
            }
            raise ValueError(
                f"task {summary.task_id}, sample {sample} of group {summary.id}: its reward is "
                f"{summary.rewards[sample]}, from components {components} (nan: absent), and would "
                "spoil the advantages of its group: a reward that could not be computed must drop "
                "its sample"
            )
