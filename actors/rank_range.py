"""How many ranks the learner group has: a number, or as many as there is place for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RankRange:
    """From `min` to `max`. Places that appear beside a working group are taken once no further one
    has come for `settle_seconds`: another number of ranks costs a start of the group."""

    min: int
    max: int
    settle_seconds: float = 10.0

    @property
    def is_fixed(self) -> bool:
        return self.min == self.max

    @property
    def span(self) -> int:
        """How many may come beside the fewest."""
        return self.max - self.min

    def __str__(self) -> str:
        return f"{self.min}" if self.is_fixed else f"{self.min} to {self.max}"


def ranks_of(workers: int | RankRange) -> RankRange:
    """`workers` as a run file says it, as a range."""
    return RankRange(workers, workers) if isinstance(workers, int) else workers
