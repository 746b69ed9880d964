"""The group stage: from the rewards of a step's rows to the coefficients of its plan.

Runs on the driver, over scalars, in float64. Rows are flat with a group index; groups are
independent of each other, so a step may be given whole or group by group (but for the advantages
`decoupled`, which is normalised over the step, and `length_penalized`, which compares its groups).
What needs token tensors (KL in the reward, whitening) is the token stage's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from manta.algorithms.advantages import ADVANTAGES, StepRewards
from manta.algorithms.filters import GroupSamples, select
from manta.algorithms.imitation import imitation
from manta.algorithms.pairs import Pairs, pairs_of
from manta.algorithms.settings import LABEL_LOSSES, AlgorithmSettings

NO_PAIR = "no_pair"
"""Why a group is filtered: no two of its samples that can train have rewards that differ enough."""

NONE_KEPT = "none_kept"
"""Why a group is filtered: none of its samples is to be learnt from."""


@dataclass(frozen=True, slots=True)
class GroupStage:
    """`coefficients`: float32[N] columns `advantage`, `weight` and `keep` (0 or 1), and where good
    and bad rows are told apart `label` (1 or 0). A greedy companion has `keep` 0.

    `filtered` maps the index of a group that shall not train to the reason; its rows have `keep` 0,
    and so have those that a filter left out of a group that trains.
    `pairs` are those of a loss that compares rows, None for others.
    """

    coefficients: Mapping[str, Tensor]
    filtered: Mapping[int, str]
    pairs: Pairs | None = None


def group_stage(
    settings: AlgorithmSettings,
    rewards_N: Tensor,
    group_N: Tensor,
    eligible_N: Tensor | None = None,
    num_tokens_N: Tensor | None = None,
    components: Mapping[str, Tensor] = MappingProxyType({}),
    is_companion_N: Tensor | None = None,
) -> GroupStage:
    """Coefficients of N rows from their rewards [N] and group indices int64[N].

    Advantages are those of `manta.algorithms.advantages.ADVANTAGES`, of which some read the rows'
    trained tokens int64[N] (None: all rows have as many) and the rewards' components, [N] each; for
    `cross_entropy`, which has no use for them, they are 1. What the filters
    (`manta.algorithms.filters`) leave out has advantage 0 and no part in the advantages of the
    rest, as in PODS (arXiv 2504.13818). They choose among samples; a group's companion
    (`is_companion_N` bool[N]; None: there are none) stays with those that are left.

    A loss that compares rows gets pairs of those that are `eligible_N` (bool[N]; None: all), and
    rows in no pair are not kept (`manta.algorithms.pairs`). KTO and PACS get labels of the eligible
    ones, and `cross_entropy` chooses among them where rewards select what is imitated
    (`manta.algorithms.imitation`). Other losses do not read `eligible_N`.

    Raises ValueError where a reward that is needed is not finite.
    """
    if not settings.reads_rewards:
        return GroupStage(_columns(torch.ones(len(group_N), device=group_N.device)), {})
    broken_N = ~torch.isfinite(rewards_N)
    if bool(broken_N.any()):
        groups = sorted(set(group_N[broken_N].tolist()))
        raise ValueError(
            f"rewards of groups {groups[:8]} are not finite ({int(broken_N.sum())} of "
            f"{len(rewards_N)} rows): a reward that could not be computed must drop its sample"
        )
    if eligible_N is None:
        eligible_N = torch.ones_like(rewards_N, dtype=torch.bool)
    if settings.is_paired:
        return _paired(settings, rewards_N, group_N, eligible_N, is_companion_N)
    if settings.loss in LABEL_LOSSES:
        return _labelled(settings, rewards_N, group_N, eligible_N)
    if settings.loss == "cross_entropy":
        keep_N, weight_N = imitation(settings, rewards_N, group_N, eligible_N)
        columns = {**_columns(keep_N.float()), "weight": weight_N.float()}
        return GroupStage(columns, _without(group_N, keep_N, NONE_KEPT))
    if num_tokens_N is None:
        num_tokens_N = torch.ones_like(group_N)
    step = StepRewards(rewards_N, group_N, num_tokens_N, components, is_companion_N)
    return _weighed(settings, step)


def _weighed(settings: AlgorithmSettings, step: StepRewards) -> GroupStage:
    """By advantages, of the rows that filters leave."""
    kept_N, filtered = _filtered(settings, step)
    advantage_N = torch.zeros_like(step.rewards_N, dtype=torch.float64)
    if bool(kept_N.any()):
        advantage_N[kept_N] = ADVANTAGES[settings.advantage](settings, _only(step, kept_N)).double()
    if step.is_companion_N is not None and settings.companion == "greedy":
        kept_N = kept_N & ~step.is_companion_N
    columns = {**_columns(kept_N.float()), "advantage": advantage_N.float()}
    if settings.implicit_reward is not None:
        is_right_N = step.rewards_N > settings.implicit_reward.outcome_above
        columns["label"] = is_right_N.float()
    return GroupStage(columns, filtered)


def _filtered(settings: AlgorithmSettings, step: StepRewards) -> tuple[Tensor, dict[int, str]]:
    """bool[N], the rows that the filters keep; by group that keeps none, which filter that was."""
    kept_N = torch.ones_like(step.group_N, dtype=torch.bool)
    filtered: dict[int, str] = {}
    if not settings.filters:
        return kept_N, filtered
    is_companion_N = step.is_companion_N
    if is_companion_N is None:
        is_companion_N = torch.zeros_like(kept_N)
    for group in torch.unique(step.group_N).tolist():
        is_own_N = torch.eq(step.group_N, group)
        rows = (is_own_N & ~is_companion_N).nonzero().flatten()
        beside = step.rewards_N[is_own_N & is_companion_N].tolist()
        parts = {name: values[rows].tolist() for name, values in step.components.items()}
        samples = GroupSamples(step.rewards_N[rows].tolist(), parts, *beside)
        selection = select(settings.filters, samples)
        kept_N[is_own_N] = is_companion_N[is_own_N] & bool(selection.kept)
        kept_N[rows[list(selection.kept)]] = True
        if not selection.kept:
            filtered[group] = selection.dropped_by
    return kept_N, filtered


def _only(step: StepRewards, kept_N: Tensor) -> StepRewards:
    return StepRewards(
        step.rewards_N[kept_N],
        step.group_N[kept_N],
        step.num_tokens_N[kept_N],
        {name: values[kept_N] for name, values in step.components.items()},
        None if step.is_companion_N is None else step.is_companion_N[kept_N],
    )


def _paired(
    settings: AlgorithmSettings,
    rewards_N: Tensor,
    group_N: Tensor,
    eligible_N: Tensor,
    is_companion_N: Tensor | None,
) -> GroupStage:
    margin = settings.pair_margin
    pairs = pairs_of(settings.pairs, rewards_N, group_N, eligible_N, margin, is_companion_N)
    keep_N = torch.zeros_like(eligible_N)
    keep_N[torch.cat(pairs)] = True
    return GroupStage(_columns(keep_N.float()), _without(group_N, keep_N, NO_PAIR), pairs)


def _labelled(
    settings: AlgorithmSettings, rewards_N: Tensor, group_N: Tensor, eligible_N: Tensor
) -> GroupStage:
    label_N = (rewards_N > settings.desirable_above).float()
    columns = {**_columns(eligible_N.float()), "label": label_N}
    return GroupStage(columns, _without(group_N, eligible_N, NONE_KEPT))


def _columns(keep_N: Tensor) -> dict[str, Tensor]:
    """Those that every plan has, of rows that differ in `keep` alone."""
    ones_N = torch.ones_like(keep_N)
    return {"advantage": ones_N, "weight": ones_N.clone(), "keep": keep_N}


def _without(group_N: Tensor, keep_N: Tensor, reason: str) -> dict[int, str]:
    """The groups that no row is kept of."""
    names = torch.unique(group_N)
    return {int(name): reason for name in names[~torch.isin(names, group_N[keep_N])]}
