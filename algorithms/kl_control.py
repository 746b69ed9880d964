"""The KL coefficient that follows a target from step to step, where the settings name one.

Owns the coefficient between steps and how it moves. What is charged with it is
`manta.algorithms.objective`'s and `manta.algorithms.token_stage`'s.
"""

from __future__ import annotations

from dataclasses import replace

from manta.algorithms import kl
from manta.algorithms.aggregate import row_weight
from manta.algorithms.rank_sums import AllReduce, exact_sums
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.tokens import TokenBatch

_MOST = 0.2
"""What an error counts at most, either way."""


class KlControl:
    """`coef` is what the next step is charged with; between steps it is all there is to keep."""

    def __init__(self, settings: AlgorithmSettings) -> None:
        self._settings = settings
        self.coef = settings.kl.coef

    @property
    def is_adaptive(self) -> bool:
        return self._settings.kl.target is not None

    @property
    def settings(self) -> AlgorithmSettings:
        """The algorithm's, with `coef` as it is now."""
        if not self.is_adaptive:
            return self._settings
        return replace(self._settings, kl=replace(self._settings.kl, coef=self.coef))

    def follow(
        self, batch: TokenBatch, all_reduce: AllReduce, is_policy_frozen: bool = False
    ) -> dict[str, float]:
        """Moves `coef` for the next step by the KL of the samples of this one, `batch` holding this
        rank's tokens: `coef * (1 + gain * e)` with `e = clip(KL / target - 1, -0.2, 0.2)`: Ziegler
        et al., arXiv 1909.08593, section 2.2, whose gain K_beta is 0.1.

        The KL is the mean over samples, by row weight, of `log policy - log reference` summed over
        a sample's trained tokens, the policy being the one at the start of the step (`proximal_T`
        if there is one, else `behaviour_T`): unbiased, and may be negative by chance. It is summed
        exactly, so `coef` does not depend on how rows are shared out. Where nothing trains, or the
        policy does not move, `coef` stays.

        Returns `kl/coef`, what this step was charged with, and `kl/measured`; nothing without a
        target. Every rank calls it: `all_reduce` is called once with a target, else not at all.
        Raises ValueError where log-probs are lacking.
        """
        target, gain = self._settings.kl.target, self._settings.kl.gain
        if target is None:
            return {}
        old_T = batch.start_T
        if old_T is None or batch.reference_T is None:
            raise ValueError(
                "kl.target needs log-probs of the sampling policy and of the reference for every "
                "token: let the policy sample and run reference workers, or remove kl.target"
            )
        figures = {"kl/coef": self.coef}
        weight_R = row_weight(batch.coefficients_R).double()
        trains_R = batch.row_T.bincount(minlength=len(weight_R)) > 0
        weight_T = weight_R[batch.row_T]
        # A token that does not train may have any log-prob, also infinite
        told_T = kl.k1(old_T.double(), batch.reference_T.double())[weight_T != 0]
        total, rows = exact_sums([weight_T[weight_T != 0] * told_T, weight_R[trains_R]], all_reduce)
        if rows == 0:
            return figures
        figures["kl/measured"] = total / rows
        if not is_policy_frozen:
            error = min(max(total / rows / target - 1, -_MOST), _MOST)
            self.coef *= 1 + gain * error
        return figures
