"""Rewards within a trajectory on their way to the learner: from tokens to trained tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from manta.actors.rows import Row, rows_of
from manta.envs.chat_template import POLICY
from manta.envs.packing import Block
from manta.envs.records import (
    TOKEN_REWARDS,
    Bool,
    Float32,
    ScoredGroup,
    Turn,
    VersionSpan,
    WeightVersion,
)
from tiny import groups_of, paid_within, plan_of

MASK = np.array([0, 0, 1, 1, 0, 0, 1, 0, 1, 1], np.bool_)
"""A prompt, a turn of two tokens, two of somebody else's, a turn of one, one else's, two."""
TURNS = (
    Turn("prompt", 0, 2),
    Turn(POLICY, 2, 4),
    Turn("user", 4, 6),
    Turn(POLICY, 6, 7),
    Turn("user", 7, 8),
    Turn(POLICY, 8, 10),
)


def row(mask: Bool = MASK, turns: tuple[Turn, ...] = TURNS, **paid: float) -> Row:
    """Paid `t5=1.0` at token 5."""
    rewards = np.zeros(len(mask), np.float32)
    for name, value in paid.items():
        rewards[int(name[1:])] = value
    ids = np.arange(len(mask), dtype=np.int32)
    return Row(0, ids, mask, None, None, {}, token_rewards=rewards, turns=turns)


def test_what_is_paid_at_a_trained_token_stays_there() -> None:
    assert row(t2=1.0, t3=2.0, t6=3.0, t9=4.0).rewards_T().tolist() == [1, 2, 3, 0, 4]


def test_what_is_paid_in_anothers_turn_goes_to_who_spoke_before() -> None:
    assert row(t3=1.0, t5=2.0, t7=4.0).rewards_T().tolist() == [0, 3, 4, 0, 0]


def test_what_is_paid_in_the_prompt_is_nobodys() -> None:
    assert row(t0=1.0, t1=2.0).rewards_T().tolist() == [0] * 5
    untrained = row(np.zeros(10, np.bool_), t4=1.0)
    assert untrained.rewards_T().tolist() == [] == untrained.turns_T().tolist()


def test_tokens_that_do_not_train_any_more_hand_their_rewards_back() -> None:
    """The last turn is too old, and so is the first token."""
    mask = MASK & (np.arange(10) < 8) & (np.arange(10) > 2)
    aged = row(mask, t2=1.0, t3=2.0, t6=4.0, t9=8.0)
    assert aged.rewards_T().tolist() == [2, 12]
    assert aged.turns_T().tolist() == [0, 1]


def test_turns_are_counted_over_the_policy_s_own() -> None:
    assert row().turns_T().tolist() == [0, 0, 1, 2, 2]
    without_the_first = row(MASK & (np.arange(10) > 5))
    assert without_the_first.turns_T().tolist() == [1, 2, 2]
    assert row(turns=()).turns_T().tolist() == [0] * 5


def test_a_row_without_rewards_within_is_paid_nothing() -> None:
    assert replace(row(), token_rewards=None).rewards_T().tolist() == [0.0] * 5


def rows(group: ScoredGroup, oldest: int | None = None) -> list[Row]:
    plan = replace(plan_of([group]), oldest_version=oldest)
    return rows_of(plan, {group.id: group}, range(len(group.trajectories)))


def test_rewards_travel_with_their_group() -> None:
    import pickle

    [group] = paid_within(groups_of((3,)))
    [travelled] = pickle.loads(pickle.dumps(Block((group,)))).groups
    for found, score, trajectory in zip(
        rows(travelled), group.scores, group.trajectories, strict=True
    ):
        assert found.token_rewards is not None
        assert found.token_rewards.tolist() == score.columns[TOKEN_REWARDS].tolist()
        assert found.turns == trajectory.turns
    assert travelled.content_hash() == group.content_hash()
    assert group.content_hash() != groups_of((3,))[0].content_hash()


def with_column(column: Float32) -> ScoredGroup:
    [group] = groups_of((2,))
    broken = replace(group.scores[1], columns={TOKEN_REWARDS: column})
    return replace(group, scores=(group.scores[0], broken))


def test_a_broken_column_names_task_and_sample() -> None:
    length = len(groups_of((2,))[0].trajectories[1].token_ids)
    column = np.zeros(length, np.float32)
    column[-1] = np.nan
    told = f"task task-0, sample 1 of group 0.0.0: .* {length} numbers for {length} tokens, 1 of"
    with pytest.raises(ValueError, match=told):
        rows(with_column(column))
    with pytest.raises(ValueError, match=f"has 1 numbers for {length} tokens, 0 of them"):
        rows(with_column(np.zeros(1, np.float32)))
    first, second = rows(with_column(np.ones(length, np.float32)))
    assert first.token_rewards is None and second.rewards_T().sum() > 0


def test_old_tokens_are_left_out_by_the_plan() -> None:
    [group] = paid_within(groups_of((1,)))
    [trajectory] = group.trajectories
    half = len(trajectory.token_ids) // 2
    versions = (VersionSpan(0, WeightVersion(1, 0)), VersionSpan(half, WeightVersion(5, 0)))
    aged = replace(group, trajectories=(replace(trajectory, weight_versions=versions),))
    mask = trajectory.loss_mask & (np.arange(len(trajectory.token_ids)) >= half)
    plan = replace(plan_of([aged]), oldest_version=3, num_tokens_N=np.array([mask.sum()], np.int32))
    [found] = rows_of(plan, {aged.id: aged}, [0])
    first = int(mask.argmax())
    paid = group.scores[0].columns[TOKEN_REWARDS].astype(np.float64)
    assert found.rewards_T().sum() == pytest.approx(paid[first:].sum(), rel=1e-5)
