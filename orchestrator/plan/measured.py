"""A plan's basis from a finished run: calibrated, and fitted so that it explains that run itself.

Owns the fit. What is read of a run is `calibration`'s.
"""

from __future__ import annotations

from dataclasses import replace

from manta.orchestrator.config import StageConfig
from manta.orchestrator.plan.basis import Basis
from manta.orchestrator.plan.calibration import Calibration, with_group_seconds
from manta.orchestrator.plan.shapes import Simulated
from manta.orchestrator.simulation.speeds import Speeds

_CLOSE = 0.005
"""Of the measured step: a fit that is this near is good."""
_MOST_TRIES = 12


def basis_of(found: Calibration, stage: StageConfig) -> Basis:
    """For `stage` of the run that is planned: with its passes over the data, otherwise as found."""

    def speeds(ranks: int) -> Speeds:
        return Speeds(found.engine, found.learner(stage, ranks), found.overheads)

    return Basis(
        speeds=speeds,
        lengths=found.lengths,
        max_rows=1 << 30,
        fits=lambda ranks: True,
        told=found.told,
        flat_share=found.flat_share,
    )


def own_step(found: Calibration) -> float:
    """Seconds of a step of the calibrating run itself, as it is simulated."""
    simulated = Simulated(found.run_file, found.stage)
    workers = found.run_file.rollout.sizes.max, found.run_file.learner.ranks.max
    return simulated.predict(basis_of(found, found.stage), *workers).step_seconds


def fitted(found: Calibration) -> Calibration:
    """`found` with what its parts do not explain of its own step put on the environment workers,
    for each group; with a line that says how much that is, and what it leaves unexplained."""
    goal = found.step_seconds
    low, high = 0.0, goal * found.run_file.environment.sizes.max / found.stage.prompts_per_step
    best = found
    took = own_step(best)
    if took < goal:
        for _ in range(_MOST_TRIES):
            best = with_group_seconds(found, (low + high) / 2)
            took = own_step(best)
            if abs(took - goal) < _CLOSE * goal:
                break
            if took < goal:
                low = best.overheads.group
            else:
                high = best.overheads.group
    told = (
        f"an environment worker: {1e3 * best.overheads.group:.3g} ms a group, fitted: with it the "
        f"simulated run takes {took:.3g} s a step where it was measured ({took / goal - 1:+.1%})"
    )
    return replace(best, told=(*best.told, told))
