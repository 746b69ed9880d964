"""Advantage estimators: from rewards to how much better than expected a row or a token was.

Pure functions on tensors; those of a step's rows are registered in `ADVANTAGES`, and what they read
of the settings stands in `manta.algorithms.catalogue`. What a step's rewards are, and which rows
train, is decided in `manta.algorithms.group_stage`; KL penalties and whitening are in
`manta.algorithms.token_stage`.

Shapes: N rows of a step, G groups, T tokens. `group_N` int64[N] names each row's group by any
number; groups may differ in size and their rows may be interleaved. `row_T` says which row a token
belongs to; tokens of a row stand together and in order, rows may be of any length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from manta.algorithms.difficulty import difficulty_weight, length_charge
from manta.algorithms.filters import RIGHT
from manta.algorithms.groups import Groups
from manta.algorithms.settings import AlgorithmSettings


class StepRewards(NamedTuple):
    """All rows of a step: `rewards_N`, int64 `group_N` and `num_tokens_N` (trained ones), and the
    rewards' named components, [N] each, NaN where a row has none. `is_companion_N` bool[N]: True at
    the one row of each group that is no sample (None: there are none)."""

    rewards_N: Tensor
    group_N: Tensor
    num_tokens_N: Tensor
    components: Mapping[str, Tensor]
    is_companion_N: Tensor | None = None


RowAdvantage: TypeAlias = Callable[[AlgorithmSettings, StepRewards], Tensor]


def group_relative(
    rewards_N: Tensor, group_N: Tensor, divide_by_std: bool, epsilon: float
) -> Tensor:
    """`(r - mean) / (std + epsilon)` within each group, or `r - mean`; float64[N].

    With the division: GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1.2), where `std` is the
    unbiased estimate (divisor n - 1, as in torch.std); the paper leaves the divisor open. Without
    it: Dr. GRPO (arXiv 2503.20783).

    A group of one has nothing to be compared with and gets 0, and so does, exactly, a group of
    equal rewards.
    """
    groups = Groups(group_N)
    centred_N = groups.centred(rewards_N)
    if not divide_by_std:
        return centred_N
    squares_G = groups.total(centred_N.square())
    std_G = (squares_G / (groups.size_G - 1).clamp(min=1)).sqrt()
    return centred_N / (std_G[groups.index_N] + epsilon)


def leave_one_out(rewards_N: Tensor, group_N: Tensor) -> Tensor:
    """`r_i - mean of the group's other rewards`, float64[N]: RLOO (Ahmadian et al., arXiv
    2402.14740). It is `n / (n - 1)` times the distance to the mean of all n. A group
    of one gets 0."""
    groups = Groups(group_N)
    factor_G = groups.size_G / (groups.size_G - 1).clamp(min=1)
    return factor_G[groups.index_N] * groups.centred(rewards_N)


def length_weighted(rewards_N: Tensor, group_N: Tensor, num_tokens_N: Tensor) -> Tensor:
    """`r_i - sum(l r) / sum(l)` over the group, l being a row's trained tokens, float64[N]: OPO
    (Hao et al., arXiv 2505.23585), the baseline of least variance where the squared
    norm of a row's gradient grows with its length. A row alone in its group gets 0."""
    groups = Groups(group_N)
    above_N, length_N = groups.above_lowest(rewards_N), num_tokens_N.double()
    length_G = groups.total(length_N).clamp(min=1)
    baseline_G = groups.total(length_N * above_N) / length_G
    return torch.where(groups.is_alone_N, 0.0, above_N - baseline_G[groups.index_N])


def decoupled(
    components: Mapping[str, Tensor], weights: Mapping[str, float], group_N: Tensor, epsilon: float
) -> Tensor:
    """The weighted sum of every component's own group-relative advantages, then normalised over all
    rows: GDPO (Liu et al., arXiv 2601.05242), float64[N].

    `(A - mean(A)) / (std(A) + epsilon)` over the rows of the step, with `A = sum_k w_k *
    group_relative(r_k)`; all deviations are the unbiased ones. A row that lacks a component (NaN)
    takes no part in that component's groups and gets 0 of it.
    """
    total_N = torch.zeros(len(group_N), dtype=torch.float64, device=group_N.device)
    for name, weight in weights.items():
        is_there_N = torch.isfinite(components[name])
        total_N[is_there_N] += weight * group_relative(
            components[name][is_there_N], group_N[is_there_N], True, epsilon
        )
    return group_relative(total_N, torch.zeros_like(group_N), True, epsilon)


def pass_at_k(rewards_N: Tensor, group_N: Tensor, k: int, epsilon: float) -> Tensor:
    """The expected advantage of a row over all teams of k rows of its group that it is in, where a
    team is rewarded 1 if any of its members is right: Pass@k training, its analytical
    derivation (Chen et al., arXiv 2508.10751), float64[N].

    For n rows of which m are wrong, `R = 1 - C(m, k) / C(n, k)` is a team's mean reward and
    `sigma = sqrt(R (1 - R))` its deviation. A right row gets `(1 - R) / (sigma + epsilon)`, a wrong
    one `(1 - R - C(m - 1, k - 1) / C(n - 1, k - 1)) / (sigma + epsilon)`. A group of fewer than k
    rows has no team and gets 0.

    Raises ValueError where a reward is neither 0 nor 1.
    """
    is_right_N = _zero_or_one(rewards_N, group_N)
    groups = Groups(group_N)
    right_G = groups.total(is_right_N.double())
    values = torch.zeros(2, len(groups.size_G), dtype=torch.float64, device=group_N.device)
    for group, (size, right) in enumerate(
        zip(groups.size_G.tolist(), right_G.tolist(), strict=True)
    ):
        num, wrong = int(size), int(size - right)
        if num < k:
            continue
        missed = math.comb(wrong, k) / math.comb(num, k)
        divisor = math.sqrt(missed * (1 - missed)) + epsilon
        values[1, group] = missed / divisor
        if wrong:
            others_wrong = math.comb(wrong - 1, k - 1) / math.comb(num - 1, k - 1)
            values[0, group] = (missed - others_wrong) / divisor
    return values[is_right_N.long(), groups.index_N]


def max_likelihood(rewards_N: Tensor, group_N: Tensor) -> Tensor:
    """`(r - mean) / mean` within each group, and 0 in a group without reward, float64[N]: MaxRL
    (Tajwar et al., arXiv 2602.02710).

    For rewards of 0 and 1 this is the mean score over the right rows less that over all rows. Its
    expectation for groups of n, under the success probability p, is the gradient of
    `sum_(k < n) -(1 - p)^k / k`, the expansion of `log p` up to its term n - 1.

    Raises ValueError where a reward is negative.
    """
    negative_N = rewards_N < 0
    if bool(negative_N.any()):
        raise ValueError(
            f"rewards of groups {_named(group_N, negative_N)} are negative: advantage "
            "max_likelihood divides by their mean, let the reward's formula be 0 or more"
        )
    groups = Groups(group_N)
    mean_G = groups.total(rewards_N.double()) / groups.size_G
    return groups.centred(rewards_N) / mean_G[groups.index_N].clamp(min=1e-300)


def win_rate(rewards_N: Tensor, group_N: Tensor) -> Tensor:
    """The share of the group's other rows that a row beats, a draw counting half, float64[N]: the
    reward of SPO (Swamy et al., arXiv 2401.04056), `1 / (n - 1) * sum_(j != i) P(i beats j)`, with
    P in {0, 1/2, 1} by the rewards. Only their order counts. A row alone in its group gets 1/2."""
    rate_N = torch.full(rewards_N.shape, 0.5, dtype=torch.float64, device=rewards_N.device)
    for group in torch.unique(group_N).tolist():
        (rows_K,) = torch.where(group_N == group)
        if len(rows_K) > 1:
            rewards_K = rewards_N[rows_K]
            ahead_KK = torch.sign(rewards_K[:, None] - rewards_K[None, :]).double()
            rate_N[rows_K] = 0.5 + ahead_KK.sum(1) / (2 * (len(rows_K) - 1))
    return rate_N


def greedy_baseline(rewards_N: Tensor, group_N: Tensor, is_companion_N: Tensor) -> Tensor:
    """`r_i - r(greedy)`, the reward of the policy's greedy answer to the same prompt, which is the
    companion's, float64[N]; 0 for that row: ReMax (Li et al., arXiv 2310.10505). The baseline knows
    nothing of the samples, so that it biases nothing, with one sample of a prompt too.

    Raises ValueError where a group has not one companion.
    """
    groups = Groups(group_N)
    baseline_G = groups.total(_companions(groups, is_companion_N) * rewards_N.double())
    return rewards_N.double() - baseline_G[groups.index_N]


def alignment(
    relative_N: Tensor,
    group_N: Tensor,
    is_companion_N: Tensor,
    imitation_coef: float,
    alignment_coef: float,
) -> Tensor:
    """What makes a mean over rows of `advantage * mean log-prob` the objective of GRAO (Group
    Relative Alignment Optimization, arXiv 2508.07750), float64[N]:

    `J = mean_i [A_i m(o_i) + b A_y m(y) + l A_i (m(o_i) - m(y))]` over a group's G samples o_i,
    with its given answer y, b the `imitation_coef`, l the `alignment_coef`, and `relative_N` the
    advantages A of the G + 1 rows among each other. J is linear in the rows' mean log-probs m, so
    that o_i gets `(G + 1) / G * (1 + l) A_i` and y gets `(G + 1) (b A_y - l mean_i A_i)`: the
    factors G + 1 are those by which a mean over the group's rows divides.

    Raises ValueError where a group has not one companion.
    """
    groups = Groups(group_N)
    companion_N = _companions(groups, is_companion_N)
    relative_N = relative_N.double()
    samples_G = (groups.size_G - 1).clamp(min=1)
    mean_G = groups.total((1 - companion_N) * relative_N) / samples_G
    of_sample_N = (1 + alignment_coef) * relative_N / samples_G[groups.index_N]
    of_answer_N = imitation_coef * relative_N - alignment_coef * mean_G[groups.index_N]
    return groups.size_G[groups.index_N] * torch.where(is_companion_N, of_answer_N, of_sample_N)


def _companions(groups: Groups, is_companion_N: Tensor) -> Tensor:
    """float64[N], 1 at the companions, of which each group has one."""
    companion_N = is_companion_N.double()
    if not bool((groups.total(companion_N) == 1).all()):
        raise ValueError(
            "the advantage needs one companion in every group, and some have none: let "
            "algorithm.companion say which one is made"
        )
    return companion_N


def _zero_or_one(rewards_N: Tensor, group_N: Tensor) -> Tensor:
    is_other_N = (rewards_N != 0) & (rewards_N != 1)
    if bool(is_other_N.any()):
        raise ValueError(
            f"rewards of groups {_named(group_N, is_other_N)} are neither 0 nor 1: advantage "
            "pass_at_k counts right samples, let the reward's formula be one component that is 0 "
            "or 1, such as exact"
        )
    return rewards_N == 1


def _named(group_N: Tensor, at_N: Tensor) -> list[int]:
    return sorted(set(group_N[at_N].tolist()))[:8]


def _of_components(settings: AlgorithmSettings, step: StepRewards) -> Tensor:
    """A component that no row of the step has is absent like one that some rows lack."""
    weights = settings.component_weights or dict.fromkeys(step.components, 1.0)
    if not weights.keys() & step.components.keys():
        raise ValueError(
            f"component_weights names {sorted(weights)}, the rewards have the components "
            f"{sorted(step.components)}: name some of these"
        )
    absent_N = torch.full_like(step.rewards_N, math.nan)
    components = {name: step.components.get(name, absent_N) for name in weights}
    return decoupled(components, weights, step.group_N, settings.std_epsilon)


def _known_companions(step: StepRewards) -> Tensor:
    known_N = step.is_companion_N
    return torch.zeros_like(step.group_N, dtype=torch.bool) if known_N is None else known_N


def _paying_for_length(settings: AlgorithmSettings, step: StepRewards) -> Tensor:
    charge_N = length_charge(
        step.rewards_N > RIGHT,
        step.group_N,
        step.num_tokens_N,
        settings.penalized_share,
        settings.length_penalty,
        settings.std_epsilon,
    )
    return group_relative(step.rewards_N - charge_N, step.group_N, True, settings.std_epsilon)


def _by_difficulty(settings: AlgorithmSettings, step: StepRewards) -> Tensor:
    told = settings.difficulty
    advantage_N = group_relative(step.rewards_N, step.group_N, True, settings.std_epsilon)
    return advantage_N * difficulty_weight(
        step.rewards_N > RIGHT,
        step.group_N,
        advantage_N,
        told.low,
        told.high,
        told.midpoint,
        told.steepness,
    )


def _as_they_are(settings: AlgorithmSettings, step: StepRewards) -> Tensor:
    return step.rewards_N


ADVANTAGES: Mapping[str, RowAdvantage] = {
    "group_relative": lambda settings, step: group_relative(
        step.rewards_N, step.group_N, settings.divide_by_std, settings.std_epsilon
    ),
    "reward": _as_they_are,
    "gae": _as_they_are,
    "leave_one_out": lambda settings, step: leave_one_out(step.rewards_N, step.group_N),
    "length_weighted": lambda settings, step: length_weighted(
        step.rewards_N, step.group_N, step.num_tokens_N
    ),
    "decoupled": _of_components,
    "pass_at_k": lambda settings, step: pass_at_k(
        step.rewards_N, step.group_N, settings.pass_k, settings.std_epsilon
    ),
    "max_likelihood": lambda settings, step: max_likelihood(step.rewards_N, step.group_N),
    "win_rate": lambda settings, step: group_relative(
        win_rate(step.rewards_N, step.group_N),
        step.group_N,
        settings.divide_by_std,
        settings.std_epsilon,
    ),
    "greedy_baseline": lambda settings, step: greedy_baseline(
        step.rewards_N, step.group_N, _known_companions(step)
    ),
    "alignment": lambda settings, step: alignment(
        group_relative(step.rewards_N, step.group_N, settings.divide_by_std, settings.std_epsilon),
        step.group_N,
        _known_companions(step),
        settings.imitation_coef,
        settings.alignment_coef,
    ),
    "length_penalized": _paying_for_length,
    "difficulty_weighted": _by_difficulty,
    "return_to_go": _as_they_are,
    "turn_mixed": _as_they_are,
    "none": lambda settings, step: torch.zeros_like(step.rewards_N, dtype=torch.float64),
}
"""Of rows, before the token stage: `gae`, `return_to_go` and `turn_mixed` take the rewards on from
there."""


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
    while factor and stride < len(values_T):
        same_row = row_T[stride:] == row_T[:-stride]
        ahead = torch.where(same_row, sums_T[stride:], 0.0) * factor**stride
        sums_T = torch.cat([sums_T[:-stride] + ahead, sums_T[-stride:]])
        stride *= 2
    return sums_T
