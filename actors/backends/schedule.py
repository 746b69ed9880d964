"""The learning rates of a step. The caller asks for them and hands them to each update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Schedule:
    """A linear ramp to `peak` over `warmup_steps`, then constant or falling in a line."""

    peak: float
    warmup_steps: int = 0
    decay: Literal["constant", "linear"] = "constant"

    def at(self, step: int, steps: int) -> float:
        """The learning rate of `step` (from 0) of a stage of `steps`.

        In the ramp it is peak (step + 1) / warmup_steps. With `decay: linear` it then falls so that
        the step after the stage's last would train at 0.
        """
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.decay == "constant":
            return self.peak
        return self.peak * max(0.0, (steps - step) / max(1, steps - self.warmup_steps))


@dataclass(frozen=True, slots=True)
class ResidentRates:
    """What trains in a step beside the policy: learning rates by the residents' names. With
    `is_policy_frozen` nothing else does."""

    by_name: Mapping[str, float] = field(default_factory=dict)
    is_policy_frozen: bool = False


NO_RESIDENTS = ResidentRates()
