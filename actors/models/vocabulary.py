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


class _Buffers:
    """Room for the [C, V] tensors of one chunk, used again by the next one: allocating them anew
    fragments the heap to several times their size."""

    def __init__(self, hidden_TD: Tensor, weight_VD: Tensor, chunk: int, count: int) -> None:
        shape = (count, min(chunk, len(hidden_TD)), weight_VD.shape[0])
        self._rooms = hidden_TD.new_empty(shape, dtype=torch.float32)

    def room(self, index: int, rows: int) -> Tensor:
        return self._rooms[index, :rows]


def _log_softmax(
    hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, temperature: float, out_CV: Tensor
) -> Tensor:
    logits_CV = linear(hidden_CD, weight_VD, bias_V).float()
    if temperature != 1.0:
        logits_CV.div_(temperature)
    return torch.log_softmax(logits_CV, -1, out=out_CV)


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
        num_tokens = len(hidden_TD)
        buffers = _Buffers(hidden_TD, weight_VD, chunk, 1 + with_entropy)
        logprob_T, entropy_T = hidden_TD.new_zeros(2, num_tokens, dtype=torch.float32).unbind()
        for start in range(0, num_tokens, chunk):
            part = slice(start, min(start + chunk, num_tokens))
            rows = part.stop - start
            logp_CV = _log_softmax(
                hidden_TD[part], weight_VD, bias_V, temperature, buffers.room(0, rows)
            )
            logprob_T[part] = logp_CV.gather(1, targets_T[part, None])[:, 0]
            if with_entropy:
                p_CV = torch.exp(logp_CV, out=buffers.room(1, rows))
                entropy_T[part] = -p_CV.mul_(logp_CV).sum(1)
        kept = buffers.room(0, num_tokens) if num_tokens <= chunk else None
        ctx.save_for_backward(hidden_TD, weight_VD, bias_V, targets_T, entropy_T, kept)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.set_materialize_grads(False)
        if not with_entropy:
            ctx.mark_non_differentiable(entropy_T)
        return logprob_T, entropy_T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_TD, weight_VD, bias_V, targets_T, entropy_T, kept = ctx.saved_tensors
        by_logprob_T, by_entropy_T = (
            None if gradient is None else gradient / ctx.temperature for gradient in gradients
        )
        buffers = _Buffers(hidden_TD, weight_VD, ctx.chunk, 3)
        by_hidden_TD = torch.empty_like(hidden_TD)
        # Frozen under an adapter
        by_weight_VD = torch.zeros_like(weight_VD) if ctx.needs_input_grad[1] else None
        by_bias_V = None if bias_V is None else torch.zeros_like(bias_V)
        for start in range(0, len(hidden_TD), ctx.chunk):
            part = slice(start, min(start + ctx.chunk, len(hidden_TD)))
            rooms = [buffers.room(i, part.stop - start) for i in range(3)]
            logp_CV = kept
            if logp_CV is None:
                logp_CV = _log_softmax(
                    hidden_TD[part], weight_VD, bias_V, ctx.temperature, rooms[0]
                )
            by_logits_CV = _by_logits(
                logp_CV,
                targets_T[part],
                entropy_T[part],
                None if by_logprob_T is None else by_logprob_T[part],
                None if by_entropy_T is None else by_entropy_T[part],
                rooms[1:],
            ).to(hidden_TD.dtype)
            by_hidden_TD[part] = times(by_logits_CV, weight_VD)
            if by_weight_VD is not None:
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
    rooms: list[Tensor],
) -> Tensor:
    """Gradient by the tempered logits, float32[C, V], in the first of two `rooms`."""
    gradient_CV = torch.exp(logp_CV, out=rooms[0])
    if by_entropy_C is not None:
        factor_CV = torch.add(logp_CV, entropy_C[:, None], out=rooms[1])
        factor_CV.mul_(by_entropy_C[:, None])
        if by_logprob_C is not None:
            factor_CV.add_(by_logprob_C[:, None])
        gradient_CV.mul_(factor_CV.neg_())
    elif by_logprob_C is not None:
        gradient_CV.mul_(-by_logprob_C[:, None])
    if by_logprob_C is not None:
        gradient_CV.scatter_add_(1, targets_C[:, None], by_logprob_C[:, None])
    return gradient_CV
