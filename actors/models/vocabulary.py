"""From hidden states to statistics of tokens; the only place where [T, V] tensors exist.

They exist a chunk of tokens at a time. The backward pass builds a chunk's probabilities again from
its hidden states and log-normalisers, and adds its share to the gradients of hidden states, weight
and bias at once. What fits into one chunk is kept instead: building it twice would be slower.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manta.actors.backends.protocol import TopK, Want
from manta.actors.models.products import linear, times, transposed_times

CHUNK_ELEMENTS = 1 << 22
"""Bound on tokens x vocabulary of one chunk (16 MiB of float32)."""

_SLICE_ELEMENTS = 1 << 20
"""Bound on vocabulary x width of what is added to the weight's gradient at once (4 MiB)."""


def token_statistics(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_T: Tensor,
    temperature: float,
    wants: Sequence[Want],
    chunk_elements: int = CHUNK_ELEMENTS,
) -> dict[str, Tensor]:
    """What `wants` names (see `manta.actors.backends.protocol.Want`), by name, float32[T].

    The distributions are softmax(z) with z = (hidden @ weight.T + bias) / temperature, in float32
    from the logits on. Gradients flow to hidden states, weight and bias from `logprob`, `entropy`
    and `logsumexp`; with p the distribution and H its entropy, by z they are onehot - p,
    -p * (log p + H) and p. Under autocast the product with the head is in autocast's type.

    Raises ValueError for more top words than there are.
    """
    number = next((want.number for want in wants if isinstance(want, TopK)), 0)
    if number > weight_VD.shape[0]:
        raise ValueError(f"the top {number} words of a vocabulary of {weight_VD.shape[0]}")
    device_type = hidden_TD.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        hidden_TD, weight_VD = hidden_TD.to(dtype), weight_VD.to(dtype)
    options = _Options(
        temperature,
        max(1, chunk_elements // weight_VD.shape[0]),
        "entropy" in wants,
        "vocab_mean" in wants,
        number,
    )
    with torch.autocast(device_type, enabled=False):
        found = _Statistics(
            *_TokenStatistics.apply(hidden_TD, weight_VD, bias_V, targets_T, options)  # type: ignore[no-untyped-call]
        )
    return {str(want): getattr(found, str(want)) for want in wants}


class _Statistics(NamedTuple):
    logprob: Tensor
    entropy: Tensor
    logsumexp: Tensor
    vocab_mean: Tensor
    top_k: Tensor


STATISTICS = frozenset(_Statistics._fields)
"""The names of the wants that are answered here."""


class _Options(NamedTuple):
    temperature: float
    chunk: int
    with_entropy: bool
    with_mean: bool
    top_k: int


class _TokenStatistics(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_T: Tensor,
        options: _Options,
    ) -> tuple[Tensor, ...]:
        num_tokens = len(hidden_TD)
        shapes = [(num_tokens,)] * 4 + [(num_tokens, options.top_k)]
        found = _Statistics(*(hidden_TD.new_zeros(s, dtype=torch.float32) for s in shapes))
        is_single = num_tokens <= options.chunk and any(ctx.needs_input_grad)
        room_CV = _room(hidden_TD, weight_VD, options.chunk, options.with_entropy or is_single)
        kept_CV = None
        for part in _parts(num_tokens, options.chunk):
            z_CV = _logits(hidden_TD[part], weight_VD, bias_V, options.temperature)
            log_total_C = _measure(z_CV, targets_T[part], options, found, part, room_CV)
            if is_single:
                kept_CV = z_CV.sub_(log_total_C[:, None])
        ctx.save_for_backward(
            hidden_TD, weight_VD, bias_V, targets_T, found.logsumexp, found.entropy, kept_CV
        )
        ctx.options = options
        ctx.set_materialize_grads(False)
        if not options.with_entropy:
            ctx.mark_non_differentiable(found.entropy)
        ctx.mark_non_differentiable(found.vocab_mean, found.top_k)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_TD, weight_VD, bias_V, targets_T, logsumexp_T, entropy_T, kept_CV = ctx.saved_tensors
        options: _Options = ctx.options
        by_logprob_T, by_entropy_T, by_logsumexp_T = (
            None if by is None else by / options.temperature for by in gradients[:3]
        )
        sums = _Sums(hidden_TD, weight_VD, bias_V, ctx.needs_input_grad[:3])
        only_logprob = by_entropy_T is None and by_logsumexp_T is None
        own_room = kept_CV is not None or by_entropy_T is not None
        room_CV = _room(hidden_TD, weight_VD, options.chunk, own_room)
        for part in _parts(len(hidden_TD), options.chunk):
            logp_CV = kept_CV
            if logp_CV is None:
                logp_CV = _logits(hidden_TD[part], weight_VD, bias_V, options.temperature)
                logp_CV.sub_(logsumexp_T[part, None])
            p_CV = torch.exp(logp_CV, out=logp_CV if room_CV is None else room_CV[: len(logp_CV)])
            places_C1 = targets_T[part, None]
            if only_logprob:
                # onehot - p, with the rows' factors where they meet fewer numbers
                assert by_logprob_T is not None
                p_CV.scatter_add_(1, places_C1, p_CV.new_full(places_C1.shape, -1.0))
                sums.add(part, p_CV, -by_logprob_T[part])
                continue
            factor_C = _of(by_logsumexp_T, part, logsumexp_T) - _of(by_logprob_T, part, logsumexp_T)
            if by_entropy_T is None:
                p_CV.mul_(factor_C[:, None])
            else:
                own_CV = None if logp_CV is kept_CV else logp_CV
                surprise_CV = torch.add(logp_CV, entropy_T[part, None], out=own_CV)
                p_CV.mul_(surprise_CV.mul_(-by_entropy_T[part, None]).add_(factor_C[:, None]))
            if by_logprob_T is not None:
                p_CV.scatter_add_(1, places_C1, by_logprob_T[part, None])
            sums.add(part, p_CV, None)
        return *sums.gradients(), None, None


class _Sums:
    """Gradients of hidden states, weight and bias, as far as they are `needed`, in float32."""

    def __init__(
        self,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        needed: tuple[bool, ...],
    ) -> None:
        self._hidden_TD, self._weight_VD, self._bias_V = hidden_TD, weight_VD, bias_V
        self._by_hidden_TD = torch.empty_like(hidden_TD) if needed[0] else None
        self._by_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if needed[1] else None
        self._by_bias_V = (
            torch.zeros_like(bias_V, dtype=torch.float32)
            if bias_V is not None and needed[2]
            else None
        )

    def add(self, part: slice, by_logits_CV: Tensor, factor_C: Tensor | None) -> None:
        """The tokens `part`, whose gradient by the logits is `by_logits_CV`, times a factor each
        where one is given."""
        if self._by_bias_V is not None:
            self._by_bias_V += by_logits_CV.sum(0) if factor_C is None else factor_C @ by_logits_CV
        by_logits_CV = by_logits_CV.to(self._hidden_TD.dtype)
        hidden_CD = self._hidden_TD[part]
        if self._by_hidden_TD is not None:
            by_hidden_CD = times(by_logits_CV, self._weight_VD)
            self._by_hidden_TD[part] = (
                by_hidden_CD if factor_C is None else by_hidden_CD * factor_C[:, None]
            )
        if self._by_weight_VD is not None:
            if factor_C is not None:
                hidden_CD = (hidden_CD * factor_C[:, None]).to(hidden_CD.dtype)
            words = max(1, _SLICE_ELEMENTS // hidden_CD.shape[1])
            for words_of in _parts(by_logits_CV.shape[1], words):
                # oneDNN is a thousand times slower on the columns where they lie
                by_words = by_logits_CV[:, words_of].contiguous()
                self._by_weight_VD[words_of] += transposed_times(by_words, hidden_CD)

    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """In the dtypes of what they are gradients of."""
        by_weight_VD, by_bias_V = self._by_weight_VD, self._by_bias_V
        return (
            self._by_hidden_TD,
            None if by_weight_VD is None else by_weight_VD.to(self._weight_VD.dtype),
            None if by_bias_V is None or self._bias_V is None else by_bias_V.to(self._bias_V.dtype),
        )


def _parts(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _room(hidden_TD: Tensor, weight_VD: Tensor, chunk: int, is_needed: bool) -> Tensor | None:
    """Memory for a second [C, V], used again by each chunk: allocating it anew fragments the heap
    to several times its size."""
    if not is_needed:
        return None
    shape = (min(chunk, len(hidden_TD)), weight_VD.shape[0])
    return hidden_TD.new_empty(shape, dtype=torch.float32)


def _logits(
    hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, temperature: float
) -> Tensor:
    """Divided by the temperature, float32[C, V], in memory of their own."""
    logits_CV = linear(hidden_CD, weight_VD, bias_V).float()
    return logits_CV if temperature == 1.0 else logits_CV.div_(temperature)


def _measure(
    z_CV: Tensor,
    targets_C: Tensor,
    options: _Options,
    found: _Statistics,
    part: slice,
    room_CV: Tensor | None,
) -> Tensor:
    """Puts a chunk's statistics into `found`; returns log(sum(exp(z - max z))), float32[C].

    Leaves z - max z in `z_CV`, or its exponential where there is no second room.
    """
    if options.with_mean:
        found.vocab_mean[part] = z_CV.mean(1)
    if options.top_k:
        found.top_k[part] = z_CV.topk(options.top_k).values
    peak_C = z_CV.amax(1)
    z_CV.sub_(peak_C[:, None])
    target_C = z_CV.gather(1, targets_C[:, None])[:, 0]
    exp_CV = torch.exp(z_CV, out=z_CV if room_CV is None else room_CV[: len(z_CV)])
    total_C = exp_CV.sum(1)
    log_total_C = total_C.log()
    found.logprob[part] = target_C - log_total_C
    found.logsumexp[part] = peak_C + log_total_C
    found.top_k[part] -= found.logsumexp[part, None]
    if options.with_entropy:
        found.entropy[part] = log_total_C - torch.linalg.vecdot(exp_CV, z_CV) / total_C
    return log_total_C


def _of(values_T: Tensor | None, part: slice, like_T: Tensor) -> Tensor:
    return torch.zeros_like(like_T[part]) if values_T is None else values_T[part]
