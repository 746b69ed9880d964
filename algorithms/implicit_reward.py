"""An implicit process reward model: what it learns by, and what it makes of a step's tokens.

The model is a causal language model whose log-ratio to the reference, times `beta`, is a token's
reward (Yuan et al., arXiv 2412.01981; online beside a policy: PRIME, Cui et al., arXiv 2502.01456).
Pure functions of log-probs; which rows a rank has, when the model learns, and how ranks talk is
decided elsewhere. Token rewards become advantages in `manta.algorithms.token_stage`.

Shapes: T trained tokens of R rows, this rank's; N rows of the plan, all ranks'.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from manta.algorithms.advantages import return_to_go
from manta.algorithms.groups import Groups
from manta.algorithms.part_settings import ImplicitRewardSettings
from manta.algorithms.rank_sums import AllReduce
from manta.algorithms.tokens import LossTerms, per_row
from manta.algorithms.turns import Places

NORM_EPSILON = 1e-6
"""Added to the divisor of `normalize`, as in the authors' code."""


def token_rewards(beta: float, logprob_T: Tensor, reference_T: Tensor) -> Tensor:
    """`beta * (log pi_phi(y_t) - log pi_ref(y_t))`, float64[T]: PRIME, arXiv 2502.01456, eq. 3."""
    return beta * (logprob_T.double() - reference_T.double())


def outcome_loss(reward_T: Tensor, row_T: Tensor, label_R: Tensor, weight_R: Tensor) -> LossTerms:
    """`sum_R weight * BCE(sigmoid(sum of the row's token rewards), label)`: PRIME, arXiv
    2502.01456, algorithm 1, line 8.

    `reward_T` carries the gradients; `label_R` is 1 for a right row, else 0 (the paper's outcome of
    a program is the share of tests that it passes; here it is one or the other); `weight_R`
    float[R] are shares of the update's mean, 1 in sum over all micro-batches and ranks. A row has
    one term, whatever its length.

    `sums`: `loss`, the same as `process/loss`, and `process/accuracy`, the share of rows whose
    summed reward is above 0 where they are right, and not where they are not.
    """
    weight = weight_R.double()
    score_R = per_row(reward_T.double(), row_T, len(label_R))
    label = label_R.double()
    loss_R = binary_cross_entropy_with_logits(score_R, label, reduction="none")
    loss = (weight * loss_R).sum()
    agrees_R = (score_R.detach() > 0) == (label > 0)
    sums = {
        "loss": loss.detach(),
        "process/loss": loss.detach(),
        "process/accuracy": (weight * agrees_R.double()).sum(),
    }
    return LossTerms(loss, sums, {})


class ProcessRewards(NamedTuple):
    """`reward_T` float64[T] are rewards less their baseline; `mean` is that of all rows' token
    rewards before that, weighted by tokens (None where there are no rows)."""

    reward_T: Tensor
    mean: float | None


def process_rewards(
    settings: ImplicitRewardSettings,
    reward_T: Tensor,
    row_T: Tensor,
    places: Places,
    all_reduce: AllReduce,
) -> ProcessRewards:
    """`coef * (r_t - mean over the group's other rows of their mean token reward)`: the bracket of
    PRIME, arXiv 2502.01456, eq. 5, whose sum over the rest of the row is the advantage.

    A row whose group has no other one gets 0. The others are those that any rank has: a mean and a
    count of each row travel over the ranks, by its place in the plan, so that the result depends on
    neither sharding nor micro-batches. `all_reduce` is called once, with a float64[3, N], also by a
    rank without rows.

    With `normalize` rewards are first divided by the largest absolute return-to-go of the step's
    tokens (plus 1e-6), which bounds what the model can say, and blows up the noise of one that says
    nothing yet: `batch_norm` in the authors' code, where each rank has its own divisor; the paper
    has none. That code also multiplies a token's own reward by n / (n - 1), which the paper's
    formula does not.
    """
    place_R, group_N = places
    tokens_R = per_row(torch.ones_like(reward_T), row_T, len(place_R))
    columns = torch.zeros(3, len(group_N), dtype=torch.float64)
    columns[0, place_R] = per_row(reward_T, row_T, len(place_R))
    columns[1, place_R] = tokens_R
    if settings.normalize:
        returns_T = return_to_go(reward_T, row_T, 1.0).abs()
        columns[2, place_R] = torch.zeros_like(tokens_R).scatter_reduce(0, row_T, returns_T, "amax")
    total_N, tokens_N, largest_N = all_reduce(columns)
    num_tokens = float(tokens_N.sum())
    if not num_tokens:
        return ProcessRewards(reward_T, None)
    divisor = float(largest_N.max()) + NORM_EPSILON if settings.normalize else 1.0
    mean_N = total_N / tokens_N.clamp(min=1)
    baseline_N, has_others_N = _mean_of_others(mean_N, tokens_N > 0, group_N)
    less_T = reward_T - baseline_N[place_R][row_T]
    scaled_T = settings.coef / divisor * less_T
    kept_T = torch.where(has_others_N[place_R][row_T], scaled_T, 0.0)
    return ProcessRewards(kept_T, float(total_N.sum()) / num_tokens)


def _mean_of_others(mean_N: Tensor, is_there_N: Tensor, group_N: Tensor) -> tuple[Tensor, Tensor]:
    """[N]: the mean of `mean_N` over the group's other rows that are there; whether any is."""
    groups = Groups(group_N)
    own_N = torch.where(is_there_N, mean_N, 0.0)
    sum_N = groups.total(own_N)[groups.index_N]
    others_N = groups.total(is_there_N.double())[groups.index_N] - is_there_N.double()
    return (sum_N - own_N) / others_N.clamp(min=1), others_N > 0
