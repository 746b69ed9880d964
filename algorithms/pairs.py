"""Which rows of a group make pairs: the better one first.

Owns who is compared with whom. What a pair's loss is, is `manta.algorithms.coupled_losses`'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from manta.algorithms.settings import PairsName

Rewards = TypeVar("Rewards", float, Tensor)
ROUNDING = 2.0**-24
"""By how much, relative to it, a number that is rounded to float32 may move."""


class Pairs(NamedTuple):
    """int64[P] each: the rows of higher reward, and those that they are preferred to."""

    chosen_P: Tensor
    rejected_P: Tensor


PairBuilder: TypeAlias = Callable[[Tensor], Pairs]
"""From the rewards [K] of a group to pairs of their places, of different reward each."""


def best_worst(rewards_K: Tensor) -> Pairs:
    """The highest reward with the lowest, the first ones where several have it."""
    empty = torch.zeros(0, dtype=torch.int64, device=rewards_K.device)
    if not len(rewards_K) or rewards_K.min() == rewards_K.max():
        return Pairs(empty, empty)
    (best,) = torch.where(rewards_K == rewards_K.max())
    (worst,) = torch.where(rewards_K == rewards_K.min())
    return Pairs(best[:1], worst[:1])


def every_two(rewards_K: Tensor) -> Pairs:
    """(K choose 2) pairs of K rows that all differ (Ouyang et al., arXiv 2203.02155, section
    3.5)."""
    return Pairs(*torch.where(rewards_K[:, None] > rewards_K[None, :]))


PAIRS: Mapping[PairsName, PairBuilder] = {
    "best_worst": best_worst,
    "all": every_two,
    "companion": every_two,
}
"""Of `companion` those stay of which one is the row beside the samples (`with_companion`)."""


def with_companion(pairs: Pairs, is_companion_K: Tensor) -> Pairs:
    """The pairs of a sample and the group's companion."""
    is_beside_P = is_companion_K[pairs.chosen_P] != is_companion_K[pairs.rejected_P]
    return Pairs(pairs.chosen_P[is_beside_P], pairs.rejected_P[is_beside_P])


def short_of(margin: float, higher: Rewards, lower: Rewards) -> Rewards:
    """By how much rewards that were rounded to float32 miss a margin: 0.9 and 0.8 miss none of
    0.1."""
    return margin - (higher - lower) - ROUNDING * (abs(higher) + abs(lower))


def far_apart(pairs: Pairs, rewards_K: Tensor, margin: float) -> Pairs:
    """The pairs whose rewards differ by `margin` at least."""
    values_K = rewards_K.double()
    apart_P = short_of(margin, values_K[pairs.chosen_P], values_K[pairs.rejected_P]) <= 0
    return Pairs(pairs.chosen_P[apart_P], pairs.rejected_P[apart_P])


def pairs_of(
    how: PairsName,
    rewards_N: Tensor,
    group_N: Tensor,
    eligible_N: Tensor,
    margin: float = 0.0,
    is_companion_N: Tensor | None = None,
) -> Pairs:
    """The pairs of rows of one group whose rewards differ, by `margin` at least, by group, in row
    order.

    `how` names the builder in `PAIRS`. Rows that are not `eligible_N` (bool[N]) are left out
    beforehand. A group without two such rewards has no pair. `is_companion_N` (bool[N]; None: none
    is) tells the rows beside the samples, which each pair of `companion` has one of.
    """
    if is_companion_N is None:
        is_companion_N = torch.zeros_like(eligible_N)
    chosen: list[Tensor] = []
    rejected: list[Tensor] = []
    for group in torch.unique(group_N).tolist():
        (rows_K,) = torch.where((group_N == group) & eligible_N)
        rewards_K = rewards_N[rows_K]
        of_group = far_apart(PAIRS[how](rewards_K), rewards_K, margin)
        if how == "companion":
            of_group = with_companion(of_group, is_companion_N[rows_K])
        chosen.append(rows_K[of_group.chosen_P])
        rejected.append(rows_K[of_group.rejected_P])
    nothing = torch.zeros(0, dtype=torch.int64, device=group_N.device)
    return Pairs(torch.cat([nothing, *chosen]), torch.cat([nothing, *rejected]))
