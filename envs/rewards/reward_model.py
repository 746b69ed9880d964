"""What a reward model says of each sample, as a component.

Owns nothing of the model: where it runs and how it scores is the scorer's part.
"""

from __future__ import annotations

from collections.abc import Sequence

from manta.envs.protocols import Services
from manta.envs.records import Shown, Task, Trajectory
from manta.envs.rewards.version import version_of


class RewardModel:
    """The value that the scorer named `scorer` gives each sample, on that model's own scale.

    Rewards learnt from comparisons (arXiv 2009.01325) have no zero: only differences between
    samples of one task mean anything.
    """

    scorer_kind = "reward_model"

    def __init__(self, scorer: str) -> None:
        self.scorers = (scorer,)
        self.version = version_of("reward_model", {"scorer": scorer}, type(self))

    async def score_group(
        self, task: Task, trajectories: Sequence[Trajectory], services: Services
    ) -> list[float | None]:
        """Raises WorldBroke where the scorer did not answer."""
        [name] = self.scorers
        found = await services.scorers[name]([Shown(task, (each,)) for each in trajectories])
        return [score.value for score in found]
