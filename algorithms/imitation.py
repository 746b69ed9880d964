"""Which rows are imitated, and how much each counts, by their rewards.

Owns the choice; the loss of a row that is imitated is `manta.algorithms.losses.cross_entropy`, and
what makes a mean of rows of different weight is `manta.algorithms.aggregate`'s.

Shapes: N rows of a step; `group_N` int64[N] names each row's group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from manta.algorithms.settings import AlgorithmSettings

MOST = 80.0
"""Of a weight's exponent: e^80 times a step's tokens is still a float32."""


def imitation(
    settings: AlgorithmSettings, rewards_N: Tensor, group_N: Tensor, eligible_N: Tensor
) -> tuple[Tensor, Tensor]:
    """bool[N] rows that train, and float64[N] their weights.

    Of each group's rows that are `eligible_N` (bool[N]): the `keep_best` of the highest rewards
    (RAFT, Dong et al., arXiv 2304.06767), of these the ones whose reward is above `keep_above`
    (rejection sampling, Yuan et al., arXiv 2308.01825), each with the weight
    `exp(reward / reward_temperature)` (reward-weighted regression, Peters and Schaal 2007; with one
    reward for each class of data that of C-RLFT, Wang et al., arXiv 2309.11235).

    Raises ValueError where a weight would not be a float32.
    """
    keep_N = eligible_N.clone()
    if settings.keep_best:
        keep_N &= best_of_groups(rewards_N, group_N, eligible_N, settings.keep_best)
    if settings.keep_above is not None:
        keep_N &= rewards_N > settings.keep_above
    weight_N = torch.ones(len(rewards_N), dtype=torch.float64, device=rewards_N.device)
    if settings.reward_temperature is not None:
        exponent_N = torch.where(keep_N, rewards_N.double() / settings.reward_temperature, 0.0)
        if bool((exponent_N.abs() > MOST).any()):
            raise ValueError(
                f"rewards lie up to {float(rewards_N[keep_N].abs().max()):g} from 0, and "
                f"exp(reward / reward_temperature) with a temperature of "
                f"{settings.reward_temperature:g} leaves what float32 holds: raise "
                "reward_temperature, or let the reward's formula be smaller"
            )
        weight_N = exponent_N.exp()
    return keep_N, weight_N


def best_of_groups(rewards_N: Tensor, group_N: Tensor, eligible_N: Tensor, count: int) -> Tensor:
    """bool[N]: the `count` eligible rows of each group with the highest rewards, the first ones
    where several have the last of these."""
    best_N = torch.zeros_like(eligible_N)
    for group in torch.unique(group_N).tolist():
        (rows_K,) = torch.where((group_N == group) & eligible_N)
        order_K = torch.argsort(rewards_N[rows_K], descending=True, stable=True)
        best_N[rows_K[order_K[:count]]] = True
    return best_N
