"""Sharding and micro-batching: every row once, units whole, order without effect."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.actors.micro_batches import micro_batches, padded_batches
from manta.actors.rows import Row
from manta.actors.sharding import kept_rows, mini_batches, shard
from manta.envs.records import GroupId
from manta.envs.step_records import StepPlan


def make_plan(groups: list[list[tuple[int, int, bool]]]) -> StepPlan:
    """Per group a list of units (rows, length, kept)."""
    rows = [
        (g, unit, length, kept)
        for g, units in enumerate(groups)
        for unit, (count, length, kept) in enumerate(units)
        for _ in range(count)
    ]
    names = {pair: i for i, pair in enumerate(dict.fromkeys((g, u) for g, u, _, _ in rows))}
    lengths = np.array([length + i % 3 for i, (_, _, length, _) in enumerate(rows)], np.int32)
    return StepPlan(
        step=0,
        groups=tuple(GroupId(0, g, 0) for g in range(len(groups))),
        group_N=np.array([g for g, _, _, _ in rows], np.int32),
        sample_N=np.zeros(len(rows), np.int32),
        unit_N=np.array([names[g, u] for g, u, _, _ in rows], np.int32),
        coefficients={"keep": np.array([kept for *_, kept in rows], np.float32)},
        lengths_N=lengths,
        num_tokens_N=lengths,
    )


UNIT = st.tuples(st.integers(1, 3), st.integers(1, 300), st.booleans())
PLANS = st.lists(st.lists(UNIT, max_size=5), max_size=6).map(make_plan)


@given(PLANS, st.integers(1, 5), st.integers(1, 4))
def test_every_kept_row_is_trained_exactly_once(plan: StepPlan, ranks: int, updates: int) -> None:
    shards = shard(plan, ranks, updates)
    assert [len(by_rank) for by_rank in shards] == [ranks] * updates
    rows = [row for by_rank in shards for share in by_rank for row in share.tolist()]
    assert sorted(rows) == kept_rows(plan).tolist()


@given(PLANS, st.integers(1, 5), st.integers(1, 4))
def test_a_unit_stays_on_one_rank(plan: StepPlan, ranks: int, updates: int) -> None:
    owners: dict[int, set[tuple[int, int]]] = {}
    for update, by_rank in enumerate(shard(plan, ranks, updates)):
        for rank, share in enumerate(by_rank):
            for row in share.tolist():
                owners.setdefault(int(plan.unit_N[row]), set()).add((update, rank))
    assert all(len(places) == 1 for places in owners.values())


@given(PLANS, st.integers(1, 5), st.integers(1, 4))
def test_mini_batches_do_not_depend_on_ranks(plan: StepPlan, ranks: int, updates: int) -> None:
    whole = mini_batches(plan, updates)
    for rows, by_rank in zip(whole, shard(plan, ranks, updates), strict=True):
        assert sorted(row for share in by_rank for row in share.tolist()) == rows.tolist()
    order = [plan.group_N[rows].tolist() for rows in whole]
    in_order = [group for part in order for group in part]
    assert in_order == sorted(in_order)
    parts = [set(groups) for groups in order]
    assert sum(len(part) for part in parts) == len(set().union(*parts))
    assert max(len(part) for part in parts) - min(len(part) for part in parts) <= 1


@given(PLANS, st.integers(1, 5))
def test_ranks_differ_by_one_unit_at_most(plan: StepPlan, ranks: int) -> None:
    (by_rank,) = shard(plan, ranks, 1)
    loads = [int(plan.lengths_N[share].sum()) for share in by_rank]
    kept = kept_rows(plan)
    units = np.bincount(plan.unit_N[kept], weights=plan.lengths_N[kept]) if len(kept) else [0]
    assert max(loads) - min(loads) <= max(units)


def test_a_plan_without_keep_trains_every_row() -> None:
    plan = make_plan([[(1, 5, True)], [(1, 7, False)]])
    plan = StepPlan(
        plan.step, plan.groups, plan.group_N, plan.sample_N, plan.unit_N, {}, *[plan.lengths_N] * 2
    )
    assert [rows.tolist() for rows in mini_batches(plan, 2)] == [[0], [1]]


def test_no_ranks_or_updates_is_an_error() -> None:
    plan = make_plan([[(1, 5, True)]])
    with pytest.raises(ValueError, match="0 ranks"):
        shard(plan, 0, 1)
    with pytest.raises(ValueError, match="updates per step is 0"):
        shard(plan, 1, 0)


def row_of(index: int, length: int) -> Row:
    ids = np.zeros(length, np.int32)
    return Row(index, ids, np.arange(length) > 0, None, None, {})


LENGTHS = st.lists(st.integers(1, 300), max_size=60)


@given(LENGTHS, st.integers(1, 4000), st.randoms(use_true_random=False))
def test_micro_batches_hold_every_row_within_the_budget(lengths, budget, random) -> None:  # type: ignore[no-untyped-def]
    rows = [row_of(i, length) for i, length in enumerate(lengths)]
    batches = [[row.index for row in batch] for batch in micro_batches(rows, budget)]
    assert sorted(index for batch in batches for index in batch) == list(range(len(rows)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[i] for i in batch) <= budget
    in_order = [lengths[i] for batch in batches for i in batch]
    assert in_order == sorted(lengths, reverse=True)
    random.shuffle(rows)
    assert [[row.index for row in batch] for batch in micro_batches(rows, budget)] == batches


@given(LENGTHS, st.randoms(use_true_random=False))
def test_padded_batches_hold_every_row_with_little_padding(lengths, random) -> None:  # type: ignore[no-untyped-def]
    rows = [row_of(i, length) for i, length in enumerate(lengths)]
    batches = [[row.index for row in batch] for batch in padded_batches(rows)]
    assert sorted(index for batch in batches for index in batch) == list(range(len(rows)))
    cells = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert cells <= len(lengths) * max(lengths, default=0)
    random.shuffle(rows)
    assert [[row.index for row in batch] for batch in padded_batches(rows)] == batches


def test_equal_rows_share_one_micro_batch() -> None:
    rows = [row_of(i, 64) for i in range(32)]
    assert [len(batch) for batch in micro_batches(rows, 2048)] == [32]
    assert [len(batch) for batch in micro_batches(rows, 1024)] == [16, 16]


def test_padding_does_not_count() -> None:
    rows = [row_of(i, length) for i, length in enumerate([256, *[16] * 40])]
    assert [len(batch) for batch in micro_batches(rows, 512)] == [17, 24]


def test_attention_counts_as_work() -> None:
    """Half of the tokens are a row of 900 and some short ones; half of the work is that row."""
    plan = make_plan([[(1, 900, True)], *[[(1, 100, True)]] * 18])
    (by_tokens,), (by_work,) = shard(plan, 2, 1), shard(plan, 2, 1, attention_tokens=300)
    assert min(len(share) for share in by_tokens) > 1
    assert sorted(len(share) for share in by_work) == [1, 18]
