"""From rows to token weights: how per-token losses become one number.

The loss of an update is `sum(weight_T * loss_T)` over all its tokens, wherever they are: the
weights already hold the update's global denominators, so that neither sharding nor micro-batches
change it. This file owns the weights and the denominators; it does not know the losses.

Shapes: T trained tokens of R rows; R is a micro-batch, a rank's share or the whole update.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

Aggregation: TypeAlias = Literal["token_mean", "sequence_mean", "sequence_sum_constant"]


class Denominators(NamedTuple):
    """Of one update, over all ranks and micro-batches: the sum of row weight times trained tokens,
    and the sum of the row weights of rows that have a trained token. `sampled_tokens` is the former
    without given rows (None: there are none beside sampled ones)."""

    total_tokens: float
    total_rows: float
    sampled_tokens: float | None = None


def row_weight(coefficients_R: Mapping[str, Tensor]) -> Tensor:
    """`weight * keep` of each row, [R]; a column that the plan lacks counts as 1.

    Raises ValueError where the plan has neither.
    """
    columns = [coefficients_R[name] for name in ("weight", "keep") if name in coefficients_R]
    if not columns:
        raise ValueError(
            f"the plan's coefficients are {sorted(coefficients_R)}: a row needs `weight` or `keep`"
        )
    return columns[0] if len(columns) == 1 else columns[0] * columns[1]


def denominators(
    num_tokens_R: Tensor, row_weight_R: Tensor, is_given_R: Tensor | None = None
) -> Denominators:
    """The denominators of an update from all its rows: int64[R] trained tokens, float[R] weights.
    `is_given_R` bool[R] marks rows that nobody sampled among others (None: there are none).

    A row of weight 0 (not kept) or without a trained token takes no part. A row of weight 2 counts
    as two rows. Raises ValueError where a weight is negative or not finite.
    """
    weight_R = row_weight_R.double()
    if not bool((torch.isfinite(weight_R) & (weight_R >= 0)).all()):
        raise ValueError(
            f"row weights must be finite and at least 0, got {weight_R.min()} to {weight_R.max()}: "
            "use a negative advantage to push a row down"
        )
    tokens_R = weight_R * num_tokens_R
    return Denominators(
        total_tokens=float(tokens_R.sum()),
        total_rows=float((weight_R * (num_tokens_R > 0)).sum()),
        sampled_tokens=None if is_given_R is None else float(tokens_R[~is_given_R].sum()),
    )


def token_weights(
    mode: Aggregation,
    row_T: Tensor,
    num_tokens_R: Tensor,
    row_weight_R: Tensor,
    total_tokens: float,
    total_rows: float,
    constant_length: int,
) -> Tensor:
    """The factor of each token's loss, [T], in the dtype of `row_weight_R`. For w = row weight:

    token_mean: `w / total_tokens`, every token of the update counts the same (DAPO, arXiv
        2503.14476, eq. 8).
    sequence_mean: `w / (num_tokens * total_rows)`, the mean over rows of the row's token mean
        (GRPO, arXiv 2402.03300, eq. 3).
    sequence_sum_constant: `w / (constant_length * total_rows)`, the mean over rows of the row's
        sum, scaled by a constant (Dr. GRPO, arXiv 2503.20783).

    `total_tokens` and `total_rows` are the update's `Denominators`; where they are 0 nothing trains
    and the weights are 0. Raises ValueError where `constant_length` is needed and not positive.
    """
    weight_R = row_weight_R.double()
    if mode == "token_mean":
        divisor_R = torch.full_like(weight_R, total_tokens)
    elif mode == "sequence_mean":
        divisor_R = num_tokens_R.double() * total_rows
    else:
        if constant_length <= 0:
            raise ValueError(
                f"constant_length is {constant_length}: sequence_sum_constant divides by it, set "
                "it to the largest number of new tokens"
            )
        divisor_R = torch.full_like(weight_R, constant_length * total_rows)
    factor_R = torch.where(divisor_R > 0, weight_R / divisor_R.clamp(min=1e-300), 0.0)
    return factor_R.to(row_weight_R.dtype)[row_T]
