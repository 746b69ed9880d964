"""Per-token losses, pure functions of log-probs; how they are averaged is in `aggregate`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Surrogate(NamedTuple):
    """Each [T]: the loss (carries gradients), the importance ratio (too), and where the clip took
    the gradient away: `clipped_low_T`, `clipped_high_T` bool."""

    loss_T: Tensor
    ratio_T: Tensor
    clipped_low_T: Tensor
    clipped_high_T: Tensor


def clipped_surrogate(
    logprob_T: Tensor,
    proximal_T: Tensor,
    advantage_T: Tensor,
    clip_low: float,
    clip_high: float,
) -> Surrogate:
    """`-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)` with
    `ratio = exp(logprob - proximal)`: PPO (arXiv 1707.06347, eq. 7), with separate bounds as in
    DAPO (arXiv 2503.14476, eq. 10).

    A token is clipped low where A < 0 and the ratio is below `1 - clip_low`, high where A > 0 and
    the ratio is above `1 + clip_high`. The log-ratio is not clamped. At ratio 1 the gradient is
    that of `-A * logprob` (REINFORCE).
    """
    ratio_T = torch.exp(logprob_T - proximal_T)
    bounded_T = ratio_T.clamp(1.0 - clip_low, 1.0 + clip_high)
    with torch.no_grad():
        clipped_low_T = (advantage_T < 0) & (ratio_T < 1.0 - clip_low)
        clipped_high_T = (advantage_T > 0) & (ratio_T > 1.0 + clip_high)
    return Surrogate(
        loss_T=-torch.minimum(ratio_T * advantage_T, bounded_T * advantage_T),
        ratio_T=ratio_T,
        clipped_low_T=clipped_low_T,
        clipped_high_T=clipped_high_T,
    )


def cross_entropy(logprob_T: Tensor) -> Tensor:
    """`-logprob`, [T]: the negative log-likelihood of given tokens."""
    return -logprob_T
