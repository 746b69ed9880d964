"""What a run file with a critic must say elsewhere; the critic alone is `presets.check`'s."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from manta.actors.backends.settings import BACKEND_NAMES, HOLDING_RESIDENTS
from manta.algorithms.settings import CriticSettings
from manta.orchestrator.config import RunFile, StageConfig

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
        yield from folder_problems(run_file, critic.path)


def folder_problems(run_file: RunFile, path: str) -> Iterator[str]:
    """Of the folder that a model beside the policy starts from, as the rest of the key and what is
    wrong. Hub names are looked at when the model is loaded."""
    is_file_path = path.startswith((".", "/", "~")) or path.count("/") > 1
    if not Path(path).is_dir():
        if is_file_path:
            yield f".path: there is no folder '{path}'"
        return
    file = Path(path) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield f".path: cannot read {file}: {error}"
        return
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and positions < run_file.model.context:
        yield (
            f".path: the model in '{path}' was made for at most {positions:,} tokens, "
            f"model.context is {run_file.model.context:,}"
        )
