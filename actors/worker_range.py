"""How many workers a role has: a number, or as many as there is work for, between two bounds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerRange:
    """From `min`, which a run starts with, to `max`. Those that were not needed for `idle_seconds`,
    and some steps, are let go."""

    min: int
    max: int
    idle_seconds: float = 60.0

    @property
    def is_fixed(self) -> bool:
        return self.min == self.max

    @property
    def span(self) -> int:
        """How many may come beside the first."""
        return self.max - self.min

    def __str__(self) -> str:
        return f"{self.min}" if self.is_fixed else f"{self.min} to {self.max}"


def range_of(workers: int | WorkerRange) -> WorkerRange:
    """`workers` as a run file says it, as a range."""
    return WorkerRange(workers, workers) if isinstance(workers, int) else workers
