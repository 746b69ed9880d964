"""From a scored group to the scalars of it that travel to the driver.

What these are is `manta.envs.records.GroupSummary`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from manta.envs.records import (
    GIVEN,
    MARGIN,
    Companion,
    CompanionSummary,
    GroupSummary,
    Int32,
    ScoredGroup,
    Trajectory,
    WeightVersion,
    version_ranges,
)


def summarise(group: ScoredGroup) -> GroupSummary:
    """The summary of `group` that travels to the driver."""
    names = sorted({name for score in group.scores for name in score.components})
    versions = [span.version for t in group.trajectories for span in t.weight_versions]
    return GroupSummary(
        id=group.id,
        task_id=group.task.id,
        rewards=np.array([score.value for score in group.scores], np.float32),
        components={
            name: np.array(
                [score.components.get(name, np.nan) for score in group.scores], np.float32
            )
            for name in names
        },
        num_tokens=np.array([t.loss_mask.sum() for t in group.trajectories], np.int32),
        lengths=np.array([len(t.token_ids) for t in group.trajectories], np.int32),
        is_truncated=np.array([t.finish_reason == "length" for t in group.trajectories], np.bool_),
        oldest=min(versions, default=None),
        newest=max(versions, default=None),
        content_hash=group.content_hash(),
        timings=group.timings,
        tokens_by_version=_tokens_by_version(group.trajectories),
        cut_off=group.cut_off,
        margin=_margin(group),
        companion=_companion(group.companion),
    )


def _companion(companion: Companion | None) -> CompanionSummary | None:
    if companion is None:
        return None
    trajectory = companion.trajectory
    return CompanionSummary(
        companion.kind,
        companion.score.value,
        int(trajectory.loss_mask.sum()),
        len(trajectory.token_ids),
        trajectory.finish_reason == "length",
    )


def _margin(group: ScoredGroup) -> float:
    """Of given answers alone: what a policy samples for the same task is not what was compared."""
    is_given = all(trajectory.model == GIVEN for trajectory in group.trajectories)
    return float(group.task.facts.get(MARGIN, 0.0)) if is_given else 0.0


def _tokens_by_version(trajectories: Sequence[Trajectory]) -> Mapping[WeightVersion, Int32]:
    """int32[n] per version: trained tokens of each trajectory, none for given answers."""
    counts: dict[WeightVersion, Int32] = {}
    for i, trajectory in enumerate(trajectories):
        for version, start, end in version_ranges(trajectory):
            count_n = counts.setdefault(version, np.zeros(len(trajectories), np.int32))
            count_n[i] += np.count_nonzero(trajectory.loss_mask[start:end])
    return counts
