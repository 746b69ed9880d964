"""From logits to tokens: temperature, truncation, and the inverse of the distribution function.

Pure functions on tensors; where the uniform numbers come from is `manta.actors.engines.draws`.
Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SamplingColumns:
    """How each row of a batch samples.

    temperature_B, top_p_B: float32[B]; top_k_B: int64[B]. Temperature 0 is greedy; `top_k` 0 and
    `top_p` 1 truncate nothing. The flags say whether any row needs the step that they name, so that
    a batch of plain rows pays for none.
    """

    temperature_B: Tensor
    top_p_B: Tensor
    top_k_B: Tensor
    is_tempered: bool
    is_truncated: bool
    is_greedy: bool


def sample(logits_BV: Tensor, columns: SamplingColumns, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """One token per row and its log-prob: int64[B], float32[B].

    The token is the first whose cumulative probability exceeds `uniform_B` (float64 in [0, 1)).
    Its log-prob is that of the distribution it was drawn from, after temperature and truncation;
    a greedy row takes the mode, with the log-prob of the untempered distribution.
    """
    logits_BV = logits_BV.float()
    if columns.is_tempered:
        temperature_B = columns.temperature_B
        scale_B = torch.where(temperature_B == 0.0, 1.0, temperature_B)
        logits_BV = logits_BV / scale_B[:, None]
    logprobs_BV = torch.log_softmax(logits_BV, dim=-1)
    if columns.is_truncated:
        logprobs_BV = truncate(logprobs_BV, columns.top_k_B, columns.top_p_B)
    tokens_B1 = draw(logprobs_BV, uniform_B)[:, None]
    if columns.is_greedy:
        greedy_B1 = columns.temperature_B[:, None] == 0.0
        tokens_B1 = torch.where(greedy_B1, logits_BV.argmax(dim=-1, keepdim=True), tokens_B1)
    return tokens_B1[:, 0], logprobs_BV.gather(-1, tokens_B1)[:, 0]


def draw(logprobs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """int64[B]: per row the first token whose cumulative probability exceeds `uniform_B`."""
    cumulative_BV = logprobs_BV.exp().cumsum(dim=-1, dtype=torch.float64)
    target_B1 = uniform_B[:, None] * cumulative_BV[:, -1:]
    tokens_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True)
    # Log-probs that are not finite find no place and would index past the end; they show instead.
    return tokens_B1[:, 0].clamp_(max=logprobs_BV.shape[-1] - 1)


def truncate(logprobs_BV: Tensor, top_k_B: Tensor, top_p_B: Tensor) -> Tensor:
    """Log-probs renormalised over what truncation keeps, -inf elsewhere.

    Top-k first: the k most likely tokens (equals in token order). Then top-p (nucleus sampling,
    arXiv:1904.09751) of what is left: the fewest tokens, most likely first, that hold `top_p` of
    the mass; always at least one.
    """
    ordered_BV, order_BV = logprobs_BV.sort(dim=-1, descending=True, stable=True)
    vocabulary = logprobs_BV.shape[-1]
    rank_V = torch.arange(vocabulary, device=logprobs_BV.device)
    limit_B = torch.where(top_k_B == 0, vocabulary, top_k_B)
    ordered_BV = ordered_BV.masked_fill(rank_V >= limit_B[:, None], -torch.inf)
    mass_BV = torch.softmax(ordered_BV.double(), dim=-1)
    before_BV = mass_BV.cumsum(dim=-1) - mass_BV
    # A row without top-p must keep its whole tail, whatever the sum rounds to.
    is_cut_BV = (before_BV >= top_p_B[:, None]) & (top_p_B < 1.0)[:, None]
    kept_BV = torch.log_softmax(ordered_BV.masked_fill(is_cut_BV, -torch.inf), dim=-1)
    return torch.empty_like(kept_BV).scatter_(-1, order_BV, kept_BV)
