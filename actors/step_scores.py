"""The final scores of a step: what batch-scope components add once its groups are known together.

Groups arrive with the scores of their trajectory- and group-scope components; they are not changed,
so what is written of them, and their content hash, has the scores of before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from manta.envs.protocols import Services
from manta.envs.records import Float32, GroupSummary, Score, ScoredGroup
from manta.envs.rewards.compose import Composition


@dataclass(frozen=True, slots=True)
class FinalScores:
    """Of one group, one entry per sample in each array; NaN where a component is absent."""

    rewards: Float32
    components: Mapping[str, Float32]


async def score_step(
    composition: Composition, groups: Sequence[ScoredGroup], services: Services
) -> list[FinalScores]:
    """For each of the step's groups, in plan order.

    Raises RewardFailed where a batch-scope component has a bug.
    """
    values = await composition.score_batch([(g.task, g.trajectories) for g in groups], services)
    return [
        _columns(composition.finish(group.trajectories, group.scores, of_group))
        for group, of_group in zip(groups, values, strict=True)
    ]


def with_final(summary: GroupSummary, final: FinalScores) -> GroupSummary:
    """`summary` with the scores that train."""
    return replace(summary, rewards=final.rewards, components=final.components)


def _columns(scores: Sequence[Score]) -> FinalScores:
    names = sorted({name for score in scores for name in score.components})
    columns = {name: [score.components.get(name, np.nan) for score in scores] for name in names}
    return FinalScores(
        rewards=np.array([score.value for score in scores], np.float32),
        components={name: np.array(values, np.float32) for name, values in columns.items()},
    )
