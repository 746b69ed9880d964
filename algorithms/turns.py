"""Advantages of turns: rewards summed by turn, their returns, and how they compare with those of
other rows.

Pure functions but for the sum over ranks. A turn is all trained tokens that a row has of one
utterance of the policy. Shapes: T trained tokens of R rows, U turns of these rows in token order;
N rows of the whole step, on all ranks, with V turns.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from manta.algorithms.advantages import group_relative, return_to_go
from manta.algorithms.rank_sums import AllReduce


class Turns(NamedTuple):
    """`of_T` int64[T] says which of U turns each token is in; `row_U` and `number_U` int64[U] are
    each turn's row in 0..R-1 and its number within that."""

    of_T: Tensor
    row_U: Tensor
    number_U: Tensor


class Places(NamedTuple):
    """Where the rows of a batch stand among the N of the step: `index_R` int64[R], in any order;
    `group_N` int64[N] names the group of every row of the step."""

    index_R: Tensor
    group_N: Tensor


def turns_of(row_T: Tensor, turn_T: Tensor) -> Turns:
    """Those of a batch, from each token's row and the number of its turn there, which does not fall
    along a row."""
    is_first_T = torch.ones_like(row_T, dtype=torch.bool)
    is_first_T[1:] = (row_T[1:] != row_T[:-1]) | (turn_T[1:] != turn_T[:-1])
    return Turns(is_first_T.cumsum(0) - 1, row_T[is_first_T], turn_T[is_first_T])


def turn_rewards(rewards_T: Tensor, turns: Turns) -> Tensor:
    """float64[U]: what is paid within each turn."""
    zeros_U = torch.zeros(len(turns.row_U), dtype=torch.float64, device=rewards_T.device)
    return zeros_U.index_add(0, turns.of_T, rewards_T.double())


def turn_returns(rewards_T: Tensor, turns: Turns, gamma: float) -> Tensor:
    """`G_k = R_k + gamma * G_(k+1)` over the turns k of a row, R_k being the sum of a turn's
    rewards, float64[U]: tokens of a turn are one action, and time passes between turns."""
    return return_to_go(turn_rewards(rewards_T, turns), turns.row_U, gamma)


def turn_mixed(
    rewards_T: Tensor,
    turns: Turns,
    places: Places,
    gamma: float,
    turn_weight: float,
    mixed_over: Literal["group", "step"],
    epsilon: float,
    all_reduce: AllReduce,
) -> Tensor:
    """`w * normed(G_k) + (1 - w) * normed(R_k)` of each turn k, float64[U], w being `turn_weight`:
    MAPO (Zhang et al., arXiv 2603.06194, called MICA in its later versions).

    G_k is the turn's return (`turn_returns`), normalised over the turns of the same number of the
    prompt's samples; R_k is its own reward, normalised over all turns of the prompt's samples
    (`mixed_over: group`) or of the step. Normalised is `(x - mean) / (std + epsilon)`, as in
    `group_relative`: a turn that nothing is there to be compared with gets 0. Rows that do not
    train, or have no trained token, take no part.

    The abstract has neither weights nor formulas; the two terms and w = 1/2 are as others who read
    the paper retell it. That the second term is of R_k and not of G_k is the later versions';
    the first one's name for it, batch level, leaves group or step open. Open too: gamma (1 is
    ours), the divisor of the deviation (n - 1 here, as in all our groups) and epsilon.

    Rows of a prompt may be on several ranks: ranks tell each other every turn's number, return and
    reward, each at a place of its own, so that the sums over ranks are exact and the result is the
    same, to the bit, however rows are shared out. `all_reduce` is called with float64[N] and, where
    there are any turns, with float64[3, V], also by a rank without rows.
    """
    reward_U = turn_rewards(rewards_T, turns)
    return_U = return_to_go(reward_U, turns.row_U, gamma)
    place_U, count_N = _places(turns, places, all_reduce)
    if not bool(count_N.any()):
        return reward_U
    columns = torch.zeros(3, int(count_N.sum()), dtype=torch.float64)
    columns[:, place_U] = torch.stack([turns.number_U.double(), return_U, reward_U])
    number_V, return_V, reward_V = all_reduce(columns)
    group_V = places.group_N.repeat_interleave(count_N)
    same_number_V = group_V * (1 + int(number_V.max())) + number_V.long()
    over_V = group_V if mixed_over == "group" else torch.zeros_like(group_V)
    mixed_V = turn_weight * group_relative(return_V, same_number_V, True, epsilon)
    mixed_V = mixed_V + (1 - turn_weight) * group_relative(reward_V, over_V, True, epsilon)
    return mixed_V[place_U]


def _places(turns: Turns, places: Places, all_reduce: AllReduce) -> tuple[Tensor, Tensor]:
    """int64[U], the place of each turn among the V of the step, in the order of its rows; and
    int64[N], how many turns each row has."""
    count_R = torch.bincount(turns.row_U, minlength=len(places.index_R))
    count_N = torch.zeros(len(places.group_N), dtype=torch.float64)
    count_N[places.index_R] = count_R.double()
    count_N = all_reduce(count_N).long()
    start_N = count_N.cumsum(0) - count_N
    start_R = count_R.cumsum(0) - count_R
    within_U = torch.arange(len(turns.row_U)) - start_R[turns.row_U]
    return start_N[places.index_R][turns.row_U] + within_U, count_N
