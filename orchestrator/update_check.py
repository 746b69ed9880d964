"""Do the updates of a stage's steps give its loss anything to do?"""

from __future__ import annotations

from collections.abc import Iterator

from manta.algorithms.settings import AlgorithmSettings
from manta.orchestrator.config import RunFile, StageConfig


def update_problems(
    run_file: RunFile, stage: StageConfig, algorithm: AlgorithmSettings
) -> Iterator[str]:
    """Problems, as the rest of the stage's key and what is wrong."""
    if stage.kind != "train" or algorithm.loss != "kl_cov":
        return
    starts_from_samples = algorithm.proximal == "behaviour" and (
        run_file.rollout.max_staleness > 0 or stage.trajectories is not None
    )
    if stage.updates_per_step * stage.epochs_per_step == 1 and not starts_from_samples:
        yield (
            ".updates_per_step: with one update a step the policy has not moved when the loss "
            "kl_cov looks at how far it has, so that no token is held back: make it more (8 in "
            "arXiv 2505.22617), or epochs_per_step, or set algorithm.loss to clip_cov"
        )
