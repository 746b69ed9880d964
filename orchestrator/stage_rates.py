"""The learning rates of a training stage's steps: the policy's, and those of what trains beside it.

Owns when which of them trains. Loads no torch.
"""

from __future__ import annotations

from dataclasses import replace

from manta.actors.backends.schedule import NO_RESIDENTS, ResidentRates
from manta.actors.backends.settings import CRITIC
from manta.orchestrator.config import RunFile, StageConfig


class StageRates:
    """Steps count from 0 at the stage's start."""

    def __init__(self, run_file: RunFile, stage: StageConfig) -> None:
        self._schedule = run_file.schedule(stage)
        self._steps = stage.steps
        self._critic = None if stage.algorithm is None else stage.algorithm.critic
        self._alone = 0 if self._critic is None else self._critic.warmup_steps

    def policy(self, step: int) -> float:
        """Its schedule begins when it begins to train: after the critic's warm-up."""
        return self._schedule.at(max(0, step - self._alone), self._steps - self._alone)

    def residents(self, step: int) -> ResidentRates:
        """The critic follows the policy's schedule over the whole stage, to a peak of its own if it
        has one."""
        if self._critic is None:
            return NO_RESIDENTS
        own = self._critic.learning_rate
        schedule = self._schedule if own is None else replace(self._schedule, peak=own)
        return ResidentRates({CRITIC: schedule.at(step, self._steps)}, step < self._alone)
