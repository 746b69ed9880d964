"""Examinations of the policy: when they are due, and where their results go."""

from __future__ import annotations

from manta.orchestrator.config import StageConfig
from manta.orchestrator.evaluate import Evaluation, evaluate
from manta.orchestrator.lanes import eval_lane
from manta.orchestrator.open_lanes import open_lane
from manta.orchestrator.run_context import RunContext


class Examiner:
    """Evaluates a stage's policy on held-out tasks; does nothing without an `evaluate` block."""

    def __init__(self, run: RunContext, stage: StageConfig) -> None:
        self._run, self._stage, self._settings = run, stage, stage.evaluate
        self._num_tasks = 0

    async def open(self) -> None:
        if self._settings is None:
            return
        self._lane = eval_lane(self._run.run_file, self._stage, self._settings)
        run = self._run
        self._num_tasks = await open_lane(run.crew, self._lane, run.waits, run.deadline_seconds)

    def is_due(self, stage_step: int) -> bool:
        return self._settings is not None and stage_step % self._settings.every_steps == 0

    async def examine(self) -> Evaluation | None:
        """Evaluates the weights that the engines serve now."""
        if self._settings is None:
            return None
        run = self._run
        with run.recorder.phase("evaluate"):
            evaluation = await run.waits.wait(
                f"the evaluation of {self._settings.prompts} held-out tasks",
                evaluate(run.crew.environment, self._lane, self._settings, self._num_tasks),
                run.deadline_seconds,
            )
        run.recorder.evaluation(run.progress, evaluation)
        return evaluation
