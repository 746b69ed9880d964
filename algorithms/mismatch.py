"""How far engine and learner disagree on the tokens of a step, as numbers that add up over ranks.

Compares the behaviour log-prob that the engine recorded with the proximal one, the learner's at the
start of the step. Tokens sampled under the weights that the learner holds are counted apart from
stale ones: only the former differ by nothing but numerics, the latter also by what was learnt
since. What is done about a disagreement is decided elsewhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from manta.algorithms import kl, log_histogram
from manta.algorithms.off_policy import correct
from manta.algorithms.part_settings import OffPolicySettings
from manta.algorithms.rank_sums import AllReduce
from manta.algorithms.tokens import TokenBatch

KINDS = ("same_version", "stale")
QUANTILES = {"p01": 0.01, "p50": 0.5, "p99": 0.99}
_SUMS = 6
_SHARE = {"truncate": "truncated_share", "mask": "masked_share"}


class MismatchTally:
    """Filled token batch by token batch; the result depends on neither their cut nor the ranks.

    Quantiles come from a histogram over the log-ratio: the log-ratio that is reported lies within
    2% of the true one (0 below 1e-9).
    """

    def __init__(self, settings: OffPolicySettings) -> None:
        self._settings = settings
        self._sums = torch.zeros(len(KINDS), _SUMS, dtype=torch.float64)
        self._histogram = torch.zeros(len(KINDS), log_histogram.BINS, dtype=torch.float64)
        self._greatest = torch.zeros(len(KINDS), dtype=torch.float64)

    def add(self, batch: TokenBatch, proximal_T: Tensor) -> None:
        """Counts the tokens of `batch` that train; `proximal_T` float[T] is the log-prob under the
        learner's policy at the start of the step. Nothing is counted without behaviour log-probs.
        """
        if batch.behaviour_T is None:
            return
        # Nobody sampled a given token
        trains_T = (batch.mean_T != 0) & ~batch.behaviour_T.isnan()
        same_T = batch.same_version_T
        if same_T is None:
            same_T = torch.zeros_like(trains_T)
        proximal_T = torch.where(trains_T, proximal_T.detach(), 0.0)
        behaviour_T = torch.where(trains_T, batch.behaviour_T, 0.0)
        is_bounded_T = correct(self._settings, proximal_T, behaviour_T, batch.row_T).is_bounded_T
        for kind, is_kind_T in enumerate((same_T, ~same_T)):
            at = trains_T & is_kind_T
            self._add(kind, proximal_T[at].double(), behaviour_T[at].double(), is_bounded_T[at])

    def _add(
        self, kind: int, proximal_T: Tensor, behaviour_T: Tensor, is_bounded_T: Tensor
    ) -> None:
        log_ratio_T = proximal_T - behaviour_T
        ratio_T = torch.exp(log_ratio_T)
        columns = (
            torch.ones_like(log_ratio_T),
            log_ratio_T.abs(),
            kl.k3(behaviour_T, proximal_T),
            ratio_T,
            ratio_T.square(),
            is_bounded_T.double(),
        )
        self._sums[kind] += torch.stack([column.sum() for column in columns])
        self._histogram[kind] += log_histogram.counts(log_ratio_T)
        if len(log_ratio_T):
            self._greatest[kind] = torch.maximum(self._greatest[kind], log_ratio_T.abs().amax())

    def figures(self, all_reduce: AllReduce, rank: int, world_size: int) -> dict[str, float]:
        """Over all ranks, `mismatch/KIND/NAME` for the kinds `same_version` and `stale` that have
        tokens: `tokens`; `gap_mean` and `gap_max` of |proximal - behaviour| in log-probs; `kl`, the
        k3 estimate of KL(behaviour || proximal); `ratio_p01`, `ratio_p50`, `ratio_p99` of proximal
        over behaviour; `ess`, the effective sample size (sum w)^2 / (n sum w^2) of these ratios, 1
        where they are equal; and the share of tokens that the correction truncates or masks.

        Every rank calls it, also one without tokens: `all_reduce` is called once.
        """
        # A maximum as a sum: every rank has a column of its own.
        greatest = torch.zeros(len(KINDS), world_size, dtype=torch.float64)
        greatest[:, rank] = self._greatest
        parts = [self._sums, self._histogram, greatest]
        total = all_reduce(torch.cat(parts, dim=1))
        sums, histogram, greatest = torch.tensor_split(
            total, (_SUMS, _SUMS + self._histogram.shape[1]), dim=1
        )
        figures: dict[str, float] = {}
        for kind, name in enumerate(KINDS):
            if sums[kind, 0] > 0:
                of_kind = self._of_kind(sums[kind], histogram[kind], greatest[kind])
                figures |= {f"mismatch/{name}/{what}": value for what, value in of_kind.items()}
        return figures

    def _of_kind(self, sums: Tensor, histogram: Tensor, greatest: Tensor) -> dict[str, float]:
        num, gaps, kls, ratios, squares, bounded = sums.tolist()
        figures = {
            "tokens": num,
            "gap_mean": gaps / num,
            "gap_max": float(greatest.amax()),
            "kl": kls / num,
            "ess": ratios**2 / (num * squares) if squares > 0 else math.nan,
        }
        for name, quantile in QUANTILES.items():
            log_ratio = log_histogram.quantile(histogram, quantile)
            # At most 700 so that the exponential is finite
            figures[f"ratio_{name}"] = math.exp(min(log_ratio, 700.0))
        if self._settings.correction in _SHARE:
            figures[_SHARE[self._settings.correction]] = bounded / num
        return figures
