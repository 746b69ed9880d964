"""What a prompt's share of right samples makes of its rewards and advantages.

Pure functions on tensors, in float64; the advantages that are made with them are registered in
`manta.algorithms.advantages`, whose shapes they share. Which rewards count as right is told by the
caller.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from manta.algorithms.groups import Groups


def length_charge(
    is_right_N: Tensor,
    group_N: Tensor,
    num_tokens_N: Tensor,
    share: float,
    penalty: float,
    epsilon: float,
) -> Tensor:
    """What is taken off the rewards so that the easiest prompts of a step pay for length:
    GRPO-lambda (Dai et al., arXiv 2505.18086), float64[N].

    In the `ceil(share * G)` of the step's G groups with the largest shares of right rows (of equal
    ones the first by name) a right row pays `penalty * sigmoid((l - mean(l)) / (std(l) +
    epsilon))`, l being its trained tokens, mean and deviation over the group's right rows. Wrong
    rows, and all of the other groups, pay nothing. Rounding, ties and the deviation's divisor are
    ours: that is n - 1, and a right row alone is at the mean.
    """
    groups = Groups(group_N)
    right_N, length_N = is_right_N.double(), num_tokens_N.double()
    num_right_G = groups.total(right_N)
    accuracy_G = num_right_G / groups.size_G
    # Less a little: 0.1 * 30 is above 3
    num_easy = math.ceil(share * len(accuracy_G) - 1e-9)
    easy = torch.sort(accuracy_G, descending=True, stable=True).indices[:num_easy]
    mean_G = groups.total(right_N * length_N) / num_right_G.clamp(min=1)
    apart_N = length_N - mean_G[groups.index_N]
    squares_G = groups.total(right_N * apart_N.square())
    deviation_G = (squares_G / (num_right_G - 1).clamp(min=1)).sqrt()
    charge_N = penalty * torch.sigmoid(apart_N / (deviation_G + epsilon)[groups.index_N])
    return torch.where(is_right_N & torch.isin(groups.index_N, easy), charge_N, 0.0)


def difficulty_weight(
    is_right_N: Tensor,
    group_N: Tensor,
    advantage_N: Tensor,
    low: float,
    high: float,
    midpoint: float,
    steepness: float,
) -> Tensor:
    """Factors of the rows' advantages by how hard their prompts are: GRPO-LEAD (Zhang and Zuo,
    arXiv 2504.09696), float64[N].

    `w(p) = low + (high - low) / (1 + exp(steepness * (p - midpoint)))`, p being the group's share
    of right rows, is the factor of a row whose advantage is above 0, `w(1 - p)` that of another:
    what is right in a hard prompt and wrong in an easy one counts most.
    """
    groups = Groups(group_N)
    accuracy_N = (groups.total(is_right_N.double()) / groups.size_G)[groups.index_N]
    expected_N = torch.where(advantage_N > 0, accuracy_N, 1 - accuracy_N)
    return low + (high - low) * torch.sigmoid(-steepness * (expected_N - midpoint))
