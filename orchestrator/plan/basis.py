"""What a plan rests on: speeds by number of ranks, lengths, and every assumption in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from manta.orchestrator.simulation.lengths import Lengths
from manta.orchestrator.simulation.speeds import Speeds


@dataclass(frozen=True, slots=True)
class Basis:
    """`speeds(ranks)` of the run; `max_rows`: those of an engine, bounded by its memory where that
    is known. `fits(ranks)`: whether a learner rank's memory holds its part. `flat_share` of groups
    are filtered where the algorithm does so. `told`: a line for each thing that was measured or
    assumed."""

    speeds: Callable[[int], Speeds]
    lengths: Lengths
    max_rows: int
    fits: Callable[[int], bool]
    told: tuple[str, ...]
    flat_share: float = 0.0
