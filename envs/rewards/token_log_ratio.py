"""How much more likely one model finds each token than another, as a reward at every token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from manta.envs.protocols import Scorer, Services
from manta.envs.records import Detail, Float32, Json, Shown, Task, Trajectory
from manta.envs.rewards.version import version_of
from manta.envs.side_by_side import side_by_side

LOGPROB = "logprob"
"""The column of a scorer's `Score` that holds the log-probs of a trajectory's tokens."""


class TokenLogRatio:
    """`clip(scale * (log p(y_t) - log q(y_t)), -clip, clip)` at each token y_t of the policy, p and
    q being the scorers `scorer` and `against`, both of kind `logprobs`. The component's own value
    is the sum over a sample's tokens.

    RTO (Zhong et al., arXiv 2404.18922): with p trained by DPO from q this is the reward that DPO
    has learnt, token by token. Scale and clip are those of the authors' script; `clip` None: no
    bound. Raises ValueError where scale or clip is not above 0, or p is q.
    """

    rewards_within = True
    scorer_kind = "logprobs"

    def __init__(
        self, scorer: str, against: str, scale: float = 0.05, clip: float | None = 0.05
    ) -> None:
        if not scale > 0 or (clip is not None and not clip > 0):
            raise ValueError(f"scale {scale} and clip {clip} must be above 0 (clip null: no bound)")
        if scorer == against:
            raise ValueError(f"scorer and against are both {scorer!r}: their ratio is 1 everywhere")
        self.scorers = (scorer, against)
        self._scale, self._clip = scale, clip
        told: dict[str, Json] = {"scorer": scorer, "against": against, "scale": scale, "clip": clip}
        self.version = version_of("token_log_ratio", told, type(self))

    async def score_group(
        self, task: Task, trajectories: Sequence[Trajectory], services: Services
    ) -> list[Detail]:
        """Raises WorldBroke where a scorer did not answer, ValueError where one says nothing of
        tokens."""
        shown = [Shown(task, (each,)) for each in trajectories]
        ours, theirs = await side_by_side(
            [_logprobs(name, services.scorers[name], shown) for name in self.scorers]
        )
        return [self._detail(own - other) for own, other in zip(ours, theirs, strict=True)]

    def _detail(self, log_ratio: Float32) -> Detail:
        rewards = log_ratio * np.float32(self._scale)
        if self._clip is not None:
            rewards = np.clip(rewards, -self._clip, self._clip)
        rewards = rewards.astype(np.float32)
        return Detail(float(rewards.sum(dtype=np.float64)), column=rewards)


async def _logprobs(name: str, scorer: Scorer, shown: Sequence[Shown]) -> list[Float32]:
    scores = await scorer(shown)
    if not all(LOGPROB in score.columns for score in scores):
        raise ValueError(
            f"scorer '{name}' says nothing of tokens: set scorers.{name}.kind to logprobs"
        )
    return [score.columns[LOGPROB] for score in scores]
