"""Single-sample estimators of the KL divergence between two policies, from token log-probs.

With tokens drawn from the policy p and r = q / p, each function takes log p and log q and returns
an estimate of KL(p || q) per token (J. Schulman, "Approximating KL Divergence", 2020). Where the
penalty is charged is decided elsewhere.

| | formula | value | gradient in p's parameters when used as a loss |
| --- | --- | --- | --- |
| k1 | -log r | unbiased, high variance, may be negative | 0 in expectation: no penalty at all |
| k2 | (log r)^2 / 2 | biased, close where p is near q | that of KL(p || q), unbiased |
| k3 | r - 1 - log r | unbiased, never negative | that of KL(q || p), the other direction |

The gradients hold for tokens drawn from the current p (Tang and Munos, "On a few pitfalls in KL
divergence gradient estimation for RL", arXiv 2506.09477). In a reward only the value counts, and
k1 is the one whose policy gradient is that of KL(p || q).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def k1(logprob_T: Tensor, other_T: Tensor) -> Tensor:
    """`log p - log q`, [T]."""
    return logprob_T - other_T


def k2(logprob_T: Tensor, other_T: Tensor) -> Tensor:
    """`(log p - log q)^2 / 2`, [T]."""
    return 0.5 * (logprob_T - other_T).square()


def k3(logprob_T: Tensor, other_T: Tensor) -> Tensor:
    """`exp(d) - 1 - d` with `d = log q - log p`, [T].

    Computed as `expm1(d) - d`: in float32 the error is about 1e-7 * |d| near 0, where `exp(d) - 1`
    would leave 1e-7 whatever d is. Nothing is clamped: d > 88 overflows float32 to infinity.
    """
    difference_T = other_T - logprob_T
    return torch.expm1(difference_T) - difference_T


def estimate(estimator: Literal["k1", "k2", "k3"], logprob_T: Tensor, other_T: Tensor) -> Tensor:
    """The named estimate of KL(p || q), [T], from `logprob_T` = log p and `other_T` = log q."""
    return {"k1": k1, "k2": k2, "k3": k3}[estimator](logprob_T, other_T)
