"""From rows and flat token statistics to the `TokenBatch` that the token stage and losses see.

Knows which columns of the plan make a token's weight and advantage. Does not know where rows come
from, nor how they are packed for the model.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from manta.algorithms.aggregate import Denominators, row_weight, token_weights
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.tokens import TokenBatch


def flatten(
    settings: AlgorithmSettings,
    num_tokens_R: Tensor,
    coefficients_R: Mapping[str, Tensor],
    update: Denominators,
    behaviour_T: Tensor | None = None,
    proximal_T: Tensor | None = None,
    reference_T: Tensor | None = None,
    advantage_T: Tensor | None = None,
    same_version_T: Tensor | None = None,
    value_T: Tensor | None = None,
    return_T: Tensor | None = None,
    vocabulary_T: Tensor | None = None,
    selected_T: Tensor | None = None,
    teacher_TK: Tensor | None = None,
    teacher_weight_T: Tensor | None = None,
) -> TokenBatch:
    """The batch of R rows with `num_tokens_R` int64[R] trained tokens each, T in all.

    `coefficients_R` are the plan's columns for these rows (`advantage`, and `weight` or `keep`);
    `update` holds the denominators of the whole update that the rows belong to. The flat log-probs
    and values [T] are in row order. `advantage_T`, `return_T` and `selected_T` are the token
    stage's results for these rows; without the first each token gets its row's advantage.

    Raises ValueError where a flat tensor is not of T tokens.
    """
    num_rows = len(num_tokens_R)
    rows = torch.arange(num_rows, device=num_tokens_R.device)
    row_T = torch.repeat_interleave(rows, num_tokens_R)
    columns = {
        "behaviour_T": behaviour_T,
        "proximal_T": proximal_T,
        "reference_T": reference_T,
        "same_version_T": same_version_T,
        "value_T": value_T,
        "return_T": return_T,
        "vocabulary_T": vocabulary_T,
        "selected_T": selected_T,
        "teacher_TK": teacher_TK,
        "teacher_weight_T": teacher_weight_T,
    }
    _check_lengths({"advantage_T": advantage_T, **columns}, row_T, num_rows)
    weight_R, constant = row_weight(coefficients_R), settings.constant_length
    totals = (update.total_tokens, update.total_rows)
    weight_T, mean_T = (
        token_weights(mode, row_T, num_tokens_R, weight_R, *totals, constant)
        for mode in (settings.aggregation, "token_mean")
    )
    if advantage_T is None:
        advantage_T = coefficients_R["advantage"][row_T]
    return TokenBatch(
        row_T=row_T,
        weight_T=weight_T,
        mean_T=mean_T,
        advantage_T=advantage_T,
        coefficients_R=coefficients_R,
        sampled_T=_of_sampled(mean_T, behaviour_T, update),
        **columns,
    )


def _of_sampled(mean_T: Tensor, behaviour_T: Tensor | None, update: Denominators) -> Tensor | None:
    """`TokenBatch.sampled_T`."""
    if update.sampled_tokens is None:
        return None
    if behaviour_T is None:
        return torch.zeros_like(mean_T)
    share = update.total_tokens / update.sampled_tokens if update.sampled_tokens else 0.0
    return torch.where(behaviour_T.isnan(), 0.0, mean_T * share)


def _check_lengths(flat: Mapping[str, Tensor | None], row_T: Tensor, num_rows: int) -> None:
    for name, tensor in flat.items():
        if tensor is not None and tensor.shape[:1] != row_T.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, the {num_rows} rows have {len(row_T)} "
                "trained tokens: give one value per trained token"
            )
