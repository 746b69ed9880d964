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
    masters; `stepped` is the gradient's copy that an optimizer steps by, where that is not the
    gradient itself. `gathers`: layers are whole only while they compute; `bucket`: float32 elements
    of a buffer that gradients travel in. What is `on_host`, by these names, leaves the GPU."""

    masters: float
    working: float
    gradient: float
    states: float
    stepped: float = 0.0
    gathers: bool = False
    bucket: int = 0
    on_host: frozenset[str] = frozenset()


def learner_share(settings: LearnerSettings, count: int, element_bytes: int) -> LearnerShare:
    """For a model of `count` parameters of `element_bytes`, on the fewest ranks there may be."""
    part = 1 / settings.ranks.min
    copies = 0.0 if element_bytes == 4 else 1.0
    own = settings.deepspeed
    if settings.backend == "fsdp":
        held = frozenset({"masters", "gradient", "states"})
        on_host = held if settings.fsdp.offload == "cpu" else frozenset()
        return LearnerShare(part, 0.0, part, part, gathers=True, on_host=on_host)
    if settings.backend != "deepspeed" or own.stage == 0:
        return LearnerShare(1.0, copies, 1.0, 1.0)
    # Whatever the stage, the gradient is whole on every rank until the last micro-batch.
    return LearnerShare(
        part,
        # Below stage 3 the model's own weights are whole, beside the shared masters.
        part if own.stage == 3 else 1.0,
        1.0,
        part,
        stepped=part,
        gathers=own.stage == 3,
        bucket=min(count, MOST_BUCKET),
        on_host=frozenset({"masters", "stepped", "states"})
        if own.offload_optimizer == "cpu"
        else frozenset(),
    )
