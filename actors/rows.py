"""A row: one trajectory as the learner sees it, with the coefficients that the plan gave it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from manta.envs.chat_template import POLICY
from manta.envs.records import (
    COMPANION,
    TOKEN_REWARDS,
    Bool,
    Float32,
    GroupId,
    Int32,
    Likeliest,
    ScoredGroup,
    Trajectory,
    Turn,
    WeightVersion,
    version_ranges,
)
from manta.envs.step_records import StepPlan

Int64: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Row:
    """Shapes: all arrays are [L] over the whole trajectory; `index` is its place in the plan.

    `same_version` is True where a token was sampled under the weights that the learner holds
    before the step; None where that is not known. `token_rewards` float32[L] are the rewards within
    the trajectory, None where there are none; `turns` are all of its turns. `likeliest`, of the
    trained tokens alone, is what the reference found likely, where it was asked.
    """

    index: int
    token_ids: Int32
    loss_mask: Bool
    behaviour_logprobs: Float32 | None
    reference_logprobs: Float32 | None
    coefficients: Mapping[str, float]
    same_version: Bool | None = None
    token_rewards: Float32 | None = None
    turns: tuple[Turn, ...] = ()
    likeliest: Likeliest | None = None

    @property
    def num_tokens(self) -> int:
        """Trained tokens."""
        return int(self.loss_mask.sum())

    @property
    def beginning(self) -> bytes:
        """The token ids (int32) before the first trained one, as bytes."""
        return self.token_ids[: int(self.loss_mask.argmax())].tobytes()

    def rewards_T(self) -> Float32:
        """float32[num_tokens]: the rewards within, each at the last trained token up to where it is
        paid: a reward for what the policy did is often paid in somebody else's turn. What is paid
        before the first trained token was earned by nothing that trains, and is left out."""
        rewards_T = np.zeros(self.num_tokens, np.float64)
        if self.token_rewards is not None:
            at_L = np.cumsum(self.loss_mask) - 1
            paid_L = (at_L >= 0) & (self.token_rewards != 0)
            np.add.at(rewards_T, at_L[paid_L], self.token_rewards[paid_L])
        return rewards_T.astype(np.float32)

    def turns_T(self) -> Int64:
        """int64[num_tokens]: which turn of the policy each trained token is in, counted from 0;
        turns of which no token trains any more count too. A trajectory without turns is one."""
        starts = [turn.start for turn in self.turns if turn.role == POLICY]
        (trained,) = np.nonzero(self.loss_mask)
        turns_T = np.searchsorted(np.array(starts, np.int64), trained, side="right") - 1
        return np.maximum(turns_T, 0).astype(np.int64)


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
    trained = _trained(trajectory, plan.oldest_version)
    row = Row(
        index=index,
        token_ids=trajectory.token_ids,
        loss_mask=trained,
        behaviour_logprobs=trajectory.logprobs,
        reference_logprobs=group.row_references[sample],
        coefficients={name: float(column[index]) for name, column in plan.coefficients.items()},
        same_version=None if held is None else _sampled_under(held, trajectory),
        token_rewards=_token_rewards(group, sample),
        turns=trajectory.turns,
        likeliest=_likeliest(group, sample, trained),
    )
    planned = (int(plan.lengths_N[index]), int(plan.num_tokens_N[index]))
    if (len(row.token_ids), row.num_tokens) != planned:
        raise ValueError(
            f"step {plan.step}: sample {sample} of group {group.id} has {len(row.token_ids)} tokens"
            f" ({row.num_tokens} trained), the plan says {planned[0]} ({planned[1]}): the plan was"
            " made from other trajectories"
        )
    return row


def _token_rewards(group: ScoredGroup, sample: int) -> Float32 | None:
    """Raises ValueError where they could not train: scores are checked where they are made, those
    of written trajectories may be of elsewhere. A companion is judged as a whole."""
    if sample == COMPANION:
        return None
    rewards = group.scores[sample].columns.get(TOKEN_REWARDS)
    if rewards is None:
        return None
    length = len(group.trajectories[sample].token_ids)
    if len(rewards) != length or not np.isfinite(rewards).all():
        raise ValueError(
            f"task {group.task.id}, sample {sample} of group {group.id}: its column "
            f"{TOKEN_REWARDS!r} of rewards within has {len(rewards)} numbers for {length} tokens, "
            f"{np.count_nonzero(~np.isfinite(rewards))} of them not finite: a reward that could "
            "not be computed must drop its sample"
        )
    return rewards


def _likeliest(group: ScoredGroup, sample: int, trained: Bool) -> Likeliest | None:
    """At the tokens `trained`, which may be fewer than the reference looked at."""
    if group.reference is None or sample == COMPANION or not group.reference.likeliest:
        return None
    kept_T = trained[group.trajectories[sample].loss_mask]
    ids, logprobs, weights = group.reference.likeliest[sample]
    return Likeliest(ids[kept_T], logprobs[kept_T], weights[kept_T])


def _sampled_under(version: WeightVersion, trajectory: Trajectory) -> Bool:
    """bool[L], True where a token stands in a span of the step of `version`: within the history
    that counts, a step has one set of weights, which a restarted learner comes back to under a
    later incarnation."""
    is_under = np.zeros(len(trajectory.token_ids), np.bool_)
    for span in trajectory.weight_versions:
        is_under[span.start :] = span.version.step == version.step
    return is_under
