"""The group stage: from the rewards of a step's rows to the coefficients of its plan.

Runs on the driver, over scalars, in float64. Rows are flat with a group index; groups are
independent of each other, so a step may be given whole or group by group (but for the advantage
`decoupled`, which is normalised over the step). What needs token tensors (KL in the reward,
whitening) is the token stage's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from manta.algorithms.advantages import ADVANTAGES, StepRewards
from manta.algorithms.filters import GroupSamples, select
from manta.algorithms.pairs import Pairs, pairs_of
from manta.algorithms.settings import AlgorithmSettings

NO_PAIR = "no_pair"
"""Why a group is filtered: no two of its samples that can train have different rewards."""


@dataclass(frozen=True, slots=True)
class GroupStage:
    """`coefficients`: float32[N] columns `advantage`, `weight` and `keep` (0 or 1).

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
) -> GroupStage:
    """Coefficients of N rows from their rewards [N] and group indices int64[N].

    Advantages are those of `manta.algorithms.advantages.ADVANTAGES`, of which some read the rows'
    trained tokens int64[N] (None: all rows have as many) and the rewards' components, [N] each; for
    `cross_entropy`, which has no use for them, they are 1 and the rewards are not read. What the
    filters (`manta.algorithms.filters`) leave out has advantage 0 and no part in the advantages of
    the rest, as in PODS (arXiv 2504.13818).

    A loss that couples rows gets pairs of those that are `eligible_N` (bool[N]; None: all), and
    rows in no pair are not kept (`manta.algorithms.pairs`). Other losses do not read `eligible_N`.

    Raises ValueError where a reward that is needed is not finite.
    """
    if settings.loss == "cross_entropy":
        names = ("advantage", "weight", "keep")
        ones = {name: torch.ones(len(group_N), device=group_N.device) for name in names}
        return GroupStage(coefficients=ones, filtered={})
    broken_N = ~torch.isfinite(rewards_N)
    if bool(broken_N.any()):
        groups = sorted(set(group_N[broken_N].tolist()))
        raise ValueError(
            f"rewards of groups {groups[:8]} are not finite ({int(broken_N.sum())} of "
            f"{len(rewards_N)} rows): a reward that could not be computed must drop its sample"
        )
    if settings.is_coupled:
        return _paired(settings, rewards_N, group_N, eligible_N)
    if num_tokens_N is None:
        num_tokens_N = torch.ones_like(group_N)
    step = StepRewards(rewards_N, group_N, num_tokens_N, components)
    kept_N, filtered = _filtered(settings, step)
    advantage_N = torch.zeros(len(rewards_N), dtype=torch.float64, device=rewards_N.device)
    if bool(kept_N.any()):
        advantage_N[kept_N] = ADVANTAGES[settings.advantage](settings, _only(step, kept_N)).double()
    return GroupStage(
        coefficients={
            "advantage": advantage_N.float(),
            "weight": torch.ones(len(rewards_N), device=rewards_N.device),
            "keep": kept_N.float(),
        },
        filtered=filtered,
    )


def _filtered(settings: AlgorithmSettings, step: StepRewards) -> tuple[Tensor, dict[int, str]]:
    """bool[N], the rows that the filters keep; by group that keeps none, which filter that was."""
    kept_N = torch.ones_like(step.group_N, dtype=torch.bool)
    filtered: dict[int, str] = {}
    if not settings.filters:
        return kept_N, filtered
    for group in torch.unique(step.group_N).tolist():
        rows = torch.eq(step.group_N, group).nonzero().flatten()
        parts = {name: values[rows].tolist() for name, values in step.components.items()}
        selection = select(settings.filters, GroupSamples(step.rewards_N[rows].tolist(), parts))
        kept_N[rows] = False
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
    )


def _paired(
    settings: AlgorithmSettings, rewards_N: Tensor, group_N: Tensor, eligible_N: Tensor | None
) -> GroupStage:
    if eligible_N is None:
        eligible_N = torch.ones_like(rewards_N, dtype=torch.bool)
    pairs = pairs_of(settings.pairs, rewards_N, group_N, eligible_N)
    keep_N = torch.zeros(len(rewards_N), device=rewards_N.device)
    keep_N[torch.cat(pairs)] = 1.0
    names = torch.unique(group_N)
    without = names[~torch.isin(names, group_N[pairs.chosen_P])]
    ones_N = torch.ones_like(keep_N)
    return GroupStage(
        coefficients={"advantage": ones_N, "weight": ones_N.clone(), "keep": keep_N},
        filtered={int(name): NO_PAIR for name in without},
        pairs=pairs,
    )
