"""Importance weights of tokens that another policy sampled: proximal over behaviour policy.

Three policies are told apart. The *behaviour* policy is what the engine recorded when it drew a
token, after temperature. The *proximal* policy is the learner's at the start of the step. The
*current* policy is being updated. The loss of a token is its weight here, which has no gradient,
times the one of current over proximal (`manta.algorithms.losses`): with the clipped surrogate the
decoupled objective of AReaL (arXiv 2505.24298, section 5.2, eq. 5).

| correction | weight of a token with ratio w = proximal / behaviour | source |
| --- | --- | --- |
| `weight` | w | AReaL, eq. 5 |
| `truncate` | min(w, high) | Yao et al. 2025 (1) |
| `mask` | w where low <= w <= high, else 0 | IcePop (2): 0.5 to 5, token level |

(1) "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training". (2) The Ring-1T
report, arXiv 2510.18855, section "IcePop" and its training recipe.

At sequence level w is the product over the row's trained tokens, and the whole row is truncated or
masked (Liu, Li et al. 2025, "When Speed Kills Stability", section 4.2.1). The token level corrects
the distribution of each token in its context, not that of the contexts; only the sequence level
without a bound has the on-policy gradient as its mean for rows of more than one token, at a
variance that grows with their length.

A weight changes no denominator: a masked token or row still counts in the mean over tokens or rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from manta.algorithms.part_settings import OffPolicySettings
from manta.algorithms.tokens import per_row


class Correction(NamedTuple):
    """Each [T]: the weight of a token's policy loss, and where a bound changed it (bool)."""

    weight_T: Tensor
    is_bounded_T: Tensor


def correct(
    settings: OffPolicySettings, proximal_T: Tensor, behaviour_T: Tensor, row_T: Tensor
) -> Correction:
    """The weights of tokens from their log-probs [T] under both policies, without gradients.

    `row_T` int64[T] ascending names each token's row, of which all trained tokens must be here.
    With correction `none` every weight is 1.
    """
    log_ratio_T = (proximal_T.detach() - behaviour_T).double()
    never_T = torch.zeros_like(row_T, dtype=torch.bool)
    if settings.correction == "none":
        return Correction(torch.ones_like(proximal_T), never_T)
    if settings.level == "sequence":
        num_rows = int(row_T[-1]) + 1 if len(row_T) else 0
        log_ratio_T = per_row(log_ratio_T, row_T, num_rows)[row_T]
    ratio_T = torch.exp(log_ratio_T)
    if settings.correction == "weight":
        return Correction(ratio_T.to(proximal_T.dtype), never_T)
    low = 0.0 if settings.low is None else settings.low
    high = torch.inf if settings.high is None else settings.high
    if settings.correction == "truncate":
        return Correction(ratio_T.clamp(max=high).to(proximal_T.dtype), ratio_T > high)
    is_inside_T = (low <= ratio_T) & (ratio_T <= high)
    return Correction(torch.where(is_inside_T, ratio_T, 0.0).to(proximal_T.dtype), ~is_inside_T)
