"""Distributions over the tokens of a step: of the ratios of all its updates, and of its advantages.

Numbers that add up over micro-batches, updates and ranks. How engine and learner disagree before
the first update is `manta.algorithms.mismatch`'s.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from manta.algorithms import log_histogram
from manta.algorithms.mismatch import QUANTILES
from manta.algorithms.rank_sums import AllReduce

ADVANTAGE_QUANTILES = {"p05": 0.05, "p50": 0.5, "p95": 0.95}
LARGEST_LOG_WEIGHT = 300.0
"""The square of a larger weight would be no float64."""
_RATIO, _ADVANTAGE = range(2)
_SUMS = 4


class Distributions(NamedTuple):
    """`figures` by name; `histograms` by name as (edges, counts), in bins of equal width."""

    figures: dict[str, float]
    histograms: dict[str, tuple[list[float], list[float]]]


class StepTally:
    """Filled token batch by token batch; the result depends on neither their cut nor the ranks.

    Quantiles are those of `manta.algorithms.log_histogram`.
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(2, _SUMS, dtype=torch.float64)
        self._histograms = torch.zeros(2, log_histogram.BINS, dtype=torch.float64)

    def add_ratios(
        self,
        ratio_T: Tensor | None,
        current_T: Tensor,
        behaviour_T: Tensor | None,
        counts_T: Tensor,
    ) -> None:
        """Of tokens of one update: the ratio that the loss bounds (None: it has none), and the
        log-probs under the current policy and under the one that sampled; those count where
        `counts_T` (bool[T]), but for given tokens, which nobody sampled (NaN)."""
        if ratio_T is not None:
            self._histograms[_RATIO] += log_histogram.counts(torch.log(ratio_T[counts_T]))
        if behaviour_T is None:
            return
        counts_T = counts_T & ~behaviour_T.isnan()
        log_weight_T = (current_T[counts_T] - behaviour_T[counts_T]).double()
        weight_T = torch.exp(log_weight_T.clamp(max=LARGEST_LOG_WEIGHT))
        self._add(_RATIO, weight_T)

    def add_advantages(self, advantage_T: Tensor, counts_T: Tensor) -> None:
        """Of tokens of the step, each once."""
        counted_T = advantage_T[counts_T].double()
        self._histograms[_ADVANTAGE] += log_histogram.counts(counted_T)
        self._add(_ADVANTAGE, counted_T)

    def _add(self, kind: int, values_T: Tensor) -> None:
        columns = (
            torch.ones_like(values_T),
            values_T,
            values_T.square(),
            torch.eq(values_T, 0).double(),
        )
        self._sums[kind] += torch.stack([column.sum() for column in columns])

    def distributions(self, all_reduce: AllReduce) -> Distributions:
        """Over all ranks. `ratio_p01`, `ratio_p50` and `ratio_p99` of the loss's ratio over the
        tokens of all updates; `ess`, the effective sample size `(sum w)^2 / (n sum w^2)` of their
        importance weights w, current over behaviour policy (Kong, "A note on importance sampling
        using standardized weights", 1992), as a share; `advantage/NAME` over the step's tokens:
        mean, std, quantiles, and the share that is exactly 0. Histograms: `log_ratio` and
        `advantage`. What nothing was counted of is left out.

        Every rank calls it, also one without tokens: `all_reduce` is called once.
        """
        total = all_reduce(torch.cat([self._sums, self._histograms], dim=1))
        sums, histograms = total[:, :_SUMS], total[:, _SUMS:]
        figures: dict[str, float] = {}
        drawn: dict[str, tuple[list[float], list[float]]] = {}
        if histograms[_RATIO].sum() > 0:
            for name, share in QUANTILES.items():
                log_ratio = log_histogram.quantile(histograms[_RATIO], share)
                figures[f"ratio_{name}"] = math.exp(min(log_ratio, 700.0))
            drawn["log_ratio"] = log_histogram.drawn(histograms[_RATIO])
        num, weights, squares, _ = sums[_RATIO].tolist()
        if squares > 0:
            figures["ess"] = weights * weights / (num * squares)
        if sums[_ADVANTAGE, 0] > 0:
            figures |= _of_advantages(sums[_ADVANTAGE], histograms[_ADVANTAGE])
            drawn["advantage"] = log_histogram.drawn(histograms[_ADVANTAGE])
        return Distributions(figures, drawn)


def _of_advantages(sums: Tensor, histogram: Tensor) -> dict[str, float]:
    num, total, squares, zeros = sums.tolist()
    mean = total / num
    figures = {
        "advantage/mean": mean,
        "advantage/std": math.sqrt(max(0.0, squares / num - mean * mean)),
        "advantage/zero_share": zeros / num,
    }
    for name, share in ADVANTAGE_QUANTILES.items():
        figures[f"advantage/{name}"] = log_histogram.quantile(histogram, share)
    return figures
