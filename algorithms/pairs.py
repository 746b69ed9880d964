"""Which samples of a group make pairs: the better one first.

Owns who is compared with whom. What a pair's loss is, is `manta.algorithms.coupled`'s.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """int64[P] each: the rows of higher reward, and those that they are preferred to."""

    chosen_P: Tensor
    rejected_P: Tensor


def pairs_of(
    how: Literal["best_worst", "all"], rewards_N: Tensor, group_N: Tensor, eligible_N: Tensor
) -> Pairs:
    """The pairs of rows of one group whose rewards differ, by group, in row order.

    `best_worst`: of each group the row of the highest reward with that of the lowest, the first
    ones where several have it. `all`: every two of different reward, (K choose 2) of K rows that
    all differ (Ouyang et al., arXiv 2203.02155, section 3.5). Rows that are not `eligible_N`
    (bool[N]) are left out beforehand. A group without two different rewards has no pair.
    """
    chosen: list[Tensor] = []
    rejected: list[Tensor] = []
    for group in torch.unique(group_N).tolist():
        (rows_K,) = torch.where((group_N == group) & eligible_N)
        of_group = (
            _best_worst(rewards_N[rows_K]) if how == "best_worst" else _all(rewards_N[rows_K])
        )
        chosen.append(rows_K[of_group.chosen_P])
        rejected.append(rows_K[of_group.rejected_P])
    nothing = torch.zeros(0, dtype=torch.int64, device=group_N.device)
    return Pairs(torch.cat([nothing, *chosen]), torch.cat([nothing, *rejected]))


def _best_worst(rewards_K: Tensor) -> Pairs:
    empty = torch.zeros(0, dtype=torch.int64, device=rewards_K.device)
    if not len(rewards_K) or rewards_K.min() == rewards_K.max():
        return Pairs(empty, empty)
    (best,) = torch.where(rewards_K == rewards_K.max())
    (worst,) = torch.where(rewards_K == rewards_K.min())
    return Pairs(best[:1], worst[:1])


def _all(rewards_K: Tensor) -> Pairs:
    return Pairs(*torch.where(rewards_K[:, None] > rewards_K[None, :]))
