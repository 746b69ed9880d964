"""From a stage of a run file to what is simulated of it, on so many engines.

Owns what of the run file counts in a simulation, and how many steps are simulated.
"""

from __future__ import annotations

from dataclasses import dataclass

from manta.envs.sources.order import EpochOrder
from manta.orchestrator.config import RunFile, StageConfig
from manta.orchestrator.expected_lengths import ExpectedLengths
from manta.orchestrator.plan.basis import Basis
from manta.orchestrator.reference_use import needs_reference
from manta.orchestrator.simulation.predict import Prediction, predict
from manta.orchestrator.simulation.stage import SimulatedStage
from manta.orchestrator.simulation.world import WorldShape
from manta.orchestrator.stage_feed import stage_ages, stage_cap, stage_feed

ROWS_SIMULATED = 8_000
"""About so many samples are simulated of each split that is looked at."""
MOST_STEPS, LEAST_STEPS = 16, 3
"""Steps that count."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """A stage of a run; `num_tasks` of its data, where they are known."""

    run_file: RunFile
    stage: StageConfig
    num_tasks: int = 1_000_000

    @property
    def samples(self) -> int:
        assert self.stage.algorithm is not None
        return self.stage.algorithm.samples_per_prompt

    def predict(self, basis: Basis, engines: int, ranks: int, seed: int = 0) -> Prediction:
        """What the stage would take with `engines` engines and `ranks` learner ranks."""
        staleness = self.run_file.max_staleness(self.stage)
        rows = self.stage.prompts_per_step * self.samples
        counted = min(MOST_STEPS, max(LEAST_STEPS, ROWS_SIMULATED // rows))
        counted = max(counted, staleness + 1)
        return predict(
            self._stage,
            self._world(basis, engines, seed),
            basis.speeds(ranks),
            basis.lengths,
            filling=staleness + 1,
            counted=counted,
        )

    def _stage(self, steps: int) -> SimulatedStage:
        run_file, stage = self.run_file, self.stage
        assert stage.algorithm is not None
        is_longest_first = run_file.rollout.dispatch == "longest_first"
        return SimulatedStage(
            feed=stage_feed(run_file, stage, EpochOrder(self.num_tasks, run_file.run.seed)),
            algorithm=stage.algorithm,
            prompts=stage.prompts_per_step,
            steps=steps,
            groups_per_call=run_file.groups_per_call(stage),
            ages=stage_ages(run_file, stage),
            cap=stage_cap(run_file, stage, None),
            lengths=ExpectedLengths() if is_longest_first else None,
            name=stage.name,
        )

    def _world(self, basis: Basis, engines: int, seed: int) -> WorldShape:
        run_file, rollout = self.run_file, self.run_file.rollout
        max_rows = min(rollout.max_rows, basis.max_rows)
        has_reference = needs_reference(run_file, self.stage)
        return WorldShape(
            engines=engines,
            max_rows=max_rows,
            most_rows=max_rows + rollout.rows_ahead,
            samples=self.samples,
            max_new_tokens=rollout.max_new_tokens,
            is_adaptive=rollout.adaptive_rows,
            spare_samples=rollout.redundant_samples,
            companion=self.stage.algorithm.companion if self.stage.algorithm else "none",
            environment_workers=run_file.environment.sizes.max,
            reference_workers=run_file.reference.workers if has_reference else 0,
            flat_share=basis.flat_share,
            recomputes=rollout.kv_on_publish == "recompute",
            seed=seed,
        )
