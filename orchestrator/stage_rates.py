"""The learning rates of a training stage's steps: the policy's, and those of what trains beside it.

Owns when which of them trains. Loads no torch.
"""

from __future__ import annotations

from dataclasses import replace

from manta.actors.backends.schedule import NO_RESIDENTS, ResidentRates
from manta.actors.backends.settings import CRITIC, PROCESS, REWARD
from manta.orchestrator.config import RunFile, StageConfig


class StageRates:
    """Steps count from 0 at the stage's start."""

    def __init__(self, run_file: RunFile, stage: StageConfig) -> None:
        self._schedule = run_file.schedule(stage)
        self._steps = stage.steps
        algorithm = stage.algorithm
        self._critic = None if algorithm is None else algorithm.critic
        self._reward_model = None if algorithm is None else algorithm.reward_model
        self._implicit_reward = None if algorithm is None else algorithm.implicit_reward
        self._alone = 0 if self._critic is None else self._critic.warmup_steps

    def policy(self, step: int) -> float:
        """Its schedule begins when it begins to train: after the critic's warm-up."""
        return self._schedule.at(max(0, step - self._alone), self._steps - self._alone)

    def residents(self, step: int) -> ResidentRates:
        """A critic, and reward models, follow the policy's schedule over the whole stage, to a
        peak of their own if they have one. Where a reward model trains in the place of the policy,
        that never does."""
        if self._reward_model is not None:
            return ResidentRates({REWARD: self._at(self._reward_model.learning_rate, step)}, True)
        if self._implicit_reward is not None:
            rate = self._at(self._implicit_reward.learning_rate, step)
            return ResidentRates({PROCESS: rate})
        if self._critic is None:
            return NO_RESIDENTS
        rate = self._at(self._critic.learning_rate, step)
        return ResidentRates({CRITIC: rate}, step < self._alone)

    def _at(self, own: float | None, step: int) -> float:
        schedule = self._schedule if own is None else replace(self._schedule, peak=own)
        return schedule.at(step, self._steps)
