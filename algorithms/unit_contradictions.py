"""What must hold for losses without an importance ratio: those that couple rows, and imitation.

Part of `manta.algorithms.contradictions`. Loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from manta.algorithms.part_settings import MarginWeightSettings
from manta.algorithms.settings import PAIR_LOSSES, AlgorithmSettings


def imitation_problems(settings: AlgorithmSettings) -> Iterator[str]:
    """Of `cross_entropy`."""
    if settings.loss != "cross_entropy":
        return
    unused = _useless(
        settings, {"kl in the reward": settings.kl.coef != 0 and settings.kl.placement == "reward"}
    )
    for name in unused:
        yield (
            f"cross_entropy uses neither advantages nor a ratio, so `{name}` has no effect: remove "
            "it"
        )
    if settings.kl.coef != 0 and settings.samples_from == "given":
        yield (
            "the KL estimators need tokens that the policy sampled, given answers are not: set "
            "kl.coef to 0"
        )
    if settings.keep_best < 0:
        yield f"keep_best is {settings.keep_best}, it must be 0 (all) or more"
    elif settings.keep_best >= settings.samples_per_prompt and settings.keep_best > 0:
        yield (
            f"keep_best is {settings.keep_best} of {settings.samples_per_prompt} samples, which "
            "chooses nothing: set samples_per_prompt higher, or keep_best to 0"
        )
    if settings.keep_above is not None and not math.isfinite(settings.keep_above):
        yield f"keep_above is {settings.keep_above}, it must be a finite number (null: no bound)"
    temperature = settings.reward_temperature
    if temperature is not None and not 0 < temperature < math.inf:
        yield (
            f"reward_temperature is {temperature:g}, it must be above 0 (null: all rows count the "
            "same)"
        )


def unit_problems(settings: AlgorithmSettings) -> Iterator[str]:
    """Of a loss that couples rows, what it couples, and what it has no use for."""
    if not settings.is_coupled:
        if settings.unit != "row":
            yield (
                f"unit is {settings.unit} but the loss {settings.loss} looks at each row by "
                f"itself: set unit to row, or loss to {' or '.join((*PAIR_LOSSES, 'pacs'))}"
            )
        return
    if settings.loss == "pacs":
        yield from _questions(settings)
    else:
        yield from _pairs(settings) if settings.is_paired else _labels(settings)
    if not 0 < settings.beta < math.inf:
        yield f"beta is {settings.beta:g}, it must be above 0 (0.1 is usual)"
    unused = _useless(
        settings, {"kl.coef": settings.kl.coef != 0, "entropy_coef": settings.entropy_coef != 0}
    )
    if settings.loss == "pacs":
        unused = [name for name in unused if not name.startswith("proximal")]
    for name in unused:
        yield f"the loss {settings.loss} has no use for `{name}`: remove it"


def _pairs(settings: AlgorithmSettings) -> Iterator[str]:
    if settings.unit == "row":
        yield (
            f"the loss {settings.loss} compares samples of a prompt: set unit to pair (every pair "
            "counts the same) or group (every prompt does)"
        )
    if settings.samples_per_prompt == 1 and settings.pairs != "companion":
        yield (
            "samples_per_prompt is 1, and a pair takes two samples of a prompt: set it to 2 or more"
        )
    if settings.margin_weight is not None:
        yield from _margin_weight(settings.margin_weight)
    for name in ("pair_margin", "target_margin", "exploration_coef"):
        value = getattr(settings, name)
        if not 0 <= value < math.inf:
            yield f"{name} is {value:g}, it must be 0 or more"


def _margin_weight(told: MarginWeightSettings) -> Iterator[str]:
    if not 0 < told.low < 1 < told.high < math.inf:
        yield (
            f"margin_weight goes from {told.high:g} down to {told.low:g}: let low be above 0 and "
            "below 1, and high above 1 (0.5 and 2 in MADPO)"
        )
    if not 0 <= told.threshold < math.inf:
        yield f"margin_weight.threshold is {told.threshold:g}, it must be 0 or more"
    if not 0 < told.steepness < math.inf:
        yield f"margin_weight.steepness is {told.steepness:g}, it must be above 0"


def _questions(settings: AlgorithmSettings) -> Iterator[str]:
    if settings.unit != "group":
        yield (
            f"unit is {settings.unit} but the loss pacs compares all samples of a prompt: set unit "
            "to group"
        )
    if settings.samples_per_prompt == 1:
        yield (
            "samples_per_prompt is 1, and the loss pacs compares the samples of a prompt: set it "
            "to 2 or more"
        )
    if settings.samples_from == "given":
        yield (
            "the loss pacs compares with the policy that sampled, and given answers have none: set "
            "samples_from to policy"
        )
    if not math.isfinite(settings.desirable_above):
        yield f"desirable_above is {settings.desirable_above}, it must be a finite number"


def _labels(settings: AlgorithmSettings) -> Iterator[str]:
    if settings.unit != "row":
        yield (
            f"unit is {settings.unit} but the loss {settings.loss} learns from each row by its "
            "label: set unit to row"
        )
    if settings.reference_point == "samples" and settings.samples_from == "given":
        yield (
            "reference_point is samples, an estimate of the KL from what the policy sampled, and "
            "given answers are not: set reference_point to other_class, or samples_from to policy"
        )
    if not math.isfinite(settings.desirable_above):
        yield f"desirable_above is {settings.desirable_above}, it must be a finite number"
    weights = (settings.desirable_weight, settings.undesirable_weight)
    for name, value in zip(("desirable_weight", "undesirable_weight"), weights, strict=True):
        if not 0 <= value < math.inf:
            yield f"{name} is {value:g}, it must be 0 or more"
    if weights == (0, 0):
        yield "desirable_weight and undesirable_weight are 0, so that nothing trains: set one"


def _useless(settings: AlgorithmSettings, more: Mapping[str, bool]) -> list[str]:
    """What is set of the settings that only advantages and ratios need, and of `more`."""
    is_set = {
        f"advantage: {settings.advantage}": settings.advantage != "reward",
        "whiten_advantages": settings.whiten_advantages,
        "filters": bool(settings.filters),
        "proximal: learner": settings.proximal == "learner",
        "off_policy": settings.off_policy.correction != "none",
        **more,
    }
    return [name for name, value in is_set.items() if value]
