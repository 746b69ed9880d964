"""How fast the parts of a run are: plain numbers, whoever measured or assumed them.

Owns the formulas from rows and tokens to seconds. A run is simulated with one `Speeds`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineSpeed:
    """One engine. A decode step of r rows with c tokens of context, all rows together, takes
    `overhead + max(base + per_row * r + per_context * c, compute_per_row * r)` seconds: memory
    moved, or products made, whichever takes longer. `prefill_per_token` are seconds a token."""

    base: float
    per_row: float = 0.0
    per_context: float = 0.0
    compute_per_row: float = 0.0
    overhead: float = 0.0
    prefill_per_token: float = 0.0

    def step_seconds(self, rows: int, context: float) -> float:
        moved = self.base + self.per_row * rows + self.per_context * context
        return self.overhead + max(moved, self.compute_per_row * rows)


@dataclass(frozen=True, slots=True)
class LearnerSpeed:
    """A step takes `fixed` seconds and `per_token` for every token of the rank that has the most,
    prompts counted."""

    fixed: float
    per_token: float
    ranks: int = 1

    def step_seconds(self, tokens: int, longest: int) -> float:
        """Of `tokens` tokens in all, no row of which is longer than `longest`."""
        return self.fixed + self.per_token * max(tokens / self.ranks, longest)


@dataclass(frozen=True, slots=True)
class Overheads:
    """Seconds beside engines and learner. `group`: of an environment worker, which has one thread,
    for each group. `reward`: from a group's samples to its scores. `reference_per_token`: of a
    reference worker. `publish`: engines stand still. `step`: of the driver, between two steps."""

    group: float = 0.0
    reward: float = 0.0
    reference_per_token: float = 0.0
    publish: float = 0.0
    step: float = 0.0


@dataclass(frozen=True, slots=True)
class Speeds:
    engine: EngineSpeed
    learner: LearnerSpeed
    overheads: Overheads
