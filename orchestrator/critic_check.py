"""What a run file with a critic must say elsewhere.

The critic alone is `manta.algorithms.contradictions`'.
"""

from __future__ import annotations

from collections.abc import Iterator

from manta.actors.backends.settings import BACKEND_NAMES, HOLDING_RESIDENTS
from manta.algorithms.part_settings import CriticSettings
from manta.orchestrator.config import RunFile, StageConfig
from manta.orchestrator.model_folder import folder_problems

_APART = "or take an algorithm without one, such as grpo"


def critic_problems(run_file: RunFile) -> Iterator[str]:
    """One line each, starting with the key."""
    for index, stage in enumerate(run_file.stages):
        critic = None if stage.algorithm is None else stage.algorithm.critic
        if critic is None:
            continue
        for told in _stage(run_file, stage, critic):
            yield f"stages[{index}].algorithm.critic{told}"


def _stage(run_file: RunFile, stage: StageConfig, critic: CriticSettings) -> Iterator[str]:
    """Problems of one stage's critic, as the rest of the key and what is wrong."""
    if stage.kind != "train":
        # What a generate stage takes of an algorithm is how many samples to make.
        return
    backend = run_file.learner.backend
    if backend in BACKEND_NAMES and backend not in HOLDING_RESIDENTS:
        yield (
            f": learner.backend {backend} cannot train a critic beside the policy: choose "
            f"{' or '.join(HOLDING_RESIDENTS)}, {_APART}"
        )
    if critic.warmup_steps >= stage.steps > 0:
        yield (
            f".warmup_steps: is {critic.warmup_steps}, but the stage has {stage.steps} steps, so "
            "that the policy would never train: set fewer"
        )
    if critic.path is not None:
        for told in folder_problems(critic.path, run_file.model.context):
            yield f".path: {told}"
