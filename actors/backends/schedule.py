"""The learning rate of a step. The caller asks for it and hands it to each update."""

from __future__ import annotations

from manta.actors.backends.settings import LearnerSettings


def learning_rate(settings: LearnerSettings, base: float, step: int, steps: int) -> float:
    """`base` after a linear ramp: step s (from 0) of `warmup_steps` w trains at base (s+1) / w.

    With `decay: linear` it then falls in a line, so that the step after the last of the stage's
    `steps` would train at 0.
    """
    warmup = settings.warmup_steps
    if step < warmup:
        return base * (step + 1) / warmup
    if settings.decay == "constant":
        return base
    return base * max(0.0, (steps - step) / max(1, steps - warmup))
