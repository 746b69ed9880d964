"""What a run file says of a stage's curriculum, which `manta.orchestrator.curriculum` follows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CurriculumSettings:
    """`nearest_to`: tasks come the earlier in an epoch the nearer their pass rate is to it, so that
    1 is easy to hard, 0 hard to easy; None: in random order. A task whose pass rate is not within
    `low` to `high` is left out of the next `rest_epochs` epochs.
    `component` tells which samples pass (None: the one that evaluation counts, else `correct`)."""

    nearest_to: float | None = None
    low: float = 0.0
    high: float = 1.0
    rest_epochs: int = 1
    component: str | None = None

    @property
    def leaves_out(self) -> bool:
        """May a task be left out of an epoch?"""
        return self.low > 0 or self.high < 1

    def is_within(self, rate: float) -> bool:
        """Is a task of this pass rate never left out?"""
        return self.low <= rate <= self.high
