"""How many workers a role has: a number, or between two bounds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """From `min`, which a run cannot do without, to `max`."""

    min: int
    max: int

    @property
    def is_fixed(self) -> bool:
        return self.min == self.max

    @property
    def span(self) -> int:
        """How many may come beside the fewest."""
        return self.max - self.min

    def __str__(self) -> str:
        return f"{self.min}" if self.is_fixed else f"{self.min} to {self.max}"


@dataclass(frozen=True, slots=True)
class WorkerRange(Bounds):
    """As many as there is work for. Those that were not needed for `idle_seconds`, and some steps,
    are let go."""

    idle_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class RankRange(Bounds):
    """As many learner ranks as there is place for. Places that appear beside a working group are
    taken once no further one has come for `settle_seconds`: another number of ranks costs a start
    of the group."""

    settle_seconds: float = 10.0


def range_of(workers: int | WorkerRange) -> WorkerRange:
    """`workers` as a run file says it, as a range."""
    return WorkerRange(workers, workers) if isinstance(workers, int) else workers


def ranks_of(workers: int | RankRange) -> RankRange:
    """The same of the learner's."""
    return RankRange(workers, workers) if isinstance(workers, int) else workers
