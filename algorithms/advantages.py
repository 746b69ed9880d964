"""Advantage estimators: from rewards to how much better than expected a row or a token was.

Pure functions on tensors. What a step's rewards are, and which rows train, is decided in
`manta.algorithms.group_stage`; KL penalties and whitening are in `manta.algorithms.token_stage`.

Shapes: N rows of a step, T tokens. `row_T` says which row a token belongs to; tokens of a row
stand together and in order, rows may be of any length.
"""

from __future__ import annotations

import torch
from torch import Tensor


def group_relative(
    rewards_N: Tensor, group_N: Tensor, divide_by_std: bool, epsilon: float
) -> Tensor:
    """`(r - mean) / (std + epsilon)` within each group, or `r - mean`; float64[N].

    With the division: GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1.2), where `std` is the
    unbiased estimate (divisor n - 1, as in torch.std); the paper leaves the divisor open. Without
    it: Dr. GRPO (arXiv 2503.20783).

    `group_N` int64[N] names each row's group by any number; groups may differ in size and their
    rows may be interleaved. A group of one has nothing to be compared with and gets 0, and so does,
    exactly, a group of equal rewards.
    """
    names, index_N = torch.unique(group_N, return_inverse=True)
    rewards_N = rewards_N.double()
    zeros_G = torch.zeros(len(names), dtype=torch.float64, device=rewards_N.device)
    # Measured from the group's lowest reward, equal rewards give 0 without a rounding error, which
    # a small epsilon would blow up.
    lowest_G = zeros_G.scatter_reduce(0, index_N, rewards_N, "amin", include_self=False)
    above_N = rewards_N - lowest_G[index_N]
    size_G = zeros_G.index_add(0, index_N, torch.ones_like(rewards_N))
    mean_G = zeros_G.index_add(0, index_N, above_N) / size_G
    centred_N = above_N - mean_G[index_N]
    if not divide_by_std:
        return centred_N
    squares_G = zeros_G.index_add(0, index_N, centred_N.square())
    std_G = (squares_G / (size_G - 1).clamp(min=1)).sqrt()
    return centred_N / (std_G[index_N] + epsilon)


def return_to_go(rewards_T: Tensor, row_T: Tensor, gamma: float) -> Tensor:
    """`R_t = r_t + gamma * R_(t+1)` up to the end of t's row, [T], in the dtype of `rewards_T`."""
    return _discounted_suffix_sum(rewards_T, row_T, gamma)


def gae(rewards_T: Tensor, values_T: Tensor, row_T: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates [T] (Schulman et al., arXiv 1506.02438, eq. 16).

    `A_t = sum_k (gamma * lam)^k * delta_(t+k)` within t's row, with
    `delta_t = r_t + gamma * V_(t+1) - V_t`. `values_T` are the critic's values before each token;
    the value after a row's last token is 0, also where a length limit cut the row: the limit is
    part of the task, and the reward of what it cut is all that such a row ever gets. The critic's
    target is `A_t + V_t`.
    """
    next_values_T = torch.zeros_like(values_T)
    if len(values_T) > 1:
        next_values_T[:-1] = torch.where(row_T[1:] == row_T[:-1], values_T[1:], 0.0)
    delta_T = rewards_T + gamma * next_values_T - values_T
    return _discounted_suffix_sum(delta_T, row_T, gamma * lam)


def _discounted_suffix_sum(values_T: Tensor, row_T: Tensor, factor: float) -> Tensor:
    """`y_t = sum_k factor^k * x_(t+k)` within t's row, in log2(T) vector operations.

    After a round with stride s every y_t covers 2s tokens of its row: it adds the neighbour s
    tokens on, which covers the next s.
    """
    sums_T = values_T
    stride = 1
    while stride < len(values_T):
        same_row = row_T[stride:] == row_T[:-stride]
        ahead = torch.where(same_row, sums_T[stride:], 0.0) * factor**stride
        sums_T = torch.cat([sums_T[:-stride] + ahead, sums_T[-stride:]])
        stride *= 2
    return sums_T
