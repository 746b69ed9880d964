"""The flat token batch that every loss sees: T trained tokens of R rows, whatever the packing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Trained tokens of some rows, flat, in row order.

    row_T: int64[T], index of each token's row in 0..R-1.
    weight_T: float32[T], the factor of each token's loss in the global mean (see
        `manta.algorithms.aggregate`): the batch loss is `sum(weight_T * loss_T)`, summed over
        micro-batches and ranks without further division.
    mean_T: float32[T], the factor of each token in a diagnostic's mean over the update's trained
        tokens: the `token_mean` weight, whatever the loss is aggregated by.
    advantage_T: float32[T].
    behaviour_T: float32[T], log-prob under the policy that sampled the token (None for given
        answers; NaN where these stand among sampled ones); proximal_T: float32[T], log-prob under
        the learner's policy at the start of the step, the ratio's denominator (None: the behaviour
        policy's is); reference_T: float32[T].
    coefficients_R: named float32[R] columns of the plan.
    same_version_T: bool[T], True where the token was sampled under the very weights that the
        learner holds at the start of the step (None: nothing is known of that).
    selected_T: bool[T], the tokens that the loss treats apart (None: none are chosen).
    value_T: float32[T], the critic's value before each token at the start of the step; return_T:
        float32[T], what the critic learns to say there (both None without a critic).
    sampled_T: float32[T], as mean_T for what is measured of sampled tokens alone, 0 at given ones
        (None: mean_T).
    vocabulary_T: float32[T], `vocabulary_mean` under the learner's policy at the start of the step
        (None: no loss asks).
    reward_T: float32[T], for the token stage alone, rewards within the rows, each paid at its
        token; the row's own reward is not in them (None: there are none). turn_T: int64[T], which
        of its row's turns a token is in, counted from 0 over the policy's (None: nobody asks).
    teacher_TK: float32[T, k + 1], log-probs of the tokens that the reference finds likeliest where
        each token stands, and last of all others together; teacher_weight_T: float32[T], how much
        that counts (both None where it was not asked).
    """

    row_T: Tensor
    weight_T: Tensor
    mean_T: Tensor
    advantage_T: Tensor
    behaviour_T: Tensor | None
    proximal_T: Tensor | None
    reference_T: Tensor | None
    coefficients_R: Mapping[str, Tensor]
    same_version_T: Tensor | None = None
    value_T: Tensor | None = None
    return_T: Tensor | None = None
    sampled_T: Tensor | None = None
    vocabulary_T: Tensor | None = None
    selected_T: Tensor | None = None
    reward_T: Tensor | None = None
    turn_T: Tensor | None = None
    teacher_TK: Tensor | None = None
    teacher_weight_T: Tensor | None = None

    @property
    def start_T(self) -> Tensor | None:
        """float32[T], the log-prob that the ratio is taken to: `proximal_T` if there is one, else
        `behaviour_T`."""
        return self.behaviour_T if self.proximal_T is None else self.proximal_T


@dataclass(frozen=True, slots=True)
class LossTerms:
    """`loss`: the scalar to call backward on. `sums`: detached scalars that add up over
    micro-batches and ranks to the global mean; `maxima`: detached scalars that combine by max."""

    loss: Tensor
    sums: Mapping[str, Tensor]
    maxima: Mapping[str, Tensor]


def per_row(values_T: Tensor, row_T: Tensor, num_rows: int) -> Tensor:
    """Sum of `values_T` by row, shape [R]."""
    return torch.zeros(num_rows, dtype=values_T.dtype, device=values_T.device).index_add(
        0, row_T, values_T
    )


def vocabulary_mean(stats: Mapping[str, Tensor]) -> Tensor | None:
    """Mean over the vocabulary of the log-probs where each token is predicted, [T], without
    gradients; None where the statistics `vocab_mean` and `logsumexp` are not both there."""
    if "vocab_mean" not in stats or "logsumexp" not in stats:
        return None
    return stats["vocab_mean"].detach() - stats["logsumexp"].detach()
