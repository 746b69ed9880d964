"""How devices may be shared out between engines and learner ranks, and the search for the best way.

Owns the arithmetic of splits and which of them are simulated: all of a few, of many a coarse grid
first and then ever nearer to the best. What a split takes is asked of the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from manta.orchestrator.config import RunFile
from manta.orchestrator.simulation.predict import Prediction

FEW = 8
"""Splits that are all looked at, and about as many as the coarse grid has."""
MOST_LOOKS = 12


@dataclass(frozen=True, slots=True)
class Unit:
    """What one worker takes, in devices: an engine, a learner rank."""

    engine: int
    rank: int


@dataclass(frozen=True, slots=True)
class Split:
    """`engines` engines and `ranks` learner ranks, the same devices in turns if `is_shared`."""

    engines: int
    ranks: int
    is_shared: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    split: Split
    prediction: Prediction


def unit_of(run_file: RunFile, on_cpus: bool) -> Unit:
    """On CPUs a worker takes its threads, one where it says 0 (all cores, shared)."""
    if on_cpus:
        return Unit(max(1, run_file.rollout.threads), max(1, run_file.learner.threads))
    own = run_file.rollout.vllm
    return Unit(own.tensor_parallel if run_file.rollout.engine == "vllm" else 1, 1)


def possible(
    devices: int, unit: Unit, is_shared: bool, fits: Callable[[int], bool], what: str
) -> list[Split]:
    """Every split that leaves fewer devices over than an engine takes, by falling engines.

    Raises ValueError where there are too few devices, or no learner fits.
    """
    if is_shared:
        # On CPUs the two take turns on the larger one's cores
        size = max(unit.engine, unit.rank)
        if devices < size:
            raise ValueError(f"{devices} {what} are fewer than the {size} of one engine")
        engines = devices // size
        splits = [Split(engines, engines * max(1, unit.engine // unit.rank), True)]
    else:
        least = unit.engine + unit.rank
        if devices < least:
            raise ValueError(
                f"{devices} {what} are too few: one engine takes {unit.engine} and one learner "
                f"rank {unit.rank}, {least} in all. Give more, or take turns on the same devices "
                "(rollout.placement: colocated)"
            )
        most = (devices - unit.rank) // unit.engine
        by_ranks = {(devices - n * unit.engine) // unit.rank: n for n in range(1, most + 1)}
        splits = [Split(engines, ranks) for ranks, engines in by_ranks.items()]
        splits.sort(key=lambda split: -split.engines)
    good = [split for split in splits if fits(split.ranks)]
    if not good:
        raise ValueError(
            f"on {devices} {what} the learner's part does not fit a rank's memory, however "
            "they are split: choose learner.backend fsdp, smaller micro-batches, more devices or "
            "another --device (`manta check RUN.yaml --gpus N` says what a rank needs)"
        )
    return good


def search(splits: Sequence[Split], look: Callable[[Split], Prediction]) -> list[Candidate]:
    """Looks at some of `splits` (ordered by engines), the fastest among them as far as steps get
    shorter towards it from both sides; in their order."""
    last = len(splits) - 1
    places = range(last + 1) if last < FEW else [round(i * last / FEW) for i in range(FEW + 1)]
    seen = {place: look(splits[place]) for place in sorted(set(places))}
    while len(seen) < MOST_LOOKS:
        best = min(seen, key=lambda place: (seen[place].step_seconds, place))
        gaps = [
            (abs(best - other), (best + other) // 2)
            for other in _neighbours(best, sorted(seen))
            if abs(best - other) > 1
        ]
        if not gaps:
            break
        _, place = max(gaps)
        seen[place] = look(splits[place])
    return [Candidate(splits[place], seen[place]) for place in sorted(seen)]


def best_of(candidates: Sequence[Candidate]) -> Candidate:
    """The one with the shortest step; among equals, to a hundredth, the one whose groups are least
    stale."""
    shortest = min(candidate.prediction.step_seconds for candidate in candidates)
    near = [c for c in candidates if c.prediction.step_seconds <= 1.01 * shortest]
    return min(near, key=lambda c: (c.prediction.staleness_mean, c.prediction.step_seconds))


def _neighbours(place: int, seen: Sequence[int]) -> list[int]:
    at = seen.index(place)
    return [*seen[max(0, at - 1) : at], *seen[at + 1 : at + 2]]
