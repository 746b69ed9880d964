"""What must hold for a reference whose logits are made of those of several models.

Whether their names fit is `manta.orchestrator.name_check`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from manta.orchestrator.reference_config import StageReferenceConfig


def combination_problems(told: StageReferenceConfig) -> Iterator[tuple[str, str]]:
    """(key below `reference`, what is wrong)"""
    if told.combination is None:
        return
    if told.model is not None:
        yield ".combine", f"the reference is '{told.model}' already (reference.model): remove one"
    if told.refresh is not None:
        yield (
            ".refresh",
            "a combination of several models stands still, and does not follow the policy: remove "
            "it, or the combination",
        )
    for name, coefficient in told.combine.items():
        if not math.isfinite(coefficient):
            yield ".combine", f"'{name}' counts {coefficient}, it must be a finite number"
    if not any(told.combine.values()):
        yield (
            ".combine",
            "no model counts, so that there is nothing to go on from: give one the number 1, such "
            "as {stage:dpo: 1}",
        )
    yield from _contrast(told)


def _contrast(told: StageReferenceConfig) -> Iterator[tuple[str, str]]:
    contrast = told.contrast
    if contrast is None:
        return
    if contrast.toward.strip() == contrast.away.strip():
        yield (
            ".contrast",
            f"goes from '{contrast.away}' to itself, which changes nothing: name two models",
        )
    if not 0 <= contrast.scale < math.inf:
        yield ".contrast.scale", f"is {contrast.scale:g}, must be 0 or more (15 is usual)"
    for name, value in (("least", contrast.least), ("beta", contrast.beta)):
        if not 0 < value < math.inf:
            yield f".contrast.{name}", f"is {value:g}, must be above 0"
