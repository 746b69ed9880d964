"""Do the updates of a stage's steps go with its loss?"""

from __future__ import annotations

from collections.abc import Iterator

from manta.algorithms.catalogue import LOSS_KINDS
from manta.algorithms.settings import AlgorithmSettings
from manta.orchestrator.config import RunFile, StageConfig


def update_problems(
    run_file: RunFile, stage: StageConfig, algorithm: AlgorithmSettings
) -> Iterator[str]:
    """Problems, as the rest of the stage's key and what is wrong."""
    if stage.kind != "train":
        return
    updates = stage.updates_per_step * stage.epochs_per_step
    if LOSS_KINDS[algorithm.loss].is_plain and updates > 1:
        yield (
            f".updates_per_step: a step makes {updates} updates, and the loss {algorithm.loss} has "
            "no ratio to the policy that sampled: from the second on nothing says how far the "
            "policy has moved since. Set updates_per_step and epochs_per_step to 1, or "
            "algorithm.loss to clipped_surrogate"
        )
    starts_from_samples = algorithm.proximal == "behaviour" and (
        run_file.rollout.max_staleness > 0 or stage.trajectories is not None
    )
    if algorithm.loss == "kl_cov" and updates == 1 and not starts_from_samples:
        yield (
            ".updates_per_step: with one update a step the policy has not moved when the loss "
            "kl_cov looks at how far it has, so that no token is held back: make it more (8 in "
            "arXiv 2505.22617), or epochs_per_step, or set algorithm.loss to clip_cov"
        )
