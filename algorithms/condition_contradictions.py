"""What must hold where rows train otherwise than they were sampled: tags by reward, feedback.

Part of `manta.algorithms.contradictions`. Loads no torch. Whether rewards and environment go with
it is `manta.orchestrator`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from manta.algorithms.condition import ConditionSettings
from manta.algorithms.settings import AlgorithmSettings


def condition_problems(settings: AlgorithmSettings) -> Iterator[str]:
    """What is wrong, one sentence each."""
    condition = settings.condition
    if condition is not None:
        yield from _loss(
            settings,
            "condition",
            "learns rows under other prompts than they were sampled with",
            "null",
        )
        yield from _classes(condition)
        lowest = min(condition.bounds, default=-math.inf)
        if settings.keep_above is not None and settings.keep_above >= lowest:
            yield (
                f"keep_above is {settings.keep_above:g} and condition.bounds begin at {lowest:g}, "
                "so that no row of the first tag would train, and there is nothing to tell apart: "
                "remove one of the two"
            )
    if settings.train_feedback:
        yield from _loss(
            settings, "train_feedback", "learns tokens that the policy did not sample", "false"
        )


def _loss(settings: AlgorithmSettings, name: str, does: str, off: str) -> Iterator[str]:
    """Nothing may be held against the log-probs of whoever sampled."""
    if settings.loss != "cross_entropy":
        yield (
            f"{name} {does}, and the loss {settings.loss} is of rows as they were sampled: set "
            f"loss to cross_entropy, or {name} to {off}"
        )
    elif settings.kl.coef != 0:
        yield (
            f"{name} {does}, and the KL estimators need tokens as the policy sampled them: set "
            f"kl.coef to 0, or {name} to {off}"
        )


def _classes(condition: ConditionSettings) -> Iterator[str]:
    tags, bounds = condition.tags, condition.bounds
    repeated = sorted({tag for tag in tags if tags.count(tag) > 1})
    if repeated:
        yield (
            f"condition.tags: {repeated[0]!r} stands in them more than once, and rows of two "
            "classes could not be told apart: give each class a text of its own"
        )
    elif len(tags) < 2:
        yield f"condition.tags: is {list(tags)}, give two at least, the worst one first"
    elif len(bounds) != len(tags) - 1:
        yield (
            f"condition.bounds: {len(tags)} tags are parted by {len(tags) - 1}, found "
            f"{len(bounds)}: {list(bounds)}"
        )
    rises = all(low < high for low, high in pairwise(bounds))
    if not rises or not all(map(math.isfinite, bounds)):
        yield f"condition.bounds: is {list(bounds)}, they must be finite numbers that rise"
