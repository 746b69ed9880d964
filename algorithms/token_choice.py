"""The choice of tokens by covariance: which tokens of a step Clip-Cov and KL-Cov treat apart.

The covariance of a token is `(logp - mean logp) * (A - mean A)`: The Entropy Mechanism of RL for
Reasoning LMs (arXiv 2505.22617, section 4.2). Tokens of a large one are those by which entropy
falls. Owns covariances, the draw and the ranking; what becomes of chosen tokens is
`manta.algorithms.losses`'.

Chosen once a step, over all its tokens on all ranks, from the log-probs at its start: so neither
sharding nor micro-batches nor the number of updates change the choice, to the bit for the same
log-probs. The code that was published with the paper (also verl's `compute_policy_loss_clip_cov`
and `compute_policy_loss_kl_cov`) chooses anew in each micro-batch, from its tokens alone, under the
policy as it is being updated, and there Clip-Cov passes over tokens that the ratio's bounds clip.
At the start of a step the two policies are one and there is nothing clipped: for a step of one
update in one micro-batch the choice is the same, but for the draw.

Shapes: T trained tokens of this rank's R rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from manta.algorithms.rank_sums import AllReduce, exact_sums
from manta.algorithms.settings import AlgorithmSettings

_DIGIT = 8
"""Bits that one round of the selection looks at."""


def choose(
    settings: AlgorithmSettings,
    logprob_T: Tensor,
    advantage_T: Tensor,
    counts_T: Tensor,
    tickets_T: Tensor,
    all_reduce: AllReduce,
) -> Tensor:
    """The chosen tokens, bool[T], of those where `counts_T` (bool[T]) and both numbers are finite.

    Of n such tokens on all ranks `max(1, floor(share * n))` are chosen. `clip_cov` draws them from
    those with `low <= covariance <= high`, all of these where they are fewer: the ones of the
    smallest `tickets_T` (see `tickets`), which is a draw without replacement. `kl_cov` takes the
    largest covariances; among equal ones, to the bit, those of the smallest tickets. Every token
    counts the same, whatever its row's weight.

    Every rank calls it, also one without tokens.
    """
    told_T = counts_T & torch.isfinite(logprob_T) & torch.isfinite(advantage_T)
    logprobs_T = torch.where(told_T, logprob_T.double(), 0.0)
    advantages_T = torch.where(told_T, advantage_T.double(), 0.0)
    num, logprobs, advantages = exact_sums([told_T, logprobs_T, advantages_T], all_reduce)
    if num == 0:
        return torch.zeros_like(told_T)
    covariance_T = (logprobs_T - logprobs / num) * (advantages_T - advantages / num)
    wanted = max(1, int(settings.covariance.share * num))
    if settings.loss == "clip_cov":
        low, high = settings.covariance.low, settings.covariance.high
        between_T = told_T & (low <= covariance_T) & (covariance_T <= high)
        return smallest([tickets_T], between_T, wanted, all_reduce)
    return smallest([_descending(covariance_T), tickets_T], told_T, wanted, all_reduce)


def tickets(seed: int, step: int, row_R: Tensor, num_tokens_R: Tensor) -> Tensor:
    """A random number for each token of rows `row_R` (int64[R], their places in the step's plan)
    with `num_tokens_R` tokens each: int64[T], different for all tokens of a step, the same wherever
    they are.

    A hash of seed, step, row and place in the row: the finaliser of SplitMix64 (Steele, Lea and
    Flood, "Fast splittable pseudorandom number generators", 2014), which maps no two numbers to
    one. Rows and places must be below 2^31.
    """
    row_T = torch.repeat_interleave(row_R, num_tokens_R)
    starts_R = num_tokens_R.cumsum(0) - num_tokens_R
    place_T = torch.arange(len(row_T)) - torch.repeat_interleave(starts_R, num_tokens_R)
    of_step = _mixed(_mixed(torch.tensor(seed % 2**63)) + step)
    return _mixed(((row_T << 32) | place_T) ^ of_step)


def smallest(
    keys: Sequence[Tensor], candidate_T: Tensor, wanted: int, all_reduce: AllReduce
) -> Tensor:
    """The `wanted` candidates of the smallest keys over all ranks, bool[T]; all candidates where
    they are fewer. `keys`, int64[T] each and read as unsigned, count in their order, so that the
    second decides where the first are equal; no two candidates may have all keys equal.

    A radix selection: each round counts the candidates that are still open by the next 8 bits of
    their keys, over all ranks, and settles all but those in one bin. It ends with the round that
    leaves no doubt.
    """
    chosen_T, open_T = torch.zeros_like(candidate_T), candidate_T
    num_open = int(all_reduce(candidate_T.sum().double()))
    missing = min(wanted, num_open)
    for key_T in keys:
        for shift in range(64 - _DIGIT, -1, -_DIGIT):
            if missing == num_open:
                return chosen_T | open_T
            digit_T = (key_T >> shift) & (2**_DIGIT - 1)
            counts = all_reduce(torch.bincount(digit_T[open_T], minlength=2**_DIGIT).double())
            up_to = counts.cumsum(0)
            border = int(torch.searchsorted(up_to, float(missing)))
            chosen_T = chosen_T | (open_T & (digit_T < border))
            open_T = open_T & (digit_T == border)
            num_open = int(counts[border])
            missing -= int(up_to[border]) - num_open
    assert missing == num_open, "two tokens have the same ticket"
    return chosen_T | open_T


def _descending(values_T: Tensor) -> Tensor:
    """int64[T], which read as unsigned rise as the values, float64[T], fall."""
    # From 0.0 so that both zeros become one
    bits_T = (0.0 - values_T).view(torch.int64)
    # The bits of negative numbers rise as these fall
    lowest = torch.iinfo(torch.int64).min
    return torch.where(bits_T < 0, torch.bitwise_not(bits_T), torch.bitwise_xor(bits_T, lowest))


def _mixed(values: Tensor) -> Tensor:
    values = (values ^ _shifted(values, 30)) * -0x40A7B892E31B1A47
    values = (values ^ _shifted(values, 27)) * -0x6B2FB644ECCEEE15
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """To the right, zeros moving in."""
    return torch.bitwise_and(values >> bits, (1 << (64 - bits)) - 1)
