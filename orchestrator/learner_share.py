"""What part of parameters, gradient and optimizer state each learner rank holds, by backend.

After Rajbhandari et al., ZeRO, arXiv 1910.02054, section 5, with float32 masters and gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

from manta.actors.backends.deepspeed_config import MOST_BUCKET
from manta.actors.backends.settings import LearnerSettings


@dataclass(frozen=True, slots=True)
class LearnerShare:
    """Parts of the whole, from 0 to 1. `working` are weights in the model's dtype beside the
    masters; `gathers`: layers are whole only while they compute; `bucket`: float32 elements of a
    buffer that gradients travel in."""

    masters: float
    working: float
    gradient: float
    states: float
    gathers: bool = False
    bucket: int = 0


def learner_share(settings: LearnerSettings, count: int, element_bytes: int) -> LearnerShare:
    """For a model of `count` parameters of `element_bytes`."""
    part = 1 / settings.workers
    copies = 0.0 if element_bytes == 4 else 1.0
    if settings.backend == "fsdp":
        return LearnerShare(part, 0.0, part, part, gathers=True)
    if settings.backend != "deepspeed" or settings.deepspeed.stage == 0:
        return LearnerShare(1.0, copies, 1.0, 1.0)
    # Whatever the stage, the gradient is whole on every rank until the last micro-batch.
    bucket = min(count, MOST_BUCKET)
    if settings.deepspeed.stage == 3:
        return LearnerShare(part, 0.0, 1.0, part, gathers=True, bucket=bucket)
    # Below stage 3 the model's own weights are whole too, beside the shared masters.
    return LearnerShare(part, 1.0, 1.0, part, bucket=bucket)
