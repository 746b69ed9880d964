"""What a critic's values are trained by and judged by.

Pure functions of values and returns; where returns come from is `manta.algorithms.token_stage`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from manta.algorithms.rank_sums import AllReduce


class ValueLoss(NamedTuple):
    """Each [T]: the loss (carries gradients), and where the clip took the gradient away (bool)."""

    loss_T: Tensor
    clipped_T: Tensor


def value_loss(value_T: Tensor, old_T: Tensor, return_T: Tensor, clip: float | None) -> ValueLoss:
    """`max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2`, or `(V - R)^2 / 2`.

    The squared error is that of PPO (arXiv 1707.06347, eq. 9), the clip that of its authors' code,
    as written down by Engstrom et al. (arXiv 2005.12729, section 3). A value is clipped that left
    the bounds around its old one towards the return.
    """
    error_T = (value_T - return_T).square()
    if clip is None:
        return ValueLoss(error_T / 2, torch.zeros_like(error_T, dtype=torch.bool))
    bounded_T = torch.maximum(torch.minimum(value_T, old_T + clip), old_T - clip)
    bounded_error_T = (bounded_T - return_T).square()
    with torch.no_grad():
        clipped_T = bounded_error_T > error_T
    return ValueLoss(torch.maximum(error_T, bounded_error_T) / 2, clipped_T)


def value_figures(
    value_T: Tensor, return_T: Tensor, weight_T: Tensor, all_reduce: AllReduce
) -> dict[str, float]:
    """`value_mean`, `return_mean` and `explained_variance` over the tokens of all ranks.

    The explained variance is `1 - Var[R - V] / Var[R]`: 1 for a critic that is right, 0 for one
    that says the same everywhere, negative for one that is worse than that. It is left out where
    returns do not vary, and nothing is said of no tokens. Tokens of weight 0 do not count. Every
    rank calls it, also one without tokens: `all_reduce` is called once, with a float64[6].
    """
    weight = weight_T.double()
    value, target = (torch.where(weight != 0, each.double(), 0.0) for each in (value_T, return_T))
    error = target - value
    columns = (torch.ones_like(weight), value, target, target.square(), error, error.square())
    sums = all_reduce(torch.stack([(weight * column).sum() for column in columns]))
    if not float(sums[0]) > 0:
        return {}
    value_mean, mean, square, error_mean, error_square = (sums[1:] / sums[0]).tolist()
    figures = {"value_mean": value_mean, "return_mean": mean}
    variance = square - mean**2
    # Equal returns leave a rounding error
    if variance > 1e-12 * square:
        unexplained = max(0.0, error_square - error_mean**2)
        figures["explained_variance"] = 1 - unexplained / variance
    return figures
