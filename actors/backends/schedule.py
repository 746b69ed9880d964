"""The learning rate of a step. The caller asks for it and hands it to each update."""

from __future__ import annotations

from manta.actors.backends.settings import LearnerSettings


def learning_rate(settings: LearnerSettings, base: float, step: int) -> float:
    """`base` after a linear ramp: step s (from 0) of `warmup_steps` w trains at base (s+1) / w."""
    if settings.warmup_steps <= 0:
        return base
    return base * min(1.0, (step + 1) / settings.warmup_steps)
