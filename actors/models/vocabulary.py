"""From hidden states to statistics of tokens; the only place where [T, V] tensors exist.

They exist a chunk of tokens at a time, and the backward pass builds them again from the
log-normaliser instead of keeping them. Small ones are kept: building them twice would be slower.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from manta.actors.models.products import linear, times, transposed_times

CHUNK_ELEMENTS = 1 << 22
"""Bound on tokens x vocabulary of one chunk (16 MiB of float32)."""


def token_statistics(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_T: Tensor,
    temperature: float,
    with_entropy: bool,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target and entropy (nats) of each distribution, both float32[T].

    The distributions are softmax((hidden @ weight.T + bias) / temperature), in float32 from the
    logits on. Without `with_entropy` the second result is zeros. Gradients flow to hidden states,
    weight and bias; with p the distribution and H its entropy, by the logits they are
    (onehot - p) / temperature and -p * (log p + H) / temperature.
    """
    chunk = max(1, chunk_elements // weight_VD.shape[0])
    logprob_T, entropy_T = _TokenStatistics.apply(
        hidden_TD, weight_VD, bias_V, targets_T, temperature, with_entropy, chunk
    )  # type: ignore[no-untyped-call]
    return logprob_T, entropy_T


def _log_softmax(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = linear(hidden, weight, bias).float()
    if temperature != 1.0:
        logits = logits / temperature
    return torch.log_softmax(logits, -1)


class _TokenStatistics(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_T: Tensor,
        temperature: float,
        with_entropy: bool,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies = [], []
        logp_CV = hidden_TD.new_zeros(0)
        for hidden_CD, targets_C in zip(
            torch.split(hidden_TD, chunk), torch.split(targets_T, chunk), strict=True
        ):
            logp_CV = _log_softmax(hidden_CD, weight_VD, bias_V, temperature)
            logprobs.append(logp_CV.gather(1, targets_C[:, None])[:, 0])
            entropies.append(
                -(logp_CV.exp() * logp_CV).sum(1)
                if with_entropy
                else torch.zeros_like(logprobs[-1])
            )
        kept = logp_CV if len(hidden_TD) <= chunk else None
        logprob_T, entropy_T = torch.cat(logprobs), torch.cat(entropies)
        ctx.save_for_backward(hidden_TD, weight_VD, bias_V, targets_T, entropy_T, kept)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.set_materialize_grads(False)
        if not with_entropy:
            ctx.mark_non_differentiable(entropy_T)
        return logprob_T, entropy_T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_TD, weight_VD, bias_V, targets_T, entropy_T, kept = ctx.saved_tensors
        by_logprob_T, by_entropy_T = gradients
        by_hidden_TD = torch.empty_like(hidden_TD)
        by_weight_VD = torch.zeros_like(weight_VD)
        by_bias_V = None if bias_V is None else torch.zeros_like(bias_V)
        for start in range(0, len(hidden_TD), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logp_CV = kept
            if logp_CV is None:
                logp_CV = _log_softmax(hidden_TD[part], weight_VD, bias_V, ctx.temperature)
            by_logits_CV = _by_logits(
                logp_CV,
                targets_T[part],
                entropy_T[part],
                None if by_logprob_T is None else by_logprob_T[part] / ctx.temperature,
                None if by_entropy_T is None else by_entropy_T[part] / ctx.temperature,
            ).to(hidden_TD.dtype)
            by_hidden_TD[part] = times(by_logits_CV, weight_VD)
            by_weight_VD += transposed_times(by_logits_CV, hidden_TD[part])
            if by_bias_V is not None:
                by_bias_V += by_logits_CV.sum(0)
        return by_hidden_TD, by_weight_VD, by_bias_V, None, None, None, None


def _by_logits(
    logp_CV: Tensor,
    targets_C: Tensor,
    entropy_C: Tensor,
    by_logprob_C: Tensor | None,
    by_entropy_C: Tensor | None,
) -> Tensor:
    """Gradient by the tempered logits, float32[C, V]."""
    p_CV = logp_CV.exp()
    gradient_CV = torch.zeros_like(p_CV)
    if by_entropy_C is not None:
        gradient_CV -= p_CV * (logp_CV + entropy_C[:, None]) * by_entropy_C[:, None]
    if by_logprob_C is not None:
        gradient_CV -= p_CV * by_logprob_C[:, None]
        gradient_CV.scatter_add_(1, targets_C[:, None], by_logprob_C[:, None])
    return gradient_CV
