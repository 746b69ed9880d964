"""A row: one trajectory as the learner sees it, with the coefficients that the plan gave it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from manta.envs.records import (
    COMPANION,
    Bool,
    Float32,
    GroupId,
    Int32,
    ScoredGroup,
    StepPlan,
    Trajectory,
    WeightVersion,
    version_ranges,
)


@dataclass(frozen=True, slots=True)
class Row:
    """Shapes: all arrays are [L] over the whole trajectory; `index` is its place in the plan.

    `same_version` is True where a token was sampled under the weights that the learner holds
    before the step; None where that is not known.
    """

    index: int
    token_ids: Int32
    loss_mask: Bool
    behaviour_logprobs: Float32 | None
    reference_logprobs: Float32 | None
    coefficients: Mapping[str, float]
    same_version: Bool | None = None

    @property
    def num_tokens(self) -> int:
        """Trained tokens."""
        return int(self.loss_mask.sum())

    @property
    def beginning(self) -> bytes:
        """The token ids (int32) before the first trained one, as bytes."""
        return self.token_ids[: int(self.loss_mask.argmax())].tobytes()


def rows_of(
    plan: StepPlan,
    groups: Mapping[GroupId, ScoredGroup],
    row_indices: Iterable[int],
    held: WeightVersion | None = None,
) -> list[Row]:
    """The rows `row_indices` of `plan`, cut from `groups` (those that the indices need).

    `held` are the weights that the learner holds, where versions can be compared with them.

    Raises ValueError where a trajectory does not have the lengths that the plan counted on, since
    every rank takes its denominators from the plan.
    """
    return [_row(plan, groups, int(index), held) for index in row_indices]


def _trained(trajectory: Trajectory, oldest: int | None) -> Bool:
    """bool[L]: the loss mask, without the tokens of weights before step `oldest`."""
    old = [r for r in version_ranges(trajectory) if oldest is not None and r[0].step < oldest]
    if not old:
        return trajectory.loss_mask
    mask = trajectory.loss_mask.copy()
    for _, start, end in old:
        mask[start:end] = False
    return mask


def _row(
    plan: StepPlan,
    groups: Mapping[GroupId, ScoredGroup],
    index: int,
    held: WeightVersion | None,
) -> Row:
    group = groups[plan.groups[plan.group_N[index]]]
    sample = int(plan.sample_N[index])
    trajectory = group.row(sample)
    row = Row(
        index=index,
        token_ids=trajectory.token_ids,
        loss_mask=_trained(trajectory, plan.oldest_version),
        behaviour_logprobs=trajectory.logprobs,
        reference_logprobs=_reference(group, sample),
        coefficients={name: float(column[index]) for name, column in plan.coefficients.items()},
        same_version=None if held is None else _sampled_under(held, trajectory),
    )
    planned = (int(plan.lengths_N[index]), int(plan.num_tokens_N[index]))
    if (len(row.token_ids), row.num_tokens) != planned:
        raise ValueError(
            f"step {plan.step}: sample {sample} of group {group.id} has {len(row.token_ids)} tokens"
            f" ({row.num_tokens} trained), the plan says {planned[0]} ({planned[1]}): the plan was"
            " made from other trajectories"
        )
    return row


def _reference(group: ScoredGroup, sample: int) -> Float32 | None:
    """The reference does not look at companions."""
    if group.reference is None or sample == COMPANION:
        return None
    return group.reference.logprobs[sample]


def _sampled_under(version: WeightVersion, trajectory: Trajectory) -> Bool:
    """bool[L], True where a token stands in a span of the step of `version`: within the history
    that counts, a step has one set of weights, which a restarted learner comes back to under a
    later incarnation."""
    is_under = np.zeros(len(trajectory.token_ids), np.bool_)
    for span in trajectory.weight_versions:
        is_under[span.start :] = span.version.step == version.step
    return is_under
