"""From hidden states to statistics of tokens; the only place where [T, V] tensors exist.

They exist a chunk of tokens at a time. The backward pass builds a chunk's probabilities again from
its hidden states and log-normalisers, and adds its share to the gradients of hidden states, weight
and bias at once. What fits into one chunk is kept instead: building it twice would be slower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manta.actors.backends.protocol import TopK, Want
from manta.actors.models.products import linear, times, transposed_times

CHUNK_ELEMENTS = 1 << 22
"""Bound on tokens x vocabulary of one chunk (16 MiB of float32)."""

LEAST_REST = 1e-30
"""The least probability of all words together that are not asked for: nearly float32's own."""

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
    likely_TK: Tensor | None = None,
) -> dict[str, Tensor]:
    """What `wants` names (see `manta.actors.backends.protocol.Want`), by name, float32[T];
    `likely_TK` int64 are the words of the want `likeliest`, each once a token.

    The distributions are softmax(z) with z = (hidden @ weight.T + bias) / temperature, in float32
    from the logits on. Gradients flow to hidden states, weight and bias from `logprob`, `entropy`,
    `logsumexp` and `likeliest`; with p the distribution and H its entropy, by z they are
    onehot - p, -p * (log p + H), p, and of the latter onehot - p at each word, and at the rest
    q - p, q being p among the other words alone. A rest below `LEAST_REST` counts as that, without
    a gradient. Under autocast the product with the head is in autocast's type.

    Raises ValueError for more top words than there are.
    """
    options = _options(temperature, weight_VD.shape[0], wants, chunk_elements)
    device_type = hidden_TD.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        hidden_TD, weight_VD = hidden_TD.to(dtype), weight_VD.to(dtype)
    if likely_TK is None:
        likely_TK = targets_T.new_zeros((len(targets_T), 0))
    with torch.autocast(device_type, enabled=False):
        found = _Statistics(
            *_TokenStatistics.apply(  # type: ignore[no-untyped-call]
                hidden_TD, weight_VD, bias_V, targets_T, likely_TK, options
            )
        )
    return {str(want): getattr(found, str(want)) for want in wants}


def statistics_of_logits(
    logits: Callable[[slice], Tensor],
    targets_T: Tensor,
    num_words: int,
    wants: Sequence[Want],
    chunk_elements: int = CHUNK_ELEMENTS,
) -> dict[str, Tensor]:
    """As `token_statistics`, without gradients, of z [C, V] in float32 that `logits` makes of a
    chunk of tokens, in memory of their own. Raises ValueError as that does."""
    options = _options(1.0, num_words, wants, chunk_elements)
    none_T0 = targets_T.new_zeros((len(targets_T), 0))
    found = _no_statistics(none_T0, options.top_k)
    for part in _parts(len(targets_T), options.chunk):
        z_CV = logits(part)
        room_CV = torch.empty_like(z_CV) if options.with_entropy else None
        _measure(z_CV, targets_T[part], none_T0[part], options, found, part, room_CV)
    return {str(want): getattr(found, str(want)) for want in wants}


def _options(
    temperature: float, num_words: int, wants: Sequence[Want], chunk_elements: int
) -> _Options:
    number = next((want.number for want in wants if isinstance(want, TopK)), 0)
    if number > num_words:
        raise ValueError(f"the top {number} words of a vocabulary of {num_words}")
    return _Options(
        temperature,
        max(1, chunk_elements // num_words),
        "entropy" in wants,
        "vocab_mean" in wants,
        "likeliest" in wants,
        number,
    )


class _Statistics(NamedTuple):
    logprob: Tensor
    entropy: Tensor
    logsumexp: Tensor
    vocab_mean: Tensor
    likeliest: Tensor
    top_k: Tensor
    top_ids: Tensor
    top_rest: Tensor


STATISTICS = frozenset(_Statistics._fields)
"""The names of the wants that are answered here."""


class _Options(NamedTuple):
    temperature: float
    chunk: int
    with_entropy: bool
    with_mean: bool
    with_likeliest: bool
    top_k: int


class _TokenStatistics(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_T: Tensor,
        likely_TK: Tensor,
        options: _Options,
    ) -> tuple[Tensor, ...]:
        num_tokens = len(hidden_TD)
        found = _no_statistics(likely_TK, options.top_k)
        is_single = num_tokens <= options.chunk and any(ctx.needs_input_grad)
        room_CV = _room(hidden_TD, weight_VD, options.chunk, options.with_entropy or is_single)
        kept_CV = None
        for part in _parts(num_tokens, options.chunk):
            z_CV = _logits(hidden_TD[part], weight_VD, bias_V, options.temperature)
            log_total_C = _measure(
                z_CV, targets_T[part], likely_TK[part], options, found, part, room_CV
            )
            if is_single:
                kept_CV = z_CV.sub_(log_total_C[:, None])
        kept = (found.logsumexp, found.entropy, found.likeliest, kept_CV)
        ctx.save_for_backward(hidden_TD, weight_VD, bias_V, targets_T, likely_TK, *kept)
        ctx.options = options
        ctx.set_materialize_grads(False)
        if not options.with_entropy:
            ctx.mark_non_differentiable(found.entropy)
        if not options.with_likeliest:
            ctx.mark_non_differentiable(found.likeliest)
        ctx.mark_non_differentiable(found.vocab_mean, found.top_k, found.top_ids, found.top_rest)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_TD, weight_VD, bias_V, targets_T, likely_TK, *kept = ctx.saved_tensors
        logsumexp_T, entropy_T, likeliest_TK1, kept_CV = kept
        options: _Options = ctx.options
        told = dict(zip(_Statistics._fields, gradients, strict=True))
        by_logprob_T, by_entropy_T, by_logsumexp_T, by_likeliest_TK1 = (
            None if (by := told[name]) is None else by / options.temperature
            for name in ("logprob", "entropy", "logsumexp", "likeliest")
        )
        sums = _Sums(hidden_TD, weight_VD, bias_V, ctx.needs_input_grad[:3])
        others = (by_entropy_T, by_logsumexp_T, by_likeliest_TK1)
        only_logprob = all(by is None for by in others)
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
            factor_C1 = _of(by_logsumexp_T, part, logsumexp_T)[:, None]
            factor_C1 = factor_C1 - _of(by_logprob_T, part, logsumexp_T)[:, None]
            if by_entropy_T is not None:
                own_CV = None if logp_CV is kept_CV else logp_CV
                surprise_CV = torch.add(logp_CV, entropy_T[part, None], out=own_CV)
                factor_C1 = surprise_CV.mul_(-by_entropy_T[part, None]).add_(factor_C1)
            if by_likeliest_TK1 is None:
                p_CV.mul_(factor_C1)
            else:
                by_CK1, rest_C1 = by_likeliest_TK1[part], likeliest_TK1[part, -1:]
                _push_likeliest(p_CV, factor_C1, likely_TK[part], by_CK1, rest_C1)
            if by_logprob_T is not None:
                p_CV.scatter_add_(1, places_C1, by_logprob_T[part, None])
            sums.add(part, p_CV, None)
        return *sums.gradients(), None, None, None


def _push_likeliest(
    p_CV: Tensor, factor_CV: Tensor, likely_CK: Tensor, by_CK1: Tensor, rest_C1: Tensor
) -> None:
    """Makes of the probabilities `p_CV` their product with `factor_CV` ([C, 1] where it is the same
    for all words), plus the gradient by the logits of what `by_CK1` is a gradient by: the log-probs
    of the words `likely_CK`, and `rest_C1` of all others together. `factor_CV` is spent."""
    is_there_C1 = rest_C1 > math.log(2 * LEAST_REST)
    by_rest_C1 = torch.where(is_there_C1, by_CK1[:, -1:], 0.0)
    factor_CV.sub_(by_CK1[:, :-1].sum(1, keepdim=True) + by_rest_C1)
    own_CK = p_CV.gather(1, likely_CK) * factor_CV.expand_as(p_CV).gather(1, likely_CK)
    p_CV.mul_(factor_CV.add_(by_rest_C1 * torch.exp(-rest_C1)))
    p_CV.scatter_(1, likely_CK, own_CK + by_CK1[:, :-1])


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


def _no_statistics(likely_TK: Tensor, top_k: int) -> _Statistics:
    """Room for those of T tokens."""
    num, num_likely = likely_TK.shape
    shapes = [(num,)] * 4 + [(num, num_likely + 1), (num, top_k), (num, top_k), (num,)]
    found = (torch.zeros(s, dtype=torch.float32, device=likely_TK.device) for s in shapes)
    empty = _Statistics(*found)
    return empty._replace(top_ids=empty.top_ids.to(torch.int32))


def _measure(
    z_CV: Tensor,
    targets_C: Tensor,
    likely_CK: Tensor,
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
        top = z_CV.topk(options.top_k)
        found.top_k[part], found.top_ids[part] = top.values, top.indices
    peak_C = z_CV.amax(1)
    z_CV.sub_(peak_C[:, None])
    target_C = z_CV.gather(1, targets_C[:, None])[:, 0]
    likely_z_CK = z_CV.gather(1, likely_CK)
    exp_CV = torch.exp(z_CV, out=z_CV if room_CV is None else room_CV[: len(z_CV)])
    total_C = exp_CV.sum(1)
    log_total_C = total_C.log()
    found.logprob[part] = target_C - log_total_C
    found.logsumexp[part] = peak_C + log_total_C
    found.top_k[part] -= found.logsumexp[part, None]
    if options.with_entropy:
        found.entropy[part] = log_total_C - torch.linalg.vecdot(exp_CV, z_CV) / total_C
    if options.top_k:
        found.top_rest[part] = _log_rest(exp_CV, found.top_ids[part].long(), total_C)
    if options.with_likeliest:
        found.likeliest[part, :-1] = likely_z_CK - log_total_C[:, None]
        found.likeliest[part, -1] = _log_rest(exp_CV, likely_CK, total_C)
    return log_total_C


def _log_rest(exp_CV: Tensor, words_CK: Tensor, total_C: Tensor) -> Tensor:
    """log((total - sum of `exp` at the words) / total), [C]: summed over the others, since a
    difference would round a small rest away. Leaves `exp_CV` as it was."""
    own_CK = exp_CV.gather(1, words_CK)
    rest_C = exp_CV.scatter_(1, words_CK, 0.0).sum(1) / total_C
    exp_CV.scatter_(1, words_CK, own_CK)
    return rest_C.clamp(min=LEAST_REST).log()


def _of(values_T: Tensor | None, part: slice, like_T: Tensor) -> Tensor:
    return torch.zeros_like(like_T[part]) if values_T is None else values_T[part]
