"""What must hold for a loss that treats some tokens of a step apart, and for a KL coefficient that
follows a target. Loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from manta.algorithms.part_settings import CovarianceSettings, KlSettings
from manta.algorithms.settings import AlgorithmSettings

_DEFAULTS = CovarianceSettings()
_READS: Mapping[str, tuple[str, ...]] = {
    "clip_cov": ("share", "low", "high"),
    "kl_cov": ("share", "coef", "estimator"),
}


def choice_problems(settings: AlgorithmSettings, preset: AlgorithmSettings) -> Iterator[str]:
    """`preset` is the one that the settings started from: what came with it was not asked for."""
    told = settings.covariance
    for name in ("share", "low", "high", "coef", "estimator"):
        value = getattr(told, name)
        by = [loss for loss, reads in _READS.items() if name in reads]
        if settings.loss in by or value in (
            getattr(_DEFAULTS, name),
            getattr(preset.covariance, name),
        ):
            continue
        yield (
            f"covariance.{name} is {value} but loss is {settings.loss}, which does not read it: "
            f"remove it, or set loss to {' or '.join(by)}"
        )
    if not settings.chooses_tokens:
        return
    if not 0 < told.share <= 1:
        yield (
            f"covariance.share is {told.share:g}, it must be above 0 and at most 1 (2e-4 is usual)"
        )
    if settings.loss == "clip_cov" and not told.low < told.high:
        yield (
            f"covariance.low is {told.low:g} and covariance.high {told.high:g}, between which no "
            "covariance lies: set low below high (1 and 5 are usual)"
        )
    if settings.loss == "kl_cov" and not 0 < told.coef < math.inf:
        yield f"covariance.coef is {told.coef:g}, it must be above 0 (1 is usual)"


def target_problems(settings: AlgorithmSettings) -> Iterator[str]:
    kl = settings.kl
    if kl.target is None:
        if kl.gain != KlSettings().gain:
            yield f"kl.gain is {kl.gain:g} but there is no kl.target: set one, or remove it"
        return
    if not 0 < kl.target < math.inf:
        yield f"kl.target is {kl.target:g}, it must be above 0: nats a sample (null: no target)"
    if not 0 < kl.gain < 5:
        yield (
            f"kl.gain is {kl.gain:g}, it must be above 0 and below 5, where a step could make the "
            "coefficient 0 (0.1 is usual)"
        )
    if kl.coef == 0:
        yield (
            f"kl.target is {kl.target:g} but kl.coef, from which the coefficient begins, is 0: set "
            "kl.coef, or remove kl.target"
        )
    if settings.samples_from == "given":
        yield (
            "kl.target is told by what the policy samples, and it samples nothing here: remove it, "
            "or set samples_from to policy"
        )
    if settings.advantage == "none":
        yield (
            "kl.target has no meaning where the KL alone trains (advantage none): remove it, or "
            "set another advantage"
        )
