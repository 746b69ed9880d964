"""What must hold for advantages that depend on a prompt's share of right samples.

Part of `manta.algorithms.contradictions`. Loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from manta.algorithms.settings import AlgorithmSettings


def difficulty_problems(settings: AlgorithmSettings) -> Iterator[str]:
    """What is wrong, one sentence each."""
    if not 0 < settings.penalized_share <= 1:
        yield f"penalized_share is {settings.penalized_share:g}, it must be above 0 and at most 1"
    if not 0 < settings.length_penalty <= 1:
        yield (
            f"length_penalty is {settings.length_penalty:g}, it must be above 0 and at most 1, so "
            "that a right sample is worth no less than a wrong one"
        )
    names = [each.name for each in settings.filters]
    if settings.advantage == "length_penalized" and "zero_variance" in names:
        yield (
            "advantage length_penalized shortens what prompts that are all right get, and the "
            "filter zero_variance leaves these out: remove the filter"
        )
    told = settings.difficulty
    if not 0 <= told.low <= told.high < math.inf or told.high == 0:
        yield (
            f"difficulty weighs from {told.low:g} to {told.high:g}: let low be 0 or more, and high "
            "no less than low and above 0 (0.4 and 1.5 in GRPO-LEAD)"
        )
    if not 0 <= told.midpoint <= 1:
        yield f"difficulty.midpoint is {told.midpoint:g}, a share: it must be within 0 to 1"
    if not 0 < told.steepness < math.inf:
        yield f"difficulty.steepness is {told.steepness:g}, it must be above 0"
